"""The pages of one folder: a block store with a group for each pool, and the pools' memory as its rows."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kvtile import BlockStore, ClosedError, Layout, StoreGroup
from kvtile._engine_shared import keywords_of
from kvtile._errors import DiskError
from kvtile.sglang._log import logger
from kvtile.sglang._options import HiCacheOptions
from kvtile.sglang._pools import PoolPages

if TYPE_CHECKING:
    from kvtile import BlockOutcomes, Completion, Identity, StoreRows

# Seconds between two attempts to open a folder that another rank creates.
_AGAIN = 1.0
# Failed pages that a store remembers. The oldest are forgotten; their next load fails again.
_FAILED_MOST = 1 << 16


@dataclass(frozen=True)
class PoolOfStore:
    """A pool whose pages a store keeps."""

    pages: PoolPages
    identity: Identity


class StartsJob(Protocol):
    """Starts a load or a store of pages between keys and rows."""

    def __call__(self, keys: Sequence[str], rows: StoreRows, ids: Sequence[int]) -> Completion[BlockOutcomes]: ...


@dataclass(frozen=True)
class ChainHints:
    """The places of keys in their chain: the key before each one, and the number of keys before it."""

    parents: list[str | None]
    positions: list[int]


class PageStore:
    """Pages of several pools in one folder. Its calls may run on several threads at once.

    A page that failed to load is a miss until it is stored again. A rank that only reads may start before the folder
    exists: until then all of its pages are misses.
    """

    def __init__(self, folder: Path, capacity: int, pools: Mapping[str, PoolOfStore], options: HiCacheOptions, reads_only: bool):
        self._folder, self._capacity, self._options = folder, capacity, options
        self._pools = dict(pools)
        self._reads_only = reads_only
        self._lock = threading.Lock()
        self._failed: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._rows: dict[str, StoreRows] = {}
        self._store: BlockStore | None = None
        self._next_attempt = 0.0
        self._is_closed = False
        if not reads_only:
            self._open()
        elif self._may_open():
            self._open_late()

    @property
    def names(self) -> list[str]:
        """The pools."""
        return list(self._pools)

    def _open(self) -> None:
        """Opens the folder. Raises the errors of ``BlockStore``."""
        pools = self._pools.items()
        groups = [StoreGroup(name, pool.identity, pool.pages.shape) for name, pool in pools]
        mode: dict[str, Any] = {"read_only": True} if self._reads_only else {}
        options = self._options
        store = BlockStore(
            groups, disk=self._folder, disk_bytes=self._capacity, disk_policy=options.policy, workers=options.workers,
            staging_bytes=max(options.staging, 4 * sum(pool.pages.shape.block_bytes for _, pool in pools)),
            answer_within=options.answer_within, stage_within=options.stage_within, close_within=options.close_within,
            **mode, **keywords_of(options),
        )
        try:
            self._rows = {name: store.register(pool.pages.layout(), name) for name, pool in pools}
        except BaseException:
            store.close()
            raise
        self._store = store

    def _opened(self) -> BlockStore | None:
        """The store, once the folder exists."""
        with self._lock:
            if self._store is None and not self._is_closed and time.monotonic() >= self._next_attempt:
                self._next_attempt = time.monotonic() + _AGAIN
                if self._may_open():
                    self._open_late()
            return None if self._is_closed else self._store

    def _may_open(self) -> bool:
        """Whether a rank that only reads has something to read: the folder, or the shared store."""
        return self._options.shared is not None or self._folder.exists()

    def _open_late(self) -> None:
        try:
            self._open()
        except DiskError as error:
            # The rank that writes may be in the middle of creating the folder.
            logger.warning("the folder %s cannot be read yet: %s", self._folder, error)

    def register(self, name: str, layout: Layout) -> StoreRows | None:
        """Further memory with pages of a pool; None if the folder is not open."""
        store = self._opened()
        return None if store is None else store.register(layout, name)

    def contains(self, name: str, keys: Sequence[str], until: float) -> list[bool]:
        """Whether each page would be found. Waits for the answer of the shared store until then, on the monotonic clock."""
        store = self._opened()
        if store is None or name not in self._pools:
            return [False] * len(keys)
        found = store.contains(list(keys), name)
        missing = [key for key, there in zip(keys, found, strict=True) if not there]
        if missing and self._options.shared is not None:
            query = store.ask(missing, name)
            query.wait(max(0.0, until - time.monotonic()))
            found = store.contains(list(keys), name)
        with self._lock:
            return [there and (name, key) not in self._failed for there, key in zip(found, keys, strict=True)]

    def load(self, name: str, keys: Sequence[str], pages: Sequence[int | None], rows: StoreRows | None = None) -> list[bool]:
        """Loads pages into a pool's memory, or into other rows. Whether each page came; the memory of a page that did not
        come has any contents. When it returns, no I/O touches the memory."""
        store = self._opened()
        rows = rows or self._rows.get(name)
        if store is None or rows is None:
            return [False] * len(keys)
        with self._lock:
            asked = [page is not None and (name, key) not in self._failed for page, key in zip(pages, keys, strict=True)]
        outcomes = _job(store.load, keys, rows, [page if ask else None for page, ask in zip(pages, asked, strict=True)])
        bad = [key for key, outcome in zip(keys, outcomes, strict=True) if outcome not in ("ok", "absent", "", "closed")]
        if bad:
            self._fail(name, bad, outcomes)
        return [outcome == "ok" for outcome in outcomes]

    def store(
        self, name: str, keys: Sequence[str], pages: Sequence[int | None], hints: ChainHints | None, rows: StoreRows | None = None
    ) -> list[bool]:
        """Stores pages of a pool's memory, or of other rows. Whether each page is stored. When it returns, the memory may
        change."""
        store = self._opened()
        rows = rows or self._rows.get(name)
        if store is None or rows is None or self._reads_only:
            return [False] * len(keys)
        outcomes = _job(_storing(store, hints, pages), keys, rows, pages)
        done = [outcome in ("ok", "present") for outcome in outcomes]
        with self._lock:
            for key, ok in zip(keys, done, strict=True):
                if ok:
                    self._failed.pop((name, key), None)
        return done

    def _fail(self, name: str, keys: Sequence[str], outcomes: Sequence[str]) -> None:
        """Makes pages that failed to load misses. The block store has removed damaged ones, so a later backup stores them
        again."""
        kinds = sorted(set(outcomes) - {"ok", "absent", "", "closed"})
        logger.warning("%d pages of %s in %s failed to load (%s); SGLang computes them", len(keys), name, self._folder, ", ".join(kinds))
        with self._lock:
            for key in keys:
                self._failed[name, key] = None
            while len(self._failed) > _FAILED_MOST:
                self._failed.popitem(last=False)

    def clear(self) -> bool:
        """Removes all pages. False for a rank that only reads: the rank that writes removes them."""
        store = self._opened()
        if store is None or self._reads_only:
            return False
        store.clear()
        with self._lock:
            self._failed.clear()
        return True

    def flush(self) -> bool:
        """Waits until all pages are durable, as long as closing may take. Whether they are."""
        store = self._opened()
        return store is not None and not self._reads_only and store.flush(self._options.close_within).durable

    def stats(self) -> dict[str, object]:
        """The counters of the block store; empty while the folder is not open."""
        store = self._opened()
        return {} if store is None else store.stats()

    def close(self) -> None:
        """Writes what is in staging memory, and closes the folder. No memory of SGLang is in use afterwards."""
        with self._lock:
            self._is_closed = True
            store, rows, self._rows = self._store, list(self._rows.values()), {}
        if store is None:
            return
        store.close()
        for registered in rows:
            registered.release()


def _storing(store: BlockStore, hints: ChainHints | None, pages: Sequence[int | None]) -> StartsJob:
    """A store with the hints of those pages that are stored."""
    if hints is None:
        return store.store
    used = [at for at, page in enumerate(pages) if page is not None]
    parents, positions = [hints.parents[at] for at in used], [hints.positions[at] for at in used]

    def start(keys: Sequence[str], rows: StoreRows, ids: Sequence[int]) -> Completion[BlockOutcomes]:
        return store.store(keys, rows, ids, parents=parents, positions=positions)

    return start


def _job(start: StartsJob, keys: Sequence[str], rows: StoreRows, pages: Sequence[int | None]) -> list[str]:
    """Runs a job over the keys that have a page. The outcome of each key; "" for a key without a page."""
    used = [(key, page) for key, page in zip(keys, pages, strict=True) if page is not None]
    outcomes = [""] * len(keys)
    if not used:
        return outcomes
    try:
        done = iter(start([key for key, _ in used], rows, [page for _, page in used]).wait().outcomes)
    except ClosedError:
        return ["closed" if page is not None else "" for page in pages]
    return ["" if page is None else next(done) for page in pages]


def page_numbers(indices: torch.Tensor | None, keys: int, page_indices: int, pages: int) -> list[int | None] | None:
    """The pages of SGLang's indices: ``page_indices`` consecutive ones for each key. None for a page that is not one of
    the pool's pages, or that an earlier key has; None alone if their number is not that of the keys."""
    if indices is None or indices.numel() != keys * page_indices:
        return None
    table = indices.detach().to("cpu", torch.int64).reshape(keys, page_indices)
    first = table[:, 0]
    whole = (table == first[:, None] + torch.arange(page_indices)).all(1)
    good = whole & (first >= 0) & (first % page_indices == 0) & (first // page_indices < pages)
    seen: set[int | None] = set()
    found: list[int | None] = []
    for page, ok in zip((first // page_indices).tolist(), good.tolist(), strict=True):
        found.append(page if ok and page not in seen else None)
        seen.add(found[-1])
    return found
