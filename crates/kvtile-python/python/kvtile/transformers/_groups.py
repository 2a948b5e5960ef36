"""What the cache object of a model keeps, in groups by rule: which tensors of which layers a stop needs.

A stop is a number of tokens at which a model can continue. A full group grows by one entry for each token, or for each
``every`` tokens, and a stop needs all entries before it; they are kept in pages. Of a window of w tokens, and of a
chunk likewise, a cache object of transformers keeps only the last w - 1 tokens, and of a state only the newest. Both
belong to the stop alone and are kept as one record: pages of a window would not be whole, because its first page has
already lost tokens that an earlier stop needs.

This module reads classes of cache layers and tensors. It knows neither requests nor storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kvtile._errors import IdentityError

FULL, WINDOW, CHUNK, STATE = "full", "window", "chunk", "state"


@dataclass(frozen=True)
class Place:
    """Where a layer of a cache object keeps a tensor, and the rule for it.

    Args:
        name: an attribute, or an entry of an attribute that is a dict: ``conv_states.0``.
        axis: the dimension of the tensor that counts entries; None for a state.
        tokens: tokens of an entry (full), of the window, or of the chunk.
    """

    name: str
    rule: str
    axis: int | None = None
    tokens: int = 1

    def get(self, layer: Any) -> Any:
        """The tensor; None if the layer has none yet."""
        attribute, _, key = self.name.partition(".")
        value = getattr(layer, attribute, None)
        return value if not key or value is None else value.get(int(key) if key.isdigit() else key)


@dataclass(frozen=True)
class Part:
    """A tensor that a stop needs: its layer, place, dtype, and its dimensions without rows and entries."""

    layer: int
    place: Place
    sizes: tuple[int, ...]
    dtype: Any

    def entries(self, stop: int) -> int:
        """How many entries of it a stop needs; 1 for a state."""
        if self.place.rule == FULL:
            return stop // self.place.tokens
        return 1 if self.place.rule == STATE else min(stop, self.place.tokens - 1)

    @property
    def record_entries(self) -> int:
        """The entries for which a record has space."""
        return 1 if self.place.rule == STATE else self.place.tokens - 1

    def shape(self, entries: int, rows: int = 1) -> tuple[int, ...]:
        """The dimensions of the tensor for some sequences."""
        if self.place.axis is None:
            return (rows, *self.sizes)
        return (rows, *self.sizes[: self.place.axis - 1], entries, *self.sizes[self.place.axis - 1 :])

    def last(self, tensor: Any, tokens: int) -> Any:
        """The entries of the last tokens, those that a stop after so many tokens needs; all of a state."""
        if self.place.axis is None:
            return tensor
        entries = self.entries(tokens)
        return tensor.narrow(self.place.axis, tensor.shape[self.place.axis] - entries, entries)

    @property
    def text(self) -> str:
        return f"{self.layer}.{self.place.name} {str(self.dtype).removeprefix('torch.')}{list(self.sizes)}"


@dataclass(frozen=True)
class Group:
    """The tensors of one rule."""

    rule: str
    tokens: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return self.rule if self.rule == STATE or (self.rule, self.tokens) == (FULL, 1) else f"{self.rule}{self.tokens}"

    @property
    def layers(self) -> list[int]:
        return sorted({part.layer for part in self.parts})

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(part.text for part in self.parts)}"


def groups_of(past: Any, chunked: frozenset[int] = frozenset()) -> tuple[Group, ...]:
    """The groups of a cache object that has seen some tokens.

    Layers without a tensor, such as those that share the KV of other layers, are in no group.

    Args:
        past: a cache object with one row.
        chunked: layers whose window is a chunk.

    Raises:
        IdentityError: a layer of an unknown class, or with a tensor that no rule covers.
    """
    found: dict[tuple[str, int], list[Part]] = {}
    for at, layer in enumerate(past.layers):
        places = list(_places(at, layer, chunked))
        for place in places:
            tensor = place.get(layer)
            if tensor is None:
                continue
            sizes = list(tensor.shape)
            if sizes.pop(0) != 1:
                raise IdentityError(f"{place.name} of layer {at} are {tuple(tensor.shape)}: not one sequence")
            if place.axis is not None:
                del sizes[place.axis - 1]
            part = Part(at, place, tuple(sizes), tensor.dtype)
            found.setdefault((place.rule, place.tokens if place.rule != STATE else 1), []).append(part)
        _refuse_unknown(at, layer, {place.name for place in places})
    order = (FULL, WINDOW, CHUNK, STATE)
    return tuple(
        Group(rule, tokens, tuple(found[rule, tokens]))
        for rule, tokens in sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    )


def stop_unit(groups: tuple[Group, ...]) -> int:
    """Stops are multiples of this number of tokens: between them an entry of several tokens is not complete."""
    return math.lcm(*(group.tokens for group in groups if group.rule == FULL))


def put_back(layer: Any, tensors: dict[str, Any], stop: int) -> None:
    """Gives an unused layer the tensors of a stop, by the names of their places. What is no tensor follows from the
    stop."""
    if "keys" in tensors:
        keys = tensors["keys"]
        values = tensors.get("values", keys)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = stop
    for name, tensor in tensors.items():
        attribute, _, key = name.partition(".")
        if attribute == "conv_states":
            at = int(key)
            layer.lazy_initialization(conv_states=tensor, state_idx=at, conv_kernel_size=tensor.shape[-1])
            # Copied, because torch.compile relies on the address of the tensor that the layer made.
            layer.conv_states[at].copy_(tensor)
            layer.has_previous_state[at] = True
        elif attribute == "recurrent_states":
            layer.lazy_initialization(recurrent_states=tensor, state_idx=int(key))
            layer.recurrent_states[int(key)].copy_(tensor)
        elif attribute == "indexer_keys":
            layer.lazy_initialization_indexer(tensor)
            layer.indexer_keys = tensor
        elif key:
            getattr(layer, attribute)[key] = tensor
            if attribute == "compressed_kv":
                layer.entry_count[key] = tensor.shape[1]
        elif attribute not in ("keys", "values"):
            setattr(layer, attribute, tensor)


# By class of a layer: readers of its places.
_ATTENTION = (Place("keys", FULL, 2), Place("values", FULL, 2))
# Tensors that hold nothing of the past, and buffers that are empty at every stop.
_NOT_KEPT = {"_sliding_window_tensor", "buffer_kv", "buffer_gate"}


def _places(at: int, layer: Any, chunked: frozenset[int]) -> Iterator[Place]:
    kind = type(layer).__name__
    if not type(layer).__module__.startswith("transformers.") or kind not in _READERS:
        raise IdentityError(
            f"layer {at} of its cache is a {type(layer).__module__}.{kind}, of which kvtile does not know what a "
            "continuation needs"
        )
    for reader in _READERS[kind]:
        yield from reader(layer, CHUNK if at in chunked else WINDOW)


def _attention(_: Any, __: str) -> Iterator[Place]:
    yield from _ATTENTION


def _window(layer: Any, rule: str) -> Iterator[Place]:
    if getattr(layer, "record_past", False):
        raise IdentityError("its cache records tokens before its windows (activate_past_recording)")
    for name in ("keys", "values"):
        yield Place(name, rule, 2, int(layer.sliding_window))


def _linear(layer: Any, _: str) -> Iterator[Place]:
    for at in range(layer.number_of_states):
        yield Place(f"conv_states.{at}", STATE)
        yield Place(f"recurrent_states.{at}", STATE)


def _indexer(_: Any, __: str) -> Iterator[Place]:
    yield Place("indexer_keys", FULL, 1)


def _index_keys(_: Any, __: str) -> Iterator[Place]:
    yield Place("idx_keys", FULL, 2)


def _shared_window(layer: Any, rule: str) -> Iterator[Place]:
    # The values are the keys.
    yield Place("keys", rule, 2, int(layer.sliding_window))


def _compressed(layer: Any, _: str) -> Iterator[Place]:
    for name in layer.compressed_kv:
        yield Place(f"compressed_kv.{name}", FULL, 1, int(layer.compress_rate))
        if hasattr(layer, "overlap_kv"):
            yield Place(f"overlap_kv.{name}", STATE)
            yield Place(f"overlap_gate.{name}", STATE)


_READERS = {
    "DummyLayer": (),
    "DynamicLayer": (_attention,),
    "DynamicSlidingWindowLayer": (_window,),
    "DynamicIndexedLayer": (_attention, _indexer),
    "LinearAttentionLayer": (_linear,),
    "LinearAttentionAndFullAttentionLayer": (_attention, _linear),
    "LinearAttentionAndSlidingWindowAttentionLayer": (_window, _linear),
    "MiniMaxM3VLSparseCacheLayer": (_attention, _index_keys),
    "DeepseekV4HCACache": (_shared_window, _compressed),
    "DeepseekV4CSACache": (_shared_window, _compressed),
}


def _refuse_unknown(at: int, layer: Any, known: set[str]) -> None:
    for name, value in vars(layer).items():
        tensors = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        for place, each in tensors.items():
            if not isinstance(each, torch.Tensor) or name in _NOT_KEPT or place in known:
                continue
            if place == "values" and each is layer.keys:
                continue
            raise IdentityError(
                f"layer {at} of its cache, a {type(layer).__name__}, keeps {place}, of which kvtile does not know what "
                "a continuation needs"
            )
