"""The worker side: the cache over its tensors, and its transfers in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile import (
    Cache,
    Completion,
    HttpServer,
    KvtileError,
    LaggedError,
    LoadReport,
    Seek,
    SettingsError,
    StoreReport,
    TransferError,
    WaitTimeoutError,
    serve_http,
)
from kvtile._streams import compute_stream
from kvtile.vllm._adapters import LOADED
from kvtile.vllm._directory import TIERS
from kvtile.vllm._group_worker import GroupWorker
from kvtile.vllm._groups import is_one_full_group
from kvtile.vllm._layout import in_order, layout_and_identity
from kvtile.vllm._messages import Change, Hello, LoadOrder, Orders, RankReport, StoreOrder
from kvtile.vllm._processors import processors_of_engine
from kvtile.vllm._rank import Rank, rank_of
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import blocks_by_tier
from kvtile.vllm._transfers import PATIENCE, WorkerTransfers

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

# Blocks of the read whose time is compared with that of one block: what a tier takes for a read, and for each block of it.
_MANY = 64

# A child of vLLM's logger, so its settings apply.
logger = init_logger("vllm.kvtile")

_workers: dict[str, WorkerTransfers] = {}
_workers_lock = threading.Lock()


@dataclass
class Load:
    """A load in flight, of a request's blocks from its block ``first`` on."""

    blocks: list[int]
    first: int
    # None for a load that could not begin.
    completion: Completion[LoadReport] | None = None
    # Layers for which the step that computes with the blocks has waited.
    waited: int = 0

    def is_done(self) -> bool:
        """Whether the load is complete, or could not begin."""
        return self.completion is None or self.completion.done()


class Worker(WorkerTransfers):
    """The cache of one worker, and the loads and stores in flight."""

    def __init__(
        self, config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings, rank: Rank
    ) -> None:
        layout, self.identity = layout_and_identity(config, caches, settings, rank)
        self.cache = Cache(self.identity, layout, **settings.of_cache(rank, self.identity))
        super().__init__(rank)
        self.has_disk = settings.disk_path is not None
        self.layers = {name: layer for layer, name in enumerate(in_order(caches))}
        self._device = next(iter(caches.values())).device
        self.loads: dict[str, Load] = {}
        # Loads of the current step, which computes with their blocks.
        self.step_loads: dict[str, Load] = {}
        # Requests for which the shared store is queried.
        self.seeks: dict[str, Seek] = {}
        self._seek_seconds = settings.seek_seconds
        self._is_connected = settings.connect is not None
        self._weighs_reads = settings.recompute_tokens_per_second is not None
        self._ask_after = 0.0
        self._tier_seconds: dict[str, tuple[float, float]] = {}
        self.failed_blocks: set[int] = set()
        self._block_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in caches.values())
        self._subscriber = self.cache.subscribe()
        on_disk = self.cache.pool_stats("disk")["cached"] if self.has_disk else 0
        self._server = self._serve(settings.http_address(rank.number))
        self._warn_of_little_room(config)
        self._refrain_from_loads_in_full_graphs(config)
        logger.info(
            "kvtile keeps the KV of %s (%s): %s; %d blocks on disk", self.identity.model, layout, settings, on_disk
        )

    def _serve(self, address: str | None) -> HttpServer | None:
        """Serves the page of the cache. An address that is taken costs the page, not the engine."""
        if address is None:
            return None
        try:
            server = serve_http({f"{self.identity.model}, rank {self.rank}": self.cache}, address)
        except KvtileError as error:
            logger.warning("the cache has no page: %s", error)
            return None
        logger.info("the cache of rank %d is at %s", self.rank, server.url)
        return server

    def _warn_of_little_room(self, config: VllmConfig) -> None:
        """Warns if no tier can hold a prompt of the maximum length."""
        page_size, longest = self.identity.page_size, config.model_config.max_model_len
        blocks = {tier: self.cache.pool_stats(tier)["blocks"] for tier in (("host", "disk") if self.has_disk else ("host",))}
        if max(blocks.values()) * page_size >= longest:
            return
        needed = -(-longest // page_size) * self._block_bytes * self.ranks / (1 << 30)
        room = ", ".join(f"{tier} {count * page_size} tokens" for tier, count in blocks.items())
        logger.warning(
            "kvtile has room for less than one sequence of max_model_len, %d tokens (%s): of longer ones only the beginning is "
            "kept; %.1f GiB as host_gib or disk_gib hold one", longest, room, needed,
        )

    def _refrain_from_loads_in_full_graphs(self, config: VllmConfig) -> None:
        """Loads blocks before their step where attention is replayed in CUDA graphs, which do not wait for layers."""
        if self._device.type != "cpu" and config.compilation_config.cudagraph_mode.has_full_cudagraphs():
            self._report.loads_in_step = False

    def hello(self) -> Hello:
        """The worker's identity and blocks, for the scheduler."""
        return Hello(self.identity.to_json(), list(self._everything()))

    def _start_loads(self, orders: Orders) -> None:
        """Starts the loads of a step."""
        for load in orders.loads:
            self._start_load(load)
        for order in orders.seeks:
            self.seeks[order.request] = self.cache.seek(order.keys[self.rank], self._seek_seconds)

    def _start_load(self, order: LoadOrder) -> None:
        """Starts one load; a load that cannot begin fails at once."""
        load = Load(order.blocks, order.first)
        (self.step_loads if order.in_step else self.loads)[order.request] = load
        found = self.cache.lookup(order.keys[self.rank])
        if order.adapter is not None and not LOADED.may_be(order.adapter):
            reason = "vLLM has loaded other adapter weights than the files contain now"
        elif found.blocks > order.first:
            try:
                found = found.skip(order.first)
                # The load follows what the stream has: earlier steps may still read the blocks, or clear them.
                load.completion = self.cache.load(found, order.blocks[: found.blocks], after=compute_stream(self._device))
                return
            except KvtileError as error:
                reason = str(error)
        else:
            reason = "they have been evicted since the lookup"
        found.release()
        logger.warning("request %s computes its %d blocks: %s", order.request, len(order.blocks), reason)
        self._load_failed(order.request, order.first, order.blocks)

    def wait_for_layer(self, name: str) -> None:
        """What computes this layer from now on waits until the step's loads have completed it, or have failed.

        On a device its stream waits, and this call does only until the layer is enqueued.
        """
        if not self.step_loads:
            return
        layer, stream = self.layers[name], compute_stream(self._device)
        for load in self.step_loads.values():
            load.waited += 1
            if load.completion is None:
                continue
            try:
                load.completion.wait_layer_on(stream, layer)
            except TransferError as error:
                # The copy failed, or the driver's wait. This wait serves both; the report has the outcome of the copy.
                logger.warning("layer %d of a load is waited for on the host: %s", layer, error)
                load.completion.wait_layer(layer)

    def end_step(self, orders: Orders) -> None:
        """Starts storing the blocks that the step has computed, without waiting."""
        sound = self._end_step_loads()
        for store in orders.stores:
            if sound:
                self._start_store(store)
            else:
                # The step may have computed with blocks that failed to load; vLLM recomputes it.
                self._store_later(store)

    def _end_step_loads(self) -> bool:
        """Whether all loads of the step completed in time."""
        sound = True
        for request, load in self.step_loads.items():
            if load.completion is None:
                sound = False
                continue
            report = load.completion.wait()
            if load.waited < len(self.layers):
                # The step read the blocks before they were loaded, so all of them count as failed.
                self._report.loads_in_step = False
                logger.warning("attention does not wait for its layers here: kvtile now loads blocks before the step that uses them")
                self._load_failed(request, load.first, load.blocks)
                sound = False
            else:
                self._loaded(request, load, report)
                sound &= report.blocks == len(load.blocks)
        self.step_loads.clear()
        return sound

    def _start_store(self, order: StoreOrder) -> None:
        """Starts one store. vLLM keeps the blocks unchanged until it completes."""
        if order.adapter is not None and not LOADED.is_loaded(order.adapter):
            # The adapter's weights do not match the keys of this block and of later ones.
            self.stats.add(dropped_blocks=len(order.blocks))
            self._report.without_room.add(order.request)
            self._store_ended(order.request)
            return
        try:
            completion = self.cache.store(
                order.keys[self.rank], order.blocks, first=order.first, after=compute_stream(self._device)
            )
        except KvtileError as error:
            logger.debug("blocks of request %s are not stored now: %s", order.request, error)
            self.stats.add(stores_refused=1)
            self._store_later(order)
            return
        self.stores.setdefault(order.request, []).append(completion)

    def _store_later(self, order: StoreOrder) -> None:
        self._store_again_from(order.request, order.first)
        self._store_ended(order.request)

    def _count_store(self, request: str, report: StoreReport) -> None:
        if report.dropped:
            self._report.without_room.add(request)

    def take_finished_loads(self, *, idle: bool) -> set[str]:
        """Requests whose loads have completed. In an idle step, waits for one."""
        pending = [load.completion for load in self.loads.values() if load.completion is not None]
        if idle and self.seeks and not any(seek.ready for seek in self.seeks.values()):
            # vLLM steps again at once.
            time.sleep(PATIENCE / 5)
        elif idle and pending and not any(load.is_done() for load in self.loads.values()):
            try:
                pending[0].wait(PATIENCE)
            except WaitTimeoutError:
                return set()
        ended = {request for request, load in self.loads.items() if load.is_done()}
        for request in ended:
            load = self.loads.pop(request)
            if load.completion is not None:
                self._loaded(request, load, load.completion.wait())
        return ended

    def take_failed_blocks(self) -> set[int]:
        """Blocks that failed to load and that vLLM recomputes."""
        failed, self.failed_blocks = self.failed_blocks, set()
        return failed

    def take_report(self) -> RankReport | None:
        """The report for the scheduler after a step; None if it is empty."""
        report = self._report
        report.sought |= self._answered_seeks()
        report.changes.extend(self._changes())
        report.tier_seconds = self._seconds_of_tiers()
        nothing = not (report.changes or report.ended or report.store_from or report.without_room or report.sought)
        if nothing and report.loads_in_step:
            return None
        self._report = RankReport()
        return report

    def _seconds_of_tiers(self) -> dict[str, tuple[float, float]]:
        """How long reads of the tiers below host memory take: seconds of a read, and of each of its blocks.

        A daemon has to answer for its tiers, so it gets the question only where the scheduler weighs them, and once a second.
        """
        if self._is_connected and (not self._weighs_reads or time.monotonic() < self._ask_after):
            return self._tier_seconds
        self._ask_after = time.monotonic() + 1.0
        for tier in TIERS[1:]:
            one, many = (self.cache.read_seconds(tier, blocks) for blocks in (1, 1 + _MANY))
            if one is not None and many is not None:
                block = max(many - one, 0.0) / _MANY
                self._tier_seconds[tier] = (max(one - block, 0.0), block)
        return dict(self._tier_seconds)

    def _answered_seeks(self) -> set[str]:
        """Requests for which the shared store has answered, or has taken too long. The events contain the answer."""
        ready = {request for request, seek in self.seeks.items() if seek.ready}
        for request in ready:
            found = self.seeks.pop(request).match()
            if found is not None:
                found.release()
        return ready

    def _changes(self) -> Iterator[Change]:
        """The changes since the last call. After lagging, a snapshot of all blocks replaces them.

        A daemon may have tiers that the scheduler does not count.
        """
        try:
            while events := self._subscriber.poll():
                for event in events:
                    if event.tier in TIERS:
                        yield event.kind, event.tier, event.key or b"", event.parent
        except LaggedError:
            yield from self._everything()

    def _everything(self) -> Iterator[Change]:
        snapshot = self.cache.snapshot()
        self._subscriber.resynchronise(snapshot)
        for tier in TIERS:
            yield "cleared", tier, b"", None
        for where, _, key, parent in snapshot.blocks:
            if where in TIERS:
                yield "stored", where, key, parent

    def _loaded(self, request: str, load: Load, report: LoadReport) -> None:
        self.stats.add(
            loaded_blocks=report.blocks,
            loaded_bytes=report.bytes,
            load_seconds=report.seconds,
            **blocks_by_tier(report.blocks, report.from_tiers),
        )
        missing = load.blocks[report.blocks :]
        if missing:
            logger.warning(
                "request %s computes %d of %d blocks that were found: %s", request, len(missing), len(load.blocks),
                report.detail or report.stopped or "they have been evicted since the lookup",
            )
            self._load_failed(request, load.first + report.blocks, missing)

    def _load_failed(self, request: str, first: int, blocks: list[int]) -> None:
        self.failed_blocks.update(blocks)
        self._store_again_from(request, first)
        self.stats.add(failed_blocks=len(blocks))

    def _close_cache(self) -> None:
        if self._server is not None:
            self._server.close()
        report = self.cache.close()
        if report is not None and not report.durable:
            logger.warning("not all blocks in host memory could be written to the disk: %s", report)


def open_worker(
    config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings, kv: KVCacheConfig
) -> WorkerTransfers:
    """Opens the cache over an engine's tensors."""
    name = _name(config)
    with _workers_lock:
        if name in _workers:
            raise SettingsError(
                f"kvtile.vllm: engine {name} has its cache in this process already; vLLM has one connector per process, so "
                "shut down the first engine before the next one starts (llm.llm_engine.engine_core.shutdown()), or use "
                "separate processes (VLLM_ENABLE_V1_MULTIPROCESSING=1)"
            )
        if config.lora_config is not None:
            LOADED.watch()
        with processors_of_engine(config.parallel_config.distributed_executor_backend):
            rank = rank_of(config)
            if is_one_full_group(kv):
                _workers[name] = Worker(config, caches, settings, rank)
            else:
                _workers[name] = GroupWorker(config, caches, settings, rank, kv)
        return _workers[name]


def find_worker(config: VllmConfig) -> WorkerTransfers | None:
    """The worker of an engine, if it is in this process."""
    with _workers_lock:
        return _workers.get(_name(config))


def close_worker(config: VllmConfig) -> None:
    """Closes the cache of an engine, if it has one in this process."""
    with _workers_lock:
        worker = _workers.pop(_name(config), None)
    if worker is not None:
        worker.close()


def _name(config: VllmConfig) -> str:
    transfer = config.kv_transfer_config
    if transfer is None or not transfer.engine_id:
        raise SettingsError("kvtile.vllm: vLLM has given its connector no engine_id")
    return str(transfer.engine_id)
