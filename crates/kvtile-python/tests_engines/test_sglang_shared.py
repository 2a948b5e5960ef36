"""The backend over a shared store: engines with private folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

import kvtile.sglang._store
import sglang_pools as pools
from kvtile import SettingsError, SharedTier, SharedTierError
from kvtile.sglang._options import HiCacheOptions
from sglang_pools import created, indices, keys, same, values

PATIENT = 20.0


def shared(backend: Any) -> dict[str, int]:
    """The counters of the shared store, of the only pool."""
    return next(iter(backend.store_stats().values()))["shared"]


def written(backend: Any, pages: int) -> None:
    """Waits until the store has these pages."""
    end = time.monotonic() + PATIENT
    while shared(backend)["written"] < pages:
        assert time.monotonic() < end, shared(backend)
        time.sleep(0.005)


def test_a_second_engine_gets_the_pages_of_the_first_one(tmp_path: Path) -> None:
    pool, other = pools.mha("layer_first"), pools.mha("page_head")
    pools.fill(pool, 1)
    options = {"shared": str(tmp_path / "store"), "shared_within": PATIENT}
    first = created(tmp_path / "one", pool, **options)
    assert first.batch_set_v1(keys(4), indices([0, 1, 2, 3])) == [True] * 4
    written(first, 4)
    second = created(tmp_path / "two", other, **options)
    assert second.batch_exists(keys(6)) == 4 and second.exists(keys(1)[0])
    assert second.batch_get_v1(keys(5), indices([4, 5, 6, 7, 8])) == [True] * 4 + [False]
    assert all(same(values(other, page + 4), values(pool, page)) for page in range(4))
    assert shared(second)["read_blocks"] == 4 and shared(second)["damaged"] == 0
    everything = PoolTransfer(name=PoolName.KV, keys=keys(4), hit_policy=PoolHitPolicy.ALL_PAGES)
    assert second.batch_exists_v2(keys(6), [everything]).kv_hit_pages == 4
    second.close()
    first.close()
    stranger = created(tmp_path / "three", other, revision="other weights", **options)
    assert stranger.batch_exists(keys(4)) == 0
    stranger.close()


def test_a_rank_of_compressed_kv_on_another_machine_reads_the_store(tmp_path: Path) -> None:
    sides = [pools.mla("page_first"), pools.mla("layer_first")]
    pools.fill(sides[0], 1)
    options = {"shared": str(tmp_path / "store"), "shared_within": PATIENT}
    writer = created(tmp_path / "one", sides[0], is_mla=True, rank=0, size=2, **options)
    assert writer.batch_set_v1(keys(2), indices([0, 1])) == [True] * 2
    written(writer, 2)
    reader = created(tmp_path / "two", sides[1], is_mla=True, rank=1, size=2, **options)
    assert reader.batch_exists(keys(3)) == 2
    assert reader.batch_get_v1(keys(2), indices([5, 6])) == [True] * 2
    assert all(same(values(sides[1], page + 5), values(sides[0], page)) for page in range(2))
    assert reader.batch_set_v1(keys(1, 50), indices([0])) == [False]
    reader.close()
    writer.close()


class Dictionary(SharedTier):
    """A store in a dictionary, whose answers take a time."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.pause = 0.0
        self.has_all = False

    def has(self, names: list[str]) -> list[bool]:
        time.sleep(self.pause)
        return [self.has_all or name in self.values for name in names]

    def read(self, name: str) -> bytes | None:
        return self.values.get(name)

    def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
        self.values[name] = b"".join(parts)
        return True

    def remove(self, names: list[str]) -> int:
        return sum(self.values.pop(name, None) is not None for name in names)


def test_slow_and_lying_stores_are_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Dictionary()
    monkeypatch.setattr(kvtile.sglang._store, "keywords_of", lambda _: {"shared": store})
    pool = pools.mha("page_first")
    pools.fill(pool, 1)
    options = {"shared": "a store", "shared_within": 0.05}
    first = created(tmp_path / "one", pool, **options)
    assert first.batch_set_v1(keys(2), indices([0, 1])) == [True] * 2
    written(first, 2)
    first.close()
    for name, value in store.values.items():
        damaged = bytearray(value)
        damaged[-10] ^= 1
        store.values[name] = bytes(damaged)
    store.pause = 1.5
    second = created(tmp_path / "two", pool, **options)
    start = time.monotonic()
    assert second.batch_exists(keys(3)) == 0
    assert time.monotonic() - start < 1.4, "it does not wait for the answer"
    second.close()
    store.pause, store.has_all = 0.0, True
    third = created(tmp_path / "three", pool, **options | {"shared_within": PATIENT})
    assert third.batch_exists(keys(3)) == 3, "the store lies"
    assert third.batch_get_v1(keys(3), indices([4, 5, 6])) == [False] * 3
    assert shared(third)["damaged"] == 2 and shared(third)["absent"] == 1
    assert third.batch_set_v1(keys(3), indices([0, 1, 2])) == [True] * 3
    assert third.batch_get_v1(keys(3), indices([4, 5, 6])) == [True] * 3 and same(values(pool, 5), values(pool, 1))
    third.close()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"shared_within": 1}, "shared_within has no effect without shared"),
        ({"shared": 5}, "shared is 5; it takes str or null"),
        ({"shared": "/store", "shared_within": -1}, "shared_within is -1"),
        ({"shared": "/store", "shared_lifetime": 0}, "shared_lifetime is 0"),
        ({"shared": "/store", "shared_bundle_blocks": 2}, "does not state where a page is"),
    ],
)
def test_options_are_refused_by_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        HiCacheOptions.read({"path": "/kv", "capacity": 1, **given})
    assert HiCacheOptions.read({"path": "/kv", "capacity": 1, "shared": "/store", "shared_within": 0}).shared_within == 0


def test_a_store_that_cannot_be_opened_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(SharedTierError, match="ftp"):
        created(tmp_path, pools.mha("page_first"), shared="ftp://host/kv")
