"""KV events of the tier: which blocks came to the disk and left it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import OffloadingEvent

from kvtile import BlockStore, LaggedError, block_key

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import Locality, Medium

_FIELDS = {found.name for found in dataclasses.fields(OffloadingEvent)}


class TierEvents:
    """The blocks that this process has announced, so that their removal can be announced too.

    Events of the store have keys of 16 bytes, from which vLLM's keys do not follow. So the removal of a block that an
    earlier process has stored is not announced; nor was its presence.
    """

    def __init__(self, store: BlockStore, medium: Medium, locality: Locality | None, tier: str) -> None:
        self._store = store
        self._subscriber = store.subscribe()
        self._names: dict[bytes, bytes] = {}
        extra: dict[str, Any] = {"locality": locality, "ownership": tier, "removal_expected": True}
        self._extra = {name: value for name, value in extra.items() if name in _FIELDS}
        self._medium = medium
        self._pending: list[OffloadingEvent] = []

    def stored(self, keys: Sequence[bytes]) -> None:
        """Announces blocks that a job has stored."""
        new = [key for key in keys if block_key(key) not in self._names]
        if new:
            self._names |= {block_key(key): key for key in new}
            self._announce(new, removed=False)

    def _announce(self, keys: Iterable[bytes], *, removed: bool) -> None:
        extra = {name: value for name, value in self._extra.items() if not (removed and name == "removal_expected")}
        self._pending.append(OffloadingEvent(keys=list(keys), medium=self._medium, removed=removed, **extra))

    def take(self) -> list[OffloadingEvent]:
        """The events since the last call."""
        removed = [self._names.pop(name) for name in self._removed() if name in self._names]
        if removed:
            self._announce(removed, removed=True)
        taken, self._pending = self._pending, []
        return taken

    def _removed(self) -> list[bytes]:
        """The store's keys of announced blocks that it no longer has."""
        suspects: dict[bytes, None] = {}
        try:
            while events := self._subscriber.poll():
                for event in events:
                    if event.kind == "removed" and event.key is not None:
                        suspects[event.key] = None
                    elif event.kind == "cleared":
                        suspects |= dict.fromkeys(self._names)
        except LaggedError:
            # The next poll continues after what was missed; any block may have been removed meanwhile.
            suspects = dict.fromkeys(self._names)
        names = [name for name in suspects if name in self._names]
        there = self._store.contains([self._names[name] for name in names]) if names else []
        return [name for name, present in zip(names, there, strict=True) if not present]
