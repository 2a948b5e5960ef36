"""LMCache's interface for L2 adapters over a ``kvtile.BlockStore``."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import KeyEntry, KeyListPage
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.platform import create_event_notifier

import kvtile
from kvtile.lmcache._ledger import ObjectLedger, journal_bytes
from kvtile.lmcache._options import AdapterOptions
from kvtile.lmcache._transfers import GROUP
from kvtile.lmcache._worker import AdapterWorker

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2AdapterListener
    from lmcache.v1.memory_management import MemoryObj
    from lmcache.v1.platform import EventNotifier

_LOG = logging.getLogger(__name__)
_DELETE_WITHIN = 30.0


class KvtileL2AdapterConfig(L2AdapterConfigBase):  # type: ignore[misc]
    """The parsed ``adapter_params``. LMCache finds this class by its name."""

    def __init__(self, options: AdapterOptions) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> KvtileL2AdapterConfig:
        """Parses ``adapter_params``. Raises SettingsError, a ValueError."""
        return cls(AdapterOptions.read(given))

    @classmethod
    def help(cls) -> str:
        """The options and their defaults."""
        return AdapterOptions.help()


class KvtileL2Adapter(L2AdapterInterface):  # type: ignore[misc]
    """Keeps LMCache's objects in a folder with checksums and a limit.

    The store evicts by itself; LMCache's accounting and listeners follow. A lock makes an object recently used and
    postpones ``delete``. It does not keep the store from evicting: such a load clears its bit.
    """

    # LMCache's own, in its base class.
    _listeners: list[L2AdapterListener]

    def __init__(self, config: KvtileL2AdapterConfig, l1_memory_desc: L1MemoryDesc | None = None) -> None:
        """Opens the folder. ``l1_memory_desc`` has no use here: objects are registered one by one.

        Raises:
            KvtileError: the folder is in use, has another identity, or cannot hold one piece.
        """
        options = config.options
        self._options = options
        self._store = _open_store(options)
        room = self._store.stats()["capacity"]["disk"] * options.piece
        super().__init__(max_capacity_bytes=room)
        self._ledger = ObjectLedger(
            options.path / "objects.jsonl",
            options.piece,
            capacity=options.capacity,
        )
        for broken in self._ledger.open(functools.partial(self._store.contains, group=GROUP)):
            self._store.forget(broken.pieces(), group=GROUP)
        self._results_lock = threading.Lock()
        self._stores: dict[int, L2StoreResult] = {}
        self._lookups: dict[int, Bitmap] = {}
        self._loads: dict[int, Bitmap] = {}
        self._store_signal = create_event_notifier()
        self._lookup_signal = create_event_notifier()
        self._load_signal = create_event_notifier()
        self._numbers = itertools.count(1)
        self._is_closed = False
        self._is_published = False
        self._worker = AdapterWorker(self._store, self._ledger, (options.piece, room), self)
        _LOG.info("%s has %d objects, and room for %d bytes", options.path, len(self._ledger), room)

    def get_store_event_fd(self) -> int:
        descriptor: int = self._store_signal.fileno()
        return descriptor

    def get_lookup_and_lock_event_fd(self) -> int:
        descriptor: int = self._lookup_signal.fileno()
        return descriptor

    def get_load_event_fd(self) -> int:
        descriptor: int = self._load_signal.fileno()
        return descriptor

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        task = next(self._numbers)
        if not self._worker.store(task, keys, objects):
            self.store_ended(task, False, 0)
        return task

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        with self._results_lock:
            ended, self._stores = self._stores, {}
        return ended

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        task = next(self._numbers)
        if not self._worker.lookup(task, keys):
            self.lookup_ended(task, [False] * len(keys))
        return task

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        with self._results_lock:
            return self._lookups.pop(task_id, None)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        self._worker.unlock(keys)

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        task = next(self._numbers)
        if not self._worker.load(task, keys, objects):
            self.load_ended(task, [False] * len(keys))
        return task

    def query_load_result(self, task_id: int) -> Bitmap | None:
        with self._results_lock:
            return self._loads.pop(task_id, None)

    def register_listener(self, listener: L2AdapterListener) -> None:
        """Registers a listener, and reports to it the objects that the folder has already.

        The worker's thread does both, so that a change is in the report or comes after it.
        """
        register = super().register_listener

        def report(keys: list[ObjectKey], sizes: list[int]) -> None:
            register(listener)
            if keys:
                listener.on_l2_keys_stored(keys, sizes)

        if not self._worker.announce(report):
            register(listener)

    def set_backend_identity(self, name: str, shared: bool = False) -> None:
        """Sets the name in LMCache's events, and publishes the objects that the folder has already."""
        super().set_backend_identity(name, shared)
        self._worker.announce(self._publish)

    def _publish(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        """Publishes the objects of the folder once. Listeners have their own report of them."""
        if self._is_published:
            return
        self._is_published = True
        if keys:
            listeners, self._listeners = self._listeners, []
            try:
                self._notify_keys_stored(keys, sizes)
            finally:
                self._listeners = listeners

    def delete(self, keys: list[ObjectKey]) -> None:
        """Deletes objects. A locked object is not found any more, and is deleted after its last unlock."""
        done = threading.Event()
        if self._worker.delete(keys, done.set) and not done.wait(_DELETE_WITHIN):
            _LOG.warning("deleting %d objects takes longer than %.0f s and continues", len(keys), _DELETE_WITHIN)

    def list_l2_keys(
        self, model_name: str | None = None, page_size: int = 500, cursor: str | None = None
    ) -> KeyListPage:
        """Objects by name, with their own sizes. The cursor is the last name of the page before."""
        if page_size <= 0:
            raise ValueError(f"page_size must be positive (got {page_size})")
        page = self._ledger.listed(model_name, cursor or "", page_size)
        entries = tuple(KeyEntry(kept.key.to_encoded_object_key(), kept.plan.size) for _, kept in page)
        return KeyListPage(entries, page[-1][0] if len(page) == page_size else None)

    def get_usage(self) -> AdapterUsage:
        """Bytes that the store keeps, padding included, also of objects from before a restart."""
        used, by_salt = self._ledger.sums()
        return AdapterUsage(used, self._max_capacity_bytes, MappingProxyType(by_salt))

    def report_status(self) -> dict[str, object]:
        """Counters since the start, and what is under way."""
        used, _ = self._ledger.sums()
        return {
            "is_healthy": self._worker.is_alive,
            "type": type(self).__name__,
            "folder": str(self._options.path),
            "bytes_used": used,
            "bytes_capacity": self._max_capacity_bytes,
            **self._worker.status(),
        }

    def close(self) -> None:
        """Ends all tasks, then writes what is only in memory, for at most ``close_within`` seconds."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._worker.is_forked:
            # The folder and the descriptors are those of the process that opened them.
            return
        self._worker.close()
        self._store.close(within=self._options.close_within)
        self._ledger.close()
        for signal in (self._store_signal, self._lookup_signal, self._load_signal):
            signal.close()

    # What the worker's thread reports.

    def store_ended(self, task: int, success: bool, stored_bytes: int) -> None:
        """Publishes the result of a store task."""
        with self._results_lock:
            self._stores[task] = L2StoreResult(success, stored_bytes)
        self._signal(self._store_signal)

    def lookup_ended(self, task: int, found: list[bool]) -> None:
        """Publishes the result of a lookup task."""
        with self._results_lock:
            self._lookups[task] = _bitmap(found)
        self._signal(self._lookup_signal)

    def load_ended(self, task: int, loaded: list[bool]) -> None:
        """Publishes the result of a load task."""
        with self._results_lock:
            self._loads[task] = _bitmap(loaded)
        self._signal(self._load_signal)

    def keys_stored(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        """Reports stored objects to LMCache."""
        self._report(lambda: self._notify_keys_stored(keys, sizes))

    def keys_accessed(self, keys: list[ObjectKey]) -> None:
        """Reports loaded objects to LMCache."""
        self._report(lambda: self._notify_keys_accessed(keys))

    def keys_deleted(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        """Reports deleted and evicted objects to LMCache."""
        self._report(lambda: self._notify_keys_deleted(keys, sizes))

    def _report(self, tell: Callable[[], None]) -> None:
        """A listener that fails must not fail the task."""
        try:
            tell()
        except Exception:
            _LOG.exception("a listener of LMCache failed")

    def _signal(self, signal: EventNotifier) -> None:
        """The descriptors of a closed adapter are closed; its results can still be taken."""
        try:
            signal.notify()
        except (OSError, ValueError):
            if not self._is_closed:
                raise


def _bitmap(bits: list[bool]) -> Bitmap:
    bitmap = Bitmap(len(bits))
    for index, is_set in enumerate(bits):
        if is_set:
            bitmap.set(index)
    return bitmap


def _open_store(options: AdapterOptions) -> kvtile.BlockStore:
    group = kvtile.StoreGroup.opaque(
        GROUP,
        options.piece,
        model="objects of LMCache",
        revision=options.revision,
        extra={"format": "pieces with a trailer, 1"},
    )
    return kvtile.BlockStore(
        group,
        disk=options.path / "blocks",
        disk_bytes=options.capacity - 2 * journal_bytes(options.capacity, options.piece),
        disk_policy=options.policy,
        close_within=options.close_within,
        answer_within=options.answer_within,
        staging_bytes=options.staging,
        stage_within=options.stage_within,
        workers=options.workers,
    )
