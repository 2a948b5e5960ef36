"""A 128-bit digest over every byte of tensors.

A tensor is read once, at memory bandwidth. Its 64-bit words are multiplied with odd pseudo-random numbers and summed,
chunk by chunk, modulo 2^64; the sums are hashed with BLAKE2b. A single changed word always changes its sum. Several
changed words leave the sum unchanged with a probability of about 2^-64. The digest does not resist an adversary that
chooses the weights.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kvtile._errors import TensorError

# Types of torch devices whose memory kvtile uses.
DEVICES = ("cpu", "cuda")

_CHUNK = 1 << 16  # words: the operands of one product stay in a core's cache


def digest(tensors: Iterable[tuple[str, Any]], text: str = "") -> str:
    """A digest of tensors by name, in their order, and of a text.

    Raises:
        TensorError: a tensor whose bytes cannot be read.
    """
    whole = hashlib.blake2b(digest_size=16)
    with torch.no_grad():
        for name, tensor in tensors:
            for part, plain in plain_parts(name, tensor):
                whole.update(f"{part} {plain.dtype} {tuple(plain.shape)};".encode())
                whole.update(_sums(plain))
    whole.update(text.encode())
    return whole.hexdigest()


def plain_parts(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """The plain tensors inside a tensor: itself, or the parts of a quantised one."""
    if tensor.device.type not in DEVICES:
        raise TensorError(f"{name} is on {tensor.device}, and kvtile uses CPU memory and memory of CUDA devices")
    if is_traceable_wrapper_subclass(tensor):
        inner, _ = tensor.__tensor_flatten__()
        for attribute in inner:
            yield from plain_parts(f"{name}.{attribute}", getattr(tensor, attribute))
    elif tensor.is_quantized:
        yield f"{name}.int_repr", tensor.int_repr()
        per_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        scale = tensor.q_per_channel_scales() if per_channel else torch.tensor(tensor.q_scale())
        zero = tensor.q_per_channel_zero_points() if per_channel else torch.tensor(tensor.q_zero_point())
        yield from ((f"{name}.scale", scale), (f"{name}.zero", zero))
    elif tensor.layout is torch.strided:
        yield name, tensor.detach()
    else:
        raise TensorError(f"{name} is a tensor of the layout {tensor.layout}, whose bytes cannot be read")


def _sums(tensor: Any) -> bytes:
    """The sums of a tensor's chunks, and the bytes after the last whole word. Uses NumPy, which does not start threads
    for small products."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    words = flat[: flat.size // 8 * 8].view(np.int64)
    factors = _factors()
    chunks = words.size // _CHUNK
    sums = words[: chunks * _CHUNK].reshape(chunks, _CHUNK) @ factors
    tail = words[chunks * _CHUNK :]
    rest = tail @ factors[: tail.size]
    return bytes(sums.tobytes() + rest.tobytes() + flat[words.size * 8 :].tobytes())


@functools.cache
def _factors() -> Any:
    """Odd numbers, the same in every process."""
    stream = hashlib.shake_256(b"kvtile digest of tensors").digest(8 * _CHUNK)
    return np.frombuffer(stream, np.int64) | 1
