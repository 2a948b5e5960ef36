"""The worker side for models with several groups: one cache over all of them, and its transfers in flight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtile import Completion, GroupCache, GroupLoadReport, GroupStoreReport, KvtileError, LaggedError, WaitTimeoutError
from kvtile.vllm._adapters import LOADED
from kvtile.vllm._directory import TIERS
from kvtile.vllm._group_layout import group_layouts, model_of
from kvtile.vllm._groups import NULL_BLOCK, groups_of
from kvtile.vllm._messages import Change, GroupLoadOrder, GroupStoreOrder, Hello, Orders, RankReport
from kvtile.vllm._rank import Rank
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import blocks_by_tier
from kvtile.vllm._transfers import PATIENCE, WorkerTransfers, logger

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass
class StopLoad:
    """A load in flight of a stop, of this number of blocks; its completion is None if it could not begin."""

    blocks: int
    completion: Completion[GroupLoadReport] | None = None


class GroupWorker(WorkerTransfers):
    """The cache of one worker over all groups, and the loads and stores in flight.

    A load brings a whole stop or nothing. vLLM gives the blocks behind a window and of old states to other requests from
    the next step on, so a store of a stop ends with its step. Stores of full attention alone run on.
    """

    def __init__(
        self, config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings, rank: Rank, kv: KVCacheConfig
    ) -> None:
        self.groups = groups_of(kv)
        layouts = group_layouts(caches, self.groups, kv.num_blocks)
        self.model = model_of(config, settings, layouts, rank)
        by_name = {group.name: layout for group, layout in layouts.items()}
        self.cache = GroupCache(self.model, by_name, **settings.of_cache(rank, self.model))
        super().__init__(rank)
        # A daemon may have a disk, which it does not report.
        self.has_disk = settings.disk_path is not None or settings.connect is not None
        self.loads: dict[str, StopLoad] = {}
        self._failed: set[str] = set()
        self._names = {facts["number"]: name for name, facts in self.cache.groups.items()}
        self._full = {group.name for group in self.groups if group.is_full}
        self._subscriber = self.cache.subscribe()
        self._warn_of_little_room(config)
        shown = "; ".join(f"{group.name}: {len(group.layers)} layers, pages of {group.page_size}" for group in self.groups)
        logger.info(
            "kvtile keeps the KV of %s in %d groups (%s): %s; %d pages on disk", self.model.model, len(self.groups), shown, settings,
            sum(change[:2] == ("stored", "disk") for changes in self._everything().values() for change in changes),
        )

    def _warn_of_little_room(self, config: VllmConfig) -> None:
        """Warns if host memory cannot hold a prompt of the maximum length, and nothing is below it."""
        facts, longest = self.cache.groups, config.model_config.max_model_len
        room = min((facts[name]["host_pages"] * facts[name]["page_size"] for name in self._full), default=longest)
        if room < longest and not self.has_disk:
            logger.warning(
                "kvtile has room for less than one sequence of max_model_len, %d tokens (host %d tokens): of longer ones only "
                "the beginning is kept; give more as host_gib", longest, room,
            )

    def hello(self) -> Hello:
        """The identity of the model, and the worker's pages, for the scheduler."""
        return Hello(self.model.to_json(), group_changes=self._everything())

    def _start_loads(self, orders: Orders) -> None:
        """Starts the loads of a step."""
        for load in orders.group_loads:
            self._start_load(load)

    def _start_load(self, order: GroupLoadOrder) -> None:
        """Starts one load; a load that cannot begin fails at once."""
        self.loads[order.request] = load = StopLoad(sum(map(len, order.blocks.values())))
        if order.adapter is not None and not LOADED.may_be(order.adapter):
            reason = "vLLM has loaded other adapter weights than the files contain now"
        elif any(NULL_BLOCK in blocks for blocks in order.blocks.values()):
            reason = "vLLM has allocated no blocks for some of its pages"
        else:
            found = self.cache.lookup(order.keys[self.rank], at_most=order.stop)
            if found.stop == order.stop:
                try:
                    load.completion = self.cache.load(found, order.blocks, have=order.have)
                    return
                except KvtileError as error:
                    reason = str(error)
            else:
                reason = "a page has been evicted since the lookup"
            found.release()
        self._load_failed(order.request, load, reason)

    def _load_failed(self, request: str, load: StopLoad, reason: str) -> None:
        logger.warning("request %s computes its prompt, and loads none of %d blocks: %s", request, load.blocks, reason)
        self._failed.add(request)
        self._report.failed.add(request)
        self.stats.add(failed_blocks=load.blocks)

    def end_step(self, orders: Orders) -> None:
        """Stores the stops that the step has computed, and starts storing the pages of full attention."""
        for order in orders.group_stores:
            self._start_store(order)

    def _start_store(self, order: GroupStoreOrder) -> None:
        count = sum(len(blocks) for blocks, _ in order.blocks.values())
        if order.adapter is not None and not LOADED.is_loaded(order.adapter):
            # The adapter's weights do not match the keys of these pages and of later ones.
            self.stats.add(dropped_blocks=count)
            self._report.without_room.add(order.request)
            self._store_ended(order.request)
            return
        try:
            completion = self.cache.store(order.keys[self.rank], order.blocks, stop=order.stop)
        except KvtileError as error:
            logger.debug("pages of request %s are not stored now: %s", order.request, error)
            self.stats.add(stores_refused=1)
            firsts = [first * self._page_size(name) for name, (_, first) in order.blocks.items() if name in self._full]
            if firsts:
                self._store_again_from(order.request, min(firsts))
            self._store_ended(order.request)
            return
        self.stores.setdefault(order.request, []).append(completion)
        if order.stop is not None:
            completion.wait()

    def _page_size(self, name: str) -> int:
        return next(group.page_size for group in self.groups if group.name == name)

    def _count_store(self, request: str, report: GroupStoreReport) -> None:
        if any(report.groups[name].dropped for name in self._full & report.groups.keys()):
            self._report.without_room.add(request)

    def take_finished_loads(self, *, idle: bool) -> set[str]:
        """Requests whose loads have completed. In an idle step, waits for one."""
        pending = [load.completion for load in self.loads.values() if load.completion is not None]
        if idle and pending and not any(_is_done(load) for load in self.loads.values()):
            try:
                pending[0].wait(PATIENCE)
            except WaitTimeoutError:
                return set()
        ended = {request for request, load in self.loads.items() if _is_done(load)}
        for request in ended:
            load = self.loads.pop(request)
            if load.completion is not None:
                self._loaded(request, load, load.completion.wait())
        return ended

    def _loaded(self, request: str, load: StopLoad, report: GroupLoadReport) -> None:
        blocks = load.blocks if report.tokens else 0
        tiers: Counter[str] = Counter()
        for of_group in report.groups.values():
            tiers.update(of_group.from_tiers)
        self.stats.add(
            loaded_blocks=blocks, loaded_bytes=report.bytes, load_seconds=report.seconds, **blocks_by_tier(blocks, tiers)
        )
        if not report.tokens:
            self._load_failed(request, load, report.stopped or "a page has been evicted since the lookup")

    def take_failed_requests(self) -> set[str]:
        """Requests among those with completed loads whose loads failed, and that vLLM recomputes."""
        failed = {request for request in self._failed if request not in self.loads}
        self._failed -= failed
        return failed

    def take_report(self) -> RankReport | None:
        """The report for the scheduler after a step; None if it is empty."""
        report = self._report
        report.group_changes = self._changes()
        if not (report.group_changes or report.ended or report.store_from or report.without_room or report.failed):
            return None
        self._report = RankReport()
        return report

    def _changes(self) -> dict[str, list[Change]]:
        """The changes since the last call. After lagging, a snapshot of all pages replaces them."""
        changes: dict[str, list[Change]] = {}
        try:
            while events := self._subscriber.poll():
                for event in events:
                    if event.tier in TIERS:
                        change = (event.kind, event.tier, event.key or b"", event.parent)
                        changes.setdefault(self._names[event.group], []).append(change)
        except LaggedError:
            return self._everything()
        return changes

    def _everything(self) -> dict[str, list[Change]]:
        snapshot = self.cache.snapshot()
        self._subscriber.resynchronise(snapshot)
        changes: dict[str, list[Change]] = {
            name: [("cleared", tier, b"", None) for tier in TIERS] for name in self._names.values()
        }
        for tier, group, key, parent in snapshot.blocks:
            if tier in TIERS:
                changes[self._names[group]].append(("stored", tier, key, parent))
        return changes

    def _close_cache(self) -> None:
        for name, report in self.cache.close().items():
            if not report.durable:
                logger.warning("not all pages of %s in host memory could be written to the disk: %s", name, report)


def _is_done(load: StopLoad) -> bool:
    """Whether a load is complete, or could not begin."""
    return load.completion is None or load.completion.done()
