"""The connector: the methods that vLLM's scheduler and workers call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from kvtile._errors import ClosedError, InternalError
from kvtile.vllm._events import TierChanges
from kvtile.vllm._group_scheduler import GroupScheduler
from kvtile.vllm._groups import groups_of, is_one_full_group
from kvtile.vllm._layout import refuse_what_is_not_supported
from kvtile.vllm._messages import Hello, Orders, Report
from kvtile.vllm._scheduler import Scheduler
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtilePromMetrics, KvtileStats
from kvtile.vllm._transfers import WorkerTransfers
from kvtile.vllm._worker import close_worker, open_worker

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class KvtileConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Keeps vLLM's KV blocks in host memory and on disk.

    Prefixes that vLLM has evicted are loaded while other requests run. Full blocks are stored as they are computed,
    without delaying the forward pass. vLLM recomputes blocks that fail to load.

    Models with sliding windows, chunks or recurrent states have several groups of KV. Their requests resume at stops, where
    all groups have what their rules need; vLLM computes a request whose load of a stop fails.

    vLLM creates one connector for its scheduler and one for each worker, in one process or several.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._settings = Settings.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        refuse_what_is_not_supported(vllm_config, kv_cache_config, self._settings)
        # vLLM recomputes blocks that fail to load; its default fails the request.
        vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
        self._opened: WorkerTransfers | None = None
        if is_one_full_group(kv_cache_config):
            self.scheduler: Scheduler = Scheduler(self._settings, vllm_config.cache_config.block_size)
        else:
            alignment = getattr(kv_cache_config, "cache_hit_alignment_tokens", None) or 1
            self.scheduler = GroupScheduler(self._settings, groups_of(kv_cache_config), alignment)
        wanted = vllm_config.kv_events_config
        if wanted is not None and wanted.enable_kv_cache_events:
            self.scheduler.changes = TierChanges()

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: object) -> bool:
        """False: kvtile keeps the addresses of the KV, which a sleeping engine frees. vLLM calls it from 0.33 on."""
        return False

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        """False: what vLLM reports as computed is in all groups, so a load brings only what comes after it."""
        return False

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a block that is not stored only causes a later miss."""
        return False

    # Scheduler side.

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """Receives the workers' handshakes, once they have opened their caches."""
        hellos = {rank: hello for rank, hello in metadata.items() if isinstance(hello, Hello)}
        ranks = self._vllm_config.parallel_config.tensor_parallel_size
        if sorted(hellos) != list(range(ranks)):
            raise InternalError(f"kvtile.vllm: of {ranks} workers, those of ranks {sorted(hellos)} have opened their caches")
        self.scheduler.greet(hellos)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """The number of tokens that can be loaded beyond vLLM's own prefix cache."""
        return self.scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """vLLM has allocated blocks for the tokens to load, or declines to load them."""
        self.scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """The loads and stores of this step."""
        return self.scheduler.orders(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Receives the workers' reports after a step."""
        if isinstance(connector_output.kv_connector_worker_meta, Report):
            self.scheduler.take(connector_output.kv_connector_worker_meta)
        self.scheduler.finishing -= connector_output.finished_sending or set()
        self.scheduler.loading -= connector_output.finished_recving or set()

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Keeps the blocks of an ended request until its stores complete."""
        return self.scheduler.finished(request, (block_ids,)), None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Keeps the blocks of an ended request until its stores complete; with several groups, stores the end of its answer."""
        return self.scheduler.finished(request, block_ids), None

    def has_pending_block_frees(self) -> bool:
        """Whether blocks of ended requests become free soon."""
        return bool(self.scheduler.finishing)

    def take_events(self) -> Iterable[KVCacheEvent]:
        """The blocks that were stored in kvtile's tiers or removed from them."""
        return self.scheduler.changes.take() if self.scheduler.changes is not None else ()

    def reset_cache(self) -> bool | None:
        """Removes all blocks, on disk too, with the next step. Later blocks are for this process only."""
        return self.scheduler.clear()

    # Worker side.

    @property
    def _worker(self) -> WorkerTransfers:
        if self._opened is None:
            raise ClosedError("kvtile.vllm: vLLM uses its connector before it has registered its KV cache, or after shutdown")
        return self._opened

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Opens the cache over vLLM's tensors.

        Raises SettingsError for a second engine in this process: vLLM keeps one connector per process, so the second
        engine would read and write the first one's blocks.
        """
        self._opened = open_worker(self._vllm_config, kv_caches, self._settings, self._kv_cache_config)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """The worker's identity and blocks, for the scheduler."""
        return self._worker.hello()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Waits for stores of preempted requests, whose blocks are about to be overwritten."""
        if isinstance(kv_connector_metadata, Orders) and kv_connector_metadata.preempted:
            self._worker.wait_for_stores(kv_connector_metadata.preempted)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Starts the loads of the step, which run concurrently with its forward pass."""
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin_step(self._orders())

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Does nothing: bind_connector_metadata has started the loads."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Waits until the step's loads have completed this layer."""
        self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Does nothing: a block is stored once all of its layers are computed."""

    def wait_for_save(self) -> None:
        """Starts storing the blocks that this step has computed, without waiting."""
        self._worker.end_step(self._orders())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Ended requests whose stores have completed, and requests whose loads have completed."""
        loaded = self._worker.take_finished_loads(idle=self._orders().idle)
        return self._worker.take_finished_stores() or None, loaded or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """The same, with the requests whose loads of a stop have failed."""
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving |= self._worker.take_failed_requests()
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that failed to load and that vLLM recomputes."""
        return self._worker.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """The worker's report after a step."""
        report = self._worker.take_report()
        return Report({self._worker.rank: report}) if report is not None else None

    # Both sides.

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """The counts since the last step."""
        counted = self.scheduler.stats if self.role == KVConnectorRole.SCHEDULER else self._worker.stats
        return counted.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics from another process."""
        return KvtileStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        """Exports the counts with vLLM's own metrics."""
        return KvtilePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """In a worker, writes all blocks to the disk and closes the cache."""
        self.scheduler.close()
        if self._opened is not None:
            self._opened = None
            close_worker(self._vllm_config)

    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, Orders):
            raise InternalError(f"kvtile.vllm: {type(metadata).__name__} is not the metadata of this connector")
        return metadata
