"""The layout over vLLM's tensors in memory of a CUDA device: the attention backend and the tensors' strides name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvtile import Layout, Shape
from kvtile._errors import SettingsError
from kvtile.vllm._extras import is_quantised

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

_FOLDER = "vllm.v1.attention.backends"
# Backends that take a layer's cache as [blocks, heads, tokens, K and V of a token and head], in the order of its strides, by
# the modules of their classes. Names do not suffice: a backend of ROCm has the name of FlashAttention and another order.
_BACKENDS = {
    f"{_FOLDER}.flash_attn": "FLASH_ATTN",
    f"{_FOLDER}.flashinfer": "FLASHINFER",
    f"{_FOLDER}.flex_attention": "FLEX_ATTENTION",
    f"{_FOLDER}.triton_attn": "TRITON_ATTN",
}
_DTYPES = ("bfloat16", "float16", "float32")
# vLLM's orders of a layer's axes in memory, from the slowest: blocks, heads and tokens are the axes 0, 1 and 2.
_WORDS: dict[tuple[int, ...], str] = {(0, 1, 2): "L|BHNKC", (0, 2, 1): "L|BNHKC", (1, 0, 2): "L|HBNKC"}


def layout_on_device(tensors: Sequence[torch.Tensor], shape: Shape) -> Layout:
    """The layout over the tensors of the layers, which ``refuse_tensors`` has checked.

    vLLM keeps layers beside each other or inside each block. Both are strides of the tensors, and so are padded blocks.

    Raises LayoutError for layers in unequal orders.
    """
    order = _order_of(tensors[0])
    # A word has the order of memory, and so must the tensors' dimensions.
    return Layout(_WORDS[order], shape=shape, tensors=[tensor.permute(*order, 3) for tensor in tensors])


def refuse_tensors(config: VllmConfig, caches: Mapping[str, torch.Tensor], expected: tuple[int, ...]) -> None:
    """Raises SettingsError, with one sentence, for a layer whose device, backend, data type, sizes or order is not known."""
    for name, tensor in caches.items():
        _refuse_tensor(config, name, tensor, expected)


def _refuse_tensor(config: VllmConfig, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raises SettingsError for a layer whose order is not known."""
    module, backend = _backend_of(config, name)
    cache_dtype, dtype = str(config.cache_config.cache_dtype), str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cuda":
        reason = "only the memory of CPUs and of CUDA devices is supported"
    elif _BACKENDS.get(module) != backend:
        reason = f"the order of elements inside its blocks is not known; it is for {', '.join(_BACKENDS.values())}"
    elif is_quantised(cache_dtype) or dtype not in _DTYPES:
        reason = f"a cache of {cache_dtype} is not supported on devices; {', '.join(_DTYPES)} are"
    elif tuple(tensor.shape) != expected:
        reason = f"{expected} was expected: blocks, heads, tokens of a block, and K and V of a token and head"
    elif _order_of(tensor) not in _WORDS or tensor.stride(3) != 1:
        reason = "vLLM has no such order of blocks, heads and tokens"
    else:
        return
    raise SettingsError(
        f"kvtile.vllm: {name} has the attention backend {backend} ({module}) and KV of {dtype} {tuple(tensor.shape)} with strides "
        f"{tuple(tensor.stride())} on {tensor.device}: {reason}; kvtile.vllm.tier keeps the KV of every backend"
    )


def _backend_of(config: VllmConfig, name: str) -> tuple[str, str]:
    """The module and the name of a layer's attention backend."""
    layer = config.compilation_config.static_forward_context.get(name)
    if not hasattr(layer, "get_attn_backend"):
        return type(layer).__module__, f"of a {type(layer).__name__}"
    backend = layer.get_attn_backend()
    return str(backend.__module__), str(backend.get_name())


def _order_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Blocks, heads and tokens, the slowest in memory first. Dimensions of size 1 keep their place, because any stride is
    right for them."""
    sizes, strides = tuple(tensor.shape)[:3], tuple(tensor.stride())
    slowest = iter(sorted((axis for axis in range(3) if sizes[axis] > 1), key=lambda axis: -strides[axis]))
    return tuple(next(slowest) if sizes[axis] > 1 else axis for axis in range(3))
