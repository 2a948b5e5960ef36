"""The scheduler's view of the workers' caches: which blocks are in which tier.

Each step updates it, so it may lag. If a block was evicted since the last update, its load fails and vLLM recomputes
it. A block that the directory does not list yet is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvtile import TierDirectory
from kvtile.vllm._messages import Change, Keys

# The tiers of a worker's cache, the fastest first. "disk:parts" assembles blocks that other numbers of workers wrote, and
# "shared" has the blocks that queries of the worker found; "shared:parts" assembles those that other numbers of workers
# wrote to the shared store.
TIERS = ("host", "disk", "disk:parts", "shared", "shared:parts")


def on_disk(tiers: Iterable[str]) -> int:
    """How many blocks are not in host memory."""
    return sum(tier != "host" for tier in tiers)


def are_shared(tiers: Iterable[str]) -> bool:
    """Whether some blocks are in the shared store."""
    return any(tier.startswith("shared") for tier in tiers)


def directory_of(changes: Iterable[Change] = ()) -> TierDirectory:
    """The blocks of one worker, by tier."""
    directory = TierDirectory(TIERS)
    directory.apply(changes)
    return directory


def leading_tiers(directories: Mapping[int, TierDirectory], keys: Keys) -> list[str]:
    """The tiers of the leading blocks that all workers have; for each block, the slowest tier of all workers.

    ``directories`` and ``keys`` are by rank. A block that one rank lacks counts as missing.
    """
    found = [directory.leading(keys[rank]) for rank, directory in directories.items()]
    return [max(tiers, key=TIERS.index) for tiers in zip(*found, strict=False)]
