"""The node daemon from Python: ``kvtile serve`` and caches that connect to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import kvtile
import test_groups
from test_cache import PAGE, Engine, tokens

BLOCKS = 8


class Daemon:
    """A daemon process over a folder."""

    def __init__(self, folder: Path, host: str = "1MiB", disk: str | None = "8MiB", more: Sequence[str] = ()) -> None:
        self.socket = folder / "kv.sock"
        on_disk = [] if disk is None else ["--disk", str(folder / "disk"), "--disk-bytes", disk]
        self.arguments = ["--socket", str(self.socket), "--host", host, *on_disk, *more]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "kvtile", "serve", *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # Printed once it listens; the socket exists before that.
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), (line, self.process.communicate())

    def stop(self, how: int = signal.SIGTERM) -> str:
        self.process.send_signal(how)
        return self.process.communicate(timeout=300)[0]

    def status(self) -> dict[str, object]:
        command = [sys.executable, "-m", "kvtile", "serve", "status", "--socket", str(self.socket), "--json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop(signal.SIGKILL)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def connected(engine: Engine, daemon: Daemon, **settings: object) -> kvtile.Cache:
    settings = {"connect": daemon.socket, "connect_within": 30.0, **settings}
    return kvtile.Cache(engine.identity, engine.layout, **settings)  # type: ignore[arg-type]


def eventually(is_true: object) -> None:
    deadline = time.monotonic() + 120
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_caches_share_the_blocks_of_a_daemon_and_outlive_it(daemon: Daemon, engine: Engine) -> None:
    keys = engine.hasher.keys(tokens(BLOCKS * PAGE, 0))
    for block in range(BLOCKS):
        engine.compute(block, block)
    with connected(engine, daemon) as first, connected(engine, daemon) as second:
        assert first.connected
        report = first.store(keys, range(BLOCKS)).wait(30)
        assert (report.stored, report.stopped) == (BLOCKS, None)
        found = second.lookup(keys)
        assert len(found) == BLOCKS
        assert second.load(found, range(BLOCKS, 2 * BLOCKS)).wait(30).blocks == BLOCKS
        status = daemon.status()
        assert len(status["sessions"]) == 2  # type: ignore[arg-type]
        assert {tier for tier, _, _, _ in second.snapshot().blocks} == {"host"}
        # It ends as `kill` ends it, with its blocks on disk and without its socket.
        assert f"{BLOCKS} of {BLOCKS} blocks" in daemon.stop()
        assert not daemon.socket.exists()
        eventually(lambda: not first.connected)
        assert len(first.lookup(keys)) == 0
        assert first.store(keys, range(BLOCKS)).wait(30).stopped == "closed"
        with pytest.raises(kvtile.DaemonError):
            first.clear()
        daemon.start()
        eventually(lambda: first.connected)
        found = first.lookup(keys)
        assert len(found) == BLOCKS
        assert first.load(found, range(BLOCKS, 2 * BLOCKS)).wait(30).from_tiers == {"disk": BLOCKS}


def test_an_engine_that_computes_faster_than_a_disk_loads_misses_its_blocks(daemon: Daemon, engine: Engine) -> None:
    keys = engine.hasher.keys(tokens(BLOCKS * PAGE, 0))
    for block in range(BLOCKS):
        engine.compute(block, block)
    with connected(engine, daemon) as slow, connected(engine, daemon, recompute_tokens_per_second=1e12) as fast:
        assert slow.store(keys, range(BLOCKS)).wait(30).stored == BLOCKS
        assert slow.evict("host", BLOCKS) == BLOCKS
        # The first load measures the disk.
        assert slow.load(slow.lookup(keys[:2]), range(BLOCKS, BLOCKS + 2)).wait(30).from_tiers == {"disk": 2}
        assert len(slow.lookup(keys)) == BLOCKS
        assert len(fast.lookup(keys)) == 2
        assert fast.stats()["misses"]["slower_than_computing"] == BLOCKS - 2


def test_settings_of_the_daemon_are_refused_by_name(daemon: Daemon, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(kvtile.SettingsError, match="host_bytes has no effect with connect"):
        connected(engine, daemon, host_bytes=1 << 20)
    with pytest.raises(kvtile.SettingsError, match="finite number above 0|rate"):
        connected(engine, daemon, recompute_tokens_per_second=0.0)
    with pytest.raises(kvtile.SettingsError, match="without connect"):
        kvtile.Cache(engine.identity, engine.layout, connect_within=1.0)
    with pytest.raises(kvtile.DaemonError, match="kvtile serve"):
        kvtile.Cache(engine.identity, engine.layout, connect=tmp_path / "none")
    # A second daemon on the socket.
    command = [sys.executable, "-m", "kvtile", "serve", *daemon.arguments]
    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 1
    assert "another daemon serves" in second.stderr


def test_caches_over_groups_share_the_stops_of_a_daemon_and_outlive_it(daemon: Daemon) -> None:
    engine = test_groups.Engine()

    def connected() -> kvtile.GroupCache:
        shares = dict.fromkeys(test_groups.SIZES, 1.0)
        return kvtile.GroupCache(engine.model(), engine.layouts, shares=shares, connect=daemon.socket, connect_within=30.0)

    with connected() as first, connected() as second:
        chain = first.hasher().keys(range(42))
        assert test_groups.store(engine, first, chain, 40).stored == 14
        found = second.lookup(chain, at_most=41)
        assert (found.stop, found.stops, found.needs("window")) == (40, [40], range(7, 10))
        assert test_groups.load(engine, second, found).tokens == 40
        assert second.stats()["hits"] == 1 and set(second.stats()["groups"]) == set(test_groups.SIZES)
        assert len(second.snapshot().blocks) == 14
        assert daemon.status()["caches"][2]["name"].endswith(" window")  # type: ignore[index]
        daemon.stop()
        eventually(lambda: not first.connected)
        assert (first.lookup(chain).stop, first.lookup(chain).stops) == (0, [])
        assert "closed" in str(test_groups.store(engine, first, chain, 24).stopped)
        daemon.start()
        eventually(lambda: second.connected)
        assert second.prefetch(second.lookup(chain)).wait().tokens == 40
        assert test_groups.load(engine, second, second.lookup(chain)).tokens == 40


def test_a_daemon_with_empty_memory_finds_the_stops_of_another_one_in_a_shared_folder(tmp_path: Path) -> None:
    engine, daemons = test_groups.Engine(), []

    def start(name: str) -> Daemon:
        (tmp_path / name).mkdir()
        daemons.append(Daemon(tmp_path / name, disk=None, more=["--shared", str(tmp_path / "shared")]))
        return daemons[-1]

    def connected(daemon: Daemon) -> kvtile.GroupCache:
        settings = {"shares": dict.fromkeys(test_groups.SIZES, 1.0), "connect": daemon.socket, "connect_within": 30.0}
        return kvtile.GroupCache(engine.model(), engine.layouts, **settings)  # type: ignore[arg-type]

    try:
        with connected(start("first")) as first:
            chain = first.hasher().keys(range(42))
            for stop in (24, 40):
                assert test_groups.store(engine, first, chain, stop).stopped is None
        # Its end waits for the store.
        daemons[0].stop()
        with connected(start("second")) as second:
            assert (second.snapshot().blocks, second.lookup(chain).stop) == ([], 0)
            found = second.seek(chain, 60, at_most=41).wait()
            assert (found.stop, found.stops) == (40, [40, 24])
            report = test_groups.load(engine, second, found)
            assert report.tokens == 40 and report.groups["state"].from_tiers == {"shared": 1}
            assert {tier for tier, _, _, _ in second.snapshot().blocks} >= {"host"}
        # A state that is lost in the store: another daemon finds the stop before it.
        states = [path for path in (tmp_path / "shared").rglob(f"*/{chain[9].hex()}.1")]
        for path in states:
            path.unlink()
        with connected(start("third")) as third:
            found = third.seek(chain, 60).wait()
            assert found.stop == 24 and test_groups.load(engine, third, found).tokens == 24
    finally:
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.stop(signal.SIGKILL)


def test_settings_of_the_daemon_are_refused_by_name_for_groups(daemon: Daemon) -> None:
    engine = test_groups.Engine()
    with pytest.raises(kvtile.SettingsError, match="host_bytes has no effect with connect"):
        kvtile.GroupCache(engine.model(), engine.layouts, connect=daemon.socket, host_bytes=1 << 20)
    with pytest.raises(kvtile.SettingsError, match="without connect"):
        kvtile.GroupCache(engine.model(), engine.layouts, connect_staging_bytes=1 << 20)
    with pytest.raises(kvtile.SettingsError, match="give at least"):
        shares = dict.fromkeys(test_groups.SIZES, 1.0)
        kvtile.GroupCache(engine.model(), engine.layouts, shares=shares, connect=daemon.socket, connect_staging_bytes=4096)
