"""Digests of a request's inputs besides its tokens: images and other media, and embeddings.

vLLM's own identifiers are not used: a client may set them, an image may carry one in its metadata, and without caches
vLLM numbers the inputs per request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SIZE = 16


def digest_of_feature(feature: Any) -> bytes | None:
    """The digest of an item after processing, as the model receives it; None if its data is not in this process."""
    if feature.data is None:
        return None
    digest = hashlib.blake2b(digest_size=_SIZE)
    mask = feature.mm_position.is_embed
    try:
        _add(digest, feature.modality)
        _add(digest, None if mask is None else mask)
        _add(digest, {name: getattr(element, "data", element) for name, element in feature.data.items()})
    except _UnknownContentError:
        return None
    return digest.digest()


def digest_of_embeddings(rows: torch.Tensor, mask: list[bool] | None) -> bytes:
    """The digest of the embeddings of one block, and of the mask of positions that are tokens."""
    digest = hashlib.blake2b(digest_size=_SIZE)
    _add(digest, rows)
    _add(digest, mask)
    return digest.digest()


class _UnknownContentError(Exception):
    """A value of an unsupported type."""


def _add(digest: Any, value: Any) -> None:
    """Adds a value with a prefix of its type and size, so that different values never encode equally."""
    if value is None:
        digest.update(b"n")
    elif isinstance(value, Mapping):
        digest.update(b"m%d:" % len(value))
        for name in sorted(value, key=str):
            _add(digest, str(name))
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(b"l%d:" % len(value))
        for item in value:
            _add(digest, item)
    elif isinstance(value, (bool, int, float, str)):
        text = f"{type(value).__name__}:{value!r}".encode()
        digest.update(b"v%d:" % len(text) + text)
    elif isinstance(value, bytes):
        digest.update(b"b%d:" % len(value) + value)
    elif hasattr(value, "data_ptr"):
        _add_tensor(digest, value)
    elif hasattr(value, "__array_interface__"):
        array = value.copy(order="C")
        text = f"{array.dtype.str}{array.shape}".encode()
        digest.update(b"a%d:" % len(text) + text + array.tobytes())
    else:
        raise _UnknownContentError(type(value).__name__)


def _add_tensor(digest: Any, tensor: torch.Tensor) -> None:
    import torch

    text = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    digest.update(b"t%d:" % len(text) + text)
    # An empty tensor cannot be viewed as bytes.
    if tensor.numel():
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
