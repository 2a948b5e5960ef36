"""The groups of a model's KV: from vLLM's tables of blocks to kvtile's groups with their rules.

vLLM splits layers of one kind over several tables, and the split depends on the number of layers of the other kinds. So
an index of a table is no name. A group here is named by its content, its rule and its layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvtile._errors import SettingsError

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

# vLLM's block for positions that a table does not keep. Nothing is read from it or written to it.
NULL_BLOCK = 0

# By the classes of vLLM's specs: the kind of rule, the fields that together are its tokens, and vLLM's name in events.
_RULES: dict[str, tuple[Literal["full", "window", "chunk", "stop"], tuple[str, ...], str]] = {
    "FullAttentionSpec": ("full", (), "full_attention"),
    "MLAAttentionSpec": ("full", (), "mla_attention"),
    # Retained tokens are before the window, for drafters that compute them again.
    "SlidingWindowSpec": ("window", ("sliding_window", "extra_retained_tokens"), "sliding_window"),
    "SlidingWindowMLASpec": ("window", ("sliding_window", "extra_retained_tokens"), "sliding_window_mla"),
    "ChunkedLocalAttentionSpec": ("chunk", ("attention_chunk_size",), "chunked_local_attention"),
    "MambaSpec": ("stop", (), "mamba"),
}


@dataclass(frozen=True)
class EngineGroup:
    """Layers of one table of blocks of vLLM with one rule.

    Attributes:
        name: the name of kvtile's group.
        table: the number of the table of blocks.
        rule: what a request that resumes needs of the layers, as ``kvtile.ModelGroup`` takes it.
        tokens: those of a window or a chunk.
        page_size: tokens of a block.
        layers: vLLM's names of the layers, from first to last.
        kind: vLLM's name for the kind of the layers, for its events.
        head_size: that of attention; 0 for states.
        content: what is in a layer's block, for the identity.
    """

    name: str
    table: int
    rule: Literal["full", "window", "chunk", "stop"]
    page_size: int
    layers: tuple[str, ...]
    kind: str
    tokens: int | None = None
    head_size: int = 0
    content: str = ""

    @property
    def is_full(self) -> bool:
        """Whether all tokens before a stop are needed."""
        return self.rule == "full"

    @property
    def is_state(self) -> bool:
        """Whether a stop needs one record, which vLLM has for the stop alone."""
        return self.rule == "stop"


def is_one_full_group(kv: KVCacheConfig) -> bool:
    """Whether all layers are in one table that keeps all tokens: ``kvtile.Cache`` keeps these.

    It is also the table of a model with windows or chunks if vLLM's hybrid KV cache manager is off.
    """
    groups = kv.kv_cache_groups
    return len(groups) == 1 and type(groups[0].kv_cache_spec).__name__ == "FullAttentionSpec"


def groups_of(kv: KVCacheConfig) -> list[EngineGroup]:
    """The groups of a model, in the order of vLLM's tables.

    Raises SettingsError for layers whose rule is not known, and for tables that vLLM's own prefix cache leaves out.
    """
    found: list[EngineGroup] = []
    for table, group in enumerate(kv.kv_cache_groups):
        layers = sorted(group.layer_names, key=_place)
        if not group.kv_cache_spec.prefix_cacheable or not getattr(group, "enable_kv_transfer", True):
            raise SettingsError(
                f"kvtile.vllm: {type(group.kv_cache_spec).__name__} of {layers[0]} is working memory that vLLM keeps out of "
                "prefix caching; models with it are not supported yet"
            )
        # A table may have layers with blocks of unequal size.
        specs: Mapping[str, Any] = getattr(group.kv_cache_spec, "kv_cache_specs", None) or {}
        by_spec: dict[tuple[str, int | None, int], list[str]] = {}
        for layer in layers:
            spec = specs.get(layer, group.kv_cache_spec)
            _refuse_spec(spec, layer)
            by_spec.setdefault((type(spec).__name__, _tokens_of(spec), _content_bytes(spec)), []).append(layer)
        for of_spec in by_spec.values():
            found.append(_group(table, specs.get(of_spec[0], group.kv_cache_spec), of_spec))
    return found


def _group(table: int, spec: Any, layers: list[str]) -> EngineGroup:
    rule, _, kind = _RULES[type(spec).__name__]
    tokens = _tokens_of(spec)
    digest = hashlib.blake2b("\n".join([f"{rule} {tokens}", *layers]).encode(), digest_size=6).hexdigest()
    name = f"{rule}-{digest}" if tokens is None else f"{rule}-{tokens}-{digest}"
    head_size, content = getattr(spec, "head_size", 0), _content_of(spec)
    return EngineGroup(name, table, rule, spec.block_size, tuple(layers), kind, tokens, head_size, content)


# Fields of vLLM's specs that say what is in a block.
_CONTENT = """num_kv_heads head_size head_size_v dtype kv_quant_mode cache_dtype_str tokens_per_state shapes dtypes mamba_type
    tp_replicated""".split()


def _content_of(spec: Any) -> str:
    said = {field: getattr(spec, field) for field in _CONTENT if getattr(spec, field, None) is not None}
    return ", ".join(f"{field} {getattr(value, 'name', value)}" for field, value in said.items())


def _refuse_spec(spec: Any, layer: str) -> None:
    kind = type(spec).__name__
    if kind not in _RULES:
        raise SettingsError(
            f"kvtile.vllm: the KV of {layer} is {kind}, which is not supported yet; supported are {', '.join(_RULES)}"
        )
    if kind == "MambaSpec" and spec.mamba_cache_mode == "none":
        raise SettingsError(
            f"kvtile.vllm: vLLM keeps no states of {layer} at block boundaries (mamba_cache_mode none); enable prefix caching"
        )
    if kind == "MambaSpec" and spec.num_speculative_blocks:
        raise SettingsError(
            f"kvtile.vllm: with speculative decoding vLLM has several states of {layer} at one position; switch it off"
        )


def _tokens_of(spec: Any) -> int | None:
    """The tokens of a rule. A table of full attention may have windows too (the hybrid manager is off), and keeps all
    tokens."""
    fields = _RULES[type(spec).__name__][1]
    return sum(getattr(spec, field, 0) or 0 for field in fields) if fields else None


def _content_bytes(spec: Any) -> int:
    return int(getattr(spec, "real_page_size_bytes", None) or spec.page_size_bytes)


def _place(layer: str) -> tuple[list[int], str]:
    """The place of a layer in the model; vLLM sorts names as text."""
    return [int(part) for part in layer.split(".") if part.isdigit()], layer
