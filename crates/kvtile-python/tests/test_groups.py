"""The cache over groups: windows, chunks and states beside layers with full attention."""

from __future__ import annotations

import asyncio
import pickle
import queue
from pathlib import Path
from typing import Any

import kvtile
import numpy as np
import pytest

PAGE = 4
BLOCKS = 32
SIZES = {"full": (2, 2), "window": (3, 1), "state": (2, 1)}
RULES = {"full": "full", "window": "window:10", "state": "stop"}


class Engine:
    """A layout for each group, over arrays whose blocks are told apart by one number."""

    def __init__(self) -> None:
        self.layouts = {}
        self.identities = {}
        self.blocks = {}
        for group, (layers, heads) in SIZES.items():
            plane = kvtile.Plane("s", "float32", H=heads, C=24, per_page=True)
            planes = {"planes": [plane]} if group == "state" else {}
            counts = {"num_heads": heads, "head_size": 8, "dtype": "float32"}
            sizes = planes or counts
            shape = kvtile.Shape(num_blocks=BLOCKS, num_layers=layers, page_size=PAGE, **sizes)
            array = np.zeros(shape.block_bytes * BLOCKS // 4, "float32")
            word = "BLHs" if group == "state" else "BLKNHC"
            word = "BLHC" if group == "state" else word
            self.layouts[group] = kvtile.Layout(word, shape=shape, tensors=array)
            self.identities[group] = kvtile.Identity("a/model", "1", shape)
            self.blocks[group] = array.reshape(BLOCKS, -1)

    def fill(self, group: str, block: int, page: int) -> None:
        self.blocks[group][block] = page + 1

    def open(self, *names: str, **settings: Any) -> kvtile.GroupCache:
        names = names or tuple(SIZES)
        groups = {name: (self.identities[name], RULES[name]) for name in names}
        layouts = {name: self.layouts[name] for name in names}
        shares = dict.fromkeys(names, 1.0)
        return kvtile.GroupCache(groups, layouts, **{"host_bytes": 4 << 20, "shares": shares, **settings})


@pytest.fixture
def engine() -> Engine:
    return Engine()


def store(engine: Engine, cache: kvtile.GroupCache, chain: list[bytes], stop: int) -> kvtile.GroupStoreReport:
    pages = range(stop // PAGE)
    for page in pages:
        for group in cache.groups:
            engine.fill(group, page, page)
    blocks: dict[str, Any] = {group: (list(pages), 0) for group in cache.groups}
    return cache.store(chain, blocks, stop=stop).wait()


def load(engine: Engine, cache: kvtile.GroupCache, found: kvtile.GroupMatch) -> kvtile.GroupLoadReport:
    needs = {group: found.needs(group) for group in cache.groups}
    for group in needs:
        engine.blocks[group][:] = -1
    report = cache.load(found, {group: [20 + at for at, _ in enumerate(pages)] for group, pages in needs.items()}).wait()
    if report.tokens:
        for group, pages in needs.items():
            for at, page in enumerate(pages):
                assert (engine.blocks[group][20 + at] == page + 1).all(), (group, page)
    return report


def test_a_stop_comes_back_whole_and_nothing_between(engine: Engine) -> None:
    with engine.open() as cache:
        assert (cache.unit, cache.stop_unit) == (PAGE, PAGE)
        assert {name: group["rule"] for name, group in cache.groups.items()} == RULES
        hasher = cache.hasher()
        chain = hasher.keys(range(42))
        assert pickle.loads(pickle.dumps(hasher)).keys(range(42)) == chain
        report = store(engine, cache, chain, 40)
        # The window needs the pages 7 to 9, the state page 9.
        assert (report.stored, report.unreachable, report.stopped) == (10 + 3 + 1, 7 + 9, None)
        assert report.groups["window"].stored == 3
        found = cache.lookup(chain, at_most=41)
        assert (found.stop, found.stops, found.branch) == (40, [40], None)
        assert found.needs("window") == range(7, 10)
        assert found.needs("full", have=33) == range(8, 10)
        report = load(engine, cache, found)
        assert (report.tokens, report.wanted, report.stopped) == (40, 40, None)
        assert set(report.groups) == set(SIZES)
        assert pickle.loads(pickle.dumps(report)).groups["state"].blocks == 1
        with cache.lookup(chain, at_most=39) as found:
            assert (found.stop, found.branch) == (0, 36)
        store(engine, cache, chain, 24)
        found = cache.lookup(chain)
        assert found.stops == [40, 24]
        assert load(engine, cache, found.back_to(39)).tokens == 24
        stats = cache.stats()
        assert stats["lookups"] == 4 and stats["groups"]["state"]["hits"] == {"host": 3}


def test_a_restart_finds_stops_and_an_evicted_state_leaves_a_shorter_one(engine: Engine, tmp_path: Path) -> None:
    settings = {"disk": tmp_path / "kv", "disk_bytes": 32 << 20}
    with engine.open(**settings) as cache:
        chain = cache.hasher().keys(range(40))
        for stop in (16, 40):
            store(engine, cache, chain, stop)
        assert all(report.durable for report in cache.flush().values())
        assert all(report.durable for report in cache.close().values())
        assert cache.closed and cache.close() == {}
    with engine.open(**settings, policy="lru", disk_policy="lru") as cache:
        found = cache.lookup(chain)
        assert found.stops == [40, 16]
        assert load(engine, cache, found.back_to(16)).tokens == 16
        # The state at 16 was used last.
        cache.evict("host", 9, group="state")
        assert cache.evict("disk", 1, group="state") == 1
        found = cache.lookup(chain)
        assert (found.stop, found.branch) == (16, 40)
        assert load(engine, cache, found).groups["state"].from_tiers == {"disk": 1}
        events = cache.subscribe()
        assert cache.clear() > 0
        assert {event.group for event in events.poll()} == {0, 1, 2}
        assert cache.lookup(chain).branch is None


def test_loads_and_stores_are_awaited_and_called_back(engine: Engine) -> None:
    with engine.open("full", "state") as cache:
        chain = cache.hasher(salt="a").keys(range(16))
        assert chain != cache.hasher().keys(range(16))

        async def run() -> int:
            await cache.store(chain, {"full": [0, 1, 2, 3], "state": ([3], 3)}, stop=16)
            report = await cache.load(cache.lookup(chain), {"full": [4, 5, 6, 7], "state": [8]})
            return int(report.tokens)

        assert asyncio.run(run()) == 16
        ended: queue.Queue[bool] = queue.Queue()
        done = cache.load(cache.lookup(chain), {"full": [5, 6, 7], "state": [8]}, have={"full": 4})
        done.add_done_callback(lambda completion: ended.put(completion.done()))
        assert done.wait(5).tokens == 16 and done.wait_layer(0) and done.cancel()
        assert ended.get(timeout=5) is True


def test_what_cannot_be_meant_is_refused_with_the_values(engine: Engine) -> None:
    with engine.open("full", "state", workers=0) as cache:
        chain = cache.hasher().keys(range(16))
        ids = [0, 1, 2, 3]
        for call, words in (
            (lambda: cache.store(chain, {"full": ids, "states": [3]}, stop=16), ["states", "full, state"]),
            (lambda: cache.store(chain, {"state": [3]}), ["state", "stop"]),
            (lambda: cache.store(chain, {"full": ids}, stop=15), ["15", "multiples of 4"]),
            (lambda: cache.store(chain, {"full": ids}, stop=[16, -4]), ["stop[1]", "-4"]),
            (lambda: cache.store(chain, {"full": ids}, stop="16"), ["stop", "'16'"]),
            (lambda: cache.store(chain, ids, stop=16), ["blocks", "a dict"]),
            (lambda: cache.lookup(chain).needs("x"), ["x", "full, state"]),
            (lambda: cache.load(cache.lookup(chain), {"full": [0]}), ["1 blocks", "full"]),
            (lambda: cache.load(cache.lookup(chain), {}, have={"full": 4}), ["have", "full"]),
            (lambda: cache.evict("host", 1, group="x"), ["x", "full, state"]),
        ):
            with pytest.raises(kvtile.KvtileError) as refused:
                call()
            assert all(word in str(refused.value) for word in words), str(refused.value)
    identity, layout = engine.identities["full"], engine.layouts["full"]
    for groups, layouts, settings, words in (
        ({}, {}, {}, ["groups is 0"]),
        ({"full": (identity, "window")}, {"full": layout}, {}, ["window", "window:TOKENS"]),
        ({"full": (identity, "window:0")}, {"full": layout}, {}, ["window:0"]),
        ({"full": identity}, {"full": layout}, {}, ["groups", "pair"]),
        ({"full": (identity, "full")}, {}, {}, ["layouts", "full"]),
        ({"full": (identity, "full")}, {"full": layout, "b": layout}, {}, ["layouts", "b"]),
        ({"full": (identity, "full")}, {"full": layout}, {"shares": {"b": 1.0}}, ["shares", "b"]),
        ({"full": (identity, "full")}, {"full": layout}, {"share": 1}, ["share", "shares"]),
        ({"full": (engine.identities["window"], "full")}, {"full": layout}, {}, ["differs"]),
        ({"full": (identity, "full")}, {"full": layout}, {"host_bytes": 4095}, ["4095", "4096"]),
    ):
        with pytest.raises(kvtile.KvtileError) as refused:
            kvtile.GroupCache(groups, layouts, **settings)
        assert all(word in str(refused.value) for word in words), str(refused.value)
