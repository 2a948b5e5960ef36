"""Pools beside the KV: indexers, index keys and states, in each host layout, and on ranks that share them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.memory_pool_host import DeepSeekV4StateHostPool
from sglang.srt.mem_cache.pool_host.dsa import DSAIndexerPoolHost
from sglang.srt.mem_cache.pool_host.host_pool_decl import HostPoolDecl, HostPoolStorageInfo
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKOnlyPoolHost
from sglang.srt.mem_cache.pool_host.qsa import QSAIndexerPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

import sglang_pools as pools
from kvtile.sglang import KvtileHiCache
from sglang_pools import LAYERS, PAGE, TOKENS, indices, keys, same, values

LAYOUTS = ["layer_first", "page_first", "page_first_direct"]
# Bytes of an indexer's keys and scales for one token of one layer.
INDEX = 12


def indexer(layout: str) -> Any:
    """The keys and scales of a sparse index, of which one layer shares those of another one."""
    device = SimpleNamespace(
        store_dtype=torch.uint8, start_layer=0, end_layer=LAYERS, layer_num=LAYERS, device="cpu", page_size=PAGE,
        layer_shard_enabled=False,
        index_k_with_scale_buffer=[torch.zeros(TOKENS // PAGE, PAGE * INDEX, dtype=torch.uint8) for _ in range(LAYERS)],
    )
    info = HostPoolStorageInfo(bytes_per_token_per_layer=INDEX, dtype=torch.uint8)
    decl = HostPoolDecl(
        pool_name=PoolName.INDEXER, device_pool=device, indices_from_pool=PoolName.KV, layout_source=PoolName.KV,
        storage_info=info, host_pool_builder=None, owned_device_layers=(0, 2),
    )
    return DSAIndexerPoolHost(decl, pools.mla(layout), pin_memory=False)


def compressed_keys(layout: str) -> Any:
    """Index keys that one entry for two tokens has."""
    buffers = [torch.zeros(TOKENS // 2, 3, dtype=torch.bfloat16) for _ in range(LAYERS)]
    device = SimpleNamespace(qsa_compress_ratio=2, qsa_compressed_k_buffer_pool=buffers)
    return QSAIndexerPoolHost(device, pools.mha(layout))


def index_keys(layout: str) -> Any:
    """Index keys without values."""
    device = SimpleNamespace(
        store_dtype=torch.bfloat16, start_layer=0, end_layer=LAYERS, layer_num=LAYERS, head_num=2, head_dim=8,
        device="cpu",
        k_buffer=[torch.zeros(TOKENS, 2, 8, dtype=torch.bfloat16) for _ in range(LAYERS)],
    )
    return MHATokenToKOnlyPoolHost(device, pools.mha(layout), layout, pin_memory=False)


def states(layout: str) -> Any:
    """States of compressors, one for each page."""
    scores = [SimpleNamespace(kv_score=torch.zeros(16, 6, dtype=torch.float32)) for _ in range(LAYERS)]
    made = [SimpleNamespace(kv_score_buffer=score, ring_size=2) for score in scores]
    return DeepSeekV4StateHostPool("deepseek_v4_c4_state", made, 8, PAGE, layout, pin_memory=False)


KINDS: dict[str, Callable[[str], Any]] = {
    "indexer": indexer, "compressed keys": compressed_keys, "index keys": index_keys, "states": states,
}


def memory(pool: Any) -> list[torch.Tensor]:
    names = ("kv_buffer", "k_buffer", "index_k_with_scale_buffer")
    found = next(getattr(pool, name) for name in names if getattr(pool, name, None) is not None)
    return list(found) if isinstance(found, list) else [found]


def fill(pool: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for buffer in memory(pool):
        flat = buffer.view(torch.uint8)
        flat.copy_(torch.randint(0, 256, flat.shape, dtype=torch.uint8, generator=generator))


def page(pool: Any, number: int) -> torch.Tensor:
    """(layer, byte) of a page, in one order for all layouts."""
    buffers = memory(pool)
    is_by_token = isinstance(pool, MHATokenToKOnlyPoolHost) and pool.layout != "page_first_direct"
    where = slice(number * PAGE, (number + 1) * PAGE) if is_by_token else slice(number, number + 1)
    if len(buffers) > 1:
        found = torch.stack([buffer[where] for buffer in buffers])
    elif pool.layout == "layer_first":
        found = buffers[0][:, where]
    else:
        found = buffers[0][where].transpose(0, 1)
    return found.contiguous().view(torch.uint8).reshape(pool.layer_num, -1).clone()


def attached(path: Path, kv: Any, side: Any, name: PoolName, **ranks: Any) -> KvtileHiCache:
    made = StorageBackendFactory.create_backend("dynamic", pools.config(pools.entry(path), **ranks), kv)
    assert isinstance(made, KvtileHiCache)
    made.register_mem_pool_host(kv)
    made.register_mem_host_pool_v2(kv, PoolName.KV)
    made.register_mem_host_pool_v2(side, name)
    made.on_host_pools_registered()
    return made


def transfer(names: list[str], where: torch.Tensor | None) -> PoolTransfer:
    return PoolTransfer(
        name=PoolName.INDEXER, keys=names, host_indices=where, hit_policy=PoolHitPolicy.ALL_PAGES
    )


@pytest.mark.parametrize("kind", KINDS)
def test_side_pools_serve_every_layout(tmp_path: Path, kind: str) -> None:
    make, kv = KINDS[kind], pools.mha("page_first")
    for written, read in itertools.product(LAYOUTS, LAYOUTS):
        folder, source, target = tmp_path / f"{written} {read}", make(written), make(read)
        fill(source, 1)
        backend = attached(folder, kv, source, PoolName.INDEXER)
        assert backend.batch_set_v2([transfer(keys(3), indices([1, 2, 6]))]) == {PoolName.INDEXER: [True] * 3}
        backend.close()
        backend = attached(folder, kv, target, PoolName.INDEXER)
        loaded = backend.batch_get_v2([transfer(keys(3), indices([5, 7, 0]))])
        assert loaded == {PoolName.INDEXER: [True] * 3}, (written, read)
        for mine, theirs in ((5, 1), (7, 2), (0, 6)):
            assert torch.equal(page(target, mine), page(source, theirs)), (written, read)
        backend.close()


def test_recurrent_states_serve_both_layouts(tmp_path: Path) -> None:
    kv = pools.mha("page_first")
    for written, read in itertools.product(LAYOUTS[1:], LAYOUTS[1:]):
        folder, source, target = tmp_path / f"{written} {read}", pools.mamba(written), pools.mamba(read)
        pools.fill(source, 1)
        backend = attached(folder, kv, source, PoolName.INDEXER)
        assert backend.batch_set_v2([transfer(keys(1), torch.tensor([3]))]) == {PoolName.INDEXER: [True]}
        backend.close()
        backend = attached(folder, kv, target, PoolName.INDEXER)
        assert backend.batch_get_v2([transfer(keys(1), torch.tensor([6]))]) == {PoolName.INDEXER: [True]}
        flat = [[part.flatten() for part in values(pool, slot)] for pool, slot in ((source, 3), (target, 6))]
        assert same(*flat), (written, read)
        backend.close()


def test_ranks_read_all_pools_that_rank_0_writes(tmp_path: Path) -> None:
    """Compressed KV and its index are the same on all ranks: one folder has both, and the other ranks follow both."""
    sides = [(pools.mla("page_first"), indexer("page_first")), (pools.mla("layer_first"), indexer("layer_first"))]
    reader = attached(tmp_path, *sides[1], PoolName.INDEXER, is_mla=True, rank=1, size=2)
    assert reader.batch_exists_v2(keys(3), [transfer(keys(3), None)]).kv_hit_pages == 0
    writer = attached(tmp_path, *sides[0], PoolName.INDEXER, is_mla=True, rank=0, size=2)
    pools.fill(sides[0][0], 1)
    fill(sides[0][1], 2)
    assert writer.batch_set_v1(keys(3), indices([1, 2, 3])) == [True] * 3
    assert writer.batch_set_v2([transfer(keys(2), indices([1, 2]))]) == {PoolName.INDEXER: [True] * 2}
    assert writer.flush()
    end = time.monotonic() + 120
    while (found := reader.batch_exists_v2(keys(3), [transfer(keys(3), None)])).kv_hit_pages != 2:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    assert found.restorable_prefix_pages == [1, 2]
    assert found.extra_pool_hit_pages == {PoolName.KV: 3, PoolName.INDEXER: 2}
    assert reader.batch_get_v1(keys(2), indices([5, 6])) == [True] * 2
    assert reader.batch_get_v2([transfer(keys(2), indices([5, 6]))]) == {PoolName.INDEXER: [True] * 2}
    assert all(same(values(sides[1][0], number + 4), values(sides[0][0], number)) for number in (1, 2))
    assert all(torch.equal(page(sides[1][1], number + 4), page(sides[0][1], number)) for number in (1, 2))
    assert reader.counts()["errors"] == 0
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["shared"]
    for backend in (reader, writer):
        backend.close()
