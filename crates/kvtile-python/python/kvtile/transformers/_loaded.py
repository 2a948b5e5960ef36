"""What was loaded into a cache that was given out, written on that cache itself.

It goes where the cache goes, into copies too, and speaks of no other one.
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
        """So many columns of these prompts."""
        rows = ((row.start, tuple(row.tokens[: max(0, length - row.start)])) for row in prompts)
        return cls(identity.fingerprint, tuple(rows))

    @staticmethod
    def in_cache(past: Any, identity: Identity) -> Loaded | None:
        """What was loaded into a cache; None where nothing was, or KV of another identity."""
        loaded = getattr(past, _ATTRIBUTE, None)
        return loaded if isinstance(loaded, Loaded) and loaded.fingerprint == identity.fingerprint else None

    def mark(self, past: Any) -> None:
        """Writes it on the cache."""
        setattr(past, _ATTRIBUTE, self)

    def known(self, row: int, prompt: Prompt) -> int:
        """How many leading tokens of a prompt were loaded into a row; none where the row was loaded for another prompt."""
        if row >= len(self.rows):
            return 0
        start, tokens = self.rows[row]
        same = start == prompt.start and tuple(prompt.tokens[: len(tokens)]) == tokens
        return len(tokens) if same else 0
