"""KV events of the tier: which blocks came to the disk and left it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import OffloadingEvent

from kvtile import BlockStore, LaggedError, block_key

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import Locality, Medium

_FIELDS = {found.name for found in dataclasses.fields(OffloadingEvent)}


class TierEvents:
    """The blocks that this process has stored, so that their arrival on disk and their removal can be announced.

    Events of the store have keys of 16 bytes, from which vLLM's keys do not follow. So the removal of a block that an
    earlier process has stored is not announced; nor was its presence. Blocks in staging memory are not announced.
    """

    def __init__(self, store: BlockStore, medium: Medium, locality: Locality | None, tier: str) -> None:
        self._store = store
        self._subscriber = store.subscribe()
        # vLLM's keys by those of the store, of blocks that jobs store and of announced blocks.
        self._expected: dict[bytes, bytes] = {}
        self._announced: dict[bytes, bytes] = {}
        extra: dict[str, Any] = {"locality": locality, "ownership": tier, "removal_expected": True}
        self._extra = {name: value for name, value in extra.items() if name in _FIELDS}
        self._medium = medium
        self._pending: list[OffloadingEvent] = []

    def expect(self, keys: Iterable[bytes]) -> None:
        """Notes the blocks of a job before it starts: they may be on disk before vLLM takes its result."""
        self._expected |= {block_key(key): key for key in keys}

    def ended(self, outcomes: Iterable[tuple[bytes, str]]) -> None:
        """Notes the outcomes of a job's blocks. A block that was present will have no event of its own."""
        for key, outcome in outcomes:
            if outcome == "present":
                self._arrived([block_key(key)])
            elif outcome != "ok":
                self._expected.pop(block_key(key), None)

    def _arrived(self, names: Iterable[bytes]) -> None:
        found = {name: self._expected.pop(name) for name in names if name in self._expected}
        new = {name: key for name, key in found.items() if name not in self._announced}
        if new:
            self._announced |= new
            self._pending.append(OffloadingEvent(keys=list(new.values()), medium=self._medium, removed=False, **self._extra))

    def _left(self, names: Iterable[bytes]) -> None:
        """Announces removals, of blocks that were not stored again since."""
        known = [name for name in names if name in self._announced]
        if not known:
            return
        there = self._store.contains([self._announced[name] for name in known])
        lost = [self._announced.pop(name) for name, here in zip(known, there, strict=True) if not here]
        extra = {name: value for name, value in self._extra.items() if name != "removal_expected"}
        if lost:
            self._pending.append(OffloadingEvent(keys=lost, medium=self._medium, removed=True, **extra))

    def take(self) -> list[OffloadingEvent]:
        """The events since the last call."""
        arrived: dict[bytes, None] = {}
        left: dict[bytes, None] = {}
        try:
            while events := self._subscriber.poll():
                for event in events:
                    if event.tier == "disk" and event.key is not None:
                        (arrived if event.kind == "stored" else left)[event.key] = None
                    elif event.kind == "cleared":
                        left |= dict.fromkeys(self._announced)
        except LaggedError:
            # The next poll continues after the missed events, which may have named any block.
            left = dict.fromkeys(self._announced)
            names = list(self._expected)
            there = self._store.contains([self._expected[name] for name in names])
            arrived = {name: None for name, here in zip(names, there, strict=True) if here}
        self._arrived(arrived)
        self._left(left)
        taken, self._pending = self._pending, []
        return taken
