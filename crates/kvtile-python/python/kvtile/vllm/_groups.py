"""The groups of a model's KV: from vLLM's tables of blocks to kvtile's groups with their rules.

vLLM splits layers of one kind over several tables, and the split depends on the number of layers of the other kinds. So
an index of a table is no name. A group here is named by its content, its rule and its layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvtile._errors import SettingsError
from kvtile._kvtile import pages_needed

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

# vLLM's block for positions that a table does not keep. Nothing is read from it or written to it.
NULL_BLOCK = 0

# By the classes of vLLM's specs: the kind of rule, the fields that together are its tokens, and vLLM's name in events.
_RULES: dict[str, tuple[str, tuple[str, ...], str]] = {
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
        rule: what a request that resumes needs of the layers, as ``kvtile.GroupCache`` takes it.
        page_size: tokens of a block.
        layers: vLLM's names of the layers, from first to last.
        kind: vLLM's name for the kind of the layers, for its events.
        window: tokens of a sliding window, for its events.
        head_size: that of attention; 0 for states.
        content: what is in a layer's block, for the identity.
    """

    name: str
    table: int
    rule: str
    page_size: int
    layers: tuple[str, ...]
    kind: str
    window: int | None = None
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

    def needs(self, stop: int, have: int = 0) -> range:
        """The pages that a request needs to resume after ``stop`` tokens, without those of its first ``have`` tokens."""
        pages = pages_needed(self.rule, self.page_size, stop)
        # The record of a state replaces the one before it.
        return pages if self.is_state else range(max(pages.start, have // self.page_size), max(pages.stop, have // self.page_size))


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
        by_spec: dict[tuple[str, int], list[str]] = {}
        for layer in layers:
            spec = specs.get(layer, group.kv_cache_spec)
            by_spec.setdefault((_rule_of(spec, layer), _content_bytes(spec)), []).append(layer)
        for (rule, _), of_spec in by_spec.items():
            found.append(_group(rule, table, specs.get(of_spec[0], group.kv_cache_spec), of_spec))
    return found


def _group(rule: str, table: int, spec: Any, layers: list[str]) -> EngineGroup:
    digest = hashlib.blake2b("\n".join([rule, *layers]).encode(), digest_size=6).hexdigest()
    kind = _RULES[type(spec).__name__][2]
    return EngineGroup(
        f"{rule.replace(':', '-')}.{digest}", table, rule, spec.block_size, tuple(layers), kind,
        spec.sliding_window if kind.startswith("sliding_window") else None, getattr(spec, "head_size", 0),
        _content_of(spec),
    )


# Fields of vLLM's specs that say what is in a block.
_CONTENT = """num_kv_heads head_size head_size_v dtype kv_quant_mode cache_dtype_str tokens_per_state shapes dtypes mamba_type
    tp_replicated""".split()


def _content_of(spec: Any) -> str:
    said = {field: getattr(spec, field) for field in _CONTENT if getattr(spec, field, None) is not None}
    return ", ".join(f"{field} {getattr(value, 'name', value)}" for field, value in said.items())


def _rule_of(spec: Any, layer: str) -> str:
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
    rule, fields, _ = _RULES[kind]
    # A table of full attention may have windows too (the hybrid manager is off), and keeps all tokens.
    return f"{rule}:{sum(getattr(spec, field, 0) or 0 for field in fields)}" if fields else rule


def _content_bytes(spec: Any) -> int:
    return int(getattr(spec, "real_page_size_bytes", None) or spec.page_size_bytes)


def _place(layer: str) -> tuple[list[int], str]:
    """The place of a layer in the model; vLLM sorts names as text."""
    return [int(part) for part in layer.split(".") if part.isdigit()], layer
