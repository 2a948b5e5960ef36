"""Moves objects between LMCache's memory and the store, piece by piece.

A store writes the last piece after the other pieces; a load reads it first. Whole pieces move between the object's own
memory and the store. Tails and trailers go through a small buffer, which bounds how many objects are under way. One thread
calls everything here, and nothing waits.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtile._errors import KvtileError
from kvtile.lmcache._pieces import GENERATION_BYTES, ObjectForm, PiecePlan, Trailer, inner_keys, last_key

if TYPE_CHECKING:
    from kvtile import BlockStore, StoreRows

_LOG = logging.getLogger(__name__)
_BUFFER_BYTES = 64 << 20
_START_WITHIN = 60.0
"""An object that waits longer is "late". LMCache's locks on its memory end after 300 s (reads) and 600 s (writes)."""
_SLOT_PIECES = 2
"""Pieces of the buffer for one object: a tail, and a trailer."""
GROUP = "objects"
DONE = frozenset({"ok", "present"})
OTHER_FORM = "other form"
"""The outcome of a load into memory of another size, shape or data type than what was stored."""


@dataclass
class ObjectTransfer:
    """An object under way.

    Attributes:
        owner: the memory object, which must live as long as the transfer.
        form: what the caller's memory holds (a store) or takes (a load).
        ended: called once, at the end. ``outcome`` is then "ok", or why it failed.
    """

    name: str
    owner: object
    memory: memoryview
    form: ObjectForm
    loads: bool
    ended: Callable[[ObjectTransfer], None]
    outcome: str = "ok"
    generation: bytes = b""
    plan: PiecePlan | None = None
    slot: int = -1
    jobs: int = 0
    at_last_piece: bool = False
    rows: list[StoreRows] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_good(self) -> bool:
        return self.outcome in DONE


class ObjectTransfers:
    """The objects that are under way, and those that wait for room in the buffer. Loads go first."""

    def __init__(self, store: BlockStore, piece: int) -> None:
        self._store = store
        self._piece = piece
        slots = max(1, _BUFFER_BYTES // (piece * _SLOT_PIECES))
        self._buffer = memoryview(mmap.mmap(-1, slots * _SLOT_PIECES * piece))
        self._rows = store.register(self._buffer, group=GROUP)
        self._free = list(range(slots))
        self._zeros = bytes(piece)
        self._loads: deque[ObjectTransfer] = deque()
        self._stores: deque[ObjectTransfer] = deque()
        self._jobs: dict[int, ObjectTransfer] = {}
        self._slots = slots
        self._numbers = itertools.count()

    def add(self, transfer: ObjectTransfer) -> None:
        """Queues an object."""
        (self._loads if transfer.loads else self._stores).append(transfer)

    def start_waiting(self) -> None:
        """Starts objects while the buffer has room."""
        while self._free and (self._loads or self._stores):
            transfer = (self._loads or self._stores).popleft()
            if time.monotonic() - transfer.since > _START_WITHIN:
                transfer.outcome = "late"
                self._report(transfer)
                continue
            transfer.slot = self._free.pop()
            self._guarded(transfer, self._begin)

    def take_finished(self) -> None:
        """Continues the objects whose jobs have finished, and ends those that have no more."""
        for job, outcomes in self._store.take_finished():
            transfer = self._jobs.pop(job)
            transfer.jobs -= 1
            bad = [outcome for outcome in outcomes.outcomes if outcome not in DONE]
            if bad and transfer.is_good:
                transfer.outcome = bad[0]
            if not transfer.jobs:
                self._guarded(transfer, self._continue)

    def abandon_waiting(self) -> None:
        """Ends the objects that have not started."""
        for transfer in [*self._loads, *self._stores]:
            transfer.outcome = "closed"
            self._report(transfer)
        self._loads.clear()
        self._stores.clear()

    def close(self) -> None:
        """Releases the buffer. No object may be under way."""
        self._rows.release()

    @property
    def under_way(self) -> int:
        """Objects that have started and not ended."""
        return self._slots - len(self._free)

    @property
    def waiting(self) -> int:
        """Objects that have not started."""
        return len(self._loads) + len(self._stores)

    def _guarded(self, transfer: ObjectTransfer, step: Callable[[ObjectTransfer], None]) -> None:
        """Runs a step. An object whose step is refused ends, but not before its jobs have."""
        try:
            step(transfer)
        except (KvtileError, ValueError, TypeError, OSError, MemoryError) as error:
            transfer.outcome = f"failed: {error}"
        if not transfer.jobs:
            self._end(transfer)

    def _begin(self, transfer: ObjectTransfer) -> None:
        if transfer.loads:
            self._submit_last(transfer)
            return
        transfer.plan = PiecePlan(transfer.form.size, self._piece)
        transfer.generation = os.urandom(GENERATION_BYTES)
        self._fill_slot(transfer, transfer.plan)
        self._submit_inner(transfer, transfer.plan)
        if not transfer.jobs:
            self._submit_last(transfer)

    def _continue(self, transfer: ObjectTransfer) -> None:
        """The step after all jobs of an object have finished."""
        if not transfer.is_good:
            return
        if not transfer.loads:
            if not transfer.at_last_piece:
                self._submit_last(transfer)
        elif transfer.at_last_piece:
            self._read_trailer(transfer)
        elif transfer.plan is not None:
            self._empty_slot(transfer, transfer.plan)

    def _read_trailer(self, transfer: ObjectTransfer) -> None:
        trailer = Trailer.read(self._slot(transfer)[self._piece :])
        if trailer is None:
            transfer.outcome = "damaged"
            return
        if trailer.form.size > transfer.form.size:
            transfer.outcome = OTHER_FORM
            return
        transfer.plan = PiecePlan(trailer.form.size, self._piece)
        transfer.generation = trailer.generation
        if trailer.form.digest != transfer.form.digest:
            transfer.outcome = OTHER_FORM
            return
        transfer.form = trailer.form
        transfer.at_last_piece = False
        self._submit_inner(transfer, transfer.plan)
        if not transfer.jobs:
            self._empty_slot(transfer, transfer.plan)

    def _submit_inner(self, transfer: ObjectTransfer, plan: PiecePlan) -> None:
        keys = inner_keys(transfer.generation, plan)
        whole = keys[: plan.whole]
        if whole:
            rows = self._store.register(transfer.memory[: plan.whole_bytes], group=GROUP)
            transfer.rows.append(rows)
            self._submit(transfer, whole, rows, list(range(plan.whole)), first=0)
        if plan.tail_alone:
            self._submit(transfer, keys[-1:], self._rows, [transfer.slot * _SLOT_PIECES], first=plan.whole)

    def _submit_last(self, transfer: ObjectTransfer) -> None:
        transfer.at_last_piece = True
        first = transfer.plan.count - 1 if transfer.plan is not None else 0
        row = transfer.slot * _SLOT_PIECES + 1
        self._submit(transfer, [last_key(transfer.name)], self._rows, [row], first=first)

    def _submit(
        self, transfer: ObjectTransfer, keys: list[bytes], rows: StoreRows, ids: list[int], *, first: int
    ) -> None:
        job = next(self._numbers)
        if transfer.loads:
            self._store.submit_load(job, keys, rows, ids)
        else:
            self._store.submit_store(
                job,
                keys,
                rows,
                ids,
                parents=self._parents(transfer, keys, first),
                positions=list(range(first, first + len(keys))),
            )
        self._jobs[job] = transfer
        transfer.jobs += 1

    def _parents(self, transfer: ObjectTransfer, keys: list[bytes], first: int) -> list[bytes | None]:
        """The piece before each piece: the store then evicts the last piece of an object first."""
        if first == 0 or transfer.plan is None:
            return [None, *keys[:-1]]
        before = inner_keys(transfer.generation, transfer.plan)[first - 1]
        return [before, *keys[:-1]]

    def _slot(self, transfer: ObjectTransfer) -> memoryview:
        start = transfer.slot * _SLOT_PIECES * self._piece
        return self._buffer[start : start + _SLOT_PIECES * self._piece]

    def _tail_piece(self, transfer: ObjectTransfer, plan: PiecePlan) -> memoryview:
        slot = self._slot(transfer)
        return slot[: self._piece] if plan.tail_alone else slot[self._piece :]

    def _fill_slot(self, transfer: ObjectTransfer, plan: PiecePlan) -> None:
        slot = self._slot(transfer)
        slot[: self._piece] = self._zeros
        slot[self._piece :] = self._zeros
        self._tail_piece(transfer, plan)[: plan.tail] = transfer.memory[plan.whole_bytes :]
        Trailer(transfer.form, transfer.generation).write(slot[self._piece :])

    def _empty_slot(self, transfer: ObjectTransfer, plan: PiecePlan) -> None:
        transfer.memory[plan.whole_bytes : plan.size] = self._tail_piece(transfer, plan)[: plan.tail]

    def _end(self, transfer: ObjectTransfer) -> None:
        try:
            for rows in transfer.rows:
                rows.release()
        except KvtileError:
            _LOG.exception("rows of an object cannot be released")
        transfer.rows.clear()
        self._free.append(transfer.slot)
        self._report(transfer)

    def _report(self, transfer: ObjectTransfer) -> None:
        """Reports the end of a transfer. An exception of the report is logged; the other transfers still end."""
        try:
            transfer.ended(transfer)
        except Exception:
            _LOG.exception("the end of an object cannot be reported")
