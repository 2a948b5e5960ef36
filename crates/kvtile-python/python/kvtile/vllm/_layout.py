"""The layout and identity of vLLM's KV, from its tensors, the backend and the options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kvtile import Identity, Layout, Plane, Shape
from kvtile._errors import LayoutError, SettingsError
from kvtile._hf import identity_of, kv_fields
from kvtile._hf.config import Config
from kvtile.vllm._extras import extras_of, refuse_options
from kvtile.vllm._gpu_layout import layout_on_device, refuse_tensors
from kvtile.vllm._groups import groups_of, is_one_full_group
from kvtile.vllm._rank import OF_RANK
from kvtile.vllm._weights import revision_of

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kvtile.vllm._groups import EngineGroup
    from kvtile.vllm._rank import Rank
    from kvtile.vllm._settings import Settings

logger = init_logger("vllm.kvtile")

# Dtypes and instruction sets of the CPU backend whose element order was verified.
_CHECKED = {("float32", "vec"), ("float32", "vec16"), ("bfloat16", "vec"), ("bfloat16", "vec16")}


def refuse_what_is_not_supported(config: VllmConfig, kv: KVCacheConfig | None, settings: Settings) -> None:
    """Raises SettingsError, with one sentence, for engines whose KV this connector cannot keep."""
    refuse_options(config, settings.revision, os.environ)
    if kv is None:
        raise SettingsError("kvtile.vllm: this vLLM gives its connectors no KV cache config (kv_cache_config)")
    if is_one_full_group(kv):
        return
    refuse_latents_that_do_not_resume(groups_of(kv), config.cache_config.enable_prefix_caching)
    settings.refuse_with_groups()
    if kv_cache_results() is None:
        raise SettingsError(
            "kvtile.vllm: this vLLM takes failed loads of models with windows, chunks or states by block and not by request "
            "(KVConnectorTransferResults), so a failed load would end the engine; use a later version"
        )


def refuse_latents_that_do_not_resume(groups: Iterable[EngineGroup], prefix_caching: bool) -> None:
    """Raises SettingsError for latent attention without prefix caching: vLLM switches it off for backends that compute
    wrong answers after a prefix."""
    latent = next((group for group in groups if "mla" in group.kind), None)
    if latent is not None and not prefix_caching:
        raise SettingsError(
            f"kvtile.vllm: the attention backend of {latent.layers[0]} (MLA) computes wrong answers after a cached prefix, so "
            "vLLM switches prefix caching off (CPUs without AMX), or enable_prefix_caching is off; use a CPU with AMX, or no kvtile"
        )


def kv_cache_results() -> Any:
    """vLLM's class for the results of transfers; None in versions without it."""
    from vllm.distributed.kv_transfer.kv_connector.v1 import base

    return getattr(base, "KVConnectorTransferResults", None)


def layout_and_identity(
    config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings, rank: Rank
) -> tuple[Layout, Identity]:
    """The layout over vLLM's tensors, and the identity of its blocks: all layers, and the heads of this rank.

    If the element order inside a block is known, the identity follows from the model's config, and engines with other
    layouts can read the blocks. Otherwise a block is opaque: it is copied as a whole, and its identity contains the
    backend and its instruction set. On devices unknown orders are refused.
    """
    tensors = [caches[name] for name in in_order(caches)]
    first = tensors[0]
    dtype = str(first.dtype).removeprefix("torch.")
    page_size = config.cache_config.block_size
    model = config.model_config
    heads = model.get_num_kv_heads(config.parallel_config)
    expected = (first.shape[0], heads, page_size, 2 * model.get_head_size())
    if first.device.type != "cpu":
        refuse_tensors(config, caches, expected)
        layout = layout_on_device(tensors, _shape(config, len(tensors), first, rank))
        return layout, _identity(config, settings, layout, dtype, rank)
    isa = instruction_set(config, first.dtype, page_size, model.get_head_size())
    if (dtype, isa) in _CHECKED and tuple(first.shape) == expected:
        shape = _shape(config, len(tensors), first, rank)
        layout = Layout.preset(f"vllm:LBHNC/cpu/{dtype}/{isa}", shape=shape, tensors=tensors)
        return layout, _identity(config, settings, layout, dtype, rank)
    logger.warning(
        "the element order of vLLM's KV is not known for %s, instruction set %s, shape %s: blocks are kept whole, "
        "for this backend only",
        dtype,
        isa,
        tuple(first.shape),
    )
    layout, extra = _opaque(tensors, page_size, isa)
    if rank.size != 1:
        extra[OF_RANK] = str(rank)
    return layout, _identity_by_fields(config, settings, layout, extra)


def _shape(config: VllmConfig, num_layers: int, tensor: torch.Tensor, rank: Rank) -> Shape:
    """The shape of blocks with known element order: those of a layer's tensor, with the heads of this rank."""
    model = config.model_config
    total = model.get_total_num_kv_heads()
    return Shape(
        num_blocks=tensor.shape[0], num_layers=num_layers, page_size=config.cache_config.block_size,
        num_heads=model.get_num_kv_heads(config.parallel_config), head_size=model.get_head_size(),
        dtype=str(tensor.dtype).removeprefix("torch."), total_heads=total, first_head=rank.number * total // rank.size,
        replica=rank.number % max(1, rank.size // total),
    )


def _identity(config: VllmConfig, settings: Settings, layout: Layout, dtype: str, rank: Rank) -> Identity:
    """The identity of blocks with known element order: from the model's config, and the options that change KV."""
    model = config.model_config
    hf, limit = model.hf_text_config, model.max_model_len
    # vLLM keeps all tokens of all layers in one table. The whole config counts for model types that kvtile does not know,
    # and for those with windows that vLLM's hybrid KV cache manager would keep in tables of their own.
    if not Config(hf, known=False).listed or _has_windows(config):
        return _identity_by_fields(config, settings, layout, {})
    return identity_of(
        hf, layout.shape.page_size, dtype=dtype, model=name_of(config, settings), revision=settings.revision or revision_of(config),
        tp_rank=rank.number, tp_size=rank.size, extra=extras_of(config, os.environ), max_model_len=limit,
    )


def _has_windows(config: VllmConfig) -> bool:
    layers = config.compilation_config.static_forward_context.values()
    return any(getattr(layer, "sliding_window", None) for layer in layers)


def _identity_by_fields(
    config: VllmConfig, settings: Settings, layout: Layout, extra: Mapping[str, str]
) -> Identity:
    """The identity if the shape is opaque, or the model type is unknown: all config fields count."""
    model = config.model_config
    fields = kv_fields(model.hf_text_config, max_model_len=model.max_model_len, known=False)
    return Identity(
        name_of(config, settings), settings.revision or revision_of(config), layout.shape,
        extra={**fields, **extras_of(config, os.environ), **extra},
    )


def name_of(config: VllmConfig, settings: Settings) -> str:
    """The model's name in identities."""
    return settings.model or str(config.model_config.model)


def _opaque(tensors: list[torch.Tensor], page_size: int, isa: str) -> tuple[Layout, dict[str, str]]:
    """The layout of opaque blocks, and the extra entries of their identity."""
    import torch

    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or not tensor.is_contiguous():
            raise LayoutError(f"vLLM's KV tensors differ or have gaps: {tuple(tensor.shape)}, strides {tensor.stride()}")
    page = first[0].numel() * first.element_size()
    codec = f"vllm_{isa}_{str(first.dtype).removeprefix('torch.')}".lower()
    plane = Plane("p", codec, unit_bytes=page, opaque=True, per_page=True)
    shape = Shape(num_blocks=first.shape[0], num_layers=len(tensors), page_size=page_size, planes=[plane])
    flat = [tensor.reshape(first.shape[0], -1).view(torch.uint8) for tensor in tensors]
    layout = Layout("L|Bp", shape=shape, tensors=flat)
    return layout, {"attention": f"vllm.cpu, instruction set {isa}, blocks of {'x'.join(map(str, first.shape[1:]))}"}


def in_order(caches: Mapping[str, torch.Tensor]) -> list[str]:
    """The layer names from first to last; vLLM sorts them as text."""
    return sorted(caches, key=_layer)


def _layer(name: str) -> int:
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise LayoutError(f"vLLM's KV tensor {name!r} does not name its layer by one number")
    return numbers[0]


def instruction_set(config: VllmConfig, dtype: torch.dtype, page_size: int, head_size: int) -> str:
    """The instruction set that the attention backend selects for itself. The order inside its blocks depends on it."""
    from vllm.v1.attention.backends import cpu_attn

    return str(cpu_attn._get_attn_isa(dtype, page_size, head_size, config.cache_config.cache_dtype))
