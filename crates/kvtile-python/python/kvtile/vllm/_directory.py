"""The scheduler's view of the workers' caches: which blocks are in which tier.

Each step updates it, so it may lag. If a block was evicted since the last update, its load fails and vLLM recomputes
it. A block that the directory does not list yet is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from kvtile.vllm._messages import Change, Keys

TIERS: tuple[Literal["host"], Literal["disk"]] = ("host", "disk")


class Directory:
    """The blocks of one worker, by tier."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._tiers: dict[str, set[bytes]] = {tier: set() for tier in TIERS}
        self.apply(changes)

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies changes in order."""
        for kind, tier, key, _ in changes:
            blocks = self._tiers[tier]
            if kind == "stored":
                blocks.add(key)
            elif kind == "removed":
                blocks.discard(key)
            else:
                blocks.clear()

    def clear(self) -> None:
        """Removes all blocks."""
        for blocks in self._tiers.values():
            blocks.clear()

    def tier(self, key: bytes) -> str | None:
        """The fastest tier that has a block."""
        return next((tier for tier in TIERS if key in self._tiers[tier]), None)


def leading_tiers(directories: Mapping[int, Directory], keys: Keys) -> list[str]:
    """The tiers of the leading blocks that all workers have; for each block, the slowest tier of all workers.

    ``directories`` and ``keys`` are by rank. A block that one rank lacks counts as missing.
    """
    found: list[str] = []
    for block in zip(*(keys[rank] for rank in directories), strict=True):
        tiers = [directory.tier(key) for directory, key in zip(directories.values(), block, strict=True)]
        if None in tiers:
            break
        found.append("disk" if "disk" in tiers else "host")
    return found
