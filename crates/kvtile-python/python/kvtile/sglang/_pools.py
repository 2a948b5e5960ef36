"""The memory of SGLang's host pools as layouts, one page a block.

The order of a pool follows from its class and its ``layout``. Pools of one class have pages with equal bytes in every
order that has a word here, so a page that was stored from one order loads into another. A pool without a word is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kvtile import Layout, Plane, Shape
from kvtile._errors import SettingsError

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host.base import HostKVCache

# Data types whose values kvtile names. Others are kept as bytes, and their names are in the identity.
_NAMED = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
_OPAQUE_LAYERS = {"layer_first": "LB", "page_first": "BL", "page_first_direct": "BL"}


@dataclass(frozen=True)
class PoolPages:
    """A pool's pages.

    Attributes:
        word: the order of the pool's memory.
        shape: the shape of a page, with the pool's number of pages.
        tensors: the memory.
        kind: the kind of the pool, in the identity of its pages.
        page_indices: SGLang's indices per page.
        flat_word: the order of a page that SGLang copies out of the pool; None if SGLang does not copy such pages.
        is_replicated: whether all tensor-parallel ranks have the same pages, if the model's KV is replicated.
        fields: what else determines a page's bytes.
    """

    word: str
    shape: Shape
    tensors: Sequence[torch.Tensor]
    kind: str
    page_indices: int
    flat_word: str | None = None
    is_replicated: bool = False
    fields: dict[str, str] = field(default_factory=dict)

    def layout(self) -> Layout:
        """The layout over the pool's memory, which it keeps alive."""
        return Layout(self.word, shape=self.shape, tensors=list(self.tensors))


def pages_of(pool: HostKVCache, name: str) -> PoolPages:
    """The pages of a pool. Raises SettingsError, with the pool's name, for a pool that kvtile cannot keep."""
    kind = type(pool).__name__
    known = _KINDS.get(kind)
    if known is None:
        raise SettingsError(
            f"kvtile does not know the order of SGLang's pool {name!r}, a {kind}; it knows {', '.join(sorted(_KINDS))}"
        )
    if getattr(pool, "dcp_size", 1) != 1:
        raise SettingsError(f"kvtile does not keep pools that decode context parallelism cuts ({name!r})")
    if getattr(pool, "layer_num", 1) < 1:
        raise SettingsError(f"SGLang's pool {name!r} has no layers; kvtile cannot keep its pages")
    try:
        pages = known(pool)
    except KeyError:
        raise SettingsError(
            f"kvtile has no layout word for --hicache-mem-layout {pool.layout} of SGLang's pool {name!r}, a {kind}"
        ) from None
    if hasattr(pool, "start_layer"):
        pages.fields["pool.layers"] = f"{pool.start_layer} to {pool.end_layer}"
    for tensor in pages.tensors:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise SettingsError(f"the memory of SGLang's pool {name!r} is on {tensor.device}, or has gaps")
    return pages


def is_logical(pool: object) -> bool:
    """Whether a pool only numbers pages and has no memory, so that other pools have all of the KV."""
    return getattr(pool, "kv_buffer", True) is None and type(pool).__name__ == "LogicalHostPool"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a data type."""
    return str(dtype).removeprefix("torch.")


def _element(dtype: torch.dtype) -> tuple[str, int]:
    """kvtile's data type for a pool's values, and how many of them are one value."""
    named = _NAMED.get(dtype)
    return (named, 1) if named else ("uint8", dtype.itemsize)


def _seen(tensors: Sequence[torch.Tensor], codec: str) -> list[torch.Tensor]:
    """Tensors with kvtile's data type."""
    return [tensor.view(torch.uint8) if codec == "uint8" else tensor for tensor in tensors]


def _shape(pool: Any, planes: list[Plane]) -> Shape:
    return Shape(num_blocks=pool.page_num, num_layers=pool.layer_num, page_size=pool.page_size, planes=planes)


def _heads(pool: Any) -> PoolPages:
    """Keys and values with heads (pool_host/mha.py)."""
    codec, width = _element(pool.dtype)
    words = {"layer_first": "KLBNHC", "page_first": "KBNLHC", "page_first_direct": "KBLNHC", "page_head": "KBHNLC"}
    flat = {"layer_first": "BKLNHC", "page_first": "BKNLHC", "page_first_direct": "BKLNHC", "page_head": "BKHNLC"}
    word = _unified_word(pool) if pool.layout == "page_unified" else words[pool.layout]
    planes = [Plane(name, codec, H=pool.head_num, C=pool.head_dim * width) for name in ("k", "v")]
    return PoolPages(
        word, _shape(pool, planes), _seen([pool.kv_buffer], codec), "heads", pool.page_size, flat.get(pool.layout),
    )


def _unified_word(pool: Any) -> str:
    """The order of ``page_unified`` (pool_host/page_unified.py): groups of heads are outermost."""
    together = pool.page_unified_layout.heads_per_group
    if together == pool.head_num:
        return "BLKNHC"
    return "BHLKNC" if together == 1 else f"BHLKNH{together}C"


def _uneven_heads(pool: Any) -> PoolPages:
    """Keys and values of different width, in a buffer each."""
    codec, width = _element(pool.dtype)
    word = {"page_first": "K|BNLHC", "page_first_direct": "K|BLNHC"}[pool.layout]
    sizes = (("k", pool.head_dim), ("v", pool.v_head_dim))
    planes = [Plane(name, codec, H=pool.head_num, C=size * width) for name, size in sizes]
    return PoolPages(word, _shape(pool, planes), _seen(pool.kv_buffer, codec), "heads", pool.page_size)


def _keys(pool: Any) -> PoolPages:
    """Keys without values, of a sparse index."""
    codec, width = _element(pool.dtype)
    word = {"layer_first": "LBNHC", "page_first": "BNLHC", "page_first_direct": "BLNHC"}[pool.layout]
    planes = [Plane("k", codec, H=pool.head_num, C=pool.head_dim * width)]
    return PoolPages(word, _shape(pool, planes), _seen([pool.k_buffer], codec), "index keys", pool.page_size)


def _latent(pool: Any) -> PoolPages:
    """The compressed KV of MLA (pool_host/mla.py): a latent and a part with rotary positions for each token, or packed
    rows."""
    codec, width = _element(pool.dtype)
    if pool.layout == "page_first_kv_split":
        return _split_latent(pool, codec, width)
    words = {"layer_first": "LBNKC", "page_first": "BNLKC", "page_first_direct": "BLNKC", "page_unified": "BLNKC"}
    flat = {"layer_first": "BLNKC", "page_first": "BNLKC", "page_first_direct": "BLNKC"}
    planes = _latent_planes(pool, codec, width)
    return PoolPages(
        words[pool.layout], _shape(pool, planes), _seen([pool.kv_buffer], codec), "latent", pool.page_size,
        flat.get(pool.layout), is_replicated=True,
    )


def _latent_planes(pool: Any, codec: str, width: int) -> list[Plane]:
    latent, rotary = pool.kv_lora_rank, pool.qk_rope_head_dim
    if rotary > 0 and latent + rotary == pool.kv_cache_dim and not pool.dsa_kv_cache_store_fp8:
        return [Plane("c", codec, C=latent * width), Plane("r", codec, C=rotary * width)]
    return [Plane("c", codec, C=pool.kv_cache_dim * width)]


def _split_latent(pool: Any, codec: str, width: int) -> PoolPages:
    """The two parts in a buffer each. The order with an indexer's buffers beside them has no word."""
    if pool.index_k_buffer is not None or pool.index_k_scale_buffer is not None or pool.dsa_kv_cache_store_fp8:
        raise KeyError(pool.layout)
    planes = _latent_planes(pool, codec, width)
    tensors = _seen([pool.k_buffer, pool.v_buffer], codec)
    return PoolPages("K|BLNC", _shape(pool, planes), tensors, "latent", pool.page_size, is_replicated=True)


def _opaque_layers(pool: Any, buffer: Any, pages: int, piece_bytes: int, kind: str) -> PoolPages:
    """Pages with one piece of bytes in each layer."""
    tensors = list(buffer) if isinstance(buffer, (list, tuple)) else [buffer]
    word = _OPAQUE_LAYERS[pool.layout]
    if len(tensors) > 1:
        word = word.replace("LB", "L|B")
    plane = Plane("p", f"{kind.replace(' ', '_')}{piece_bytes}", unit_bytes=piece_bytes, opaque=True, per_page=True)
    shape = Shape(num_blocks=pages, num_layers=pool.layer_num, page_size=pool.page_size, planes=[plane])
    return PoolPages(word, shape, _seen(tensors, "uint8"), kind, pool.page_size, is_replicated=True, fields=_version())


def _indexer(pool: Any) -> PoolPages:
    """Keys and scales of a sparse index (pool_host/dsa.py)."""
    buffer = pool.index_k_with_scale_buffer
    return _opaque_layers(pool, buffer, pool.indexer_page_num, pool.indexer_page_stride_size, "indexer")


def _rows(pool: Any) -> PoolPages:
    """Compressed KV of DeepSeek V4 (memory_pool_host.py)."""
    return _opaque_layers(pool, pool.kv_buffer, pool.num_host_pages, pool.item_bytes, f"rows of {pool.pool_name}")


def _states(pool: Any) -> PoolPages:
    """States of DeepSeek V4's compressors (memory_pool_host.py)."""
    return _opaque_layers(pool, pool.kv_buffer, pool.num_host_pages, pool.state_page_bytes, f"states of {pool.pool_name}")


def _recurrent(pool: Any) -> PoolPages:
    """Recurrent states (pool_host/mamba.py): one slot is one page, with a piece in each of several buffers."""
    if pool.layout not in ("page_first", "page_first_direct"):
        raise KeyError(pool.layout)
    named = [("t", pool.temporal_buffer)]
    named += [(f"c{_letters(index)}", buffer) for index, buffer in enumerate(pool.conv_buffer)]
    named += [(f"s{_letters(index)}", buffer) for index, buffer in enumerate(pool.slot_state_buffers)]
    named = [(name, buffer) for name, buffer in named if buffer.numel() > 0]
    sizes = {name: buffer[0].numel() * buffer.element_size() for name, buffer in named}
    planes = [Plane(name, f"state{size}", unit_bytes=size, opaque=True, per_page=True) for name, size in sizes.items()]
    shape = Shape(num_blocks=pool.size, num_layers=1, page_size=1, planes=planes)
    forms = {name: f"{dtype_name(buffer.dtype)} {tuple(buffer.shape[1:])}" for name, buffer in named}
    tensors = _seen([buffer for _, buffer in named], "uint8")
    fields = {**_version(), **{f"state.{name}": form for name, form in forms.items()}}
    return PoolPages("K|B", shape, tensors, "recurrent", 1, fields=fields)


def _letters(index: int) -> str:
    """A number as letters, which names of planes consist of."""
    return chr(ord("a") + index % 26) * (index // 26 + 1)


def _version() -> dict[str, str]:
    """SGLang's version, which determines the order of bytes that kvtile does not know."""
    import sglang

    return {"sglang.version": ".".join(str(sglang.__version__).split(".")[:3])}



_KINDS: dict[str, Callable[[Any], PoolPages]] = {
    "MHATokenToKVPoolHost": _heads,
    "AsymmetricMHATokenToKVPoolHost": _uneven_heads,
    "MHATokenToKOnlyPoolHost": _keys,
    "MLATokenToKVPoolHost": _latent,
    "DSAIndexerPoolHost": _indexer,
    "DeepSeekV4PagedHostPool": _rows,
    "DeepSeekV4StateHostPool": _states,
    "QSAIndexerPoolHost": _rows,
    "MambaPoolHost": _recurrent,
}
