"""The settings of a prefix cache."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtile._errors import SettingsError

if TYPE_CHECKING:
    from kvtile._shared import SharedTier

# The caller waits for its own operations, so a large batch must not exceed the queue.
QUEUE = 1 << 16
_GIB = 1 << 30
# Settings of what a daemon has.
_OF_TIERS = ("disk", "host_gib", "disk_gib", "close_within", "shared", "shared_bundle_blocks")


@dataclass(frozen=True)
class Settings:
    """The arguments of ``PrefixCache``."""

    connect: str | os.PathLike[str] | None
    disk: str | os.PathLike[str] | None
    host_gib: float | None
    disk_gib: float | None
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

    @property
    def host_bytes(self) -> int:
        """Host memory for blocks."""
        return int((1.0 if self.host_gib is None else self.host_gib) * _GIB)

    @property
    def disk_bytes(self) -> int | None:
        """The limit for the size of the folder; None without one."""
        return None if self.disk is None else int((8.0 if self.disk_gib is None else self.disk_gib) * _GIB)

    @property
    def seek_within(self) -> float | None:
        """Seconds that a prompt waits for the shared store; None without one."""
        if self.shared is None:
            return self.shared_within
        return 1.0 if self.shared_within is None else self.shared_within

    def check_tiers(self) -> None:
        """Refuses settings of tiers that have no effect, by name."""
        given = [name for name in _OF_TIERS if getattr(self, name) is not None]
        if self.connect is not None and given:
            raise SettingsError(f"{', '.join(given)} has no effect with connect; give it to kvtile serve")
        if self.connect is None and self.shared is None and self.shared_within is not None:
            raise SettingsError("shared_within has no effect without shared, the store")
