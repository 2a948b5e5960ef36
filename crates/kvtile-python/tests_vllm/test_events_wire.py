"""``kvtile events`` against vLLM's own publisher, and against a subscriber as vLLM's example has it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

LIMIT_S = 60.0
TOPIC = "kv-events"


def program(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvtile", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def batch(number: int) -> KVEventBatch:
    """Batches in which every field has a value, or none."""
    full = BlockStored(
        block_hashes=[number.to_bytes(32, "big"), 2**64 - 1 - number],
        parent_block_hash=bytes(32) if number % 2 else None,
        token_ids=list(range(number, number + 300)),
        block_size=16,
        lora_id=None,
        medium="GPU",
        lora_name="adapter" if number % 3 else None,
        extra_keys=[("salt", ["image", number]), None],
        group_idx=number,
        kv_cache_spec_kind="full_attention",
        kv_cache_spec_sliding_window=70_000,
        locality="LOCAL",
        ownership="cpu",
        session_id=f"session {number}",
    )
    removed = BlockRemoved(block_hashes=[number], medium="CPU")
    return KVEventBatch(ts=time.time(), events=[full, removed, AllBlocksCleared()], data_parallel_rank=number)


@contextmanager
def vllm_publisher(port: int, replay_port: int, **options: int) -> Iterator[ZmqEventPublisher]:
    publisher = ZmqEventPublisher(
        data_parallel_rank=0,
        endpoint=f"tcp://*:{port}",
        replay_endpoint=f"tcp://*:{replay_port}",
        topic=TOPIC,
        **options,
    )
    try:
        yield publisher
    finally:
        publisher.shutdown()


def record(out: Path, publisher_port: int, replay_port: int, batches: int) -> subprocess.Popen[str]:
    return program(
        "events",
        "record",
        f"tcp://127.0.0.1:{publisher_port}",
        "--replay",
        f"tcp://127.0.0.1:{replay_port}",
        "--topic",
        TOPIC,
        "--out",
        str(out),
        "--batches",
        str(batches),
        "--seconds",
        str(int(LIMIT_S)),
        "--json",
    )


def recording_of(batches: list[KVEventBatch], out: Path) -> None:
    """Publishes with vLLM's class: some batches before a recorder is there, one while it is."""
    port, replay_port = free_port(), free_port()
    with vllm_publisher(port, replay_port) as publisher:
        for one in batches[:-1]:
            publisher.publish(one)
        recorder = record(out, port, replay_port, len(batches))
        # A PUB socket does not show its subscribers: the last batch is published until it is recorded.
        deadline = time.monotonic() + LIMIT_S
        while recorder.poll() is None and time.monotonic() < deadline:
            publisher.publish(batches[-1])
            time.sleep(0.2)
        report, problem = recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0, problem
    told = json.loads(report)
    assert told["batches"] == len(batches) and told["missed_batches"] == 0 and told["damaged_messages"] == 0
    assert told["stored_blocks"] == 2 * len(batches) and told["clears"] == len(batches)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[KVEventBatch]]:
    out = tmp_path_factory.mktemp("events") / "events.jsonl"
    batches = [batch(number) for number in range(50)]
    recording_of(batches, out)
    return out, batches


def test_a_recorder_has_past_and_live_batches_of_vllm(recorded: tuple[Path, list[KVEventBatch]]) -> None:
    out, batches = recorded
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["sequence"] for row in rows] == list(range(50))
    assert {row["topic"] for row in rows} == {TOPIC}
    for row, one in zip(rows, batches, strict=True):
        assert row["batch"]["time"] == one.ts
        stored = row["batch"]["events"][0]
        assert stored["token_ids"] == one.events[0].token_ids
        assert stored["session_id"] == one.events[0].session_id


def replay(out: Path, *options: str) -> tuple[subprocess.Popen[str], str, str]:
    """A program that publishes the recording, and its two endpoints."""
    arguments = ["--bind", "tcp://127.0.0.1:0", "--replay-bind", "tcp://127.0.0.1:0", "--speed", "max"]
    publishing = program("events", "replay", str(out), *arguments, *options)
    assert publishing.stderr is not None
    line = publishing.stderr.readline()
    endpoints = re.fullmatch(r"publishing on (tcp://\S+), replays on (tcp://\S+)\n", line)
    assert endpoints is not None, line
    return publishing, endpoints[1], endpoints[2]


def test_a_subscriber_of_vllm_reads_the_bytes_that_vllm_wrote(
    recorded: tuple[Path, list[KVEventBatch]],
) -> None:
    out, batches = recorded
    publishing, endpoint, _ = replay(out)
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.connect(endpoint)
        subscriber.setsockopt_string(zmq.SUBSCRIBE, TOPIC)
        subscriber.rcvtimeo = int(LIMIT_S * 1000)
        decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        encoder = msgspec.msgpack.Encoder()
        for number, one in enumerate(batches):
            topic, sequence, payload = subscriber.recv_multipart()
            assert topic.decode() == TOPIC
            assert int.from_bytes(sequence, "big") == number
            assert payload == encoder.encode(one)
            assert decoder.decode(payload) == one
    report, problem = publishing.communicate(timeout=LIMIT_S)
    assert publishing.returncode == 0, problem
    assert "50 batches" in report


END = -1


def past(client: zmq.Socket[bytes], start: int) -> list[tuple[int, bytes]]:
    """The answers to one request; a REQ socket reads the first of them only."""
    is_req = client.type == zmq.REQ
    request = start.to_bytes(8, "big")
    client.send_multipart([request] if is_req else [b"", request])
    got: list[tuple[int, bytes]] = []
    while True:
        frames = client.recv_multipart()
        if not is_req:
            assert frames.pop(0) == b""
        _, sequence, payload = frames
        number = int.from_bytes(sequence, "big", signed=True)
        if number == END:
            assert payload == b""
            return got
        got.append((number, payload))
        if is_req:
            return got


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
def test_a_client_of_vllm_requests_missed_batches(recorded: tuple[Path, list[KVEventBatch]], kind: int) -> None:
    out, batches = recorded
    encoder = msgspec.msgpack.Encoder()
    wanted = [(number, encoder.encode(one)) for number, one in enumerate(batches)][30:]
    if kind == zmq.REQ:
        wanted = wanted[:1]
    publishing, _, endpoint = replay(out, "--wait", "0", "--stay", str(int(LIMIT_S)))
    with zmq.Context() as context, context.socket(kind) as client:
        client.connect(endpoint)
        client.rcvtimeo = int(LIMIT_S * 1000)
        # The batches are published while the client connects.
        deadline = time.monotonic() + LIMIT_S
        while (got := past(client, 30)) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        client.linger = 0
    assert got == wanted
    publishing.terminate()
    publishing.communicate(timeout=LIMIT_S)


def test_a_recorder_reads_what_the_program_publishes(
    recorded: tuple[Path, list[KVEventBatch]], tmp_path: Path
) -> None:
    out, _ = recorded
    publishing, endpoint, _ = replay(out)
    again = tmp_path / "again.jsonl"
    recorder = program("events", "record", endpoint, "--out", str(again), "--batches", "50", "--seconds", "60")
    _, problem = recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0, problem
    publishing.communicate(timeout=LIMIT_S)

    def batches_of(path: Path) -> list[tuple[str, int, object]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["topic"], row["sequence"], row["batch"]) for row in rows]

    assert batches_of(again) == batches_of(out)
