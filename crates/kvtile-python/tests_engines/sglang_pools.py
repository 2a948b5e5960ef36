"""SGLang's own host pools on a CPU, small, and the backend as SGLang creates it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.device_pool_info import (
    KVBufferLayout,
    KVBuffers,
    MambaStateBufferInfo,
    MHABufferInfo,
    MLABufferInfo,
    MLASplitBuffers,
)
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mha import AsymmetricMHATokenToKVPoolHost, MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from kvtile.sglang import KvtileHiCache

LAYERS, HEADS, SIZE, PAGE, TOKENS = 3, 4, 16, 4, 64
LATENT, ROTARY = 32, 8
MHA_LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head", "page_unified"]
MLA_LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_unified", "page_first_kv_split"]


def pointers(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The table of addresses that SGLang's pools require."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


def mha(
    layout: str, dtype: torch.dtype = torch.bfloat16, *, heads: int = HEADS, groups: int = 1, value: int = SIZE,
    layers: int = LAYERS, page: int = PAGE,
) -> Any:
    """A pool of keys and values."""
    device = torch.device("cpu")
    k = tuple(torch.zeros(TOKENS, heads, SIZE, dtype=dtype) for _ in range(layers))
    v = tuple(torch.zeros(TOKENS, heads, value, dtype=dtype) for _ in range(layers))
    buffers = KVBuffers(k=k, v=v, k_data_ptrs=pointers(k), v_data_ptrs=pointers(v), layout=KVBufferLayout.NHD)
    info = MHABufferInfo(
        buffers=buffers, page_size=page, head_num=heads, head_dim=SIZE, v_head_dim=value, dtype=dtype, device=device
    )
    pool = MHATokenToKVPoolHost if value == SIZE else AsymmetricMHATokenToKVPoolHost
    return pool(
        info, 1.0, 0, page, layout, pin_memory=False, device_capacity_tokens=TOKENS, start_layer=0, end_layer=layers,
        host_token_capacity=TOKENS, head_group_num=groups,
    )


def mla(layout: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A pool of compressed KV."""
    device, width = torch.device("cpu"), LATENT + ROTARY
    buffers: Any = tuple(torch.zeros(TOKENS, 1, width, dtype=dtype) for _ in range(LAYERS))
    table = pointers(buffers)
    if layout == "page_first_kv_split":
        buffers = MLASplitBuffers(
            k=torch.zeros(LAYERS, TOKENS, LATENT, dtype=dtype), v=torch.zeros(LAYERS, TOKENS, ROTARY, dtype=dtype),
            index_k=None, index_scales=None, index_layer_indices=(), k_width=LATENT, v_width=ROTARY, index_width=0,
        )
    info = MLABufferInfo(
        buffers=buffers, data_ptrs=table, layer_indices=tuple(range(LAYERS)), device_layer_num=LAYERS, page_size=PAGE,
        kv_lora_rank=LATENT, qk_rope_head_dim=ROTARY, kv_cache_dim=width, dtype=dtype, device=device,
    )
    return MLATokenToKVPoolHost(
        info, 1.0, 0, PAGE, layout, pin_memory=False, device_capacity_tokens=TOKENS, start_layer=0, end_layer=LAYERS,
        target_layer_num=LAYERS, host_token_capacity=TOKENS,
    )


def mamba(layout: str = "page_first", slots: int = 8) -> Any:
    """A pool of recurrent states, of two types and shapes."""
    info = MambaStateBufferInfo(
        temporal=torch.zeros(2, slots, 3, 5, dtype=torch.float32),
        conv=(torch.zeros(2, slots, 7, dtype=torch.bfloat16), torch.zeros(2, slots, 2, 3, dtype=torch.bfloat16)),
    )
    return MambaPoolHost(info, 1.0, 0, device_capacity=slots, pin_memory=False, layout=layout)


def buffers_of(pool: Any) -> list[torch.Tensor]:
    """The memory of a pool."""
    if isinstance(pool, MambaPoolHost):
        return list(pool.get_hybrid_pool_buffer())
    if pool.layout == "page_first_kv_split":
        return [pool.k_buffer, pool.v_buffer]
    return list(pool.kv_buffer) if isinstance(pool.kv_buffer, (tuple, list)) else [pool.kv_buffer]


def fill(pool: Any, seed: int) -> None:
    """Fills a pool with other bytes for each seed; any byte may occur."""
    generator = torch.Generator().manual_seed(seed)
    for buffer in buffers_of(pool):
        flat = buffer.view(torch.uint8)
        flat.copy_(torch.randint(0, 256, flat.shape, dtype=torch.uint8, generator=generator))


def values(pool: Any, page: int) -> list[torch.Tensor]:
    """A page's values in one order for all layouts: for each plane (layer, token, head, element), as bytes."""
    first = page * PAGE
    if isinstance(pool, MambaPoolHost):
        return [buffer[page].contiguous().view(torch.uint8) for buffer in buffers_of(pool)]
    if isinstance(pool, MLATokenToKVPoolHost):
        return [latent(pool, page, first).contiguous().view(torch.uint8)]
    return [plane.contiguous().view(torch.uint8) for plane in heads_of(pool, page, first)]


def latent(pool: Any, page: int, first: int) -> torch.Tensor:
    """(layer, token, element) of a page of compressed KV."""
    if pool.layout == "page_first_kv_split":
        return torch.cat([pool.k_buffer[page, :, :, 0], pool.v_buffer[page, :, :, 0]], dim=-1)
    buffer = pool.kv_buffer
    if pool.layout == "layer_first":
        return buffer[:, first : first + PAGE, 0]
    if pool.layout == "page_first":
        return buffer[first : first + PAGE, :, 0].permute(1, 0, 2)
    return buffer[page].reshape(LAYERS, PAGE, LATENT + ROTARY)


def heads_of(pool: Any, page: int, first: int) -> list[torch.Tensor]:
    """(layer, token, head, element) of the keys and of the values of a page."""
    if pool.layout == "page_unified":
        block = pool.kv_buffer[page]  # group, layer, plane, token, head in group, element
        return [block[:, :, plane].permute(1, 2, 0, 3, 4).flatten(2, 3) for plane in range(2)]
    found = []
    for buffer in (pool.kv_buffer[0], pool.kv_buffer[1]):
        if pool.layout == "layer_first":
            found.append(buffer[:, first : first + PAGE])
        elif pool.layout == "page_first":
            found.append(buffer[first : first + PAGE].permute(1, 0, 2, 3))
        elif pool.layout == "page_first_direct":
            found.append(buffer[page])
        else:
            found.append(buffer[page].permute(2, 1, 0, 3))
    return found


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two pages have equal bytes."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def indices(pages: list[int], page: int = PAGE) -> torch.Tensor:
    """SGLang's indices of pages."""
    return torch.cat([torch.arange(number * page, (number + 1) * page) for number in pages])


def keys(count: int, start: int = 0) -> list[str]:
    """Keys as SGLang's: 64 hexadecimal digits."""
    return [f"{number:064x}" for number in range(start, start + count)]


def entry(folder: Path, **options: Any) -> dict[str, Any]:
    """The entry in ``--hicache-storage-backend-extra-config``."""
    given = {
        "backend_name": "kvtile", "module_path": "kvtile.sglang", "class_name": "KvtileHiCache", "interface_v1": 1,
        "path": str(folder), "capacity": "64MiB", "revision": "weights of the test",
    }
    return {name: value for name, value in {**given, **options}.items() if value is not None}


def config(extra: dict[str, Any], *, rank: int = 0, size: int = 1, is_mla: bool = False, **fields: Any) -> HiCacheStorageConfig:
    """SGLang's config of a backend."""
    given: dict[str, Any] = dict(
        tp_rank=rank, tp_size=size, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=is_mla,
        enable_storage_metrics=True, is_page_first_layout=False, model_name="test/model", extra_config=extra,
    )
    return HiCacheStorageConfig(**{**given, **fields})


def created(path: Path, pool: Any, *, rank: int = 0, size: int = 1, is_mla: bool = False, **options: Any) -> KvtileHiCache:
    """The backend, created by SGLang's factory and given its pool as SGLang's controller does."""
    made = StorageBackendFactory.create_backend(
        "dynamic", config(entry(path, **options), rank=rank, size=size, is_mla=is_mla), pool
    )
    assert isinstance(made, KvtileHiCache)
    made.register_mem_pool_host(pool)
    made.on_host_pools_registered()
    return made


def controller(backend: Any, pool: Any) -> Any:
    """What SGLang's page functions use of a controller."""
    return SimpleNamespace(storage_backend=backend, storage_host_pool=pool, mem_pool_host=pool, page_size=PAGE)
