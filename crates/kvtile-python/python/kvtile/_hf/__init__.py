"""Derives the shape and identity of a model's KV from its Hugging Face config.

Nothing is guessed: unknown model types and missing fields are refused by name. ``models`` has the list of known types,
``config`` reads fields, ``rope`` the rotary embedding, ``attention`` refuses other attention than full and causal,
``fields`` lists the fields that change KV.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf import rope as _rope
from kvtile._hf.attention import heads_and_size, refuse_other_kinds
from kvtile._hf.config import Config
from kvtile._hf.fields import empty, text
from kvtile._hf.groups import FAMILIES, grouped_model_of, refuse_unknown
from kvtile._hf.models import table
from kvtile._kvtile import Identity, ModelIdentity, Shape

__all__ = [
    "config_digest",
    "identity_of",
    "kv_fields",
    "length_dependence",
    "length_limit",
    "model_of",
    "rope_of",
    "shape_of",
]


def identity_of(
    config: Any,
    page_size: int,
    *,
    dtype: Any = None,
    model: str | None = None,
    revision: str | None = None,
    tp_rank: int = 0,
    tp_size: int = 1,
    layers: tuple[int, int] | None = None,
    extra: Mapping[str, str] | None = None,
    max_model_len: int | None = None,
    text_only: bool = False,
) -> Identity:
    """The identity of a model's KV: see Identity.from_hf_config."""
    read = Config(config, text_only=text_only)
    name, commit = _named(read, model, revision)
    shape = _shape(read, page_size, 1, dtype, tp_rank, tp_size, layers)
    # The identity already has these fields from the shape and the rotary embedding.
    said = {f"config.{field}" for field in ("rope", "num_hidden_layers", "num_key_value_heads", "head_dim")}
    more = {name: value for name, value in _kv_fields(read, max_model_len).items() if name not in said}
    return Identity(name, commit, shape, rope=_rope.rope_of(read, max_model_len), extra={**more, **(extra or {})})


def model_of(
    config: Any,
    page_size: Any,
    *,
    dtype: Any = None,
    state_dtype: Any = None,
    model: str | None = None,
    revision: str | None = None,
    extra: Mapping[str, str] | None = None,
    max_model_len: int | None = None,
    text_only: bool = False,
) -> ModelIdentity:
    """The identity of a model with groups of layers: see ModelIdentity.from_hf_config."""
    read = Config(config, text_only=text_only, known=False, groups=True)
    if read.model_type in table() and not _has_groups(read):
        page = page_size["full"] if isinstance(page_size, Mapping) and list(page_size) == ["full"] else page_size
        settings = {"dtype": dtype, "model": model, "revision": revision, "extra": extra, "max_model_len": max_model_len}
        return ModelIdentity.of(identity_of(config, page, text_only=text_only, **settings))
    refuse_unknown(read)
    name, commit = _named(read, model, revision)
    more = {"config.model_type": str(read.model_type), **read.kv_fields(), **(extra or {})}
    return grouped_model_of(read, page_size, dtype=dtype, state_dtype=state_dtype, name=name, revision=commit, extra=more)


def _has_groups(read: Config) -> bool:
    """Whether a model of a type in both lists has layers of several kinds."""
    return read.model_type in FAMILIES and not empty(read.fields.get("sliding_window"))


def _named(read: Config, model: str | None, revision: str | None) -> tuple[str, str]:
    """The model's name and the revision of its weights."""
    name = model or read.name
    if not name:
        raise IdentityError("the config does not name its model; give model=")
    commit = revision or read.commit
    if not commit:
        raise IdentityError("the config does not identify its weights; give revision=, a commit or a digest")
    return str(name), str(commit)


def shape_of(
    config: Any,
    page_size: int,
    *,
    num_blocks: int = 1,
    dtype: Any = None,
    tp_rank: int = 0,
    tp_size: int = 1,
    layers: tuple[int, int] | None = None,
    text_only: bool = False,
) -> Shape:
    """The shape of a model's KV, or of one rank's shard."""
    return _shape(Config(config, text_only=text_only), page_size, num_blocks, dtype, tp_rank, tp_size, layers)


def rope_of(config: Any, *, max_model_len: int | None = None, text_only: bool = False) -> dict[str, Any] | None:
    """The rotary embedding, in the format of ``rope_parameters``; None for model types without one.

    Args:
        max_model_len: the context length of an engine that selects the embedding by it, as vLLM does. Without it,
            embeddings that depend on the sequence length are refused.
    """
    return _rope.rope_of(Config(config, text_only=text_only), max_model_len)


def length_dependence(config: Any, *, max_model_len: int | None = None, text_only: bool = False) -> str | None:
    """Why a model's KV depends on more than its prefix, in one sentence; None if it does not."""
    return _rope.length_dependence(Config(config, text_only=text_only), max_model_len)


def length_limit(config: Any, *, text_only: bool = False) -> int | None:
    """The longest sequence over which attention is full: the window of a model whose window is no smaller than its
    context; None for models without a window.
    """
    return refuse_other_kinds(Config(config, text_only=text_only))


def kv_fields(
    config: Any, *, max_model_len: int | None = None, text_only: bool = False, known: bool = True
) -> dict[str, str]:
    """The config fields that change KV: text by field name, the same for a dict and for a config object.

    Args:
        max_model_len: as for rope_of.
        known: refuse model types that are not in the list. With False, all fields of an unknown type count, and
            max_model_len; use it for engines that know themselves that KV is a function of its prefix.
    """
    read = Config(config, text_only=text_only, known=known)
    if read.listed:
        return _kv_fields(read, max_model_len)
    context = {} if max_model_len is None else {"config.max_model_len": str(max_model_len)}
    return {"config.model_type": str(read.model_type), **read.kv_fields(), **context}


def config_digest(
    config: Any, *, max_model_len: int | None = None, text_only: bool = False, known: bool = True
) -> str:
    """A 128-bit digest of kv_fields, as hexadecimal text."""
    fields = kv_fields(config, max_model_len=max_model_len, text_only=text_only, known=known)
    written = "".join(f"{name}={len(value)}:{value}\n" for name, value in sorted(fields.items()))
    return hashlib.blake2b(written.encode(), digest_size=16).hexdigest()


def _kv_fields(read: Config, max_model_len: int | None) -> dict[str, str]:
    refuse_other_kinds(read)
    heads, size = heads_and_size(read)
    return {
        "config.model_type": str(read.model_type),
        "config.num_hidden_layers": str(read.number("num_hidden_layers")),
        "config.num_key_value_heads": str(heads),
        "config.head_dim": str(size),
        "config.rope": text(_rope.rope_of(read, max_model_len)),
        **read.kv_fields(),
    }


def _shape(
    read: Config,
    page_size: int,
    num_blocks: int,
    dtype: Any,
    tp_rank: int,
    tp_size: int,
    layers: tuple[int, int] | None,
) -> Shape:
    refuse_other_kinds(read)
    total_layers = read.number("num_hidden_layers")
    total_heads, head_size = heads_and_size(read)
    dtype = dtype or read.dtype
    if dtype is None:
        raise IdentityError("the config has no dtype; give dtype=")
    if not 0 <= tp_rank < tp_size or (total_heads % tp_size and tp_size % total_heads):
        raise IdentityError(
            f"rank {tp_rank} of {tp_size} over {total_heads} KV heads: the size divides the heads or is a "
            "multiple of them, and the rank is below it"
        )
    heads = max(1, total_heads // tp_size)
    first_head = tp_rank * heads if tp_size <= total_heads else tp_rank * total_heads // tp_size
    first_layer, end_layer = layers or (0, total_layers)
    return Shape(
        num_blocks=num_blocks,
        num_layers=end_layer - first_layer,
        page_size=page_size,
        num_heads=heads,
        head_size=head_size,
        dtype=dtype,
        first_layer=first_layer,
        total_layers=total_layers,
        first_head=first_head,
        total_heads=total_heads,
    )
