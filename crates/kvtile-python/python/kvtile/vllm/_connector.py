"""The connector: what vLLM's scheduler and workers call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)

from kvtile._errors import ClosedError, InternalError
from kvtile.vllm._events import events_of
from kvtile.vllm._layout import refuse_what_is_not_supported
from kvtile.vllm._messages import Hello, Orders, Report
from kvtile.vllm._scheduler import Scheduler
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtilePromMetrics, KvtileStats
from kvtile.vllm._worker import Worker, close_worker, open_worker

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class KvtileConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Keeps vLLM's KV blocks in host memory and on disk.

    Prefixes that vLLM itself does not have any more are loaded while other requests go on; full blocks are stored
    as they are computed, without delaying the forward pass; a block that cannot be loaded is computed, by vLLM.

    vLLM makes one for its scheduler and one for each worker, in one process or in several.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._settings = Settings.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        refuse_what_is_not_supported(vllm_config, kv_cache_config, self._settings)
        # What cannot be loaded is computed; vLLM's default is that the request fails.
        vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
        self._opened: Worker | None = None
        self.scheduler = Scheduler(self._settings, vllm_config.cache_config.block_size)
        wanted = vllm_config.kv_events_config
        if wanted is not None and wanted.enable_kv_cache_events:
            self.scheduler.changes = []

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not stored is a miss later, and nothing worse."""
        return False

    # The scheduler's side.

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """The workers have opened their caches."""
        hellos = {rank: hello for rank, hello in metadata.items() if isinstance(hello, Hello)}
        ranks = self._vllm_config.parallel_config.tensor_parallel_size
        if sorted(hellos) != list(range(ranks)):
            raise InternalError(f"kvtile.vllm: of {ranks} workers, those of ranks {sorted(hellos)} have opened their caches")
        self.scheduler.greet(hellos)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond those that vLLM has itself."""
        return self.scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """vLLM has made room for what was found, or wants none of it."""
        self.scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What the workers load and store in this step."""
        return self.scheduler.orders(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """What the workers say after a step."""
        if isinstance(connector_output.kv_connector_worker_meta, Report):
            self.scheduler.take(connector_output.kv_connector_worker_meta)
        self.scheduler.finishing -= connector_output.finished_sending or set()
        self.scheduler.loading -= connector_output.finished_recving or set()

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """However a request ends, its blocks stay until its stores end."""
        return self.scheduler.finished(request), None

    def has_pending_block_frees(self) -> bool:
        """Whether blocks of ended requests are free soon."""
        return bool(self.scheduler.finishing)

    def take_events(self) -> Iterable[KVCacheEvent]:
        """What came to kvtile's tiers and left them."""
        if not self.scheduler.changes:
            return ()
        changes, self.scheduler.changes = self.scheduler.changes, []
        return events_of(changes, self.scheduler.page_size)

    def reset_cache(self) -> bool | None:
        """Forgets all blocks, on disk too, with the next step; later ones are for this process alone."""
        return self.scheduler.clear()

    # The worker's side.

    @property
    def _worker(self) -> Worker:
        if self._opened is None:
            raise ClosedError("kvtile.vllm: vLLM uses its connector before it has registered its KV cache, or after the end")
        return self._opened

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Opens the cache over vLLM's tensors.

        Raises SettingsError for a second engine: vLLM gives it the connector of the first (one a process), with which it
        would read and write the first one's blocks.
        """
        self._opened = open_worker(self._vllm_config, kv_caches, self._settings)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """What the scheduler has to know from the start."""
        return self._worker.hello()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Blocks of preempted requests are about to be overwritten: what still reads them comes first."""
        if isinstance(kv_connector_metadata, Orders) and kv_connector_metadata.preempted:
            self._worker.wait_for_stores(kv_connector_metadata.preempted)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Loads start before the forward pass of the step, beside which they run."""
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin_step(self._orders())

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Nothing: loads have started."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Waits for a layer of what this step loads and computes with; what comes from disk was waited for before."""
        self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are stored when all of their layers are computed."""

    def wait_for_save(self) -> None:
        """Starts storing what this step has computed; it does not wait."""
        self._worker.end_step(self._orders())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose stores ended after them, and requests whose loads have ended."""
        loaded = self._worker.take_finished_loads(idle=self._orders().idle)
        return self._worker.take_finished_stores() or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that vLLM computes itself."""
        return self._worker.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What the scheduler has to know after a step."""
        report = self._worker.take_report()
        return Report({self._worker.rank: report}) if report is not None else None

    # Both sides.

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """What was counted since the last step."""
        counted = self.scheduler.stats if self.role == KVConnectorRole.SCHEDULER else self._worker.stats
        return counted.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics that have come from another process."""
        return KvtileStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        """The counts among vLLM's own metrics."""
        return KvtilePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """A worker brings everything to the disk and ends its cache."""
        if self._opened is not None:
            self._opened = None
            close_worker(self._vllm_config)

    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, Orders):
            raise InternalError(f"kvtile.vllm: {type(metadata).__name__} is not the metadata of this connector")
        return metadata
