"""The connector: what vLLM's scheduler and worker call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from kvtile import TokenSequence
from kvtile.vllm._engine import Engine, find_engine, forget_engine, open_engine
from kvtile.vllm._events import EventSource
from kvtile.vllm._layout import refuse_what_is_not_supported
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

# Seconds to wait for a load where the engine has nothing else to do.
_PATIENCE = 0.005


@dataclass
class LoadOrder:
    """Blocks that the scheduler has made room for: those of a request from its block ``first`` on."""

    request: str
    first: int
    blocks: list[int]
    # Whether the step that loads them also computes with them, layer by layer.
    in_step: bool


@dataclass
class StoreOrder:
    """Blocks that are full after this step; ``keys`` are those of the request from its first block on."""

    request: str
    keys: list[bytes]
    first: int
    blocks: list[int]


@dataclass
class Orders(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler tells the worker for one step."""

    loads: list[LoadOrder] = field(default_factory=list)
    stores: list[StoreOrder] = field(default_factory=list)
    preempted: set[str] = field(default_factory=set)
    # Whether nothing is computed in this step.
    idle: bool = False


@dataclass
class _Tracked:
    """A request, the keys of its full blocks, how many of these need not be stored, which is loaded first and how."""

    request: Request
    sequence: TokenSequence
    stored: int = 0
    first: int = 0
    in_step: bool = False


class KvtileConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Keeps vLLM's KV blocks in host memory and on disk.

    Prefixes that vLLM itself does not have any more are loaded while other requests go on; full blocks are stored
    as they are computed, without delaying the forward pass; a block that cannot be loaded is computed, by vLLM.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._settings = Settings.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        refuse_what_is_not_supported(vllm_config, kv_cache_config)
        # What cannot be loaded is computed; vLLM's default is that the request fails.
        vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
        self._opened: Engine | None = None
        self._tracked: dict[str, _Tracked] = {}
        self._loads: list[LoadOrder] = []
        self._events: EventSource | None = None
        wanted = vllm_config.kv_events_config
        if role == KVConnectorRole.SCHEDULER and wanted is not None and wanted.enable_kv_cache_events:
            self._events = EventSource(self._engine.cache, self._engine.page_size)

    @property
    def _engine(self) -> Engine:
        if self._opened is None:
            self._opened = find_engine(self._vllm_config)
        return self._opened

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not stored is a miss later, and nothing worse."""
        return False

    # The scheduler's side.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond those that vLLM has itself."""
        engine, name = self._engine, request.request_id
        engine.release_match(name)
        if not request.prompt_token_ids or request.pooling_params is not None:
            return 0, False
        tracked = self._track(request)
        # The last token is always computed: its logits are wanted.
        full = (request.num_tokens - 1) // engine.page_size
        tracked.sequence.extend(request.all_token_ids[len(tracked.sequence) : full * engine.page_size])
        keys = tracked.sequence.keys[:full]
        if request.skip_reading_prefix_cache:
            tracked.stored = 0
            return 0, False
        found = engine.cache.lookup(keys)
        engine.stats.add(looked_up_blocks=len(keys), found_blocks=found.blocks)
        tracked.stored = found.blocks
        here = num_computed_tokens // engine.page_size
        if found.blocks <= here or num_computed_tokens % engine.page_size:
            found.release()
            return 0, False
        found = found.skip(here)
        tracked.first = here
        # Host memory is faster than computing, so its blocks come while the step computes; others do not wait
        # for the disk.
        tracked.in_step = engine.loads_in_step and found.blocks_in("host") == found.blocks
        engine.matches[name] = found
        return found.blocks * engine.page_size, not tracked.in_step

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """vLLM has made room for what was found, or wants none of it."""
        engine, name = self._engine, request.request_id
        if not num_external_tokens:
            engine.release_match(name)
            return
        match = engine.matches.get(name)
        if match is None:
            raise RuntimeError(f"kvtile.vllm: vLLM loads {num_external_tokens} tokens of {name}, which were not offered")
        wanted = num_external_tokens // engine.page_size
        engine.matches[name] = match.truncate(wanted)
        tracked = self._tracked[name]
        first = tracked.first
        ids = blocks.get_block_ids()[0]
        self._loads.append(LoadOrder(name, first, list(ids[first : first + wanted]), tracked.in_step))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What the worker loads and stores in this step."""
        engine = self._engine
        preempted = set(scheduler_output.preempted_req_ids or ())
        orders = Orders(self._loads, [], preempted, idle=not scheduler_output.total_num_scheduled_tokens)
        self._loads = []
        computed = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
        cached = scheduler_output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            tracked = self._tracked.get(name)
            if tracked is not None:
                store = self._full_blocks(tracked, computed[name] + scheduled, scheduler_output)
                if store is not None:
                    orders.stores.append(store)
                    engine.announced[name] = engine.announced.get(name, 0) + 1
        return orders

    def _full_blocks(self, tracked: _Tracked, computed: int, output: SchedulerOutput) -> StoreOrder | None:
        """Blocks of a request that are full after a step and were not before."""
        engine, request = self._engine, tracked.request
        name = request.request_id
        tracked.stored = min(tracked.stored, engine.rewind.pop(name, tracked.stored))
        # Tokens that were only guessed have no block: their KV may be wrong.
        full = min(computed, request.num_tokens) // engine.page_size
        if full <= tracked.stored:
            return None
        tracked.sequence.extend(request.all_token_ids[len(tracked.sequence) : full * engine.page_size])
        table = output.kv_connector_block_state.get_block_ids(name)
        if table is None:
            return None
        first, tracked.stored = tracked.stored, full
        return StoreOrder(name, tracked.sequence.keys[:full], first, list(table[0][first:full]))

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """However a request ends, its pins end; its blocks stay until its stores end."""
        engine, name = self._engine, request.request_id
        engine.release_match(name)
        engine.open.discard(name)
        engine.rewind.pop(name, None)
        self._tracked.pop(name, None)
        if engine.announced.get(name):
            engine.finishing.add(name)
            return True, None
        return False, None

    def has_pending_block_frees(self) -> bool:
        """Whether blocks of ended requests are free soon."""
        return bool(self._engine.finishing)

    def take_events(self) -> Iterable[KVCacheEvent]:
        """What came to kvtile's tiers and left them."""
        return self._events.take() if self._events is not None else ()

    def reset_cache(self) -> bool | None:
        """Forgets all blocks, on disk too."""
        self._engine.cache.clear()
        return True

    def _track(self, request: Request) -> _Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            sequence = TokenSequence(self._engine.hasher, extra=_extra_of(request))
            tracked = self._tracked[request.request_id] = _Tracked(request, sequence)
            self._engine.open.add(request.request_id)
        return tracked

    # The worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Opens the cache over vLLM's tensors."""
        self._opened = open_engine(self._vllm_config, kv_caches, self._settings)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Blocks of preempted requests are about to be overwritten: what still reads them comes first."""
        if isinstance(kv_connector_metadata, Orders) and kv_connector_metadata.preempted:
            self._engine.wait_for_stores(kv_connector_metadata.preempted)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Loads start before the forward pass of the step, beside which they run."""
        super().bind_connector_metadata(connector_metadata)
        for load in self._orders().loads:
            self._engine.start_load(load.request, load.first, load.blocks, in_step=load.in_step)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Nothing: loads have started."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Waits for a layer of what this step loads and computes with; what comes from disk was waited for before."""
        self._engine.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are stored when all of their layers are computed."""

    def wait_for_save(self) -> None:
        """Starts storing what this step has computed; it does not wait."""
        sound = self._engine.end_step_loads()
        for store in self._orders().stores:
            if sound:
                self._engine.start_store(store.request, store.keys, store.first, store.blocks)
            else:
                # It may be computed from what has not come; vLLM computes it again.
                self._engine.skip_store(store.request, store.first)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose stores ended after them, and requests whose loads have ended."""
        engine = self._engine
        patience = _PATIENCE if self._orders().idle else 0
        loaded = engine.take_finished_loads(patience)
        return engine.take_finished_stores() or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that vLLM computes itself."""
        failed, self._engine.failed_blocks = self._engine.failed_blocks, set()
        return failed

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """What was counted since the last step."""
        return self._engine.stats.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Statistics that have come from another process."""
        return KvtileStats(data)

    def shutdown(self) -> None:
        """Brings everything to the disk and ends the cache."""
        self._opened = None
        forget_engine(self._vllm_config)

    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        if not isinstance(metadata, Orders):
            raise TypeError(f"kvtile.vllm: {type(metadata).__name__} is not the metadata of this connector")
        return metadata


def _extra_of(request: Request) -> list[bytes]:
    """What makes the KV of equal tokens differ: adapters, images, and who may share."""
    extra = []
    if request.lora_request is not None:
        extra.append(f"lora:{request.lora_request.lora_name}:{request.lora_request.lora_path}".encode())
    if request.cache_salt:
        extra.append(f"salt:{request.cache_salt}".encode())
    for feature in request.mm_features or ():
        position = feature.mm_position
        extra.append(f"mm:{feature.identifier}:{position.offset}:{position.length}".encode())
    return extra
