"""The cache from Python: lookups, loads, stores, the disk tier, events, closing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvtile
from helpers import shape

BLOCKS = 32
PAGE = 4


class Engine:
    """An engine's KV, its layout, and its identity."""

    def __init__(self, word: str = "L|BH(kCN,vNC)", *, dtype: str = "float32", **changes: int) -> None:
        self.shape = shape(dtype, **{"B": BLOCKS, **changes})
        sizes = [size // 4 for size in kvtile.Layout(word, shape=self.shape).region_bytes]
        self.tensors = [np.zeros(size, "float32") for size in sizes]
        self.layout = kvtile.Layout(word, shape=self.shape, tensors=self.tensors)
        self.identity = kvtile.Identity("a-model", "main", self.shape, rope={"rope_theta": 1e4})
        self.hasher = kvtile.TokenHasher(self.identity)

    def compute(self, block: int, seed: int) -> None:
        """Fills a block of both layers."""
        generator = np.random.default_rng(seed)
        for tensor in self.tensors:
            rows = tensor.reshape(BLOCKS, -1)
            rows[block] = generator.random(rows.shape[1], dtype="float32")

    def block(self, block: int) -> list[bytes]:
        return [tensor.reshape(BLOCKS, -1)[block].tobytes() for tensor in self.tensors]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def cache(engine: Engine) -> Iterator[kvtile.Cache]:
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20) as cache:
        yield cache


def tokens(count: int, start: int = 0) -> list[int]:
    return list(range(start, start + count))


def test_stored_blocks_are_found_and_loaded(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(4 * PAGE + 1))
    assert len(keys) == 4 and {len(key) for key in keys} == {16}
    for block in range(3):
        engine.compute(block, block)
    stored = cache.store(keys, [0, 1, 2]).wait(10)
    assert (stored.stored, stored.present, stored.dropped, stored.stopped) == (3, 0, 0, None)
    assert stored.bytes == 3 * engine.shape.block_bytes

    found = cache.lookup(keys)
    assert len(found) == found.blocks == found.blocks_in("host") == 3
    assert found.tiers == ["host"] * 3 and "3 in host" in repr(found)
    load = cache.load(found, [10, 11, 12])
    assert load.wait_layer(0, 10) and load.wait_layer(1, 10)
    report = load.wait(10)
    assert (report.blocks, report.wanted, report.from_tiers, report.stopped) == (3, 3, {"host": 3}, None)
    assert load.done() and "ended" in repr(load)
    for block in range(3):
        assert engine.block(block) == engine.block(block + 10)
    with pytest.raises(kvtile.ClosedError):
        cache.load(found, [1])


def test_matches_are_cut_and_released(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(4 * PAGE))
    for block in range(4):
        engine.compute(block, block)
    cache.store(keys, range(4)).wait(10)
    found = cache.lookup(keys).skip(1).truncate(2)
    assert len(found) == 2
    cache.load(found, [20, 21]).wait(10)
    assert engine.block(20) == engine.block(1) and engine.block(21) == engine.block(2)
    with cache.lookup(keys) as found:
        assert cache.stats()["pinned"] == {"host": 4}
        assert cache.evict("host", 4) == 0
    found.release()
    assert cache.stats()["pinned"] == {} and "released" in repr(found)
    watch = cache.lookup(keys)
    del watch
    assert cache.stats()["pinned"] == {}
    assert cache.evict("host", 1) == 1 and len(cache.lookup(keys)) == 3
    assert cache.clear() == 3 and len(cache.lookup(keys)) == 0


def test_blocks_may_come_from_and_go_to_other_layouts(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(3 * PAGE))
    small = shape(B=3)
    source = np.random.default_rng(1).random((3, 2, 2, 4, 2, 8), "float32")
    plain = kvtile.Layout("BLKNHC", shape=small, tensors=source)
    assert cache.store(keys, range(3), layout=plain).wait(10).stored == 3
    target = np.zeros((2, 2, 2, 3 * 4 + 1, 8), "float32")
    growing = [half[:, :12] for layer in target for half in layer]  # with room for more tokens
    heads_first = kvtile.Layout("LK|HBNC", shape=small, tensors=growing)
    assert cache.load(cache.lookup(keys), range(3), layout=heads_first).wait(10).blocks == 3
    wanted = source.transpose(1, 2, 4, 0, 3, 5).reshape(2, 2, 2, 12, 8)
    assert (target[:, :, :, :12] == wanted).all() and not target[:, :, :, 12].any()
    with pytest.raises(kvtile.RequestError, match="3"):
        cache.load(cache.lookup(keys), [3], layout=heads_first)
    other = kvtile.Layout("BLKNHC", shape=shape(B=3, C=4), tensors=np.zeros(384, "float32"))
    with pytest.raises(kvtile.IdentityError, match="planes.k.C"):
        cache.store(keys, [0], layout=other)


def test_expired_blocks_are_evicted_first(engine: Engine, cache: kvtile.Cache) -> None:
    old, new = engine.hasher.keys(range(16)), engine.hasher.keys(range(100, 116))
    cache.store(old, [0, 1, 2, 3]).wait()
    cache.store(new, [4, 5, 6, 7], lifetime=0, output_tokens=3, partial_tail=True).wait()
    cache.lookup(new, lifetime=0.001).release()
    # Lifetimes are accurate to about a second.
    time.sleep(2.1)
    assert cache.evict("host", 4) == 4
    assert [cache.lookup(keys).blocks for keys in (old, new)] == [4, 0]
    with pytest.raises(kvtile.RequestError, match="-1"):
        cache.lookup(old, lifetime=-1)


def test_an_engines_own_keys_are_accepted(engine: Engine, cache: kvtile.Cache) -> None:
    keys = [bytes([i]) * 32 for i in range(3)]
    # The parent of the first block is in no tier, so no lookup would find these.
    report = cache.store(keys, [0, 1], first=1).wait(10)
    assert (report.stored, report.dropped, report.stopped) == (0, 2, "no_ancestors")
    assert cache.store(keys, [2, 0, 1]).wait(10).stored == 3
    assert len(cache.lookup(keys)) == 3 and len(cache.lookup(keys[1:])) == 2
    assert len(cache.lookup([key[:-1] + b"x" for key in keys])) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.store([b"k" * 16], [0, 1]), kvtile.RequestError, "2 blocks"),
        (lambda c: c.store([b"k" * 16], [BLOCKS]), kvtile.RequestError, "32"),
        (lambda c: c.store([b"k" * 16, b"l" * 16], [1, 1]), kvtile.RequestError, "twice"),
        (lambda c: c.load(c.lookup([b"k" * 16]), [1]), kvtile.RequestError, "1 destinations"),
        (lambda c: c.evict("tape", 1), kvtile.RequestError, "no tier"),
        (lambda c: c.evict("disk", 1), kvtile.RequestError, "no disk tier"),
        (lambda c: c.pool_stats("disk"), kvtile.RequestError, "no disk tier"),
        (lambda c: c.store([], [], priority="soon"), kvtile.RequestError, "background"),
        (lambda c: c.lookup([], hold=-1.0), kvtile.RequestError, "hold is -1.0; give 0 seconds"),
        (lambda c: c.lookup(["k"]), kvtile.ArgumentError, "bytes"),
    ],
)
def test_invalid_requests_are_refused(cache: kvtile.Cache, call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(cache)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"host_bytes": 10}, kvtile.SettingsError, "10 bytes"),
        ({"disk": "x"}, kvtile.SettingsError, "disk_bytes"),
        ({"disk_bytes": 1}, kvtile.SettingsError, "disk"),
        ({"disk_writes": "never", "disk": "x", "disk_bytes": 1}, kvtile.SettingsError, "never"),
        ({"policy": "random"}, kvtile.SettingsError, "gittins"),
        ({"queue_capacity": 0}, kvtile.SettingsError, "queue"),
        ({"recompute_tokens_per_second": -1.0}, kvtile.SettingsError, "rate"),
        ({"storage_word": "LBKNHC"}, kvtile.SettingsError, "begins with B"),
        ({"storage_word": "("}, kvtile.LayoutError, "word"),
        ({"host_gib": 3}, kvtile.ArgumentError, "no setting"),
        ({"host_gib": None}, kvtile.ArgumentError, "no setting"),
    ],
)
def test_invalid_settings_are_refused(engine: Engine, settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        kvtile.Cache(engine.identity, engine.layout, **settings)


def test_the_identity_of_the_engine_is_checked(engine: Engine) -> None:
    other = kvtile.Identity("a-model", "main", shape("float32", N=8))
    with pytest.raises(kvtile.IdentityError, match="page_size") as raised:
        kvtile.Cache(other, engine.layout)
    assert raised.value.field == "page_size" and raised.value.ours == "8"


def test_blocks_outlive_the_process_on_disk_and_only_for_their_identity(tmp_path: Path) -> None:
    settings = {"host_bytes": 1 << 20, "disk": tmp_path / "kv", "disk_bytes": 16 << 20}
    engine = Engine()
    keys = engine.hasher.keys(tokens(6 * PAGE))
    for block in range(6):
        engine.compute(block, block)
    with kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        cache.store(keys, range(6)).wait(10)
        with pytest.raises(kvtile.FolderInUseError, match="in use"):
            kvtile.Cache(engine.identity, engine.layout, **settings)
        flushed = cache.flush()
        assert flushed.written == 6 and flushed.durable and "written=6" in repr(flushed)
        on_disk = {"wanted": 6, "durable": 6, "written": 6, "no_room": 0, "late": 0, "failed": 0}
        assert flushed.tiers == {"disk": on_disk} and flushed.no_tier == 0

    # Another engine of the same model reads them in another order.
    other = Engine("BLKNHC")
    assert other.identity == engine.identity
    with kvtile.Cache(other.identity, other.layout, **settings) as cache:
        assert cache.prefetch(keys[:2]).wait(10).from_tiers["disk"] == 2
        found = cache.lookup(keys)
        assert found.tiers == ["host"] * 2 + ["disk"] * 4
        report = cache.load(found, range(6)).wait(10)
        assert (report.blocks, report.from_tiers) == (6, {"host": 2, "disk": 4})
        assert cache.stats()["checked"]["disk"] == 6
    same = Engine()
    kvtile.copy_blocks(other.layout, same.layout, range(6))
    assert all(same.block(block) == engine.block(block) for block in range(6))

    theirs = kvtile.Identity("a-model", "main", engine.shape, rope={"rope_theta": 5e5})
    with pytest.raises(kvtile.IdentityError, match="rope.base") as raised:
        kvtile.Cache(theirs, engine.layout, **settings)
    assert raised.value.field == "rope.base"
    with pytest.raises(OSError, match='holds "kv"') as raised:
        kvtile.Cache(engine.identity, engine.layout, **{**settings, "disk": tmp_path})
    assert isinstance(raised.value, kvtile.DiskError)


@pytest.mark.parametrize("writes", ["on_eviction", "at_once", 1])
def test_closing_writes_host_blocks_to_disk_within_its_time(tmp_path: Path, writes: str | int) -> None:
    engine = Engine()
    settings = {"host_bytes": 1 << 20, "disk": tmp_path / "kv", "disk_bytes": 16 << 20, "disk_writes": writes}
    keys = engine.hasher.keys(tokens(6 * PAGE))
    with kvtile.Cache(engine.identity, engine.layout, close_within=0, **settings) as cache:
        cache.store(keys, range(6)).wait(10)
        cache.lookup(keys[:4]).release()
        # A lookup counts as a use, so this one covers no block that the first one did not.
        lost = cache.lookup(keys[:4])
        report = cache.close()
        assert report is not None and report.written == 0 and report.wanted == report.late + report.tiers["disk"]["durable"]
        assert report.durable == (report.late == 0) and cache.close() is None
        assert len(lost) == 0 and lost.tiers == []
    cache = kvtile.Cache(engine.identity, engine.layout, **settings)
    # Blocks with one use may have been written before the cache closed.
    assert len(cache.lookup(keys)) <= {"on_eviction": 0, 1: 4, "at_once": 6}[writes]
    cache.store(keys, range(6)).wait(10)
    cache.lookup(keys[:4]).release()
    report = cache.close()
    # Closing writes only blocks that have the required number of uses.
    wanted = 4 if writes == 1 else 6
    assert report is not None and report.durable and report.wanted == wanted, report
    with kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        assert cache.lookup(keys).tiers == ["disk"] * wanted
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20) as cache:
        assert cache.close() is None
    with pytest.raises(kvtile.SettingsError, match="close_within"):
        kvtile.Cache(engine.identity, engine.layout, close_within=1)
    with pytest.raises(kvtile.SettingsError, match="answer_within"):
        kvtile.Cache(engine.identity, engine.layout, answer_within=1)


def test_closing_waits_for_the_calls_of_other_threads(tmp_path: Path) -> None:
    engine = Engine()
    settings = {"host_bytes": 1 << 20, "disk": tmp_path / "kv", "disk_bytes": 16 << 20}
    keys = engine.hasher.keys(tokens(6 * PAGE))
    for _ in range(20):
        cache = kvtile.Cache(engine.identity, engine.layout, **settings)
        cache.store(keys, range(6)).wait(10)

        def call(cache: kvtile.Cache = cache) -> None:
            with contextlib.suppress(kvtile.ClosedError):
                while True:
                    cache.flush()

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        cache.close()
        # The folder is free at once, even if other threads are about to call.
        kvtile.Cache(engine.identity, engine.layout, **settings).close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_corrupt_blocks_on_disk_are_misses_and_counted(tmp_path: Path) -> None:
    engine = Engine()
    settings = {"host_bytes": 1 << 20, "disk": tmp_path / "kv", "disk_bytes": 16 << 20, "disk_writes": "at_once"}
    keys = engine.hasher.keys(tokens(2 * PAGE))
    with kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        cache.store(keys, [0, 1]).wait(10)
        cache.flush()
    largest = max((path for path in (tmp_path / "kv").iterdir()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[:] = bytes(byte ^ 1 for byte in data)
    largest.write_bytes(data)
    with kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        found = cache.lookup(keys)
        assert len(found) == 2
        report = cache.load(found, [4, 5]).wait(10)
        assert report.blocks == 0 and report.stopped == "lost"
        assert cache.stats()["checksum_failures"]["disk"] >= 1
        assert not any(map(any, engine.block(4)))


def test_events_report_stores_and_removals(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(2 * PAGE))
    events = cache.subscribe()
    cache.store(keys, [0, 1]).wait(10)
    first, second = events.poll()
    assert (first.kind, first.tier, first.group, first.key, first.parent) == ("stored", "host", 0, keys[0], None)
    assert "group=0" in repr(first)
    assert (second.key, second.parent, second.sequence) == (keys[1], keys[0], first.sequence + 1)
    snapshot = cache.snapshot()
    assert sorted(snapshot.blocks, key=lambda block: keys.index(block[2])) == [
        ("host", 0, keys[0], None),
        ("host", 0, keys[1], keys[0]),
    ] and len(snapshot) == 2
    cache.clear()
    assert [event.kind for event in events.poll()][-1] in ("cleared", "removed")
    assert events.poll() == []


def test_a_lagging_subscriber_raises(engine: Engine) -> None:
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, event_capacity=2) as cache:
        events = cache.subscribe()
        cache.store(engine.hasher.keys(tokens(5 * PAGE)), range(5)).wait(10)
        with pytest.raises(kvtile.LaggedError) as raised:
            events.poll()
        assert raised.value.missed == 3 and raised.value.resume_at == events.next_sequence
        snapshot = cache.snapshot()
        events.resynchronise(snapshot)
        assert snapshot.exact_from >= snapshot.first_event == events.next_sequence


def test_stats_are_plain_values(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(4 * PAGE))
    cache.store(keys[:2], [0, 1]).wait(10)
    with cache.lookup(keys, owner=7, hold=0.0):
        time.sleep(0.01)
        (pin,) = cache.overdue()
        assert pin["owner"] == 7 and pin["blocks"] == 2
    stats = cache.stats()
    assert stats["lookups"] == 1 and stats["hits"] == {"host": 2} and stats["misses"] == {"absent": 2}
    assert stats["hit_ratio"] == 0.5 and stats["stored"] == {"host": 2}
    assert cache.pool_stats("host")["registered_blocks"] == 2


def test_a_full_queue_is_busy_and_deadlines_pass(engine: Engine) -> None:
    keys = engine.hasher.keys(tokens(4 * PAGE))
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, workers=0, queue_capacity=2) as cache:
        late = cache.store(keys, [0], within=0.0)
        stopped = cache.store(keys, [0])
        with pytest.raises(kvtile.BusyError, match="2 of 2"):
            cache.store(keys, [0])
        with pytest.raises(kvtile.WaitTimeoutError, match="0.01"):
            late.wait(0.01)
        with pytest.raises(TimeoutError):
            stopped.wait_layer(0, timeout=0)
        assert stopped.cancel() and not late.done()
        time.sleep(0.01)
        while cache.step():
            pass
        assert late.wait(0).stopped == "deadline" and stopped.wait(0).stopped == "cancelled"
        left = cache.store(keys, [0])
    report = left.wait(60)
    assert report.stopped == "closed" and report.dropped == 1


def test_a_closed_cache_refuses_calls_and_releases_tensors(engine: Engine) -> None:
    cache = kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20)
    keys = engine.hasher.keys(tokens(PAGE))
    cache.close()
    cache.close()
    assert cache.closed and "closed" in repr(cache)
    for call in [lambda: cache.lookup(keys), lambda: cache.store(keys, [0]), cache.stats, cache.flush]:
        with pytest.raises(kvtile.ClosedError):
            call()

    class Watched(np.ndarray):
        pass

    tensor = np.zeros(shape(B=BLOCKS).block_bytes * BLOCKS // 4, "float32").view(Watched)
    watch = weakref.ref(tensor)
    cache = kvtile.Cache(engine.identity, kvtile.Layout("BLKNHC", shape=engine.shape, tensors=tensor), host_bytes=1 << 20)
    del tensor
    gc.collect()
    assert watch() is not None
    store = cache.store(keys, [0])
    del cache
    store.wait(60)
    del store
    gc.collect()
    assert watch() is None


def test_completions_are_awaited(engine: Engine, cache: kvtile.Cache) -> None:
    keys = engine.hasher.keys(tokens(8 * PAGE))

    async def request(block: int) -> tuple[int, int]:
        engine.compute(block, block)
        stored = await cache.store(keys[: block + 1], [block], first=block)
        copied = await kvtile.copy_blocks_async(engine.layout, engine.layout, [block], [block + 8])
        return stored.stored + stored.present, copied.bytes

    async def main() -> None:
        results = await asyncio.gather(*map(request, range(8)))
        assert results == [(1, engine.shape.block_bytes)] * 8
        assert (await cache.load(cache.lookup(keys), range(16, 24))).blocks == 8
        with pytest.raises(kvtile.TransferError):
            await kvtile.copy_blocks_async(engine.layout, engine.layout, [0], [0])

    asyncio.run(main())


def test_an_await_may_be_cancelled_and_outlive_its_loop(engine: Engine) -> None:
    keys = engine.hasher.keys(tokens(PAGE))
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, workers=0) as cache:
        store = cache.store(keys, [0])

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_of(store), 0.02)

        asyncio.run(main())
        assert cache.step() and store.wait(0).stored == 1


async def _of(completion: kvtile.Completion) -> object:
    return await completion


def test_callbacks_are_called_once_now_or_later(engine: Engine) -> None:
    keys = engine.hasher.keys(tokens(PAGE))
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, workers=0) as cache:
        store, called = cache.store(keys, [0]), []
        store.add_done_callback(called.append)
        assert called == [] and cache.step() and called == [store]
        store.add_done_callback(called.append)
        assert called == [store, store]


def test_many_threads_use_one_cache(engine: Engine, cache: kvtile.Cache) -> None:
    keys = {lane: engine.hasher.keys(tokens(4 * PAGE, start=1000 * lane)) for lane in range(4)}
    failed: list[BaseException] = []

    def lane(number: int) -> None:
        try:
            mine = range(8 * number, 8 * number + 4)
            for block in mine:
                engine.compute(block, block)
            for _ in range(50):
                cache.store(keys[number], mine).wait(10)
                report = cache.load(cache.lookup(keys[number]), [block + 4 for block in mine]).wait(10)
                assert report.blocks == 4, report
                assert all(engine.block(block) == engine.block(block + 4) for block in mine)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_other_threads_run_while_one_waits(engine: Engine) -> None:
    with kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, workers=0) as cache:
        store = cache.store(engine.hasher.keys(tokens(PAGE)), [0])
        reports = []
        waiting = threading.Thread(target=lambda: reports.append(store.wait()))
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive() and cache.step()
        waiting.join(5)
        assert reports[0].stored == 1


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in the folder of these tests."""
    here = Path(__file__).parent
    prelude = "import os, signal, sys, threading, time\nimport kvtile\nfrom test_cache import Engine, tokens\nengine = Engine()\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script)],
        capture_output=True, text=True, cwd=here, timeout=300, check=False,
    )


def test_ctrl_c_ends_a_wait() -> None:
    done = run("""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell ignores it
        cache = kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, workers=0)
        store = cache.store(engine.hasher.keys(tokens(4)), [0])
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            store.wait()
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert done.stdout == "interrupted\n", done


def test_a_fork_is_refused_and_exits() -> None:
    done = run("""
        import gc
        cache = kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20)
        keys = engine.hasher.keys(tokens(4))
        store = cache.store(keys, [0])
        store.wait(60)
        found = cache.lookup(keys)
        child = os.fork()
        if child == 0:
            for call in [cache.stats, lambda: cache.lookup(keys), lambda: store.wait(1), found.release,
                         lambda: kvtile.copy_blocks(engine.layout, engine.layout, [0], [1]),
                         lambda: kvtile.Cache(engine.identity, engine.layout)]:
                try:
                    call()
                except kvtile.ForkError as error:
                    assert "spawn" in str(error)
                else:
                    os._exit(3)
            del found, store
            cache = None
            gc.collect()
            sys.exit(0)
        print(os.waitpid(child, 0)[1], len(cache.lookup(keys)))
    """)
    assert done.stdout == "0 1\n", done
    assert done.returncode == 0


def test_an_open_cache_does_not_delay_exit() -> None:
    done = run("""
        cache = kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20)
        store = cache.store(engine.hasher.keys(tokens(4)), [0])
        store.add_done_callback(lambda _: None)
    """)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_warnings_go_to_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    settings = {"host_bytes": 1 << 20, "disk": tmp_path / "kv", "disk_bytes": 16 << 20, "disk_writes": "at_once"}
    with kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        cache.store(engine.hasher.keys(tokens(PAGE)), [0]).wait(10)
        cache.flush()
    for path in (tmp_path / "kv").iterdir():
        data = bytearray(path.read_bytes())
        if path.name != "manifest" and "manifest" not in path.name:
            data[:] = bytes(byte ^ 1 for byte in data)
            path.write_bytes(data)
    with caplog.at_level(logging.WARNING), kvtile.Cache(engine.identity, engine.layout, **settings) as cache:
        cache.load(cache.lookup(engine.hasher.keys(tokens(PAGE))), []).wait(60)
    assert any(record.name.startswith("kvtile") for record in caplog.records), caplog.records
