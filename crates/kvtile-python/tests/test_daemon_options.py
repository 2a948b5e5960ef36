"""Options of ``kvtile serve`` that act beside its clients: events for routers, and sweeps of the shared store."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kvtile
import test_groups
from test_cache import PAGE, Engine, tokens
from test_daemon import BLOCKS, Daemon, connected, eventually

ANY = "tcp://127.0.0.1:0"
LIMIT_S = 300


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Daemon]:
    daemon = Daemon(folder, more=options)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)


def line(daemon: Daemon) -> str:
    assert daemon.process.stdout is not None
    return daemon.process.stdout.readline().rstrip()


class Recorder:
    """`kvtile events record`, whose file is read while it is written."""

    def __init__(self, endpoint: str, replay: str, out: Path) -> None:
        self.out = out
        command = [sys.executable, "-m", "kvtile", "events", "record", endpoint, "--replay", replay]
        command += ["--out", str(out), "--seconds", str(LIMIT_S)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def rows(self) -> list[dict[str, object]]:
        text = self.out.read_text() if self.out.exists() else ""
        return [json.loads(row) for row in text.splitlines(keepends=True) if row.endswith("\n")]

    def events(self) -> list[dict[str, object]]:
        return [event for row in self.rows() for event in row["batch"]["events"]]  # type: ignore[index]

    def blocks(self, kind: str, medium: str) -> list[int]:
        events = [event for event in self.events() if (event["type"], event.get("medium")) == (kind, medium)]
        return [number for event in events for number in event["block_hashes"]]  # type: ignore[attr-defined]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT_S)


def numbers(keys: list[bytes]) -> list[int]:
    return [int.from_bytes(key[-8:], "big") for key in keys]


def stored(engine: Engine, cache: kvtile.Cache, start: int, blocks: int = BLOCKS) -> list[bytes]:
    keys = engine.hasher.keys(tokens(blocks * PAGE, start))
    assert cache.store(keys, range(blocks)).wait(30).stored == blocks
    return keys


def test_a_router_that_comes_late_has_all_events_of_each_cache(tmp_path: Path) -> None:
    options = ["--events", ANY, "--events-replay", ANY, "--events-topic", "kv@pod@{model}", "--identities", "2"]
    engine = Engine()
    with running(tmp_path, *options) as daemon, connected(engine, daemon) as cache:
        told = re.fullmatch(r"events of a-model \w{8} at (tcp://\S+), past ones at (tcp://\S+)", line(daemon))
        assert told is not None
        first = stored(engine, cache, 0)
        assert cache.evict("host", BLOCKS) == BLOCKS
        recorder = Recorder(told[1], told[2], tmp_path / "events.jsonl")
        # The recorder requests the past with the first batch that it receives.
        later: list[list[bytes]] = []

        def both() -> bool:
            later.append(stored(engine, cache, 1000 * (1 + len(later))))
            return set(numbers(first + later[0])) <= set(recorder.blocks("BlockStored", "CPU"))

        eventually(both)
        assert set(numbers(first)) <= set(recorder.blocks("BlockStored", "DISK"))
        assert set(numbers(first)) <= set(recorder.blocks("BlockRemoved", "CPU"))
        rows = recorder.rows()
        assert [row["sequence"] for row in rows] == list(range(len(rows)))
        assert {row["topic"] for row in rows} == {"kv@pod@a-model"}
        assert {row.get("missed", 0) for row in rows} == {0}
        tiers = {event["tier"] for event in recorder.events() if event["type"] == "BlockStored"}
        assert tiers == {"host", "disk"}
        # Another model has sockets and a topic of its own.
        groups = test_groups.Engine()
        shares = dict.fromkeys(test_groups.SIZES, 1.0)
        with kvtile.GroupCache(
            groups.model(), groups.layouts, shares=shares, connect=daemon.socket, connect_within=30.0
        ) as second:
            told = re.fullmatch(r"events of \S+ \w{8} at (tcp://\S+), past ones at (tcp://\S+)", line(daemon))
            assert told is not None
            of_groups = Recorder(told[1], told[2], tmp_path / "groups.jsonl")
            number = 0

            def three() -> bool:
                nonlocal number
                number += 100
                chain = second.hasher().keys(range(number, number + 42))
                assert test_groups.store(groups, second, chain, 40).stopped is None
                return {event.get("group_idx") for event in of_groups.events()} >= {0, 1, 2}

            eventually(three)
            assert all(row["topic"] != "kv@pod@a-model" for row in of_groups.rows())
            # The last event of a daemon that ends: routers forget its blocks.
            daemon.stop()
            for one in (recorder, of_groups):
                eventually(lambda one=one: one.events()[-1]["type"] == "AllBlocksCleared")
                one.stop()


def refused(folder: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "kvtile", "serve", "--socket", str(folder / "none.sock"), "--host", "1MiB", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert not (folder / "none.sock").exists()
    return ended.returncode, ended.stderr


def test_sockets_of_events_that_cannot_be_bound_refuse_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, problem = refused(tmp_path, "--events", f"tcp://127.0.0.1:{port}")
        assert code == 1 and f"cannot bind tcp://127.0.0.1:{port}" in problem
        # That of the second identity.
        code, problem = refused(tmp_path, "--events", f"tcp://127.0.0.1:{port - 1}", "--identities", "2")
        assert code == 1 and "cannot bind" in problem
    code, problem = refused(tmp_path, "--events", "127.0.0.1:5557")
    assert code == 2 and "give tcp://HOST:PORT" in problem
    code, problem = refused(tmp_path, "--events", "tcp://127.0.0.1:65535", "--identities", "2")
    assert code == 2 and "tcp://127.0.0.1:65535 + 1" in problem
    for option in ("--events-replay", "--events-topic"):
        code, problem = refused(tmp_path, option, "x")
        assert code == 2 and "--events" in problem


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_daemon_keeps_its_store_below_a_capacity(tmp_path: Path) -> None:
    # A bundle of such small blocks has 64 of them, and a shorter chain is not written.
    bundle = 64
    engine = Engine(B=2 * bundle)
    capacity = 4 * bundle * engine.shape.block_bytes
    shared = tmp_path / "shared"
    options = ["--shared", str(shared), "--shared-capacity", str(capacity), "--sweep-every", "1"]
    with running(tmp_path, *options) as daemon, connected(engine, daemon) as cache:
        largest = chains = 0

        def full_and_swept() -> bool:
            nonlocal largest, chains
            if largest <= capacity:
                chains += 1
                stored(engine, cache, 1000 * chains, bundle)
            largest = max(largest, size(shared))
            return largest > capacity and size(shared) <= capacity

        eventually(full_and_swept)
        # What a sweep removed is a miss, and the daemon goes on.
        keys = stored(engine, cache, 0, bundle)
        found = cache.lookup(keys)
        assert cache.load(found, range(bundle, 2 * bundle)).wait(30).blocks == bundle
        daemon.process.send_signal(signal.SIGTERM)
        _, told = daemon.process.communicate(timeout=LIMIT_S)
        assert re.search(r": a sweep removed \d+ of \d+ values, ", told), told


def test_sweeps_need_a_shared_store(tmp_path: Path) -> None:
    for option in ("--shared-capacity", "--shared-older-than", "--sweep-every"):
        code, problem = refused(tmp_path, option, "5")
        assert code == 2 and "--shared" in problem
    code, problem = refused(tmp_path, "--shared", str(tmp_path / "shared"), "--sweep-every", "5")
    assert code == 2 and "sweeps need --shared-capacity or --shared-older-than" in problem
    code, problem = refused(tmp_path, "--shared", str(tmp_path / "shared"), "--sweep-every", "0")
    assert code == 2 and "1..=86400" in problem
