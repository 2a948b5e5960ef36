"""The scheduler's side: decides what is loaded and stored, for all workers alike."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile import Identity, TokenHasher
from kvtile._errors import InternalError
from kvtile.vllm._adapters import Adapter, Digests
from kvtile.vllm._directory import Directory, leading_tiers
from kvtile.vllm._keys import RequestKeys
from kvtile.vllm._messages import Change, Hello, Keys, LoadOrder, Orders, Report, StoreOrder
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

# A step waits no longer than this for a disk: a request that comes meanwhile would wait too.
STEP_DISK_SECONDS = 1.0

# Below vLLM's own, so that it is seen where that is.
logger = init_logger("vllm.kvtile")


@dataclass
class Tracked:
    """A request that has not ended.

    Attributes:
        keys: the keys of its full blocks; None where they are not kept.
        adapter: the adapter that it is computed with.
        stored: leading blocks that need not be stored.
        has_room: whether the tiers have room for more of it.
        first: the block from which on it is loaded.
        found: leading blocks that the workers had when it was scheduled.
        in_step: whether it is loaded by the step that computes with it.
        counted, loaded: whether it was counted as looked up, and whether it was loaded.
    """

    request: Request
    keys: RequestKeys | None
    adapter: Adapter | None = None
    stored: int = 0
    has_room: bool = True
    first: int = 0
    found: int = 0
    in_step: bool = False
    counted: bool = False
    loaded: bool = False


class Scheduler:
    """What is known of requests and of the workers' caches."""

    def __init__(self, settings: Settings, page_size: int) -> None:
        self.page_size = page_size
        self.stats = KvtileStats()
        self.directories: dict[int, Directory] = {}
        # Stores that the workers were told of and that have not ended, by request.
        self.announced: dict[str, int] = {}
        # Requests that have ended and whose blocks vLLM keeps until their stores end.
        self.finishing: set[str] = set()
        # Requests whose loads are on their way while they wait.
        self.loading: set[str] = set()
        self.tracked: dict[str, Tracked] = {}
        # What has happened since somebody asked last; None where nobody will.
        self.changes: list[Change] | None = None
        self._settings = settings
        # By rank; ranks that keep the same heads have the same one.
        self._hashers: dict[int, TokenHasher] = {}
        self._orders = Orders()
        self._loads_in_step = True
        self._disk_seconds: dict[int, float] = {}
        self._adapters = Digests()
        self._unknown_adapters: set[str] = set()
        # What blocks depend on since they were forgotten, when the weights may have become other ones.
        self._epoch: bytes | None = None

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """The workers have opened their caches."""
        identities = {hello.identity for hello in hellos.values()}
        salt = self._settings.salt
        hashers = {identity: TokenHasher(Identity.from_json(identity), salt=salt) for identity in identities}
        self._hashers = {rank: hashers[hello.identity] for rank, hello in hellos.items()}
        self.directories = {rank: Directory(hello.changes) for rank, hello in hellos.items()}

    def matched(self, request: Request, computed: int) -> tuple[int, bool]:
        """Tokens that can be loaded beyond those that vLLM has itself, and whether that takes longer than a step."""
        tracked = self._track(request)
        if tracked.keys is None:
            return 0, False
        # The last token is always computed: its logits are wanted.
        keys = tracked.keys.of((request.num_tokens - 1) // self.page_size)
        full = len(next(iter(keys.values())))
        tracked.loaded = False
        tracked.has_room = True
        if request.skip_reading_prefix_cache:
            tracked.stored = tracked.found = 0
            return 0, False
        tiers = leading_tiers(self.directories, keys)
        here = computed // self.page_size
        tiers = self._without_slow(tiers, here)
        tracked.stored = tracked.found = found = len(tiers)
        if not tracked.counted:
            tracked.counted = True
            self.stats.add(looked_up_blocks=full, found_blocks=found)
        if found <= here or computed % self.page_size:
            return 0, False
        tracked.first = here
        # Host memory is faster than computing, so its blocks come while the step computes. Those of a disk do so where
        # no other request is there to wait for them, layer by layer. Where there are several workers, one may miss what
        # the others have, and must say so before anything is computed.
        on_disk = tiers[here:].count("disk")
        tracked.in_step = self._loads_in_step and len(self.directories) == 1 and (not on_disk or self._is_worth_waiting(on_disk))
        return (found - here) * self.page_size, not tracked.in_step

    def _is_worth_waiting(self, on_disk: int) -> bool:
        """Whether a step may wait for so many blocks of a disk: no other request is delayed, and the disk is known to be fast."""
        block_seconds = max(self._disk_seconds.values(), default=None)
        return len(self.tracked) == 1 and block_seconds is not None and on_disk * block_seconds <= STEP_DISK_SECONDS

    def _without_slow(self, tiers: list[str], here: int) -> list[str]:
        """Up to the first block on disk, where reading the disk takes longer than computing from there on."""
        rate = self._settings.recompute_tokens_per_second
        on_disk = tiers[here:].count("disk")
        if rate is None or not on_disk:
            return tiers
        first = tiers.index("disk", here)
        computing = (len(tiers) - first) * self.page_size / rate
        return tiers[:first] if on_disk * max(self._disk_seconds.values(), default=0) > computing else tiers

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        """vLLM has made room for what was found, or wants none of it."""
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
        """What the workers do in this step."""
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
        """Blocks of a request that are full after a step and were not before."""
        request, keys = tracked.request, tracked.keys
        if keys is None or not tracked.has_room:
            return None
        if request.resumable:
            same = keys.follow()
            tracked.stored = tracked.stored if same is None else min(tracked.stored, same)
        # Tokens that were only guessed have no block: their KV may be wrong.
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
        """A block is worth nothing without those before it: where they have left the tiers, they are stored again, from
        the first one that is in none."""
        first = tracked.stored
        if not first or self.announced.get(tracked.request.request_id):
            # What is being stored is in no tier yet.
            return first
        last = {rank: of_rank[first - 1 : first] for rank, of_rank in keys.items()}
        if leading_tiers(self.directories, last):
            return first
        before = {rank: of_rank[:first] for rank, of_rank in keys.items()}
        return len(leading_tiers(self.directories, before))

    def finished(self, request: Request) -> bool:
        """However a request ends: whether vLLM keeps its blocks, because they are still read."""
        name = request.request_id
        self.tracked.pop(name, None)
        if not self.announced.get(name):
            return False
        self.finishing.add(name)
        self._orders.held.add(name)
        return True

    def take(self, report: Report) -> None:
        """What the workers say after a step."""
        for rank, said in report.ranks.items():
            self.directories[rank].apply(said.changes)
            # A block's events are those of its first heads.
            if self.changes is not None and rank == min(self.directories):
                self.changes.extend(said.changes)
            for name, count in said.ended.items():
                left = self.announced.pop(name, 0) - count
                if left > 0:
                    self.announced[name] = left
            for name, first in said.store_from.items():
                tracked = self.tracked.get(name)
                if tracked is not None:
                    tracked.stored = min(tracked.stored, first)
            for name in said.without_room:
                tracked = self.tracked.get(name)
                if tracked is not None:
                    # The tail of a chain whose head fills the tiers would be offered with every block.
                    tracked.has_room = False
            self._loads_in_step &= said.loads_in_step
            if said.disk_seconds:
                self._disk_seconds[rank] = said.disk_seconds

    def clear(self) -> bool:
        """Forgets all blocks with the next step. False where requests still wait for some of them, which they will use.

        vLLM asks for this when its weights have become other ones, which the identity does not know: what is stored from
        now on is for this process alone, and of requests that are on their way nothing is.
        """
        for directory in self.directories.values():
            directory.clear()
        self._orders.clear = True
        self._epoch = secrets.token_bytes(16)
        self.tracked.clear()
        logger.info("kvtile has forgotten all blocks; those that follow are kept for this process alone")
        return not self.loading

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
