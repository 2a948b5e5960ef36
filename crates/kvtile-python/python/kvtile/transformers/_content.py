"""Copies what a stop needs out of a cache object, and puts it into another one.

The tensors of full groups are read and written in place, in pages of all layers of one size. All other tensors of a
stop are one record of bytes: window tails and states, one after the other in the order of the groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from kvtile._errors import RequestError
from kvtile.transformers._groups import FULL, STATE, Group, Part, put_back, stop_unit

_ALIGNED = 64  # bytes: every part of a record begins at a multiple


@dataclass(frozen=True)
class Pages:
    """Tensors of full groups that have one size, and so are pages of one layout: ``[heads, entries, width]`` each."""

    heads: int
    width: int
    every: int
    dtype: Any
    parts: tuple[Part, ...]
    device: torch.device

    def empty(self, stop: int) -> list[Any]:
        """Tensors for the entries of a stop, one for each part."""
        sizes = (len(self.parts), self.heads, stop // self.every, self.width)
        return list(torch.zeros(sizes, dtype=self.dtype, device=self.device))

    def of(self, past: Any, stop: int, row: int = 0, start: int = 0) -> list[Any]:
        """The tensors of a row of a cache object, whose tokens begin in the column ``start``, up to a stop."""
        entries = slice(start // self.every, (start + stop) // self.every)
        whole = [_get(past, part)[row, ..., entries, :] for part in self.parts]
        return [tensor.reshape(self.heads, -1, self.width) for tensor in whole]


class Contents:
    """Where the tensors of a model's groups lie in pages and in records. All are on the device of the model."""

    def __init__(self, groups: tuple[Group, ...], device: torch.device) -> None:
        self.groups, self.device = groups, device
        self.unit = stop_unit(groups)
        by_size: dict[tuple[int, int, int, Any], list[Part]] = {}
        self._record: list[tuple[int, Part]] = []
        end = 0
        for part in (part for group in groups for part in group.parts):
            if part.place.rule == FULL:
                # [heads, entries, width], or [entries, width] of one head.
                heads = part.sizes[0] if part.place.axis == 2 else 1
                by_size.setdefault((heads, part.sizes[-1], part.place.tokens, part.dtype), []).append(part)
                continue
            begin = -(-end // _ALIGNED) * _ALIGNED
            self._record.append((begin, part))
            end = begin + math.prod(part.sizes) * part.record_entries * part.dtype.itemsize
        self.pages = tuple(Pages(*size, tuple(parts), device) for size, parts in by_size.items())
        self.record_bytes = end

    @property
    def states_alone(self) -> bool:
        """Whether no layer keeps tokens, so that a cache object does not know how many it has seen."""
        return all(group.rule == STATE for group in self.groups)

    def empty_record(self) -> Any:
        """Memory for a record."""
        return torch.zeros(self.record_bytes, dtype=torch.uint8, device=self.device)

    def record(self, past: Any, stop: int, row: int = 0) -> Any:
        """A copy of the window tails and states of a row of a cache object that is at this stop, as bytes."""
        record = self.empty_record()
        for begin, part in self._record:
            self._view(record, begin, part, stop).copy_(part.last(_get(past, part)[row : row + 1], stop))
        return record

    def put(self, past: Any, pages: list[list[Any]], record: Any, stop: int) -> None:
        """Makes an unused cache object continue at a stop.

        Args:
            pages: for each of ``self.pages``, a tensor for each part.
            record: as from ``record``; the cache object keeps parts of it.
        """
        tensors: list[dict[str, Any]] = [{} for _ in past.layers]
        for kind, halves in zip(self.pages, pages, strict=True):
            for part, half in zip(kind.parts, halves, strict=True):
                tensors[part.layer][part.place.name] = half.reshape(part.shape(part.entries(stop)))
        for begin, part in self._record:
            tensors[part.layer][part.place.name] = self._view(record, begin, part, stop)
        for layer, of_layer in zip(past.layers, tensors, strict=True):
            if of_layer:
                put_back(layer, of_layer, stop)

    def join(self, rows: list[Any], starts: list[int], past: Any) -> None:
        """Makes an unused cache object continue with the rows of several cache objects, each of one sequence, which end in one column.

        Args:
            starts: the column of the first token of each row. Columns before it are padding, which attention ignores.
        """
        columns = max(start + row.get_seq_length() for start, row in zip(starts, rows, strict=True))
        tensors: list[dict[str, Any]] = [{} for _ in past.layers]
        for part in (part for group in self.groups for part in group.parts):
            joined = torch.zeros(part.shape(part.entries(columns), len(rows)), dtype=part.dtype, device=self.device)
            for at, row in enumerate(rows):
                tensor = _get(row, part)
                # A prompt of one token has nothing yet.
                if tensor is not None:
                    part.last(joined[at : at + 1], row.get_seq_length()).copy_(tensor)
            tensors[part.layer][part.place.name] = joined
        for layer, of_layer in zip(past.layers, tensors, strict=True):
            if of_layer:
                put_back(layer, of_layer, columns)

    def check(self, past: Any, stop: int, rows: int = 1) -> None:
        """Refuses a cache object that is not one of this model with ``rows`` sequences in ``stop`` columns.

        Raises:
            RequestError: names the first difference.
        """
        layers = getattr(past, "layers", None)
        if not layers:
            raise RequestError(f"a {type(past).__name__} is not a cache of this model: it has no layers")
        for part in (part for group in self.groups for part in group.parts):
            if part.layer >= len(layers):
                raise RequestError(f"the cache has {len(layers)} layers, and the model keeps KV in layer {part.layer}")
            found, wanted = _get(past, part), part.shape(part.entries(stop), rows)
            if found is None or tuple(found.shape) != wanted or found.dtype != part.dtype or found.device != self.device:
                what = "none" if found is None else f"{tuple(found.shape)} of {found.dtype} on {found.device}"
                raise RequestError(
                    f"{part.place.name} of layer {part.layer} are {what}, and {rows} prompt{'s'[: rows != 1]} of {stop} tokens "
                    f"have {wanted} of {part.dtype} on {self.device}; give the cache that prefill returned"
                )

    def last_tokens(self, past: Any, stop: int, most: int, row: int = 0) -> tuple[int, dict[str, Any]]:
        """What the first layer that keeps anything has of the last tokens of a row, and of how many: keys, values and
        columns of the first convolution, each ``[tokens, ...]``.

        Args:
            most: of at most so many tokens.
        """
        first = min((part for group in self.groups for part in group.parts), key=lambda part: part.layer).layer
        layer, found = past.layers[first], {}
        for part in (part for group in self.groups for part in group.parts if part.layer == first):
            if part.place.name == "conv_states.0":
                most = min(most, part.sizes[-1])
            elif part.place.name in ("keys", "values"):
                most = min(most, part.entries(stop))
        if getattr(layer, "keys", None) is not None:
            for name in ("keys", "values"):
                half = getattr(layer, name)[row]
                found[name] = half[:, half.shape[1] - most :].transpose(0, 1)
        states = getattr(layer, "conv_states", {}).get(0)
        if states is not None:
            found["conv_states.0"] = states[row, :, states.shape[-1] - most :].T
        return most, found

    @staticmethod
    def _view(record: Any, begin: int, part: Part, stop: int) -> Any:
        shape = part.shape(part.entries(stop))
        size = math.prod(shape)
        return record[begin : begin + size * part.dtype.itemsize].view(part.dtype).view(shape)


def _get(past: Any, part: Part) -> Any:
    return part.place.get(past.layers[part.layer])
