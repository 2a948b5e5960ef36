"""Failures of other caches with groups of layers, tried here on ``GroupCache``. Each test names the reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import kvtile
import numpy as np
import pytest
from test_groups import BLOCKS, PAGE, Engine, load, store


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_groups_of_unequal_pages_and_bytes_come_back_byte_for_byte(tmp_path: Path) -> None:
    """LMCache#4179, LMCache#3156, LMCache#3106: groups of unequal sizes were checked against one size, and no load
    succeeded."""
    planes = {
        "main": (8, [kvtile.Plane("c", "float16", C=40)]),
        "every4": (8, [kvtile.Plane("entries", "record584", unit_bytes=584, opaque=True, every=4)]),
        "every16": (32, [kvtile.Plane("entries", "float16", every=16, C=6)]),
        "index": (16, [kvtile.Plane("key", "uint8", C=132)]),
        "ring": (8, [kvtile.Plane("k", "float32", H=2, C=4), kvtile.Plane("v", "float32", H=2, C=2)]),
        "state": (16, [kvtile.Plane("b", "float32", per_page=True, C=70), kvtile.Plane("a", "float32", per_page=True, C=9)]),
    }
    words = {
        "main": "BLNC", "every4": "BLN", "every16": "BLNC", "index": "BLNC", "ring": "BLH(kNC,vNC)", "state": "BL(bC,aC)",
    }  # fmt: skip
    dtypes = {
        "main": "float16", "every4": "uint8", "every16": "float16", "index": "uint8", "ring": "float32", "state": "float32",
    }  # fmt: skip
    rules: dict[str, dict[str, Any]] = {"ring": {"rule": "window", "tokens": 13}, "state": {"rule": "stop"}}
    shapes = {
        name: kvtile.Shape(num_blocks=8, num_layers=1 + at, page_size=page, planes=of_group)
        for at, (name, (page, of_group)) in enumerate(planes.items())
    }
    groups = [kvtile.ModelGroup(name, shape, **rules.get(name, {})) for name, shape in shapes.items()]
    model = kvtile.ModelIdentity("a/model", "1", groups)
    numbers = np.random.default_rng(4)

    def memory(fill: bool) -> dict[str, Any]:
        sizes = {name: shape.block_bytes * 8 for name, shape in shapes.items()}
        return {
            name: numbers.integers(0, 256, size, np.uint8) if fill else np.zeros(size, np.uint8)
            for name, size in sizes.items()
        }

    def layouts(arrays: dict[str, Any]) -> dict[str, kvtile.Layout]:
        return {name: kvtile.Layout(words[name], shape=shapes[name], tensors=arrays[name].view(dtypes[name])) for name in words}

    settings = {"host_bytes": 8 << 20, "disk": tmp_path / "kv", "disk_bytes": 64 << 20}
    source, target = memory(True), memory(False)
    pages = {name: 64 // shape.page_size for name, shape in shapes.items()}
    with kvtile.GroupCache(model, layouts(source), **settings) as cache:
        assert (cache.unit, cache.stop_unit) == (8, 32)
        chain = cache.hasher().keys(range(64))
        report = cache.store(chain, {name: range(count) for name, count in pages.items()}, stop=64).wait()
        assert report.stopped is None
    with kvtile.GroupCache(model, layouts(target), **settings) as cache:
        found = cache.lookup(chain)
        assert found.stop == 64
        needs = {name: found.needs(name) for name in shapes}
        assert cache.load(found, needs).wait().tokens == 64
    for name, shape in shapes.items():
        ours, theirs = (arrays[name].reshape(8, shape.block_bytes) for arrays in (target, source))
        assert (ours[list(needs[name])] == theirs[list(needs[name])]).all(), name


def test_what_is_lost_between_lookup_and_load_costs_a_stop_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    """sglang#38634, sglang#38347: a restore promised what the store below no longer had, and one lost key ended the
    engine."""
    settings = {"disk": tmp_path / "kv", "disk_bytes": 32 << 20}
    with engine.open(**settings) as cache:
        chain = cache.hasher().keys(range(40))
        for stop in (16, 40):
            store(engine, cache, chain, stop)
        number = cache.groups["state"]["number"]
    slots = tmp_path / "kv" / (f"slots-{number}" if number else "slots")
    with engine.open(**settings) as cache:
        found = cache.lookup(chain)
        assert found.stop == 40
        slots.write_bytes(bytes(byte ^ 1 for byte in slots.read_bytes()))
        blocks = {name: [at for at, _ in enumerate(found.needs(name))] for name in cache.groups}
        report = cache.load(found, blocks).wait()
        assert (report.tokens, report.wanted) == (0, 40)
        assert report.stopped is not None and report.stopped.startswith("state: ")
        # The other stop is tried, met to be lost as well, and then the engine computes.
        found = cache.lookup(chain)
        assert found.stop == 16 and load(engine, cache, found).tokens == 0
        with cache.lookup(chain) as found:
            assert (found.stop, found.branch) == (0, 40)
        store(engine, cache, chain, 40)
        assert load(engine, cache, cache.lookup(chain)).tokens == 40


def test_events_of_groups_are_enough_to_know_every_stop(engine: Engine) -> None:
    """dynamo#8667, dynamo#9376: routers saw blocks without their groups, and so took pages of windows for prefixes."""
    model = engine.model()
    with engine.open() as cache:
        events, present = cache.subscribe(), set()
        names = {facts["number"]: name for name, facts in cache.groups.items()}
        chain = cache.hasher().keys(range(40))

        def stops() -> list[int]:
            for event in events.poll():
                page = (names[event.group], event.key)
                (present.add if event.kind == "stored" else present.discard)(page)
            return [
                stop
                for stop in range(40, 0, -PAGE)
                if all((name, chain[page]) in present for name, group in model.groups.items() for page in group.needs(stop))
            ]

        assert stops() == []
        for stop in (16, 28, 40):
            store(engine, cache, chain, stop)
        assert stops() == [40, 28, 16]
        for group, blocks in (("state", 1), ("window", 2), ("full", 3)):
            assert cache.evict("host", blocks, group=group) == blocks
            # Pages that only a lost stop needed are removed a little later.
            for _ in range(500):
                with cache.lookup(chain) as found:
                    if found.stops == stops():
                        break
                time.sleep(0.01)
            else:
                pytest.fail(f"a lookup finds {found.stops}, and the events say {stops()}")


def test_a_stop_that_is_reported_is_in_the_memory_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    """llama.cpp#28194, llama.cpp#25913, llama.cpp#24035, llama.cpp#21831: a restore reported success, and nothing of it
    was used."""
    settings = {"disk": tmp_path / "kv", "disk_bytes": 32 << 20}
    with engine.open(**settings) as cache:
        chain = cache.hasher().keys(range(42))
        store(engine, cache, chain, 40)
    with engine.open(**settings) as cache:
        found = cache.lookup(chain)
        needs = {name: found.needs(name) for name in cache.groups}
        sizes = sum(len(pages) * engine.shapes[name].block_bytes for name, pages in needs.items())
        report = load(engine, cache, found)
        # `load` has compared every byte.
        assert (report.tokens, report.bytes) == (40, sizes)
        assert {name: of.blocks for name, of in report.groups.items()} == {name: len(pages) for name, pages in needs.items()}
        assert cache.stats()["found_tokens"] == 40


def test_the_bytes_of_windows_and_states_do_not_grow_with_the_prompt(engine: Engine) -> None:
    """ik_llama.cpp#1824: 51,000 tokens of a model whose layers are mostly windows took 35 GB."""
    with engine.open() as cache:
        kept = []
        for tokens in (16, 64, BLOCKS * PAGE):
            chain = cache.hasher(salt=str(tokens)).keys(range(tokens))
            report = store(engine, cache, chain, tokens)
            kept.append({name: of.stored for name, of in report.groups.items()})
        assert kept == [{"full": tokens // PAGE, "window": 3, "state": 1} for tokens in (16, 64, BLOCKS * PAGE)]
        present = {name: facts["present"]["host"] for name, facts in cache.stats()["groups"].items()}
        assert present == {"full": 4 + 16 + BLOCKS, "window": 9, "state": 3}
