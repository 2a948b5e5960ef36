"""The layouts of a model's groups and its identity, from vLLM's tensors. Blocks are kept whole, for one backend."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kvtile import Layout, ModelGroup, ModelIdentity, Plane, Shape
from kvtile._errors import LayoutError, SettingsError
from kvtile._hf import kv_fields
from kvtile.vllm import _layout
from kvtile.vllm._extras import extras_of
from kvtile.vllm._rank import OF_RANK
from kvtile.vllm._weights import revision_of

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from kvtile.vllm._groups import EngineGroup
    from kvtile.vllm._rank import Rank
    from kvtile.vllm._settings import Settings


def group_layouts(
    caches: Mapping[str, torch.Tensor], groups: Iterable[EngineGroup], num_blocks: int
) -> dict[EngineGroup, Layout]:
    """The layouts of the groups. The groups of one engine share their memory.

    Raises SettingsError for memory that is not the CPU's, and LayoutError for blocks with gaps.
    """
    return {group: _layout_of(caches, group, num_blocks) for group in groups}


def model_of(config: VllmConfig, settings: Settings, groups: Mapping[EngineGroup, Layout], rank: Rank) -> ModelIdentity:
    """The identity of the model: all fields of its config, the options, and for each group the backend and the layers."""
    model = config.model_config
    fields = kv_fields(model.hf_text_config, max_model_len=model.max_model_len, known=False)
    extra = {**fields, **extras_of(config, os.environ)}
    if rank.size != 1:
        extra[OF_RANK] = str(rank)
    members = [member_of(group, layout.shape, _backend(config, group)) for group, layout in groups.items()]
    return ModelIdentity(_layout.name_of(config, settings), settings.revision or revision_of(config), members, extra=extra)


def member_of(group: EngineGroup, shape: Shape, backend: str) -> ModelGroup:
    """A group of the model, with blocks of this shape."""
    extra = {"attention": backend, "vllm.layers": _text_of(group.layers), "vllm.content": group.content}
    return ModelGroup(group.name, shape, rule=group.rule, tokens=group.tokens, extra=extra)


def _backend(config: VllmConfig, group: EngineGroup) -> str:
    """What the order of elements inside a block depends on."""
    if group.is_state:
        return "vllm.cpu"
    isa = _layout.instruction_set(config, config.model_config.dtype, group.page_size, group.head_size)
    return f"vllm.cpu, {group.kind}, instruction set {isa}"


def _text_of(layers: tuple[str, ...]) -> str:
    """The layers of a group: the name of the first one, and the numbers of all."""
    numbers = [next((part for part in layer.split(".") if part.isdigit()), layer) for layer in layers]
    return f"{layers[0]}: {','.join(numbers)}"


def _layout_of(caches: Mapping[str, torch.Tensor], group: EngineGroup, num_blocks: int) -> Layout:
    tensors = [_blocks(name, caches[name], num_blocks) for name in group.layers]
    content = int(tensors[0].shape[1])
    for name, tensor in zip(group.layers, tensors, strict=True):
        if int(tensor.shape[1]) != content:
            raise LayoutError(f"blocks of {name} have {tensor.shape[1]} bytes, and those of {group.layers[0]} {content}")
    plane = Plane("p", f"vllm_{group.kind}", unit_bytes=content, opaque=True, per_page=True)
    shape = Shape(num_blocks=num_blocks, num_layers=len(tensors), page_size=group.page_size, planes=[plane])
    return Layout("L|Bp", shape=shape, tensors=tensors)


def _blocks(name: str, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A layer's blocks as rows of bytes. vLLM may pad blocks, and may view each as several kernel blocks."""
    if tensor.device.type != "cpu":
        raise SettingsError(
            f"kvtile.vllm: the KV of {name} is on {tensor.device}, and devices are supported for models with one group of full "
            "attention alone, not for latents (MLA), windows, chunks and states; use kvtile.vllm.tier"
        )
    import torch

    parts, rest = divmod(int(tensor.shape[0]), num_blocks)
    content = tensor[0].numel()
    # From the innermost axis outwards, each must begin where the ones inside it end.
    axes = sorted((stride, size) for stride, size in zip(tensor.stride()[1:], tensor.shape[1:], strict=True) if size > 1)
    end = 1
    for stride, size in axes:
        if stride != end:
            raise LayoutError(f"blocks of {name} have gaps: shape {tuple(tensor.shape)}, strides {tensor.stride()}")
        end *= size
    if rest or (parts > 1 and tensor.stride(0) != content):
        raise LayoutError(
            f"{name} has {tensor.shape[0]} blocks with a stride of {tensor.stride(0)} for {num_blocks} blocks of its table"
        )
    rows = tensor.as_strided((num_blocks, parts * content), (parts * tensor.stride(0), 1))
    return rows.view(torch.uint8)
