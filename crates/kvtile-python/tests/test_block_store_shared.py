"""BlockStore over a shared store: two processes' stores, each block by itself or in chains."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvtile
from test_block_store import BLOCK, ROWS, filled, group, keys
from test_shared import DictionaryTier


@pytest.fixture(params=["folder", "dictionary"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    yield str(tmp_path / "shared") if request.param == "folder" else DictionaryTier()


def opened(shared: object, folder: Path | None = None, **settings: object) -> kvtile.BlockStore:
    disk = {} if folder is None else {"disk": folder, "disk_bytes": 8 << 20}
    options = {"staging_bytes": 1 << 20, "shared": shared, "shared_staging_bytes": 1 << 20, **disk, **settings}
    return kvtile.BlockStore(group(), **options)  # type: ignore[arg-type]


def written(store: kvtile.BlockStore, values: int) -> None:
    deadline = time.monotonic() + 120
    while store.stats()["shared"]["written"] < values:
        assert time.monotonic() < deadline, store.stats()["shared"]
        time.sleep(0.005)


def stored(store: kvtile.BlockStore, blocks: int = 8) -> np.ndarray:
    """Stores blocks without a chain, and waits until the shared store has them."""
    memory = filled()
    rows = store.register(memory)
    assert store.store(keys(*range(blocks)), rows, range(blocks)).wait().outcomes == ["ok"] * blocks
    written(store, blocks)
    return memory


@pytest.mark.parametrize("is_private", [True, False], ids=["disk", "no disk"])
def test_each_block_is_found_by_itself(shared: object, is_private: bool, tmp_path: Path) -> None:
    with opened(shared, tmp_path / "one" if is_private else None) as first:
        expected = stored(first)
    with opened(shared, tmp_path / "two" if is_private else None) as second:
        assert second.contains(keys(5, 2, 77)) == [False] * 3
        query = second.ask(keys(5, 2, 77))
        assert query.wait(20) and query.ready and "ready" in repr(query)
        assert second.contains(keys(5, 2, 77, 3)) == [True, True, False, False]
        memory = np.zeros((ROWS, BLOCK), np.uint8)
        rows = second.register(memory)
        assert second.load(keys(2, 5, 77), rows, [0, 1, 2]).wait().outcomes == ["ok", "ok", "absent"]
        assert np.array_equal(memory[0], expected[2]) and np.array_equal(memory[1], expected[5])
        counts = second.stats()["shared"]
        assert counts["read_blocks"] == 2 and counts["asked"] == 3 and counts["asked_present"] == 2


def test_a_query_without_a_shared_store_is_ready(tmp_path: Path) -> None:
    with kvtile.BlockStore(group(), disk=tmp_path, disk_bytes=8 << 20) as store:
        assert store.ask(keys(1)).ready and store.ask([]).wait()
        assert store.stats()["shared"] is None


def test_a_query_waits_for_a_slow_store_and_no_longer_than_it_may(tmp_path: Path) -> None:
    store = DictionaryTier()
    with opened(store) as first:
        stored(first)
    with opened(store, shared_within=1.5) as second:
        store.pause = 0.1
        query = second.ask(keys(1))
        assert not query.ready and "waiting" in repr(query)
        assert not query.wait(0.005)
        assert query.wait(20) and second.contains(keys(1)) == [True]
        store.pause = 3.0
        late = second.ask(keys(2))
        # The tier's own time limit ends the query.
        assert late.wait(20) and second.contains(keys(2)) == [False]
        with pytest.raises(TypeError, match="ask again"):
            pickle.dumps(query)
        store.pause = 0.0


def test_damaged_values_and_lies_are_misses_and_are_counted() -> None:
    store = DictionaryTier()
    with opened(store) as first:
        stored(first)
    bundles = [name for name in store.values if "/all/" in name]
    for name in bundles[:4]:
        value = bytearray(store.values[name])
        value[len(value) // 2] ^= 1
        store.values[name] = bytes(value)

    class Lying(DictionaryTier):
        def has(self, names: list[str]) -> list[bool]:
            return [True] * len(names)

    lying = Lying()
    lying.values = store.values
    with opened(lying) as second:
        memory = np.zeros((ROWS, BLOCK), np.uint8)
        rows = second.register(memory)
        wanted = keys(*range(8), 77)
        assert second.ask(wanted).wait(20) and second.contains(wanted) == [True] * 9
        outcomes = second.load(wanted, rows, range(9)).wait().outcomes
        assert outcomes.count("ok") == 4 and outcomes[8] == "absent", outcomes
        for row, outcome in enumerate(outcomes):
            assert outcome != "ok" or np.array_equal(memory[row], filled()[row])
        counts = second.stats()["shared"]
        assert counts["damaged"] == 4 and counts["absent"] == 1
        assert second.contains(wanted).count(True) == 4


def test_bundles_of_several_blocks_need_the_chain(shared: object, tmp_path: Path) -> None:
    memory = filled()
    parents = [None, *keys(*range(7))]
    with opened(shared, shared_bundle_blocks=4) as first:
        rows = first.register(memory)
        for chain in ({}, {"parents": parents}, {"positions": range(8)}):
            with pytest.raises(kvtile.RequestError, match=r"parents and positions.*shared_bundle_blocks=1"):
                first.store(keys(*range(8)), rows, range(8), **chain)
            with pytest.raises(kvtile.RequestError, match="shared_bundle_blocks"):
                first.submit_store(1, keys(*range(8)), rows, range(8), **chain)
        assert first.store([], rows, []).wait().outcomes == []
        chain = {"parents": parents, "positions": range(8)}
        assert first.store(keys(*range(8)), rows, range(8), **chain).wait().outcomes == ["ok"] * 8
        written(first, 2)
    with opened(shared, shared_bundle_blocks=4) as second:
        assert second.ask(keys(*range(8))).wait(20)
        assert second.contains(keys(*range(8))) == [True] * 8
    # The size of a bundle is part of the names.
    with opened(shared) as other:
        assert other.ask(keys(*range(8))).wait(20) and other.contains(keys(*range(8))) == [False] * 8


def test_a_reader_writes_nothing(shared: object) -> None:
    with opened(shared) as first:
        stored(first)
    with opened(shared, read_only=True) as reader:
        rows = reader.register(np.zeros((ROWS, BLOCK), np.uint8))
        assert reader.store(keys(50), rows, [0]).wait().outcomes == ["failed"]
        assert reader.ask(keys(1, 50)).wait(20) and reader.contains(keys(1, 50)) == [True, False]
        assert reader.load(keys(1), rows, [0]).wait().ok == [True]


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"shared_within": 1.0}, kvtile.SettingsError, "without shared"),
        ({"shared": "ftp://host/kv"}, kvtile.SharedTierError, "ftp"),
        ({"shared": "redis://127.0.0.1:1/0"}, kvtile.SharedTierError, "127.0.0.1"),
        ({"shared": 5}, kvtile.ArgumentError, "a URL, the path of a folder, or a kvtile.SharedTier"),
        ({"shared_bundle_blocks": 65}, kvtile.KvtileError, "65"),
        ({"shared_bundle_blocks": 0}, kvtile.KvtileError, "0"),
        ({"shared_staging_bytes": 1}, kvtile.KvtileError, "staging"),
        ({"sharde": "/kv"}, kvtile.ArgumentError, "shared"),
        ({"shared_x": 1}, kvtile.ArgumentError, "shared_x"),
    ],
)
def test_settings_are_refused_by_name(
    settings: dict[str, object], error: type[Exception], text: str, tmp_path: Path
) -> None:
    is_idle = "shared_within" in settings
    given = {} if is_idle or "shared" in settings else {"shared": str(tmp_path / "shared")}
    with pytest.raises(error, match=text):
        kvtile.BlockStore(group(), disk=tmp_path / "kv", disk_bytes=8 << 20, **given, **settings)  # type: ignore[arg-type]
