"""The settings of a prefix cache."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtile._shared import SharedTier

# The caller waits for its own operations, so a large batch must not exceed the queue.
QUEUE = 1 << 16


@dataclass(frozen=True)
class Settings:
    """As the arguments of ``PrefixCache``, with sizes in bytes."""

    connect: str | os.PathLike[str] | None
    disk: str | os.PathLike[str] | None
    host_bytes: int
    disk_bytes: int
    close_within: float | None
    shared: str | os.PathLike[str] | SharedTier | None
    shared_within: float | None
    shared_bundle_blocks: int | None
    page_size: int
    stops: Collection[str] | None
    every: int | None
    revision: str | None
    salt: str
    extra: Mapping[str, str]
