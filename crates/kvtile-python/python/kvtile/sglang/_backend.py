"""The storage backend that SGLang loads."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from kvtile._engine_shared import within_of
from kvtile._errors import ClosedError
from kvtile.sglang._flat import FlatPages
from kvtile.sglang._identity import ModelIdentity, folder_of, folders_of_all_ranks, identity_of_model, ranks_of
from kvtile.sglang._log import logger
from kvtile.sglang._options import HiCacheOptions
from kvtile.sglang._pools import PoolPages, is_logical, pages_of
from kvtile.sglang._stops import PoolPresence, leading, leading_groups, usable_prefixes
from kvtile.sglang._store import ChainHints, PageStore, PoolOfStore, page_numbers

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host.base import HostKVCache

_Answer = TypeVar("_Answer")
_KV = str(PoolName.KV)
# Transfers that the counters for SGLang's metrics keep until SGLang takes them.
_TRANSFERS_MOST = 4096
# Seconds between two messages about failed calls.
_QUIET = 10.0


class KvtileHiCache(HiCacheStorage):  # type: ignore[misc]
    """Keeps the pages of SGLang's host pools on disk.

    Pages are read straight into the pools' memory and verified. They do not depend on ``--hicache-mem-layout``. SGLang's
    threads call it, several at once. After the pools are registered no call raises: a page that cannot be read is a miss
    and a page that cannot be stored is lost.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, keywords: Mapping[str, Any] | None = None):
        """Reads the options. The folder is opened when SGLang has registered its pools.

        Raises:
            SettingsError: unknown or wrong options.
            IdentityError: it is not known which weights the model has.
        """
        self._config = storage_config
        self._options = HiCacheOptions.read(storage_config.extra_config)
        self._model: ModelIdentity = identity_of_model(storage_config, self._options)
        self._pools: dict[str, HostKVCache] = {}
        self._pages: dict[str, PoolPages] = {}
        self._late: set[str] = set()
        self._stores: dict[str, PageStore] = {}
        self._flat: FlatPages | None = None
        self._anchor_is_logical = False
        self._lock = threading.RLock()
        self._is_open = self._is_closed = False
        self._read = deque[tuple[int, float]](maxlen=_TRANSFERS_MOST)
        self._written = deque[tuple[int, float]](maxlen=_TRANSFERS_MOST)
        self._next_message = 0.0
        self._counts: Counter[str] = Counter()
        self._count_lock = threading.Lock()

    # Pools

    def register_mem_pool_host(self, mem_pool_host: HostKVCache) -> None:
        """Takes the pool of the KV. Raises SettingsError for a pool whose order kvtile does not know."""
        self.mem_pool_host = mem_pool_host
        self._anchor_is_logical = is_logical(mem_pool_host)
        if not self._anchor_is_logical:
            self._add(_KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: HostKVCache, host_pool_name: PoolName) -> None:
        """Takes a further pool. Raises SettingsError for a pool whose order kvtile does not know, until the folders are open:
        later the engine runs, so the pages of such a pool are misses, and those of the other pools stay.
        """
        name = str(host_pool_name)
        if is_logical(host_pool) or self._pools.get(name) is host_pool:
            return
        with self._lock:
            if self._is_closed:
                return
            if self._is_open:
                self._add_late(name, host_pool)
            else:
                self._add(name, host_pool)

    def _add_late(self, name: str, pool: HostKVCache) -> None:
        """Adds a pool, or another one in place of a pool, while the folders are open. If that fails, the pools before it
        are opened again."""
        before = dict(self._pages), dict(self._pools), set(self._late)
        try:
            if name not in self._pages:
                self._late.add(name)
            self._add(name, pool)
            self._shut()
            self._open()
        except Exception as error:
            self._pages, self._pools, self._late = before
            # Memory that SGLang has replaced holds no pages any more.
            for known in (self._pages, self._pools):
                known.pop(name, None)
            self._count("pools_refused", f"kvtile does not keep the pages of the pool {name!r}: {error}", error)
            if name in self._stores:
                self._shut()
            if not self._stores and self._pages:
                self._guard(self._open, None, "open the folders again")

    def on_host_pools_registered(self) -> None:
        """Opens the folders.

        Raises:
            IdentityError: a folder has pages of another model, data type or page size; the message names the field.
            FolderInUseError: another engine uses the folder.
            SettingsError: the capacity is too small.
            DiskError: the folder cannot be used.
        """
        with self._lock:
            if not self._is_open and not self._is_closed:
                self._open()

    def _add(self, name: str, pool: HostKVCache) -> None:
        self._pages[name] = pages_of(pool, name)
        self._pools[name] = pool

    def _is_shared(self, pages: PoolPages) -> bool:
        """Whether all tensor-parallel ranks have a pool's pages in common."""
        return bool(self._config.is_mla_model) and pages.is_replicated

    def _open(self) -> None:
        """Opens a folder for the pools that all ranks share, one for the pools of this rank, and one for each pool that is
        registered later: a folder keeps the pools with which it was created. Each folder has its share of the capacity, by the
        bytes of its pages."""
        groups: dict[tuple[bool, str], dict[str, PoolOfStore]] = {}
        for name, pages in self._pages.items():
            is_shared = self._is_shared(pages)
            ranks = ranks_of(self._config, is_shared)
            identity = self._model.of_pool(pages, self._pools[name].dtype, ranks, self._options)
            groups.setdefault((is_shared, name if name in self._late else ""), {})[name] = PoolOfStore(pages, identity)
        sizes = {group: sum(pool.pages.shape.block_bytes for pool in pools.values()) for group, pools in groups.items()}
        whole = sum(size * folders_of_all_ranks(self._config, is_shared) for (is_shared, _), size in sizes.items())
        try:
            for group, pools in groups.items():
                store = self._store_of(group, pools, self._options.capacity * sizes[group] // whole)
                self._stores |= dict.fromkeys(pools, store)
        except Exception:
            self._shut()
            raise
        self._is_open = True

    def _store_of(self, group: tuple[bool, str], pools: Mapping[str, PoolOfStore], capacity: int) -> PageStore:
        is_shared, late = group
        folder = folder_of(self._options.path, self._config, is_shared)
        folder = folder.with_name(f"{folder.name}-{late}") if late else folder
        reads_only = is_shared and not self._config.is_storage_writer
        sizes = ", ".join(f"{name} {pool.pages.shape.block_bytes} bytes a page" for name, pool in pools.items())
        logger.info("kvtile %s %s, up to %d bytes: %s", "reads" if reads_only else "keeps", folder, capacity, sizes)
        return PageStore(folder, capacity, pools, self._options, reads_only)

    def _shut(self) -> None:
        for store in {id(store): store for store in self._stores.values()}.values():
            store.close()
        self._stores, self._is_open = {}, False
        if self._flat is not None:
            self._flat.close()
            self._flat = None

    def _store(self, name: str) -> PageStore:
        """The store of a pool. It is opened here if SGLang did not report that all pools are registered."""
        store = self._stores.get(name)
        if store is None and not self._is_open:
            self.on_host_pools_registered()
            store = self._stores.get(name)
        if store is None:
            raise ClosedError(f"no pages of {name!r} are kept: the backend is closed, or has no such pool")
        return store

    # Pages in the memory of the KV's pool

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Loads pages into the pool. Whether each one came."""
        return self._guard(lambda: self._load(_KV, keys, host_indices), [False] * len(keys), "load pages")

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Stores pages of the pool. Whether each one is stored."""
        hints = _chain(keys, extra_info)
        return self._guard(lambda: self._save(_KV, keys, host_indices, hints), [False] * len(keys), "store pages")

    def _load(self, name: str, keys: Sequence[str], indices: torch.Tensor | None) -> list[bool]:
        if name == _KV and self._anchor_is_logical:
            return [True] * len(keys)
        store, numbers = self._store(name), self._numbers(name, keys, indices)
        if numbers is None:
            return [False] * len(keys)
        start = time.monotonic()
        came = store.load(name, keys, numbers)
        self._read.append((sum(came), time.monotonic() - start))
        return came

    def _save(
        self, name: str, keys: Sequence[str], indices: torch.Tensor | None, hints: ChainHints | None
    ) -> list[bool]:
        if name == _KV and self._anchor_is_logical:
            return [True] * len(keys)
        store, numbers = self._store(name), self._numbers(name, keys, indices)
        if numbers is None:
            return [False] * len(keys)
        start = time.monotonic()
        done = store.store(name, keys, numbers, hints)
        self._written.append((sum(done), time.monotonic() - start))
        return done

    def _numbers(self, name: str, keys: Sequence[str], indices: torch.Tensor | None) -> list[int | None] | None:
        pages = self._pages[name]
        numbers = page_numbers(indices, len(keys), pages.page_indices, pages.shape.num_blocks)
        refused = len(keys) if numbers is None else numbers.count(None)
        if refused:
            given = 0 if indices is None else indices.numel()
            self._count(
                "pages_refused",
                f"SGLang gave {given} indices for {len(keys)} pages of {pages.page_indices} in {name!r}, or some that are no "
                f"pages of {pages.shape.num_blocks}, or a page twice; those pages are misses",
                count=refused,
            )
        return numbers

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """The number of leading pages that would be found."""
        if self._anchor_is_logical:
            return 0
        return self._guard(lambda: leading(self._store(_KV).contains(_KV, keys, self._until())), 0, "look for pages")

    def _until(self) -> float:
        """When a call that begins now stops waiting for the shared store."""
        return time.monotonic() + within_of(self._options)

    def exists(self, key: str) -> bool:
        """Whether a page would be found."""
        return self.batch_exists([key]) == 1

    # Pages of several pools

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The prefixes from which all pools can resume: the longest one, and the exact set of all of them."""
        return self._guard(lambda: self._found(keys, pool_transfers or []), PoolTransferResult(0, {}, []), "look for pages")

    def _found(self, keys: list[str], transfers: Sequence[PoolTransfer]) -> PoolTransferResult:
        until = self._until()
        if self._anchor_is_logical:
            # SGLang's other pools have all of the KV.
            pages = len(keys) if any(transfer.hit_policy != PoolHitPolicy.BLOCK_GROUPS for transfer in transfers) else 0
        else:
            pages = leading(self._store(_KV).contains(_KV, keys, until))
        hits = {PoolName.KV: pages} if pages else {}
        pools = []
        for transfer in transfers:
            pool, verdict = self._of_pool(transfer, keys, pages, until)
            pools += [pool] if pool is not None else []
            if verdict:
                hits[transfer.name] = verdict
        stops = usable_prefixes(pages, pools)
        return PoolTransferResult(stops[-1] if stops else 0, hits, stops)

    def _of_pool(self, transfer: PoolTransfer, keys: list[str], pages: int, until: float) -> tuple[PoolPresence | None, int]:
        """What a pool has of a request, and the longest prefix for which that suffices. A pool of groups has no say."""
        name = str(transfer.name)
        if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
            has = self._contains(name, transfer.keys or [], until)
            return None, min(leading_groups(has, transfer.group_pages, transfer.block_pages), len(keys))
        if transfer.hit_policy not in (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES):
            raise ValueError(f"SGLang has a hit policy {transfer.hit_policy!r} that kvtile does not know")
        is_trailing = transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES
        presence = PoolPresence(
            self._contains(name, keys[:pages], until), trailing=max(1, len(transfer.keys or ())) if is_trailing else None
        )
        return presence, max(presence.stops(pages), default=0)

    def _contains(self, name: str, keys: list[str], until: float) -> list[bool]:
        if name not in self._pages:
            return [False] * len(keys)
        return self._store(name).contains(name, keys, until)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Loads pages of several pools. Whether each one came."""
        def load(transfer: PoolTransfer) -> Callable[[], list[bool]]:
            return lambda: self._load(str(transfer.name), transfer.keys or [], transfer.host_indices)

        return {
            transfer.name: self._guard(load(transfer), [False] * len(transfer.keys or ()), f"load pages of {transfer.name}")
            for transfer in transfers
        }

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Stores pages of several pools. Whether each one is stored."""
        def save(transfer: PoolTransfer) -> Callable[[], list[bool]]:
            chain = _chain_of(transfer, extra_info)
            return lambda: self._save(str(transfer.name), transfer.keys or [], transfer.host_indices, chain)

        return {
            transfer.name: self._guard(save(transfer), [False] * len(transfer.keys or ()), f"store pages of {transfer.name}")
            for transfer in transfers
        }

    # Pages that SGLang copies out of the pool

    def get(self, key: str, target_location: torch.Tensor | None = None, target_sizes: object = None) -> torch.Tensor | None:
        """Loads a page into a flat tensor; None if it did not come."""
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(
        self, keys: list[str], target_locations: list[torch.Tensor] | None = None, target_sizes: object = None
    ) -> list[torch.Tensor | None]:
        """Loads pages into flat tensors; None for those that did not come."""
        return self._guard(lambda: self._load_flat(keys, target_locations), [None] * len(keys), "load pages")

    def _load_flat(self, keys: list[str], given: list[torch.Tensor] | None) -> list[torch.Tensor | None]:
        flat = self._flat_pages()
        targets = given if given is not None else [self.mem_pool_host.get_dummy_flat_data_page() for _ in keys]
        if len(targets) != len(keys) or not all(flat.fits(target) for target in targets):
            raise ValueError(f"{len(keys)} pages do not fit into {len(targets)} tensors that SGLang gave")
        came = flat.load(keys, targets)
        return [target if ok else None for target, ok in zip(targets, came, strict=True)]

    def set(
        self, key: str, value: torch.Tensor | None = None, target_location: object = None, target_sizes: object = None
    ) -> bool:
        """Stores a page from a flat tensor. Whether it is stored."""
        return value is not None and self.batch_set([key], [value])

    def batch_set(
        self, keys: list[str], values: list[torch.Tensor] | None = None, target_locations: object = None, target_sizes: object = None
    ) -> bool:
        """Stores pages from flat tensors. Whether all are stored."""
        return self._guard(lambda: self._save_flat(keys, values or []), False, "store pages")

    def _save_flat(self, keys: list[str], values: list[torch.Tensor]) -> bool:
        flat = self._flat_pages()
        if len(values) != len(keys) or not all(flat.fits(value) for value in values):
            raise ValueError(f"{len(keys)} pages are not {len(values)} tensors that SGLang gave")
        return all(flat.store(keys, values, _chain(keys, None)))

    def _flat_pages(self) -> FlatPages:
        store = self._store(_KV)
        with self._lock:
            if self._flat is None:
                self._flat = FlatPages(_KV, self._pages[_KV], store)
            return self._flat

    # The rest

    def clear(self) -> bool:
        """Removes all pages of this rank. Whether that succeeded."""

        return self._guard(lambda: all([store.clear() for store in self._open_stores()]), False, "clear the folder")

    def flush(self) -> bool:
        """Waits until all stored pages are durable, at most ``close_within`` seconds. Whether they are."""
        return self._guard(lambda: all([store.flush() for store in self._open_stores()]), False, "flush")

    def get_stats(self) -> object:
        """The transfers since the last call, for SGLang's metrics; None if SGLang does not collect metrics."""
        if not self._config.enable_storage_metrics:
            return None
        from sglang.srt.observability.metrics_collector import StorageMetrics

        metrics = StorageMetrics()
        kv = self._pages.get(_KV)
        page_bytes = kv.shape.block_bytes if kv is not None else 0
        for taken, counts, rates in (
            (self._read, metrics.prefetch_pgs, metrics.prefetch_bandwidth),
            (self._written, metrics.backup_pgs, metrics.backup_bandwidth),
        ):
            while taken:
                pages, seconds = taken.popleft()
                counts.append(pages)
                rates.append(pages * page_bytes / max(seconds, 1e-9) / 1e9)
        return metrics

    def counts(self) -> dict[str, int]:
        """What the block stores do not count: ``errors``, calls that failed; ``pages_refused``, pages of indices that are no
        pages; ``pools_refused``, pools that came later and are not kept."""
        return {name: self._counts[name] for name in ("errors", "pages_refused", "pools_refused")}

    def store_stats(self) -> dict[str, dict[str, object]]:
        """The counters of the block stores, by the names of their pools."""
        return self._guard(lambda: {", ".join(store.names): store.stats() for store in self._open_stores()}, {}, "count")

    def _open_stores(self) -> list[PageStore]:
        if self._is_closed:
            raise ClosedError("the backend is closed")
        return list({id(store): store for store in self._stores.values()}.values())

    def close(self) -> None:
        """Writes what is in staging memory, and closes the folders. Later calls find nothing. Closing twice is fine."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._guard(self._shut, None, "close")
            self._is_open = True

    def _guard(self, work: Callable[[], _Answer], otherwise: _Answer, what: str) -> _Answer:
        """Does work for SGLang, whose threads do not bear exceptions."""
        try:
            return work()
        except Exception as error:
            if not self._is_closed:
                self._count("errors", f"kvtile could not {what}: {error}", error)
            return otherwise

    def _count(self, name: str, text: str, error: Exception | None = None, *, count: int = 1) -> None:
        """Counts a failure, and logs it, unless one was logged just before."""
        with self._count_lock:
            self._counts[name] += count
        if time.monotonic() >= self._next_message:
            self._next_message = time.monotonic() + _QUIET
            logger.warning("%s (%d %s so far)", text, self._counts[name], name.replace("_", " "), exc_info=error)


def _chain(keys: Sequence[str], extra_info: HiCacheStorageExtraInfo | None) -> ChainHints:
    """The places of consecutive keys in their chain. Without the keys before them, they count from the first one."""
    before = (extra_info.prefix_keys if extra_info is not None else None) or []
    parents = [before[-1] if before else None, *keys][: len(keys)]
    return ChainHints(parents, [len(before) + at for at in range(len(keys))])


def _chain_of(transfer: PoolTransfer, extra_info: HiCacheStorageExtraInfo | None) -> ChainHints | None:
    """The chain of a pool that has all pages. The pages of others are ends of several chains."""
    return _chain(transfer.keys or (), extra_info) if transfer.hit_policy == PoolHitPolicy.ALL_PAGES else None
