"""The blocks of a cache as events on the wire, recorded by the program and published again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvtile

LIMIT_S = 60.0
PAGE = 4


def program(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvtile", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def cache() -> Iterator[kvtile.Cache]:
    shape = kvtile.Shape(num_blocks=16, num_layers=1, page_size=PAGE, num_heads=1, head_size=64, dtype="float32")
    layout = kvtile.Layout("BLKNHC", shape=shape, tensors=np.zeros(shape.block_bytes * 16 // 4, "float32"))
    with kvtile.Cache(kvtile.Identity("a/model", "1", shape), layout, host_bytes=1 << 20) as opened:
        yield opened


def keys_of(tokens: range) -> list[bytes]:
    shape = kvtile.Shape(num_blocks=16, num_layers=1, page_size=PAGE, num_heads=1, head_size=64, dtype="float32")
    return kvtile.TokenHasher(kvtile.Identity("a/model", "1", shape)).keys(tokens)


def recorded(publisher: kvtile.EventPublisher, out: Path, batches: int) -> list[dict[str, object]]:
    assert publisher.replay_endpoint is not None
    arguments = ["--replay", publisher.replay_endpoint, "--out", str(out), "--batches", str(batches)]
    recorder = program("events", "record", publisher.endpoint, *arguments, "--seconds", str(int(LIMIT_S)), "--json")
    deadline = time.monotonic() + LIMIT_S
    while publisher.stats()["subscribers"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    # A recorder requests the past when the first live batch comes.
    publisher.publish_again()
    report, problem = recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0, problem
    told = json.loads(report)
    assert (told["batches"], told["missed_batches"], told["damaged_messages"]) == (batches, 0, 0), told
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_recording_of_a_cache_has_its_blocks_and_is_published_again(cache: kvtile.Cache, tmp_path: Path) -> None:
    tokens = range(PAGE * 3 + 1)
    keys = keys_of(tokens)
    first = tmp_path / "first.jsonl"
    with kvtile.EventPublisher(
        cache, "tcp://127.0.0.1:0", replay="tcp://127.0.0.1:0", topic="kv@pod@a/model", rank=1
    ) as publisher:
        assert publisher.give_tokens(keys, tokens) == 3
        assert cache.store(keys, [0, 1, 2]).wait().stored == 3
        assert publisher.catch_up(LIMIT_S)
        assert publisher.stats()["blocks"] == 3
        rows = recorded(publisher, first, 3)
    numbers = [int.from_bytes(key[-8:], "big") for key in keys]
    events = [row["batch"]["events"] for row in rows]  # type: ignore[index]
    stored = {
        "type": "BlockStored", "block_hashes": numbers, "parent_block_hash": None, "token_ids": list(tokens)[:12],
        "block_size": PAGE, "lora_id": None, "medium": "CPU", "lora_name": None, "tier": "host",
    }
    assert events == [[{"type": "AllBlocksCleared"}], [stored], [stored]]
    assert {(row["topic"], row["batch"]["data_parallel_rank"]) for row in rows} == {("kv@pod@a/model", 1)}  # type: ignore[index]
    # The recording, published again, gives the same recording.
    replayer = program(
        "events", "replay", str(first), "--bind", "tcp://127.0.0.1:0", "--replay-bind", "tcp://127.0.0.1:0",
        "--speed", "max", "--stay", "1",
    )
    assert replayer.stderr is not None
    address = replayer.stderr.readline().split()[2].rstrip(",")
    second = tmp_path / "second.jsonl"
    again = program("events", "record", address, "--out", str(second), "--batches", "3", "--seconds", str(int(LIMIT_S)))
    for process in (again, replayer):
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
    plain = [{**json.loads(line), "received_ms": 0} for line in second.read_text().splitlines()]
    assert plain == [{**row, "received_ms": 0} for row in rows]


def test_a_cleared_cache_and_a_closed_one(cache: kvtile.Cache) -> None:
    publisher = kvtile.EventPublisher(cache, "tcp://127.0.0.1:0", unknown_tokens="leave_out")
    tokens = range(PAGE * 2)
    publisher.give_tokens(keys_of(tokens), tokens)
    cache.store(keys_of(tokens), [0, 1]).wait()
    cache.store(keys_of(range(100, 108)), [2, 3]).wait()
    assert publisher.catch_up(LIMIT_S)
    assert (publisher.stats()["blocks"], publisher.stats()["left_out"]) == (2, 2)
    cache.clear()
    assert publisher.catch_up(LIMIT_S)
    assert (publisher.stats()["blocks"], publisher.stats()["clears"]) == (0, 2)
    cache.close()
    deadline = time.monotonic() + LIMIT_S
    while publisher.stats()["clears"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert publisher.stats()["clears"] == 3
    with pytest.raises(kvtile.ClosedError, match="the cache is closed"):
        kvtile.EventPublisher(cache, "tcp://127.0.0.1:0")
    assert publisher.close() and publisher.close() and "closed" in repr(publisher)
    with pytest.raises(kvtile.ClosedError, match="the publisher is closed"):
        publisher.stats()
    assert publisher.catch_up(0.1) is False


def test_a_block_store_publishes_too(tmp_path: Path) -> None:
    group = kvtile.StoreGroup.opaque("kv", 4096, model="a/model", revision="1")
    with (
        kvtile.BlockStore(group, disk=str(tmp_path / "kv"), disk_bytes=1 << 20) as store,
        kvtile.EventPublisher(store, "tcp://127.0.0.1:0") as publisher,
    ):
        rows = store.register(bytearray(4 * 4096))
        store.store(["a", "b"], rows, [0, 1]).wait()
        assert store.flush().durable and publisher.catch_up(LIMIT_S)
        assert publisher.stats()["blocks"] == 2


def test_wrong_arguments_are_refused_with_their_values(cache: kvtile.Cache) -> None:
    with pytest.raises(kvtile.PublishError, match="tcp://HOST:PORT"):
        kvtile.EventPublisher(cache, "ipc:///tmp/events")
    with kvtile.EventPublisher(cache, "tcp://127.0.0.1:0") as publisher:
        with pytest.raises(kvtile.PublishError, match=publisher.endpoint):
            kvtile.EventPublisher(cache, publisher.endpoint)
        with pytest.raises(kvtile.RequestError, match="11 token ids for 3 keys; a block has 4 tokens"):
            publisher.give_tokens(keys_of(range(12)), range(11))
        assert publisher.replay_endpoint is None
    with pytest.raises(kvtile.SettingsError, match="give \"numbers\" or \"bytes\""):
        kvtile.EventPublisher(cache, "tcp://127.0.0.1:0", hashes="text")  # type: ignore[arg-type]
    with pytest.raises(kvtile.ArgumentError, match="source is a Cache or a BlockStore"):
        kvtile.EventPublisher(3, "tcp://127.0.0.1:0")  # type: ignore[arg-type]
