"""The scheduler side: decides which blocks all workers load and store."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile import Identity, TierDirectory, TokenHasher, TraceRecorder
from kvtile._errors import InternalError
from kvtile._kvtile import reading_pays
from kvtile.vllm._adapters import Adapter, Digests
from kvtile.vllm._directory import are_shared, directory_of, leading_tiers, on_disk
from kvtile.vllm._events import TierChanges
from kvtile.vllm._keys import RequestKeys
from kvtile.vllm._messages import Change, Hello, Keys, LoadOrder, Orders, RankReport, Report, SeekOrder, StoreOrder
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

# The longest time that a step waits for a disk, because a request that arrives during the step waits too.
STEP_DISK_SECONDS = 1.0

# A child of vLLM's logger, so its settings apply.
logger = init_logger("vllm.kvtile")


@dataclass
class Tracked:
    """A request that has not ended.

    Attributes:
        keys: the keys of its full blocks; None if the request is not cached.
        adapter: the adapter of the request.
        stored: leading blocks that need no store.
        has_room: whether the tiers have room for more of its blocks.
        first: the first block to load.
        found: leading blocks that the workers had when the request was scheduled.
        in_step: whether the step that computes with the blocks also loads them.
        unanswered: the ranks whose shared store has not answered; None before the query.
        waits_until: when the request stops waiting for the shared store.
        counted, loaded: whether the request was counted as looked up, and whether it was loaded.
        stops: of a model with several groups, the stops that need no store. Its ``stored`` and ``first`` are tokens, and
            ``found`` are units of its keys.
        branch: where the request leaves what is stored, if no stop is there; 0 otherwise.
        has_failed: whether a load has failed; vLLM then computes the request.
    """

    request: Request
    keys: RequestKeys | None
    adapter: Adapter | None = None
    stored: int = 0
    has_room: bool = True
    first: int = 0
    found: int = 0
    in_step: bool = False
    unanswered: set[int] | None = None
    waits_until: float = 0.0
    counted: bool = False
    loaded: bool = False
    stops: set[int] = field(default_factory=set)
    branch: int = 0
    has_failed: bool = False


class Scheduler:
    """The state of the requests, and of the workers' caches."""

    def __init__(self, settings: Settings, page_size: int) -> None:
        self.page_size = page_size
        self.stats = KvtileStats()
        self.directories: dict[int, TierDirectory] = {}
        # The number of ordered stores that have not completed, by request.
        self.announced: dict[str, int] = {}
        # Ended requests whose blocks vLLM keeps until their stores complete.
        self.finishing: set[str] = set()
        # Requests that wait for their loads.
        self.loading: set[str] = set()
        self.tracked: dict[str, Tracked] = {}
        # Changes since vLLM last took the events; None if events are disabled.
        self.changes: TierChanges | None = None
        self._settings = settings
        # By rank. All ranks share a hasher, unless the order inside their blocks is unknown.
        self._hashers: dict[int, TokenHasher] = {}
        self._recorder: TraceRecorder | None = None
        self._orders = Orders()
        self._loads_in_step = True
        self._tier_seconds: dict[int, dict[str, tuple[float, float]]] = {}
        self._adapters = Digests()
        self._unknown_adapters: set[str] = set()
        # An extra key of all blocks since the last clear, because the weights may have changed.
        self._epoch: bytes | None = None

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """Receives the workers' handshakes, once they have opened their caches."""
        identities = {rank: Identity.from_json(hello.identity) for rank, hello in hellos.items()}
        models = {identity.model_fingerprint: identity for identity in identities.values()}
        hashers = {model: TokenHasher(identity, salt=self._settings.salt) for model, identity in models.items()}
        self._hashers = {rank: hashers[identity.model_fingerprint] for rank, identity in identities.items()}
        self.directories = {rank: directory_of(hello.changes) for rank, hello in hellos.items()}
        for rank, hello in hellos.items():
            # The blocks that the folder has kept.
            self._announce(rank, hello.changes)
        if self._settings.record is not None:
            self._recorder = TraceRecorder(self._settings.record, self.page_size)

    def matched(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """The number of tokens that can be loaded beyond vLLM's own, and whether the load takes longer than a step. None
        while the shared store has not answered: vLLM calls again."""
        tracked = self._track(request)
        if tracked.keys is None:
            return 0, False
        # The last token is always computed, because it gives the logits.
        keys = tracked.keys.of((request.num_tokens - 1) // self.page_size)
        full = len(next(iter(keys.values())))
        tracked.loaded = False
        tracked.has_room = True
        if request.skip_reading_prefix_cache:
            tracked.stored = tracked.found = 0
            return 0, False
        tiers = leading_tiers(self.directories, keys)
        if len(tiers) < full and self._waits_for_store(tracked, keys):
            return None, False
        here = computed // self.page_size
        tiers = self._without_slow(tiers, here)
        tracked.stored = tracked.found = found = len(tiers)
        if not tracked.counted:
            tracked.counted = True
            self.stats.add(looked_up_blocks=full, found_blocks=found)
        if found <= here or computed % self.page_size:
            return 0, False
        tracked.first = here
        # Host memory is faster than computing, so its blocks load while the step computes. Blocks on disk do so only if
        # no other request would wait, layer by layer. With several workers, one may miss a block that the others have,
        # and must report this before the step computes, so loads never run in a step.
        slow = tiers[here:]
        fast = not on_disk(slow) or (not are_shared(slow) and self._is_worth_waiting(slow))
        tracked.in_step = self._loads_in_step and len(self.directories) == 1 and fast
        return (found - here) * self.page_size, not tracked.in_step

    def _waits_for_store(self, tracked: Tracked, keys: Keys) -> bool:
        """Queries the shared store for the blocks of a request, once. Whether the request waits for the answer."""
        if not self._settings.seeks:
            return False
        if tracked.unanswered is None:
            tracked.unanswered = set(self.directories)
            tracked.waits_until = time.monotonic() + self._settings.seek_seconds
            self._orders.seeks.append(SeekOrder(tracked.request.request_id, keys))
            self.stats.add(seeks=1)
            return True
        if tracked.unanswered and time.monotonic() >= tracked.waits_until:
            tracked.unanswered = set()
            self.stats.add(seeks_late=1)
        return bool(tracked.unanswered)

    def _is_worth_waiting(self, tiers: list[str]) -> bool:
        """Whether a step may wait for blocks of these tiers: no other request is delayed, and the reads are fast enough."""
        seconds = self._reading_seconds(tiers)
        return len(self.tracked) == 1 and None not in seconds and sum(filter(None, seconds)) <= STEP_DISK_SECONDS

    def _reading_seconds(self, tiers: list[str]) -> list[float | None]:
        """For each tier below host memory that blocks are in, the seconds of reading them at the slowest worker; None
        where no worker has read from it yet."""
        counts = Counter(tier for tier in tiers if tier != "host")
        known = self._tier_seconds.values()
        return [
            max((of[tier][0] + of[tier][1] * count for of in known if tier in of), default=None) for tier, count in counts.items()
        ]

    def _without_slow(self, tiers: list[str], here: int) -> list[str]:
        """Cuts the hit at the first block below host memory, if reading takes longer than computing from there on."""
        rate = self._settings.recompute_tokens_per_second
        if rate is None or not on_disk(tiers[here:]):
            return tiers
        first = next(at for at, tier in enumerate(tiers) if at >= here and tier != "host")
        reading = sum(filter(None, self._reading_seconds(tiers[here:])))
        return tiers if reading_pays(reading, (len(tiers) - first) * self.page_size, rate) else tiers[:first]

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        """vLLM has allocated blocks for the tokens to load, or declines to load them."""
        if not external:
            return
        tracked = self.tracked[request.request_id]
        if tracked.keys is None:
            raise InternalError(f"kvtile.vllm: request {request.request_id} has no keys, and vLLM loads {external} tokens of it")
        tracked.loaded = True
        end = tracked.first + external // self.page_size
        ids = list(blocks.get_block_ids()[0][tracked.first : end])
        keys = tracked.keys.of(end)
        load = LoadOrder(request.request_id, keys, tracked.first, ids, tracked.in_step, tracked.adapter)
        self._orders.loads.append(load)
        if not tracked.in_step:
            self.loading.add(request.request_id)

    def orders(self, output: SchedulerOutput) -> Orders:
        """The workers' orders for this step."""
        orders, self._orders = self._orders, Orders()
        orders.idle = not output.total_num_scheduled_tokens
        orders.preempted = set(output.preempted_req_ids or ())
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        for name in computed:
            tracked = self.tracked.get(name)
            if tracked is not None and tracked.keys is not None and tracked.found and not tracked.loaded:
                orders.uses.append(tracked.keys.of(tracked.found))
        cached = output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, scheduled in output.num_scheduled_tokens.items():
            tracked = self.tracked.get(name)
            store = self._full_blocks(tracked, computed[name] + scheduled, output) if tracked is not None else None
            if store is not None:
                orders.stores.append(store)
                self.announced[name] = self.announced.get(name, 0) + len(self.directories)
        return orders

    def _full_blocks(self, tracked: Tracked, computed: int, output: SchedulerOutput) -> StoreOrder | None:
        """The order to store the blocks of a request that this step fills; None without any."""
        request, keys = tracked.request, tracked.keys
        if keys is None or not tracked.has_room:
            return None
        if request.resumable:
            same = keys.follow()
            tracked.stored = tracked.stored if same is None else min(tracked.stored, same)
        # Draft tokens fill no block: their KV may be wrong.
        full = min(computed, request.num_tokens) // self.page_size
        full = full if keys.limit is None else min(full, keys.limit)
        if full <= tracked.stored:
            return None
        table = output.kv_connector_block_state.get_block_ids(request.request_id)
        if table is None:
            return None
        of_request = keys.of(full)
        first = self._first_to_store(tracked, of_request)
        tracked.stored = full
        ids = list(table[0][first:full])
        return StoreOrder(request.request_id, of_request, first, ids, tracked.adapter)

    def _first_to_store(self, tracked: Tracked, keys: Keys) -> int:
        """The first block to store. A lookup needs all blocks before a block, so evicted ancestors are stored again,
        from the first one that is in no tier."""
        first = tracked.stored
        if not first or self.announced.get(tracked.request.request_id):
            # Blocks of stores in flight are in no tier yet.
            return first
        last = {rank: of_rank[first - 1 : first] for rank, of_rank in keys.items()}
        if leading_tiers(self.directories, last):
            return first
        before = {rank: of_rank[:first] for rank, of_rank in keys.items()}
        return len(leading_tiers(self.directories, before))

    def finished(self, request: Request, tables: Sequence[Sequence[int]] = ()) -> bool:
        """Ends a request, whose blocks are in ``tables``. Returns whether vLLM must keep them, because stores still read
        them."""
        name = request.request_id
        self._record(request, self.tracked.pop(name, None))
        if not self.announced.get(name):
            return False
        self.finishing.add(name)
        self._orders.held.add(name)
        return True

    def _record(self, request: Request, tracked: Tracked | None) -> None:
        """Adds a request that has ended to the trace."""
        if self._recorder is None or tracked is None or tracked.keys is None:
            return
        keys = tracked.keys.of(request.num_prompt_tokens // self.page_size)
        self._recorder.record(
            keys[min(keys)], request.num_prompt_tokens, request.num_output_tokens, arrived=request.arrival_time
        )

    def close(self) -> None:
        """Ends the recording."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def take(self, report: Report) -> None:
        """Receives the workers' reports after a step."""
        for rank, said in report.ranks.items():
            self._apply(rank, said)
            for name, count in said.ended.items():
                left = self.announced.pop(name, 0) - count
                if left > 0:
                    self.announced[name] = left
            for name in said.sought:
                tracked = self.tracked.get(name)
                if tracked is not None and tracked.unanswered:
                    tracked.unanswered.discard(rank)
            for name, first in said.store_from.items():
                tracked = self.tracked.get(name)
                if tracked is not None:
                    tracked.stored = min(tracked.stored, first)
            for name in said.without_room:
                tracked = self.tracked.get(name)
                if tracked is not None:
                    # Stop here: the head of the chain fills the tiers, and each later block would be refused too.
                    tracked.has_room = False
            self._loads_in_step &= said.loads_in_step
            if said.tier_seconds:
                self._tier_seconds[rank] = said.tier_seconds

    def _apply(self, rank: int, said: RankReport) -> None:
        """Updates the view of a worker's tiers."""
        self.directories[rank].apply(said.changes)
        self._announce(rank, said.changes)

    def _announce(self, rank: int, changes: list[Change]) -> None:
        """Adds changes to the events. vLLM gets one event per block: that of the lowest rank."""
        if self.changes is not None and rank == min(self.directories):
            self.changes.add(changes, self.page_size)

    def clear(self) -> bool:
        """Removes all blocks with the next step. Returns False if requests still wait for loads, whose blocks they will
        use.

        vLLM resets the cache when it has replaced its weights, which the identity does not cover. So blocks stored from
        now on are for this process only, and requests in flight store nothing.
        """
        self._forget()
        self._orders.clear = True
        self._epoch = secrets.token_bytes(16)
        self.tracked.clear()
        logger.info("kvtile has removed all blocks; later ones are kept for this process only")
        return not self.loading

    def _forget(self) -> None:
        """Empties the view of the workers' tiers."""
        for directory in self.directories.values():
            directory.clear()

    def _track(self, request: Request) -> Tracked:
        tracked = self.tracked.get(request.request_id)
        if tracked is None or tracked.request is not request:
            if not self._hashers:
                raise InternalError("kvtile.vllm: vLLM schedules a request before its workers have opened their caches")
            tracked = self.tracked[request.request_id] = self._begin(request)
        elif tracked.keys is not None and request.resumable:
            tracked.keys.follow()
        return tracked

    def _begin(self, request: Request) -> Tracked:
        lora = request.lora_request
        if request.pooling_params is not None:
            return Tracked(request, None)
        common = [] if self._epoch is None else [b"epoch:" + self._epoch]
        if lora is None:
            return Tracked(request, RequestKeys(request, self._hashers, common))
        digest = self._adapters.of(lora)
        if digest is None:
            if lora.lora_path not in self._unknown_adapters:
                self._unknown_adapters.add(lora.lora_path)
                logger.warning(
                    "requests with the adapter %s are not kept: its files cannot be read from %s",
                    lora.lora_name, lora.lora_path,
                )
            return Tracked(request, None)
        keys = RequestKeys(request, self._hashers, [b"adapter:" + digest, *common])
        return Tracked(request, keys, (lora.lora_int_id, digest))
