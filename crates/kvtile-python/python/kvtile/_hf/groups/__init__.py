"""Derives the groups of a model's layers from its Hugging Face config: rules, layers, planes, rotary embeddings.

Nothing is guessed: unknown model types, kinds of layers and missing fields are refused by name. ``attention`` has the model
types all of whose layers have attention, ``states`` those with recurrent layers, ``kept`` what a layer keeps, ``ropes`` the
rotary embeddings by kind of layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtile._errors import ArgumentError, IdentityError
from kvtile._hf.config import BY_HAND, Config, other_kind, short
from kvtile._hf.fields import empty
from kvtile._hf.groups.attention import ATTENTION, Layers
from kvtile._hf.groups.kept import KeptLayer, Reader
from kvtile._hf.groups.states import STATES
from kvtile._kvtile import ModelGroup, ModelIdentity, Shape

__all__ = ["FAMILIES", "grouped_model_of"]

FAMILIES = {**ATTENTION, **STATES}
"""What each layer keeps, by model type."""

# Fields that make a model of a known type another one.
_REFUSED = {
    "dual_chunk_attention_config": "its keys depend on chunks of the sequence",
    "index_kpool": "its indexer keeps one key for several tokens",
    "cross_attention_layers": "some of its layers read something else than text",
}


MISSING = {
    "glm5_next_text": "its indexer keeps one key for several tokens (index_kpool), in records that kvtile does not know",
    "recurrent_gemma": "its states are inside the model and not in its cache",
}
"""Why model types that look known are not covered."""


def grouped_model_of(
    read: Config,
    page_size: Any,
    *,
    dtype: Any,
    state_dtype: Any,
    name: str,
    revision: str,
    extra: Mapping[str, str],
) -> ModelIdentity:
    """The identity of a model whose type is in the list of types with groups."""
    layers = FAMILIES[str(read.model_type)](_reader(read, dtype, state_dtype))
    groups = [_group(kept, numbers, page_size) for kept, numbers in _gathered(layers)]
    _check_names(page_size, [group.name for group in groups])
    return ModelIdentity(name, revision, groups, extra=extra)


def refuse_unknown(read: Config) -> None:
    """Refuses a model type whose layers kvtile does not know, and names what is missing."""
    if not read.model_type:
        raise IdentityError("the config has no model_type, from which kvtile knows what the layers of a model keep; add it")
    if str(read.model_type) not in FAMILIES:
        because = MISSING.get(str(read.model_type)) or other_kind(read.fields)
        raise IdentityError(
            f"model type {read.model_type!r} is not covered{f' ({because})' if because else ''}: kvtile does not know which of its "
            "layers keep what, with which planes; make its ModelGroups and a ModelIdentity by hand (docs/models.md has the list)"
        )


def _reader(read: Config, dtype: Any, state_dtype: Any) -> Reader:
    for field, because in _REFUSED.items():
        value = read.fields.get(field)
        if not empty(value) and value is not False:
            raise IdentityError(f"{because} ({field} is {short(value)}); {BY_HAND}")
    both = read.fields.get("use_bidirectional_attention")
    if both not in (None, False, "vision") or read.fields.get("is_causal") is False:
        raise IdentityError("its attention is not causal: KV depends on later tokens")
    kept = dtype or read.dtype
    if kept is None:
        raise IdentityError("the config has no dtype; give dtype=")
    return Reader(read, kept, state_dtype)


def _gathered(layers: Layers) -> list[tuple[KeptLayer, list[int]]]:
    """The groups with their layers. Layers of one group keep equal things."""
    groups: dict[str, tuple[KeptLayer, list[int]]] = {}
    for layer, things in enumerate(layers):
        for kept in things:
            first, numbers = groups.setdefault(kept.group, (kept, []))
            if first != kept:
                raise IdentityError(
                    f"layers {numbers[0]} and {layer} are both of the group {kept.group} and keep other things: {short(first)} and "
                    f"{short(kept)}; make its ModelGroups by hand"
                )
            numbers.append(layer)
    return list(groups.values())


def _group(kept: KeptLayer, layers: list[int], page_size: Any) -> ModelGroup:
    shape = Shape(num_blocks=1, num_layers=len(layers), page_size=_page(page_size, kept.group), planes=list(kept.planes))
    return ModelGroup(kept.group, shape, rule=kept.rule, tokens=kept.tokens, layers=layers, rope=kept.rope)


def _page(page_size: Any, group: str) -> Any:
    if not isinstance(page_size, Mapping):
        return page_size
    if group not in page_size:
        raise ArgumentError(f"page_size has no tokens for the group {group}; give a number, or one for each group")
    return page_size[group]


def _check_names(page_size: Any, names: list[str]) -> None:
    if isinstance(page_size, Mapping) and (unknown := [name for name in page_size if name not in names]):
        raise ArgumentError(f"page_size has {short(unknown[0])}, which is no group of this model; its groups are {', '.join(sorted(names))}")
