"""A record of the loaded prefix, stored on the ``DynamicCache`` itself.

So copies of the cache keep the record, and it never applies to another cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvtile._kvtile import Identity
from kvtile.transformers._prompts import Prompt

_ATTRIBUTE = "_kvtile_loaded"


@dataclass(frozen=True)
class Loaded:
    """The leading tokens of each row whose KV came from a prefix cache."""

    fingerprint: str
    rows: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, identity: Identity, prompts: list[Prompt], length: int) -> Loaded:
        """The record of the first ``length`` columns of these prompts."""
        rows = ((row.start, tuple(row.tokens[: max(0, length - row.start)])) for row in prompts)
        return cls(identity.fingerprint, tuple(rows))

    @staticmethod
    def in_cache(past: Any, identity: Identity) -> Loaded | None:
        """The record of a cache; None without one, or if it is of another identity."""
        loaded = getattr(past, _ATTRIBUTE, None)
        return loaded if isinstance(loaded, Loaded) and loaded.fingerprint == identity.fingerprint else None

    def mark(self, past: Any) -> None:
        """Stores the record on the cache."""
        setattr(past, _ATTRIBUTE, self)

    def known(self, row: int, prompt: Prompt) -> int:
        """How many leading tokens of a prompt were loaded into a row; 0 if the row was loaded for another prompt."""
        if row >= len(self.rows):
            return 0
        start, tokens = self.rows[row]
        same = start == prompt.start and tuple(prompt.tokens[: len(tokens)]) == tokens
        return len(tokens) if same else 0
