"""The scheduler side for models with several groups: finds stops, and decides which ones to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvtile import ModelGroup, ModelIdentity, TierDirectory, TokenHasher
from kvtile._errors import InternalError
from kvtile._kvtile import usable_stops
from kvtile.vllm._directory import directory_of
from kvtile.vllm._groups import NULL_BLOCK, EngineGroup
from kvtile.vllm._messages import GroupLoadOrder, GroupStoreOrder, Hello, Keys, Orders, RankReport
from kvtile.vllm._scheduler import Scheduler, Tracked
from kvtile.vllm._settings import Settings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

# vLLM's tables of blocks of a request.
Tables = Sequence[Sequence[int]]
# Pages of one group: their blocks, and the number of the first page.
Pages = tuple[list[int], int]


class GroupScheduler(Scheduler):
    """The state of the requests, and of the workers' caches by group.

    A request resumes at a stop, where every group of every worker has what its rule needs. Loads end before the step that
    computes with them, because vLLM takes their failures by request.
    """

    def __init__(self, settings: Settings, groups: Sequence[EngineGroup], alignment: int) -> None:
        """``alignment``: tokens that all of vLLM's own hits are multiples of."""
        pages = [group.page_size for group in groups]
        super().__init__(settings, math.gcd(*pages))
        self.group_directories: dict[int, dict[str, TierDirectory]] = {}
        self._groups = groups
        # By name. All ranks have the same rules and page sizes.
        self._members: dict[str, ModelGroup] = {}
        self._full = [group for group in groups if group.is_full]
        self._others = [group for group in groups if not group.is_full]
        self._has_states = any(group.is_state for group in groups)
        self._stop_unit = math.lcm(alignment, *pages)

    def greet(self, hellos: Mapping[int, Hello]) -> None:
        """Receives the workers' handshakes, once they have opened their caches."""
        for rank, hello in hellos.items():
            model = ModelIdentity.from_json(hello.identity)
            self._members = model.groups
            self._hashers[rank] = TokenHasher(model, salt=self._settings.salt)
            self.group_directories[rank] = {group.name: directory_of() for group in self._groups}
        for rank, hello in hellos.items():
            # The blocks that the folder has kept.
            self._apply(rank, RankReport(group_changes=hello.group_changes))

    def matched(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """The number of tokens that can be loaded beyond vLLM's own: up to the longest stop of all workers."""
        tracked = self._track(request)
        if tracked.keys is None:
            return 0, False
        tracked.loaded = False
        tracked.has_room = True
        if request.skip_reading_prefix_cache:
            tracked.stored = tracked.found = tracked.branch = 0
            tracked.stops.clear()
            return 0, False
        # The last token is always computed, because it gives the logits.
        keys = tracked.keys.of((request.num_tokens - 1) // self.page_size)
        stops = self._stops(keys)
        tracked.stored = spine = self._spine(keys)
        tracked.stops = set(stops)
        found = max(stops, default=0)
        tracked.found = found // self.page_size
        branch = spine // self._stop_unit * self._stop_unit
        tracked.branch = branch if branch > found else 0
        if not tracked.counted:
            tracked.counted = True
            units = len(next(iter(keys.values())))
            self.stats.add(looked_up_blocks=units, found_blocks=tracked.found)
        if tracked.has_failed or found <= computed or any(computed % group.page_size for group in self._groups):
            return 0, False
        tracked.first = computed
        return found - computed, True

    def _needs(self, group: EngineGroup, stop: int, have: int = 0) -> range:
        """The pages that a stop needs of a group, without those of the first ``have`` tokens."""
        pages = self._members[group.name].needs(stop)
        first = min(max(pages.start, have // group.page_size), pages.stop)
        return range(first, pages.stop)

    def _stops(self, keys: Keys) -> list[int]:
        """The stops that all workers have. The smallest of their longest stops may be none of some worker."""
        of_ranks = []
        for rank, directories in self.group_directories.items():
            groups = [(self._members[group.name], directories[group.name]) for group in self._groups]
            of_ranks.append(usable_stops(groups, keys[rank], self.page_size, len(keys[rank]) * self.page_size))
        common = set(of_ranks[0]).intersection(*of_ranks[1:])
        return [stop for stop in common if not stop % self._stop_unit]

    def _spine(self, keys: Keys) -> int:
        """Tokens of the leading pages that all groups with full attention of all workers have."""
        found = min(len(of_rank) for of_rank in keys.values()) * self.page_size
        for rank, directories in self.group_directories.items():
            for group in self._full:
                pages = directories[group.name].leading(self._page_keys(keys[rank], group))
                found = min(found, len(pages) * group.page_size)
        return found

    def _page_keys(self, keys: list[bytes], group: EngineGroup) -> list[bytes]:
        """The keys of a group's pages: those at their ends."""
        units = group.page_size // self.page_size
        return keys[units - 1 :: units]

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        """vLLM has allocated blocks for the tokens to load, or declines to load them."""
        if not external:
            return
        tracked = self.tracked[request.request_id]
        stop = tracked.first + external
        if tracked.keys is None or stop != tracked.found * self.page_size:
            raise InternalError(
                f"kvtile.vllm: vLLM loads {external} tokens after {tracked.first} of request {request.request_id}, and the stop "
                f"is {tracked.found * self.page_size}"
            )
        tracked.loaded = True
        tables = blocks.get_block_ids()
        have = {group.name: 0 if group.is_state else tracked.first for group in self._groups}
        pages = {group.name: _at(tables[group.table], self._needs(group, stop, have[group.name])) for group in self._groups}
        keys = tracked.keys.of(stop // self.page_size)
        load = GroupLoadOrder(request.request_id, keys, stop, pages, have, tracked.adapter)
        self._orders.group_loads.append(load)
        self.loading.add(request.request_id)

    def orders(self, output: SchedulerOutput) -> Orders:
        """The workers' orders for this step."""
        orders = super().orders(output)
        computed = _computed(output)
        state = output.kv_connector_block_state
        offers = getattr(state, "boundary_state_offloads", None) or {}
        for name, scheduled in output.num_scheduled_tokens.items():
            tracked = self.tracked.get(name)
            tables = state.get_block_ids(name) if tracked is not None else None
            if tracked is None or tracked.keys is None or tables is None or not tracked.has_room:
                continue
            self._follow(tracked)
            # Draft tokens fill no page: their KV may be wrong.
            end = min(computed[name] + scheduled, tracked.request.num_tokens)
            after = self._known(tracked, end)
            states = {(table, boundary): block for table, block, boundary in offers.get(name, ())}
            wanted = self._wanted(tracked, after)
            for store in self._stores(tracked, (after, end), wanted, tables, states):
                self._announce_store(store, orders)
        return orders

    def _full_blocks(self, tracked: Tracked, computed: int, output: SchedulerOutput) -> None:
        """None: ``orders`` adds the stores of groups itself."""

    def _follow(self, tracked: Tracked) -> None:
        """Stores anew what a session's new input has replaced."""
        if tracked.keys is None or not tracked.request.resumable:
            return
        same = tracked.keys.follow()
        if same is not None:
            tracked.stored = min(tracked.stored, same * self.page_size)
            tracked.stops = {stop for stop in tracked.stops if stop <= tracked.stored}

    def _known(self, tracked: Tracked, tokens: int) -> int:
        """The tokens before the first unknown content."""
        if tracked.keys is None or tracked.keys.limit is None:
            return tokens
        return min(tokens, tracked.keys.limit * self.page_size)

    def _wanted(self, tracked: Tracked, after: int) -> list[int]:
        """The stops to store now that ``after`` tokens are computed. Each is tried once: a window only loses pages."""
        prompt = tracked.request.num_prompt_tokens
        # For the same prompt, whose last token is computed; for longer ones; where another request branched off, for vLLM
        # too; and in answers of models with states, whose end is not known before vLLM has replaced the state.
        wanted = {prompt - 1, prompt, tracked.branch, getattr(tracked.request, "shared_prefix_boundary", 0) or 0}
        if self._has_states and after > prompt:
            wanted.add(after)
        unit = self._stop_unit
        stops = {tokens // unit * unit for tokens in wanted}
        found = sorted(stop for stop in stops if 0 < stop <= after and stop not in tracked.stops)
        tracked.stops.update(found)
        return found

    def _stores(
        self, tracked: Tracked, reached: tuple[int, int], stops: Iterable[int], tables: Tables,
        states: Mapping[tuple[int, int], int],
    ) -> list[GroupStoreOrder]:
        """The orders to store stops, and the pages of full attention that are not stored.

        ``reached`` has the tokens whose content is known after the step, and all that are computed then.
        """
        if tracked.keys is None:
            return []
        after, end = reached
        request, keys = tracked.request.request_id, tracked.keys.of(after // self.page_size)
        full = self._full_pages(tracked, keys, after, tables)
        made: list[GroupStoreOrder] = []
        for stop in stops:
            pages = self._stop_pages(stop, stop == end, tables, states)
            if pages is not None:
                made.append(GroupStoreOrder(request, keys, {**full, **pages}, stop, tracked.adapter))
                full = {}
        if full:
            made.append(GroupStoreOrder(request, keys, full, None, tracked.adapter))
        return made

    def _full_pages(
        self, tracked: Tracked, keys: Keys, after: int, tables: Tables
    ) -> dict[str, Pages]:
        if all(after // group.page_size <= tracked.stored // group.page_size for group in self._full):
            return {}
        first = self._first_to_keep(tracked, keys)
        tracked.stored = after
        ends = [(group, first // group.page_size, after // group.page_size) for group in self._full]
        return {group.name: (list(tables[group.table][start:end]), start) for group, start, end in ends if end > start}

    def _first_to_keep(self, tracked: Tracked, keys: Keys) -> int:
        """The first token to store. A lookup needs all pages before a page, so evicted ancestors are stored again."""
        first = tracked.stored
        if not first or self.announced.get(tracked.request.request_id):
            # Pages of stores in flight are in no tier yet.
            return first
        before = {rank: of_rank[: first // self.page_size] for rank, of_rank in keys.items()}
        return min(first, self._spine(before))

    def _stop_pages(
        self, stop: int, is_end: bool, tables: Tables, states: Mapping[tuple[int, int], int]
    ) -> dict[str, Pages] | None:
        """The pages of windows, chunks and states that a stop needs; None if vLLM does not have all of them.

        ``is_end`` means that the tables' requests have computed exactly up to the stop, so that their last states are those
        of the stop.
        """
        found: dict[str, Pages] = {}
        for group in self._others:
            pages = self._needs(group, stop)
            offered = states.get((group.table, stop)) if group.is_state else None
            if group.is_state and offered is None and not is_end:
                return None
            blocks = _at(tables[group.table], pages) if offered is None else [offered]
            if NULL_BLOCK in blocks:
                return None
            if blocks:
                found[group.name] = (blocks, pages.start)
        return found

    def _announce_store(self, store: GroupStoreOrder, orders: Orders) -> None:
        orders.group_stores.append(store)
        self.announced[store.request] = self.announced.get(store.request, 0) + len(self.group_directories)

    def finished(self, request: Request, tables: Tables = ()) -> bool:
        """Ends a request, and stores the end of its answer, for the next turn of a conversation. Returns whether vLLM must
        keep its blocks, because stores still read them."""
        name = request.request_id
        tracked = self.tracked.get(name)
        if tracked is not None and tracked.request is request and tracked.keys is not None and tracked.has_room:
            # The blocks of a request that waits for its load have no content yet.
            computed = 0 if name in self.loading else min(request.num_computed_tokens, request.num_tokens)
            stop = self._known(tracked, computed) // self._stop_unit * self._stop_unit
            if stop and stop not in tracked.stops and tables:
                # Full pages were ordered with the steps that filled them.
                pages = self._stop_pages(stop, stop == computed, tables, {})
                if pages is not None:
                    keys = tracked.keys.of(stop // self.page_size)
                    self._announce_store(GroupStoreOrder(name, keys, pages, stop, tracked.adapter), self._orders)
        return super().finished(request, tables)

    def _apply(self, rank: int, said: RankReport) -> None:
        """Updates the view of a worker's tiers, and the requests whose loads have failed."""
        for group in self._groups:
            changes = said.group_changes.get(group.name, [])
            self.group_directories[rank][group.name].apply(changes)
            if self.changes is not None and rank == min(self.group_directories):
                self.changes.add(changes, group.page_size, group)
        for name in said.failed:
            tracked = self.tracked.get(name)
            if tracked is not None:
                tracked.has_failed = True

    def _forget(self) -> None:
        """Empties the view of the workers' tiers, and drops the ends of answers that wait for the next step."""
        for store in self._orders.group_stores:
            left = self.announced.pop(store.request, 0) - len(self.group_directories)
            if left > 0:
                self.announced[store.request] = left
        self._orders.group_stores.clear()
        for directories in self.group_directories.values():
            for directory in directories.values():
                directory.clear()


def _at(table: Sequence[int], pages: range) -> list[int]:
    """The blocks of pages; vLLM's null block where the table ends before."""
    return [table[page] if page < len(table) else NULL_BLOCK for page in pages]


def _computed(output: Any) -> dict[str, int]:
    """The tokens that are computed before this step, by request."""
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return computed
