"""The options of a shared store, which the adapters of engines over ``BlockStore`` have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kvtile._errors import SettingsError

_BUNDLE_BLOCKS_MAX = 64
_FILE = "file://"
WITHIN = 1.0
"""Seconds that a request waits for the shared store, if the options do not say it."""


class SharedOptions(Protocol):
    """The options with these names."""

    @property
    def path(self) -> Path | None: ...
    @property
    def shared(self) -> str | None: ...
    @property
    def shared_within(self) -> float | None: ...
    @property
    def shared_lifetime(self) -> float | None: ...
    @property
    def shared_compress(self) -> bool | None: ...


def check_shared(where: str, given: Mapping[str, object], options: SharedOptions) -> None:
    """Raises SettingsError for options that have no effect, and for values that no store takes."""
    idle = [name for name in given if name.startswith("shared_") and options.shared is None]
    if idle:
        raise SettingsError(f"{where}: {', '.join(idle)} has no effect without shared, the store")
    blocks, lifetime = getattr(options, "shared_bundle_blocks", None), options.shared_lifetime
    if blocks is not None and not 1 <= blocks <= _BUNDLE_BLOCKS_MAX:
        raise SettingsError(f"{where}: shared_bundle_blocks is {blocks}; it takes 1 to {_BUNDLE_BLOCKS_MAX}")
    if lifetime is not None and lifetime <= 0:
        raise SettingsError(f"{where}: shared_lifetime is {lifetime}; it takes a number of seconds above 0")
    if options.path is not None and options.shared is not None and _is_in(options.shared, options.path):
        raise SettingsError(
            f"{where}: shared is {options.shared!r}, which is the folder {str(options.path)!r} of path or in it. That folder is "
            "this engine's alone; give shared a folder beside it"
        )


def _is_in(shared: str, path: Path) -> bool:
    """Whether a shared store is a folder that is ``path`` or in it."""
    text = shared.removeprefix(_FILE)
    if "://" in text:
        return False
    return Path(os.path.abspath(text)).is_relative_to(os.path.abspath(path))


def refuse_bundles(where: str, given: Mapping[str, object], why: str) -> None:
    """Refuses values of several blocks for an engine that does not name the chain of its blocks."""
    if "shared_bundle_blocks" in given:
        raise SettingsError(f"{where} has shared_bundle_blocks, which this engine cannot have: {why}")


def within_of(options: SharedOptions) -> float:
    """How long a request waits for the answer of the shared store."""
    return WITHIN if options.shared_within is None else options.shared_within


def keywords_of(options: SharedOptions) -> dict[str, Any]:
    """The keyword arguments of ``BlockStore``."""
    found = {
        "shared": options.shared,
        "shared_lifetime": options.shared_lifetime,
        "shared_compress": options.shared_compress,
        "shared_bundle_blocks": getattr(options, "shared_bundle_blocks", None),
    }
    return {name: value for name, value in found.items() if value is not None}
