"""What SGLang or its surroundings may do wrong after the start: no call raises, and what is lost is counted."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

import sglang_pools as pools
from kvtile.sglang import KvtileHiCache
from sglang_pools import created, indices, keys, same, values


def test_a_page_twice_in_a_batch_is_one_page(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    pools.fill(pool, 1)
    wanted = [tensor.clone() for tensor in values(pool, 0)]
    backend = created(tmp_path, pool)
    assert backend.batch_set_v1(keys(3), indices([0, 0, 1])) == [True, False, True]
    assert backend.batch_get_v1([keys(3)[0], keys(3)[2]], indices([7, 7])) == [True, False]
    assert same(values(pool, 7), wanted)
    assert backend.counts() == {"errors": 0, "pages_refused": 2, "pools_refused": 0}
    backend.close()


@pytest.mark.parametrize("names", [["\ud800"], [None], [7]])
def test_names_that_are_no_keys_are_misses_and_are_counted(tmp_path: Path, names: list[Any]) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    assert backend.batch_set_v1(names, indices([0])) == [False]
    assert backend.batch_get_v1(names, indices([0])) == [False]
    assert backend.batch_exists(names) == 0
    assert backend.batch_exists_v2(names).restorable_prefix_pages == []
    assert backend.counts()["errors"] == 4
    assert backend.batch_set_v1(["not hexadecimal", "", "ä" * 100_000], indices([0, 1, 2])) == [True] * 3
    backend.close()


def refused_pools() -> list[tuple[str, Any]]:
    other = pools.mha("page_first", layers=1)
    other.layout = "another"
    # One page of it is larger than the folder.
    large = pools.mha("page_first", layers=400, heads=64)
    return [("an order", other), ("a class", SimpleNamespace()), ("a size", large)]


@pytest.mark.parametrize(("what", "other"), refused_pools(), ids=[what for what, _ in refused_pools()])
def test_a_pool_that_comes_late_and_cannot_be_kept_is_a_miss_alone(tmp_path: Path, what: str, other: Any) -> None:
    kv = pools.mha("page_first")
    pools.fill(kv, 1)
    wanted = [tensor.clone() for tensor in values(kv, 0)]
    backend = created(tmp_path, kv, capacity="1MiB")
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    backend.register_mem_host_pool_v2(other, PoolName.DRAFT)
    assert backend.counts()["pools_refused"] == 1
    asked = PoolTransfer(name=PoolName.DRAFT, keys=keys(1), host_indices=indices([0]))
    assert backend.batch_set_v2([asked]) == {PoolName.DRAFT: [False]}
    assert backend.batch_get_v2([asked]) == {PoolName.DRAFT: [False]}
    assert backend.batch_exists_v2(keys(2), [asked]).restorable_prefix_pages == []
    assert backend.batch_get_v1(keys(1), indices([5])) == [True] and same(values(kv, 5), wanted)
    assert backend.batch_exists(keys(2)) == 2
    backend.close()


def test_a_pool_in_place_of_another_one_has_its_pages(tmp_path: Path) -> None:
    first, second = pools.mha("page_first"), pools.mha("layer_first")
    pools.fill(first, 1)
    wanted = [tensor.clone() for tensor in values(first, 0)]
    backend = created(tmp_path, first)
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    backend.register_mem_host_pool_v2(second, PoolName.KV)
    assert backend.batch_get_v1(keys(1), indices([3])) == [True] and same(values(second, 3), wanted)
    assert [folder.name for folder in tmp_path.iterdir()] == ["tp0-of-1"]
    backend.close()


def answers(backend: KvtileHiCache) -> list[Any]:
    """What each call of SGLang answers."""
    policy = PoolHitPolicy.TRAILING_PAGES
    trailing = PoolTransfer(name=PoolName.KV, keys=keys(1), host_indices=indices([0]), hit_policy=policy)
    return [
        backend.batch_exists(keys(1)), backend.batch_get_v1(keys(1), indices([0])),
        backend.batch_set_v1(keys(1), indices([0])), backend.batch_exists_v2(keys(1), [trailing]).kv_hit_pages,
        backend.batch_get_v2([trailing]), backend.get(keys(1)[0]), backend.clear(), backend.flush(),
        backend.store_stats(),
    ]


def test_a_forked_child_finds_nothing_and_its_parent_goes_on(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    assert all(backend.batch_set_v1(keys(1), indices([0])))
    child = os.fork()
    if child == 0:
        expected = [0, [False], [False], 0, {PoolName.KV: [False]}, None, False, False, {}]
        good = answers(backend) == expected
        backend.close()
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert backend.batch_get_v1(keys(1), indices([1])) == [True] and torch.equal(values(pool, 1)[0], values(pool, 0)[0])
    backend.close()


def test_empty_batches_are_answered(tmp_path: Path) -> None:
    backend = created(tmp_path, pools.mha("layer_first"))
    none = indices([0])[:0]
    assert backend.batch_get_v1([], none) == backend.batch_set_v1([], none) == backend.batch_get([]) == []
    assert backend.batch_exists([]) == 0 and backend.batch_set([], []) and backend.batch_get_v2([]) == {}
    assert backend.batch_exists_v2([], []).restorable_prefix_pages == []
    unknown = PoolTransfer(name=PoolName.KV, keys=None, host_indices=None)
    assert backend.batch_get_v2([unknown]) == backend.batch_set_v2([unknown]) == {PoolName.KV: []}
    backend.close()


def test_a_pool_that_cannot_replace_another_one_leaves_misses(tmp_path: Path) -> None:
    other = pools.mha("page_first")
    other.layout = "another"
    backend = created(tmp_path, pools.mha("page_first"))
    assert backend.batch_set_v1(keys(1), indices([0])) == [True]
    backend.register_mem_host_pool_v2(other, PoolName.KV)
    assert backend.batch_exists(keys(1)) == 0 and backend.batch_get_v1(keys(1), indices([1])) == [False]
    assert backend.counts()["pools_refused"] == 1
    backend.close()
