"""The cache over groups: windows, chunks and states beside layers with full attention."""

from __future__ import annotations

import asyncio
import pickle
import queue
import time
from pathlib import Path
from typing import Any

import kvtile
import numpy as np
import pytest

PAGE = 4
BLOCKS = 32
SIZES = {"full": (2, 2), "window": (3, 1), "state": (2, 1)}
RULES = {"full": "full", "window": "window:10", "state": "stop"}
WORDS = {"full": "BLKNHC", "window": "BLKNHC", "state": "BLHC"}


def group(name: str, shape: kvtile.Shape, **settings: Any) -> kvtile.ModelGroup:
    rule, _, tokens = RULES[name].partition(":")
    return kvtile.ModelGroup(name, shape, rule=rule, tokens=int(tokens) if tokens else None, **settings)  # type: ignore[arg-type]


class Engine:
    """A layout for each group, over arrays whose blocks are told apart by one number."""

    def __init__(self) -> None:
        self.shapes, self.layouts, self.blocks = {}, {}, {}
        for name, (layers, heads) in SIZES.items():
            plane = kvtile.Plane("s", "float32", H=heads, C=24, per_page=True)
            planes = {"planes": [plane]} if name == "state" else {}
            counts = {"num_heads": heads, "head_size": 8, "dtype": "float32"}
            self.shapes[name] = kvtile.Shape(num_blocks=BLOCKS, num_layers=layers, page_size=PAGE, **(planes or counts))
            self.layouts[name], self.blocks[name] = self.memory(name)

    def memory(self, name: str, blocks: int = BLOCKS) -> tuple[kvtile.Layout, Any]:
        """Blocks of a group in new memory."""
        shape = self.shapes[name].with_num_blocks(blocks)
        array = np.zeros(shape.block_bytes * blocks // 4, "float32")
        return kvtile.Layout(WORDS[name], shape=shape, tensors=array), array.reshape(blocks, -1)

    def model(self, *names: str, draft: tuple[str, ...] = ()) -> kvtile.ModelIdentity:
        groups = [group(name, self.shapes[name], draft=name in draft) for name in names or SIZES]
        return kvtile.ModelIdentity("a/model", "1", groups)

    def fill(self, group: str, block: int, page: int) -> None:
        self.blocks[group][block] = page + 1

    def open(self, *names: str, **settings: Any) -> kvtile.GroupCache:
        names = names or tuple(SIZES)
        layouts = {name: self.layouts[name] for name in names}
        shares = dict.fromkeys(names, 1.0)
        return kvtile.GroupCache(self.model(*names), layouts, **{"host_bytes": 4 << 20, "shares": shares, **settings})


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


def test_a_prefetch_brings_a_stop_to_host_memory_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    settings = {"disk": tmp_path / "kv", "disk_bytes": 32 << 20}
    with engine.open(**settings) as cache:
        chain = cache.hasher().keys(range(40))
        for stop in (24, 40):
            store(engine, cache, chain, stop)
    with engine.open(**settings) as cache, engine.open() as other:
        found = cache.lookup(chain)
        report = cache.prefetch(found).wait(20)
        assert (report.tokens, report.wanted, report.stopped) == (40, 40, None)
        assert {name: of.from_tiers for name, of in report.groups.items()} == {
            "full": {"disk": 10}, "window": {"disk": 3}, "state": {"disk": 1},
        }  # fmt: skip
        in_host = {(group, key) for tier, group, key, _ in cache.snapshot().blocks if tier == "host"}
        assert len(in_host) == 10 + 3 + 1
        report = load(engine, cache, cache.lookup(chain))
        assert report.tokens == 40 and all(set(of.from_tiers) == {"host"} for of in report.groups.values())
        # The match is used up, also by a call that is refused.
        with pytest.raises(kvtile.ClosedError):
            cache.prefetch(found)
        foreign = cache.lookup(chain)
        with pytest.raises(kvtile.RequestError, match="another cache"):
            other.prefetch(foreign)
        with pytest.raises(kvtile.ClosedError):
            assert foreign.stop
        nothing = cache.prefetch(cache.lookup(cache.hasher(salt="a").keys(range(40)))).wait(20)
        assert (nothing.tokens, nothing.wanted, nothing.groups) == (0, 0, {})
        # A damaged state: the prefetch reports it, and the stop before it stays.
        cache.evict("host", 99, group="state")
        slots = next(file for file in (tmp_path / "kv").iterdir() if file.name == f"slots-{cache.groups['state']['number']}")
        content = bytearray(slots.read_bytes())
        places = [at for at in range(0, len(content), 4096) if any(content[at : at + 4096])]
        content[places[-1] + 77] ^= 4
        slots.write_bytes(content)
        report = cache.prefetch(cache.lookup(chain)).wait(20)
        assert (report.tokens, report.wanted) == (0, 40) and report.stopped is not None and "state" in report.stopped
        assert cache.lookup(chain).stop == 24


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
        assert done.wait(60).tokens == 16 and done.wait_layer(0) and done.cancel()
        assert ended.get(timeout=60) is True


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
    model, layout = engine.model("full"), engine.layouts["full"]
    arguments: list[tuple[Any, Any, dict[str, Any], list[str]]] = [
        (kvtile.Identity("a/model", "1", engine.shapes["full"]), {}, {}, ["model", "a ModelIdentity"]),
        (model, {"full": 1}, {}, ['layouts["full"]', "a Layout"]),
        (model, [layout], {}, ["layouts", "a dict"]),
        (model, {"full": layout, "b": layout}, {}, ["layouts", "b", "full"]),
        (model, {"full": layout}, {"shares": {"b": 1.0}}, ["shares", "b"]),
        (model, {"full": layout}, {"share": 1}, ["share", "shares"]),
        (model, {"full": engine.layouts["window"]}, {}, ["differs"]),
        (model, {"full": layout}, {"host_bytes": 4095}, ["4095", "4096"]),
        (model, {}, {"host_bytes": 4095}, ["4095", "4096"]),
    ]
    for model, layouts, settings, words in arguments:
        with pytest.raises(kvtile.KvtileError) as refused:
            kvtile.GroupCache(model, layouts, **settings)
        assert all(word in str(refused.value) for word in words), str(refused.value)


def test_each_call_may_bring_the_layouts_of_its_blocks(engine: Engine, tmp_path: Path) -> None:
    settings = {"host_bytes": 4 << 20, "disk": tmp_path / "kv", "disk_bytes": 32 << 20}
    chain = kvtile.TokenHasher(engine.model()).keys(range(16))
    with kvtile.GroupCache(engine.model(), **settings) as cache:
        assert cache.hasher().keys(range(16)) == chain
        given = {name: engine.memory(name, 4) for name in SIZES}
        for _, blocks in given.values():
            blocks[:] = np.arange(1, 5)[:, None]
        layouts = {name: layout for name, (layout, _) in given.items()}
        ids = {name: range(4) for name in SIZES}
        assert cache.store(chain, ids, stop=16, layouts=layouts).wait().stored == 4 + 3 + 1
    # The folder is that of an engine whose layouts are known from the start.
    with engine.open(**settings) as cache:
        assert load(engine, cache, cache.lookup(chain)).tokens == 16
    with kvtile.GroupCache(engine.model(), {"window": engine.layouts["window"]}, **settings) as cache:
        full, state = engine.memory("full", 4), engine.memory("state", 1)
        fresh = {"full": full[0], "state": state[0]}
        ids = {"full": range(4), "window": [7, 8, 9], "state": [0]}
        assert cache.load(cache.lookup(chain), ids, layouts=fresh).wait().tokens == 16
        assert full[1][:, 0].tolist() == [1, 2, 3, 4] and state[1][0, 0] == 4
        assert engine.blocks["window"][7:10, 0].tolist() == [2, 3, 4]
        found = cache.lookup(chain)
        for call, words in (
            (lambda: cache.load(cache.lookup(chain), ids), ['"full"', "no layout"]),
            (lambda: cache.store(chain, {"state": [0]}, stop=4), ['"state"', "no layout"]),
            (lambda: cache.load(cache.lookup(chain), ids, layouts={**fresh, "stat": full[0]}), ["layouts", "stat"]),
            (lambda: cache.store(chain, {"full": [0]}, layouts={"state": state[0]}), ["layouts", "state"]),
            (lambda: cache.load(cache.lookup(chain), ids, layouts={**fresh, "state": full[0]}), ["differs"]),
            (lambda: cache.load(cache.lookup(chain), ids, layouts={"full": 1}), ['layouts["full"]', "a Layout"]),
            (lambda: cache.load(cache.lookup(chain), {**ids, "state": [1]}, layouts=fresh), ["block 1"]),
        ):
            with pytest.raises(kvtile.KvtileError) as refused:
                call()
            assert all(word in str(refused.value) for word in words), str(refused.value)
        found.release()


def test_a_draft_group_comes_along_and_decides_nothing(engine: Engine) -> None:
    """vllm#52735: "every group is a drafter" made all hits 0. sglang#30321: a hit counted the layers of a drafter whose KV
    was not restored, and the answers were garbled."""
    with pytest.raises(kvtile.IdentityError, match="none is of the model"):
        engine.model("full", draft=("full",))
    model, names = engine.model(draft=("window",)), ("full", "state")
    assert model.chain == engine.model(*names).chain
    with kvtile.GroupCache(model, engine.layouts, host_bytes=4 << 20) as cache:
        assert {name: facts["draft"] for name, facts in cache.groups.items()} == {
            "full": False, "state": False, "window": True,
        }  # fmt: skip
        chain = cache.hasher().keys(range(16))
        assert chain == kvtile.TokenHasher(engine.model(*names)).keys(range(16))
        engine.blocks["window"][:4] = 5
        cache.store(chain, {"full": range(4), "state": ([3], 3)}, stop=16).wait()
        found = cache.lookup(chain)
        assert (found.stop, list(found.needs("window"))) == (16, []), "the drafter has to compute its own KV"
        assert cache.load(found, {"full": range(4), "state": [4]}).wait().tokens == 16
        assert cache.store(chain, {"window": range(4)}, stop=16).wait().stored == 3
        found = cache.lookup(chain)
        assert found.needs("window") == range(1, 4)
        report = cache.load(found, {"full": range(4), "state": [4], "window": [10, 11, 12]}).wait()
        assert (report.tokens, report.groups["window"].blocks) == (16, 3)
        assert (engine.blocks["window"][10:13] == 5).all()
        # An engine that does not draft leaves the group out.
        assert cache.load(cache.lookup(chain), {"full": range(4), "state": [4]}).wait().tokens == 16
        assert cache.evict("host", 1, group="window") == 1
        found = cache.lookup(chain)
        assert (found.stop, found.stops, list(found.needs("window"))) == (16, [16], [])
        found.release()


@pytest.mark.parametrize("kind", ["folder", "dictionary"])
def test_a_stop_that_one_cache_stores_another_one_finds_and_a_lost_page_ends_it(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    from test_shared import DictionaryTier

    shared = tmp_path / "shared" if kind == "folder" else DictionaryTier()
    with engine.open(shared=shared, shared_bundle_blocks=2) as first:
        chain = first.hasher().keys(range(42))
        store(engine, first, chain, 24)
        store(engine, first, chain, 40)
        deadline = time.monotonic() + 120
        # Pairs of full pages, and one page a value of the other groups: two windows and two states.
        while first.stats()["shared"]["written"] < 5 + 2 * 3 + 2:
            assert time.monotonic() < deadline, first.stats()["shared"]
            time.sleep(0.01)
    with engine.open(shared=shared, shared_bundle_blocks=2) as second:
        assert second.lookup(chain).stop == 0
        seek = second.seek(chain, 20, at_most=41)
        found = seek.wait()
        assert (found.stop, found.stops) == (40, [40, 24]) and "taken" in repr(seek)
        with pytest.raises(kvtile.ClosedError):
            seek.wait()
        assert load(engine, second, found).tokens == 40
        ready = second.seek(chain, 0)
        assert ready.ready
        match = ready.match()
        assert match is not None and match.stop == 40
        match.release()
    state = chain[9].hex()
    if isinstance(shared, DictionaryTier):
        return
    files = [file for file in shared.rglob(f"*/{state}.1")]
    # The state and the last page of the window.
    assert len(files) == 2
    files[0].unlink()
    with engine.open(shared=shared, shared_bundle_blocks=2) as third:
        found = third.seek(chain, 20).wait()
        assert load(engine, third, found).tokens == 24
    with pytest.raises(kvtile.SettingsError, match="without shared"):
        engine.open(shared_lifetime=5)
