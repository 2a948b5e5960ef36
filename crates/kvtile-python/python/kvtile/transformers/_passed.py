"""The cache object of a request: it copies the records of the stops that it passes while an answer is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from kvtile._errors import SettingsError
from kvtile.transformers._content import Contents
from kvtile.transformers._prompts import Prompt

STOPS = ("prompt", "answer", "branch")


class StopsToKeep:
    """Which stops are kept.

    Args:
        names: ``prompt``, the last page's end before the last token of a prompt; ``answer``, the last page's end of the
            answer; ``branch``, where a prompt leaves the known ones.
        every: also each multiple of so many tokens.
    """

    def __init__(self, names: Collection[str], every: int | None, page_size: int) -> None:
        unknown = sorted(set(names) - set(STOPS))
        if isinstance(names, str) or unknown:
            raise SettingsError(f"stops are some of {', '.join(STOPS)}, and not {names!r}")
        if every is not None and (every < page_size or every % page_size):
            raise SettingsError(f"every is {every}, and stops are multiples of the page_size {page_size}")
        self.page_size, self.every = page_size, every
        self.answer, self._prompt, self._branch = ("answer" in names, "prompt" in names, "branch" in names)

    def of_prompt(self, known: int, branch: int, length: int) -> list[int]:
        """The stops to keep while a prompt is computed from ``known`` tokens on, in order."""
        last = (length - 1) // self.page_size * self.page_size
        stops = {last} if self._prompt else set()
        if self._branch:
            stops.add(min(branch, last))
        if self.every is not None:
            stops.update(range(self.every, last + 1, self.every))
        return sorted(stop for stop in stops if stop > known)

    def lasting(self, stop: int, prompt: int) -> bool:
        """Whether a stop that an answer passes is kept although a later one follows."""
        return (self._prompt and stop == prompt) or (self.every is not None and stop % self.every == 0)


@dataclass(frozen=True)
class FollowedRow:
    """A prompt in a row of a cache object, and the records of the stops that its answer has passed."""

    start: int
    tokens: tuple[int, ...]
    records: Mapping[int, Any] = field(default_factory=dict)
    has_ended: bool = False


class PassedStops(DynamicCache):  # type: ignore[misc]
    """A ``DynamicCache`` that copies the records of the stops that it passes after the prompts.

    Attributes:
        kvtile_fingerprint: of the model that it belongs to.
        kvtile_rows: the prompts, with their records.
        kvtile_known: columns that prefill brought.
        kvtile_columns: columns that a model of states alone has computed; None for the others, whose layers count.
    """

    kvtile_fingerprint: str | None = None
    kvtile_rows: tuple[FollowedRow, ...] = ()
    kvtile_known = 0
    kvtile_columns: int | None = None

    def follow(self, rows: list[Prompt], fingerprint: str, contents: Contents, stops: StopsToKeep) -> None:
        """Begins with the prompts of a batch, of which the cache already has some columns."""
        self.kvtile_fingerprint = fingerprint
        self.kvtile_rows = tuple(FollowedRow(row.start, tuple(row.tokens)) for row in rows)
        self.kvtile_known = int(self.get_seq_length())
        self._contents, self._stops = contents, stops

    def belongs_to(self, fingerprint: str, prompts: list[Prompt]) -> bool:
        """Whether the cache was made for these prompts."""
        rows = [(row.start, row.tokens) for row in self.kvtile_rows]
        return self.kvtile_fingerprint == fingerprint and rows == [(row.start, tuple(row.tokens)) for row in prompts]

    def end_rows(self, ended: Collection[int]) -> None:
        """Marks rows whose answer has ended: what follows is padding."""
        rows = enumerate(self.kvtile_rows)
        self.kvtile_rows = tuple(replace(row, has_ended=True) if at in ended else row for at, row in rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if self.kvtile_columns is not None:
            return self.kvtile_columns
        return int(super().get_seq_length(layer_idx))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        # Called for masks alone, which a model makes before its first layer computes.
        self.pass_stops()
        return int(super().get_query_offset(layer_idx))

    def crop(self, *args: Any, **options: Any) -> None:
        super().crop(*args, **options)
        columns = self.get_seq_length()
        self.kvtile_rows = tuple(
            replace(row, records={at: record for at, record in row.records.items() if row.start + at <= columns})
            for row in self.kvtile_rows
        )

    def reset(self) -> None:
        super().reset()
        self.kvtile_rows = ()
        if self.kvtile_columns is not None:
            self.kvtile_columns = 0

    def pass_stops(self) -> None:
        """Copies the records of the rows whose answer is at a page's end."""
        if not self.kvtile_rows or not self._contents.record_bytes:
            return
        lengths = {layer.get_seq_length() for layer in self.layers if isinstance(layer, CacheLayerMixin)}
        # Some layers make a mask of their own, when those before them are already further.
        if len(lengths) > 1:
            return
        columns = self.get_seq_length()
        self.kvtile_rows = tuple(self._passed(at, row, columns) for at, row in enumerate(self.kvtile_rows))

    def _passed(self, at: int, row: FollowedRow, columns: int) -> FollowedRow:
        stop, length = columns - row.start, len(row.tokens)
        if row.has_ended or stop < length or stop % self._stops.page_size or stop in row.records:
            return row
        if not self._stops.answer and not self._stops.lasting(stop, length):
            return row
        # A new dict, so that a copy of this object keeps its own.
        lasting = {stop: record for stop, record in row.records.items() if self._stops.lasting(stop, length)}
        return replace(row, records={**lasting, stop: self._contents.record(self, stop, at)})
