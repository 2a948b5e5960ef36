"""Several pools: groups of one store, their hit policies, and ranks that share compressed KV."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

import sglang_pools as pools
from kvtile.sglang import KvtileHiCache
from sglang_pools import PAGE, indices, keys, same, values

ALL, TRAILING, GROUPS = PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES, PoolHitPolicy.BLOCK_GROUPS


def attached(path: Path, anchor: Any, others: dict[PoolName, Any], **options: Any) -> KvtileHiCache:
    """The backend with several pools, registered in the order of SGLang's hybrid controller."""
    is_mla, rank, size = options.pop("is_mla", False), options.pop("rank", 0), options.pop("size", 1)
    given = pools.config(pools.entry(path, **options), rank=rank, size=size, is_mla=is_mla)
    made = StorageBackendFactory.create_backend("dynamic", given, anchor)
    assert isinstance(made, KvtileHiCache)
    made.register_mem_pool_host(anchor)
    for name, pool in {PoolName.KV: anchor, **others}.items():
        made.register_mem_host_pool_v2(pool, name)
    made.on_host_pools_registered()
    return made


def transfer(name: PoolName, names: list[str], where: torch.Tensor | None, policy: PoolHitPolicy = ALL) -> PoolTransfer:
    return PoolTransfer(name=name, keys=names, host_indices=where, hit_policy=policy)


def test_pools_have_pages_of_their_own_size(tmp_path: Path) -> None:
    kv, swa, state = pools.mha("page_first"), pools.mha("page_first", layers=2, heads=2), pools.mamba()
    sides = {PoolName.SWA: swa, PoolName.MAMBA: state}
    backend = attached(tmp_path, kv, sides)
    for number, pool in enumerate((kv, swa, state)):
        pools.fill(pool, number)
    wanted = [tensor.clone() for tensor in values(kv, 1)]
    wanted_state = [tensor.clone() for tensor in values(state, 6)]
    swa_page = swa.kv_buffer[:, 2 * PAGE : 3 * PAGE].clone()
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    stored = backend.batch_set_v2(
        [transfer(PoolName.SWA, keys(1, 1), indices([2]), TRAILING), transfer(PoolName.MAMBA, keys(1, 1), torch.tensor([6]), TRAILING)]
    )
    assert stored == {PoolName.SWA: [True], PoolName.MAMBA: [True]}
    backend.close()
    backend = attached(tmp_path, kv, sides)
    for number, pool in enumerate((kv, swa, state)):
        pools.fill(pool, 10 + number)
    assert backend.batch_get_v1(keys(2)[1:], indices([9])) == [True] and same(values(kv, 9), wanted)
    loaded = backend.batch_get_v2(
        [
            transfer(PoolName.SWA, keys(2), indices([4, 5]), TRAILING),
            transfer(PoolName.MAMBA, keys(1, 1), torch.tensor([2]), TRAILING),
        ]
    )
    assert loaded == {PoolName.SWA: [False, True], PoolName.MAMBA: [True]}
    assert torch.equal(swa.kv_buffer[:, 5 * PAGE : 6 * PAGE].view(torch.uint8), swa_page.view(torch.uint8))
    assert same(values(state, 2), wanted_state)
    backend.close()


def test_the_budget_is_one_for_all_pools(tmp_path: Path) -> None:
    kv, state = pools.mha("page_first"), pools.mamba()
    backend = attached(tmp_path, kv, {PoolName.MAMBA: state}, capacity="1MiB")
    for start in range(0, 4096, 16):
        backend.batch_set_v1(keys(16, start), indices(list(range(16))))
        backend.batch_set_v2([transfer(PoolName.MAMBA, keys(8, start), torch.arange(8), TRAILING)])
    backend.flush()
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file()) <= 1 << 20
    backend.close()


def test_a_pool_that_was_not_registered_is_a_miss(tmp_path: Path) -> None:
    backend = attached(tmp_path, pools.mha("page_first"), {})
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    asked = transfer(PoolName.MAMBA, keys(1), torch.tensor([0]), TRAILING)
    assert backend.batch_get_v2([asked]) == {PoolName.MAMBA: [False]}
    assert backend.batch_set_v2([asked]) == {PoolName.MAMBA: [False]}
    found = backend.batch_exists_v2(keys(2), [asked])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (0, [])
    backend.close()


def test_a_pool_that_comes_late_is_kept_too(tmp_path: Path) -> None:
    kv, draft = pools.mha("page_first"), pools.mha("page_first", layers=1)
    backend = attached(tmp_path, kv, {})
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    backend.register_mem_host_pool_v2(draft, PoolName.DRAFT)
    asked = transfer(PoolName.DRAFT, keys(2), indices([3, 4]))
    assert backend.batch_set_v2([asked]) == {PoolName.DRAFT: [True, True]}
    assert backend.batch_exists(keys(2)) == 2
    found = backend.batch_exists_v2(keys(2), [asked])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (2, [1, 2])
    backend.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["tp0-of-1", "tp0-of-1-draft"]
    backend = attached(tmp_path, kv, {})
    backend.register_mem_host_pool_v2(draft, PoolName.DRAFT)
    assert backend.batch_exists_v2(keys(2), [asked]).kv_hit_pages == 2
    backend.close()


def random_transfers(generator: random.Random) -> list[PoolTransfer]:
    made = []
    for name in generator.sample([PoolName.SWA, PoolName.MAMBA, PoolName.DRAFT], generator.randint(0, 3)):
        policy = generator.choice([ALL, TRAILING])
        window = generator.choice([None, 1, 2, 3])
        made.append(transfer(name, None if window is None else keys(window), None, policy))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("seed", range(4))
def test_hits_are_those_of_sglangs_file_backend(tmp_path: Path, seed: int) -> None:
    """Both backends keep the same pages at random, and answer the same."""
    generator = random.Random(seed)
    sides = {name: pools.mha("page_first", layers=1) for name in (PoolName.SWA, PoolName.MAMBA, PoolName.DRAFT)}
    kv = pools.mha("page_first")
    own = attached(tmp_path / "kvtile", kv, sides)
    file = HiCacheFile(pools.config({"file_storage_path": str(tmp_path / "file")}), str(tmp_path / "file"))
    file.register_mem_pool_host(kv)
    for name, pool in {PoolName.KV: kv, **sides}.items():
        file.register_mem_host_pool_v2(pool, name)
    for case in range(60):
        names = keys(7, case * 7)
        for name in (PoolName.KV, *sides):
            share = generator.choice([0.3, 0.7, 0.95])
            stored = [key for key in names if generator.random() < share]
            if not stored:
                continue
            asked = transfer(name, stored, indices(list(range(len(stored)))))
            assert all(own.batch_set_v2([asked])[name]) and all(file.batch_set_v2([asked])[name])
        transfers = random_transfers(generator)
        mine, theirs = own.batch_exists_v2(names, transfers), file.batch_exists_v2(names, transfers)
        assert mine.kv_hit_pages == theirs.kv_hit_pages
        assert mine.restorable_prefix_pages == theirs.restorable_prefix_pages
        # SGLang's backend reports no pool after one that leaves nothing.
        reported = theirs.extra_pool_hit_pages
        assert {name: mine.extra_pool_hit_pages.get(name) for name in reported} == reported
    own.close()


def test_holes_are_reported_and_not_their_maximum_alone(tmp_path: Path) -> None:
    kv, state = pools.mha("page_first"), pools.mamba()
    backend = attached(tmp_path, kv, {PoolName.MAMBA: state})
    assert all(backend.batch_set_v1(keys(6), indices(list(range(6)))))
    for page in (1, 4):
        backend.batch_set_v2([transfer(PoolName.MAMBA, keys(1, page), torch.tensor([page]), TRAILING)])
    found = backend.batch_exists_v2(keys(6), [transfer(PoolName.MAMBA, keys(1), None, TRAILING)])
    assert found.restorable_prefix_pages == [2, 5] and found.kv_hit_pages == 5
    assert found.extra_pool_hit_pages == {PoolName.KV: 6, PoolName.MAMBA: 5}
    backend.close()


def test_groups_of_blocks_have_a_verdict_and_no_say(tmp_path: Path) -> None:
    kv, blocks = pools.mha("page_first"), pools.mha("page_first", layers=1)
    backend = attached(tmp_path, kv, {PoolName.DRAFT: blocks})
    assert all(backend.batch_set_v1(keys(8), indices(list(range(8)))))
    backend.batch_set_v2([transfer(PoolName.DRAFT, keys(5, 100), indices(list(range(5))))])
    asked = PoolTransfer(
        name=PoolName.DRAFT, keys=keys(8, 100), hit_policy=GROUPS, group_pages=2, block_pages=2
    )
    found = backend.batch_exists_v2(keys(8), [asked])
    assert found.kv_hit_pages == 8 and found.restorable_prefix_pages == list(range(1, 9))
    assert found.extra_pool_hit_pages == {PoolName.KV: 8, PoolName.DRAFT: 4}
    backend.close()


def test_an_anchor_without_memory_leaves_the_hit_to_the_other_pools(tmp_path: Path) -> None:
    anchor, rows = LogicalHostPool(64, PAGE), pools.mha("page_first")
    backend = attached(tmp_path, anchor, {PoolName.SWA: rows})
    assert backend.batch_exists(keys(3)) == 0
    assert backend.batch_set_v1(keys(3), indices([0, 1, 2])) == [True] * 3
    backend.batch_set_v2([transfer(PoolName.SWA, keys(2), indices([0, 1]))])
    found = backend.batch_exists_v2(keys(3), [transfer(PoolName.SWA, keys(3), None)])
    assert found.kv_hit_pages == 2 and found.restorable_prefix_pages == [1, 2]
    assert backend.batch_exists_v2(keys(3), []).kv_hit_pages == 0
    backend.close()


def test_states_of_another_shape_are_refused_by_field(tmp_path: Path) -> None:
    kv = pools.mha("page_first")
    attached(tmp_path, kv, {PoolName.MAMBA: pools.mamba()}).close()
    other = pools.mamba()
    other.conv_buffer = other.conv_buffer[:1]
    with pytest.raises(Exception, match="state|planes|mamba"):
        attached(tmp_path, kv, {PoolName.MAMBA: other})
