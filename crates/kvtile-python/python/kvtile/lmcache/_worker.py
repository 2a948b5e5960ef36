"""The adapter's thread: it alone decides what is stored, locked and deleted.

LMCache's threads only post commands, so none of its calls waits for a disk or a lock that is held during I/O.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy

from kvtile._errors import KvtileError, LaggedError
from kvtile.lmcache._ledger import KeptObject, block_of, stored_sizes
from kvtile.lmcache._pieces import ObjectForm, PiecePlan, inner_keys, last_key, name_of
from kvtile.lmcache._transfers import GROUP, OTHER_FORM, ObjectTransfer, ObjectTransfers

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.memory_management import MemoryObj

    from kvtile import BlockStore, Event, Subscriber
    from kvtile.lmcache._ledger import ObjectLedger

_LOG = logging.getLogger(__name__)
_EVENTS_EVERY = 0.2
_EVENTS_AT_ONCE = 1024
_EVENT_ROUNDS = 16
_AUDIT_EVERY = 60.0
_WRITES_EVERY = 1.0
_GONE = frozenset({"absent", "damaged", OTHER_FORM})
"""Outcomes after which the object is removed, so that LMCache does not find it again."""


class TaskResults(Protocol):
    """What the thread reports to: LMCache's interface."""

    def store_ended(self, task: int, success: bool, stored_bytes: int) -> None: ...
    def lookup_ended(self, task: int, found: list[bool]) -> None: ...
    def load_ended(self, task: int, loaded: list[bool]) -> None: ...
    def keys_stored(self, keys: list[ObjectKey], sizes: list[int]) -> None: ...
    def keys_accessed(self, keys: list[ObjectKey]) -> None: ...
    def keys_deleted(self, keys: list[ObjectKey], sizes: list[int]) -> None: ...


@dataclasses.dataclass
class BatchTask:
    """A store or load task of LMCache under way. It ends when each of its keys has ended."""

    task: int
    keys: list[ObjectKey]
    outcomes: list[str | None]
    stored_bytes: int = 0

    @classmethod
    def of(cls, task: int, keys: Sequence[ObjectKey]) -> BatchTask:
        return cls(task, list(keys), [None] * len(keys))

    def check(self, objects: Sequence[MemoryObj]) -> None:
        """Raises ValueError before anything is moved if there is not one object for each key."""
        if len(objects) != len(self.keys):
            raise ValueError(f"LMCache gave {len(objects)} objects for {len(self.keys)} keys; none is moved")

    @property
    def is_over(self) -> bool:
        return None not in self.outcomes

    @property
    def good(self) -> list[bool]:
        return [outcome in ("ok", "present") for outcome in self.outcomes]


class AdapterWorker:
    """The thread, its locks and its counters."""

    def __init__(self, store: BlockStore, ledger: ObjectLedger, sizes: tuple[int, int], results: TaskResults) -> None:
        """``sizes`` are the bytes of a piece, and of all pieces that the store has room for."""
        self._store = store
        self._ledger = ledger
        self._results = results
        self._piece, self._capacity = sizes
        self._transfers = ObjectTransfers(store, self._piece)
        self._subscriber: Subscriber = store.subscribe()
        self._locks: Counter[ObjectKey] = Counter()
        self._doomed: set[ObjectKey] = set()
        self._storing: dict[ObjectKey, list[Callable[[str], None]]] = {}
        self._tasks: dict[int, Callable[[], None]] = {}
        self._unwritten: dict[ObjectKey, float] = {}
        self._unsure: dict[ObjectKey, float] = {}
        self._expected: dict[bytes, bool] = {}
        self.counts: Counter[str] = Counter()
        self._inbox: deque[Callable[[], None]] = deque()
        self._inbox_lock = threading.Lock()
        self._is_open = True
        # A forked child has no thread that would end its tasks.
        self._process = os.getpid()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._next_audit = time.monotonic() + _AUDIT_EVERY
        self._next_writes = 0.0
        self._thread = threading.Thread(target=self._run, name="kvtile-lmcache", daemon=True)
        self._thread.start()

    # Calls from LMCache's threads. None waits.

    def store(self, task: int, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> bool:
        """Starts a store task. False if the adapter is closed."""
        batch = BatchTask.of(task, keys)
        return self._post(functools.partial(self._store_batch, batch, list(objects)), self._store_ended, batch)

    def lookup(self, task: int, keys: Sequence[ObjectKey]) -> bool:
        """Starts a lookup task. False if the adapter is closed."""
        batch = BatchTask.of(task, keys)
        return self._post(functools.partial(self._lookup_batch, batch), self._lookup_ended, batch)

    def load(self, task: int, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> bool:
        """Starts a load task. False if the adapter is closed."""
        batch = BatchTask.of(task, keys)
        return self._post(functools.partial(self._load_batch, batch, list(objects)), self._load_ended, batch)

    def unlock(self, keys: Sequence[ObjectKey]) -> bool:
        """Releases one lock of each key."""
        return self._post_plain(functools.partial(self._unlock, list(keys)))

    def delete(self, keys: Sequence[ObjectKey], done: Callable[[], None]) -> bool:
        """Deletes objects, locked ones after their last unlock."""
        return self._post_plain(functools.partial(self._delete, list(keys), done))

    def announce(self, tell: Callable[[list[ObjectKey], list[int]], None]) -> bool:
        """Calls ``tell`` with all objects that the folder has, if any, on the worker's thread. Whether it will."""
        return self._post_plain(functools.partial(self._announce, tell))

    def close(self) -> None:
        """Ends all tasks and the thread. Returns when no I/O touches LMCache's memory any more."""
        if self.is_forked:
            return
        with self._inbox_lock:
            if not self._is_open:
                return
            self._is_open = False
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    @property
    def is_alive(self) -> bool:
        return self._is_open and not self.is_forked and self._thread.is_alive()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that opened the folder. It finds nothing, and keeps nothing."""
        return os.getpid() != self._process

    def status(self) -> dict[str, int]:
        """Counters, and what is under way."""
        now = {
            "objects": len(self._ledger),
            "locked": len(self._locks),
            "under_way": self._transfers.under_way,
            "waiting": self._transfers.waiting,
            "unwritten_pieces": self._unwritten_pieces(),
        }
        return now | dict(self.counts)

    def _unwritten_pieces(self) -> int:
        """Pieces that the disk did not take; 0 for a store that is closed, or that another process has open."""
        try:
            return int(self._store.stats()["left_out"].get("disk", 0))
        except KvtileError:
            return 0

    def _post(self, command: Callable[[], None], end: Callable[[BatchTask], None], batch: BatchTask) -> bool:
        def guarded() -> None:
            self._tasks[batch.task] = functools.partial(self._fail, batch, end)
            try:
                command()
            except Exception:
                self._fail(batch, end)
                raise

        return self._post_plain(guarded)

    def _post_plain(self, command: Callable[[], None]) -> bool:
        if self.is_forked:
            return False
        with self._inbox_lock:
            if not self._is_open:
                return False
            self._inbox.append(command)
            os.eventfd_write(self._wake, 1)
        return True

    # The thread.

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._store.fileno(), select.POLLIN)
        while self._is_open:
            poller.poll(_EVENTS_EVERY * 1000)
            self._guarded(self._turn)
        self._guarded(self._shut)
        for fail in list(self._tasks.values()):
            self._guarded(fail)

    def _turn(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while self._inbox:
            self._guarded(self._inbox.popleft())
        self._guarded(self._transfers.take_finished)
        self._guarded(self._transfers.start_waiting)
        self._guarded(self._poll_events)
        now = time.monotonic()
        if (self._unwritten or self._unsure) and now >= self._next_writes:
            self._guarded(self._check_writes)
        if now >= self._next_audit:
            self._guarded(self._audit)

    def _shut(self) -> None:
        """Commands that were posted before the end still run, then what has not started ends."""
        while self._inbox:
            self._guarded(self._inbox.popleft())
        self._guarded(self._transfers.abandon_waiting)
        try:
            while self._transfers.under_way:
                self._store.drain()
                self._transfers.take_finished()
            self._transfers.close()
        finally:
            self._store.drain()

    def _guarded(self, step: Callable[[], None]) -> None:
        """No exception ends the thread: LMCache would wait for its tasks for ever."""
        try:
            step()
        except Exception:
            self.counts["errors"] += 1
            _LOG.exception("a step of the adapter failed")

    # Tasks.

    def _store_batch(self, batch: BatchTask, objects: list[MemoryObj]) -> None:
        batch.check(objects)
        for index, (key, memory) in enumerate(zip(batch.keys, objects, strict=True)):
            end = functools.partial(self._key_stored, batch, index)
            try:
                self._store_object(key, memory, end)
            except Exception as error:
                end(f"failed: {error}")
        self._end_if_over(batch, self._store_ended)

    def _store_object(self, key: ObjectKey, memory: MemoryObj, end: Callable[[str], None]) -> None:
        if key in self._storing:
            self._storing[key].append(end)
            return
        form = ObjectForm.of(memory)
        if PiecePlan(form.size, self._piece).stored_bytes > self._capacity:
            end("no room")
            return
        if self._is_kept(key, form):
            self._results.keys_stored([key], [0])
            end("present")
            return
        transfer = ObjectTransfer(
            name_of(key), memory, _array_of(memory).data, form, loads=False, ended=functools.partial(self._stored, key)
        )
        self._remove(key)
        self._storing[key] = [end]
        self._expected[block_of(key)] = False
        self._transfers.add(transfer)

    def _stored(self, key: ObjectKey, transfer: ObjectTransfer) -> None:
        self._guarded(functools.partial(self._settle_store, key, transfer))
        for end in self._storing.pop(key, []):
            end(transfer.outcome)
        self._delete_if_doomed(key)

    def _settle_store(self, key: ObjectKey, transfer: ObjectTransfer) -> None:
        is_written = self._expected.pop(block_of(key), False)
        if transfer.plan is None:
            return
        if not transfer.is_good:
            self._forget(inner_keys(transfer.generation, transfer.plan))
            return
        kept = KeptObject(key, transfer.plan, transfer.form.digest, transfer.generation)
        self._ledger.add(kept)
        self._results.keys_stored([key], [kept.plan.stored_bytes])
        if is_written:
            self._settle_whole(key)
        else:
            self._unwritten[key] = time.monotonic() + _AUDIT_EVERY

    def _key_stored(self, batch: BatchTask, index: int, outcome: str) -> None:
        batch.outcomes[index] = outcome
        kept = self._ledger.get(batch.keys[index])
        if outcome == "ok" and kept is not None:
            batch.stored_bytes += kept.plan.stored_bytes
        self._count("stored", "store_failed", outcome)
        self._end_if_over(batch, self._store_ended)

    def _lookup_batch(self, batch: BatchTask) -> None:
        lasts = [last_key(name_of(key)) for key in batch.keys]
        there = self._store.contains(lasts, group=GROUP) if lasts else []
        for index, (key, found) in enumerate(zip(batch.keys, there, strict=True)):
            found = found and key not in self._doomed
            batch.outcomes[index] = "ok" if found else "absent"
            if found:
                self._locks[key] += 1
            elif self._ledger.get(key) is not None and key not in self._doomed:
                self._settle(key)
        hits = [last for last, good in zip(lasts, batch.good, strict=True) if good]
        self.counts["lookup_hits"] += len(hits)
        self.counts["lookup_misses"] += len(lasts) - len(hits)
        self._lookup_ended(batch)
        if hits:
            self._store.touch(hits, group=GROUP)

    def _load_batch(self, batch: BatchTask, objects: list[MemoryObj]) -> None:
        batch.check(objects)
        filled: set[int] = set()
        for index, (key, memory) in enumerate(zip(batch.keys, objects, strict=True)):
            ended = functools.partial(self._loaded, batch, index)
            try:
                form = ObjectForm.of(memory)
                array = _array_of(memory)
                # Two loads into the same memory would mix their objects.
                if array.size and array.ctypes.data in filled:
                    raise ValueError("LMCache gave the same memory for two keys")
                filled.add(array.ctypes.data)
                transfer = ObjectTransfer(name_of(key), memory, array.data, form, loads=True, ended=ended)
            except Exception as error:
                batch.outcomes[index] = f"failed: {error}"
                self._count("loaded", "load_failed", batch.outcomes[index] or "")
                continue
            self._transfers.add(transfer)
        self._end_if_over(batch, self._load_ended)

    def _loaded(self, batch: BatchTask, index: int, transfer: ObjectTransfer) -> None:
        batch.outcomes[index] = transfer.outcome
        self._count("loaded", "load_failed", transfer.outcome)
        self._guarded(functools.partial(self._settle_load, batch.keys[index], transfer))
        self._end_if_over(batch, self._load_ended)

    def _settle_load(self, key: ObjectKey, transfer: ObjectTransfer) -> None:
        if transfer.is_good and transfer.plan is not None:
            self._adopt(key, transfer, transfer.plan)
            self._results.keys_accessed([key])
        elif transfer.outcome in _GONE:
            self._drop(key, transfer)

    def _end_if_over(self, batch: BatchTask, end: Callable[[BatchTask], None]) -> None:
        if batch.is_over and batch.task in self._tasks:
            end(batch)

    def _fail(self, batch: BatchTask, end: Callable[[BatchTask], None]) -> None:
        batch.outcomes = [outcome or "closed" for outcome in batch.outcomes]
        end(batch)

    def _store_ended(self, batch: BatchTask) -> None:
        if self._tasks.pop(batch.task, None) is not None:
            self._results.store_ended(batch.task, all(batch.good), batch.stored_bytes)

    def _lookup_ended(self, batch: BatchTask) -> None:
        if self._tasks.pop(batch.task, None) is not None:
            self._results.lookup_ended(batch.task, batch.good)

    def _load_ended(self, batch: BatchTask) -> None:
        if self._tasks.pop(batch.task, None) is not None:
            self._results.load_ended(batch.task, batch.good)

    def _count(self, good: str, bad: str, outcome: str) -> None:
        if outcome in ("ok", "present"):
            self.counts[good if outcome == "ok" else outcome] += 1
            return
        reason = outcome.partition(":")[0].replace(" ", "_").replace("failed", "error")
        counter = f"{bad}_{reason}"
        self.counts[counter] += 1
        level = logging.WARNING if self.counts[counter] == 1 else logging.DEBUG
        _LOG.log(level, "%s: %s (further ones are counted as %s)", bad.replace("_", " "), outcome, counter)

    # Locks and deletion.

    def _unlock(self, keys: list[ObjectKey]) -> None:
        for key in keys:
            if key not in self._locks:
                continue
            self._locks[key] -= 1
            if self._locks[key] <= 0:
                del self._locks[key]
                self._delete_if_doomed(key)

    def _delete(self, keys: list[ObjectKey], done: Callable[[], None]) -> None:
        try:
            for key in keys:
                if key in self._locks or key in self._storing:
                    self._doomed.add(key)
                elif self._remove(key):
                    self.counts["deleted"] += 1
        finally:
            done()

    def _delete_if_doomed(self, key: ObjectKey) -> None:
        if key in self._doomed and key not in self._locks and key not in self._storing:
            self._doomed.discard(key)
            if self._remove(key):
                self.counts["deleted"] += 1

    # What the store has.

    def _is_kept(self, key: ObjectKey, form: ObjectForm) -> bool:
        """Whether the store has this object whole. No I/O."""
        kept = self._ledger.get(key)
        return kept is not None and kept.form == form and key not in self._doomed and self._is_whole(kept)

    def _adopt(self, key: ObjectKey, transfer: ObjectTransfer, plan: PiecePlan) -> None:
        """Counts an object that the folder had and the journal did not.

        An object that was deleted or stored anew during its load is loaded all right, and is not this one any more.
        """
        if self._ledger.get(key) is not None or key in self._storing:
            return
        kept = KeptObject(key, plan, transfer.form.digest, transfer.generation)
        if self._is_whole(kept):
            self._ledger.add(kept)
            self._results.keys_stored([key], [plan.stored_bytes])

    def _drop(self, key: ObjectKey, transfer: ObjectTransfer) -> None:
        """Removes an object that could not be loaded, unless a later store has replaced it."""
        kept = self._ledger.get(key)
        if kept is not None and transfer.generation and kept.generation != transfer.generation:
            return
        if key in self._storing:
            return
        if kept is None and transfer.plan is not None:
            self._forget(inner_keys(transfer.generation, transfer.plan))
        self._remove(key)

    def _remove(self, key: ObjectKey) -> bool:
        """Removes an object from the store and the ledger. True if the ledger had it."""
        self._forget([last_key(name_of(key))])
        return self._strike(key)

    def _strike(self, key: ObjectKey) -> bool:
        kept = self._ledger.remove(key)
        if kept is None:
            return False
        self._forget(inner_keys(kept.generation, kept.plan))
        self._results.keys_deleted([key], stored_sizes([kept]))
        return True

    def _settle(self, key: ObjectKey, counter: str = "evicted") -> None:
        """Strikes an object that the store does not have any more."""
        if not self._store.contains([last_key(name_of(key))], group=GROUP)[0] and self._strike(key):
            self.counts[counter] += 1

    def _settle_whole(self, key: ObjectKey) -> None:
        """Removes an object of which a piece was evicted before its last piece was written.

        Once all pieces are on the disk, the last one is evicted first, because it is the leaf of their chain.
        """
        kept = self._ledger.get(key)
        if kept is not None and not self._is_whole(kept):
            self._remove(key)
            self.counts["evicted"] += 1

    def _is_whole(self, kept: KeptObject) -> bool:
        return all(self._store.contains(kept.pieces(), group=GROUP))

    def _forget(self, keys: list[bytes]) -> None:
        if keys:
            self._store.forget(keys, group=GROUP)

    def _poll_events(self) -> None:
        for _ in range(_EVENT_ROUNDS):
            try:
                events = self._subscriber.poll(_EVENTS_AT_ONCE)
            except LaggedError:
                self._audit()
                return
            for event in events:
                self._handle(event)
            if len(events) < _EVENTS_AT_ONCE:
                return

    def _handle(self, event: Event) -> None:
        if event.kind == "cleared":
            self._audit()
        key = self._ledger.of_block(event.key) if event.key is not None else None
        if event.kind == "stored" and event.key in self._expected:
            self._expected[event.key] = True
        if key is None:
            return
        if event.kind == "stored":
            self._unwritten.pop(key, None)
            self._settle_whole(key)
        elif event.kind == "removed":
            self._settle(key)
            # A block may be in staging memory for a moment after the disk has evicted it.
            self._unsure[key] = time.monotonic() + _AUDIT_EVERY

    def _check_writes(self) -> None:
        """Removes objects that left the store without an event, such as those whose write failed after their store."""
        now = time.monotonic()
        self._next_writes = now + _WRITES_EVERY
        for keys, counter in ((self._unwritten, "write_failed"), (self._unsure, "evicted")):
            for key, until in list(keys.items()):
                self._settle(key, counter)
                if now >= until:
                    self._settle_whole(key)
                if now >= until or self._ledger.get(key) is None:
                    del keys[key]

    def _audit(self) -> None:
        """Compares the ledger with the store. No I/O."""
        self._next_audit = time.monotonic() + _AUDIT_EVERY
        keys = self._ledger.keys()
        there = self._store.contains([last_key(name_of(key)) for key in keys], group=GROUP) if keys else []
        for key, is_there in zip(keys, there, strict=True):
            if not is_there:
                self._settle(key)

    def _announce(self, tell: Callable[[list[ObjectKey], list[int]], None]) -> None:
        kept = [kept for kept in map(self._ledger.get, self._ledger.keys()) if kept is not None]
        tell([entry.key for entry in kept], stored_sizes(kept))


def _array_of(memory: MemoryObj) -> numpy.ndarray:
    """The bytes of an object that are in use, as a view over its own memory."""
    return numpy.frombuffer(memory.byte_array, dtype=numpy.uint8)
