"""The scheduler's side: decides what is loaded and stored, for all workers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtile import Identity, TokenHasher, TokenSequence
from kvtile.vllm._directory import Directory, leading_tiers
from kvtile.vllm._messages import Change, Hello, Keys, LoadOrder, Orders, Report, StoreOrder
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass
class Tracked:
    """A request that has not ended.

    Attributes:
        sequences: its tokens and the keys of its full blocks, by rank.
        stored: leading blocks that need not be stored.
        first: the block from which on it is loaded.
        found: leading blocks that the workers had when it was scheduled.
        in_step: whether it is loaded by the step that computes with it.
        counted, loaded: whether it was counted as looked up, and whether it was loaded.
    """

    request: Request
    sequences: dict[int, TokenSequence]
    stored: int = 0
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
        self.tracked: dict[str, Tracked] = {}
        # What has happened since somebody asked last; None where nobody will.
        self.changes: list[Change] | None = None
        self._settings = settings
        # By rank; ranks that keep the same heads have the same one.
        self._hashers: dict[int, TokenHasher] = {}
        self._orders = Orders()
        self._loads_in_step = True
        self._disk_seconds: dict[int, float] = {}

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """The workers have opened their caches."""
        identities = {hello.identity for hello in hellos.values()}
        salt = self._settings.salt
        hashers = {identity: TokenHasher(Identity.from_json(identity), salt=salt) for identity in identities}
        self._hashers = {rank: hashers[hello.identity] for rank, hello in hellos.items()}
        self.directories = {rank: Directory(hello.changes) for rank, hello in hellos.items()}

    def matched(self, request: Request, computed: int) -> tuple[int, bool]:
        """Tokens that can be loaded beyond those that vLLM has itself, and whether that takes longer than a step."""
        if not request.prompt_token_ids or request.pooling_params is not None:
            return 0, False
        tracked = self._track(request)
        # The last token is always computed: its logits are wanted.
        full = (request.num_tokens - 1) // self.page_size
        keys = self._keys(tracked, full)
        tracked.loaded = False
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
        # Host memory is faster than computing, so its blocks come while the step computes; others do not wait for
        # the disk. Where there are several workers, one may miss what the others have, and must say so before
        # anything is computed.
        tracked.in_step = self._loads_in_step and len(self.directories) == 1 and "disk" not in tiers[here:]
        return (found - here) * self.page_size, not tracked.in_step

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
        tracked.loaded = True
        end = tracked.first + external // self.page_size
        ids = list(blocks.get_block_ids()[0][tracked.first : end])
        keys = self._keys(tracked, end)
        load = LoadOrder(request.request_id, keys, tracked.first, ids, tracked.in_step)
        self._orders.loads.append(load)

    def orders(self, output: SchedulerOutput) -> Orders:
        """What the workers do in this step."""
        orders, self._orders = self._orders, Orders()
        orders.idle = not output.total_num_scheduled_tokens
        orders.preempted = set(output.preempted_req_ids or ())
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        for name in computed:
            tracked = self.tracked.get(name)
            if tracked is not None and tracked.found and not tracked.loaded:
                orders.uses.append(self._keys(tracked, tracked.found))
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
        request = tracked.request
        # Tokens that were only guessed have no block: their KV may be wrong.
        full = min(computed, request.num_tokens) // self.page_size
        if full <= tracked.stored:
            return None
        table = output.kv_connector_block_state.get_block_ids(request.request_id)
        if table is None:
            return None
        first, tracked.stored = tracked.stored, full
        return StoreOrder(request.request_id, self._keys(tracked, full), first, list(table[0][first:full]))

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
            self._loads_in_step &= said.loads_in_step
            if said.disk_seconds:
                self._disk_seconds[rank] = said.disk_seconds

    def clear(self) -> None:
        """Forgets all blocks with the next step."""
        for directory in self.directories.values():
            directory.clear()
        self._orders.clear = True

    def _keys(self, tracked: Tracked, blocks: int) -> Keys:
        """Those of a request's leading blocks."""
        tokens = tracked.request.all_token_ids
        keys: dict[TokenSequence, list[bytes]] = {}
        for sequence in tracked.sequences.values():
            if sequence not in keys:
                sequence.extend(tokens[len(sequence) : blocks * self.page_size])
                keys[sequence] = sequence.keys[:blocks]
        return {rank: keys[sequence] for rank, sequence in tracked.sequences.items()}

    def _track(self, request: Request) -> Tracked:
        tracked = self.tracked.get(request.request_id)
        if tracked is None:
            if not self._hashers:
                raise RuntimeError("kvtile.vllm: vLLM schedules a request before its workers have opened their caches")
            extra = extra_of(request)
            made = {hasher: TokenSequence(hasher, extra=extra) for hasher in self._hashers.values()}
            sequences = {rank: made[hasher] for rank, hasher in self._hashers.items()}
            tracked = self.tracked[request.request_id] = Tracked(request, sequences)
        return tracked


def extra_of(request: Request) -> list[bytes]:
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
