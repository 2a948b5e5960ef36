"""What the workers of all models have in common: stores in flight, requests that end, and the reports to the scheduler."""

from __future__ import annotations

import atexit
from abc import ABC, abstractmethod
from typing import Any

from vllm.logger import init_logger

from kvtile import Completion
from kvtile.vllm._messages import Hello, Orders, RankReport
from kvtile.vllm._rank import Rank
from kvtile.vllm._stats import KvtileStats

# A child of vLLM's logger, so its settings apply.
logger = init_logger("vllm.kvtile")

# Seconds to wait for a load when the engine is idle.
PATIENCE = 0.005


class WorkerTransfers(ABC):
    """A worker's cache and transfers, as the connector calls them."""

    cache: Any

    def __init__(self, rank: Rank) -> None:
        self.rank = rank.number
        self.ranks = rank.size
        self.stats = KvtileStats()
        self.stores: dict[str, list[Completion[Any]]] = {}
        # Ended requests whose blocks vLLM keeps until their stores complete.
        self.held: set[str] = set()
        self._report = RankReport()
        self._closed = False
        atexit.register(self.close)

    @abstractmethod
    def hello(self) -> Hello:
        """The worker's identity and blocks, for the scheduler."""

    def begin_step(self, orders: Orders) -> None:
        """Starts the loads of a step."""
        if orders.clear:
            self.cache.clear()
        for keys in orders.uses:
            self.cache.lookup(keys[self.rank]).release()
        self.held |= orders.held
        self._start_loads(orders)

    @abstractmethod
    def _start_loads(self, orders: Orders) -> None:
        """Starts the loads and the queries of a step."""

    def wait_for_layer(self, name: str) -> None:
        """Waits until the step's loads have completed this layer, or have failed."""

    @abstractmethod
    def end_step(self, orders: Orders) -> None:
        """Starts storing what the step has computed."""

    @abstractmethod
    def take_finished_loads(self, *, idle: bool) -> set[str]:
        """Requests whose loads have completed. In an idle step, waits for one."""

    def take_failed_blocks(self) -> set[int]:
        """Blocks that failed to load and that vLLM recomputes."""
        return set()

    def take_failed_requests(self) -> set[str]:
        """Requests among those with completed loads whose loads failed, and that vLLM recomputes."""
        return set()

    @abstractmethod
    def take_report(self) -> RankReport | None:
        """The report for the scheduler after a step; None if it is empty."""

    @abstractmethod
    def _count_store(self, request: str, report: Any) -> None:
        """Counts a store that has completed."""

    @abstractmethod
    def _close_cache(self) -> None:
        """Writes all blocks to the disk and closes the cache."""

    def wait_for_stores(self, requests: set[str]) -> None:
        """Waits for all stores of these requests, because their blocks are about to be overwritten."""
        for request in requests:
            for completion in self.stores.get(request, []):
                completion.wait()
        self.reap_stores()

    def reap_stores(self) -> None:
        """Records the stores that have completed."""
        for request, completions in list(self.stores.items()):
            for completion in [completion for completion in completions if completion.done()]:
                completions.remove(completion)
                report = completion.wait()
                self.stats.add(
                    stored_blocks=report.stored,
                    present_blocks=report.present,
                    dropped_blocks=report.dropped,
                    stored_bytes=report.bytes,
                )
                self._count_store(request, report)
                self._store_ended(request)
            if not completions:
                del self.stores[request]

    def take_finished_stores(self) -> set[str]:
        """Ended requests whose stores have completed."""
        self.reap_stores()
        sent = {request for request in self.held if request not in self.stores}
        self.held -= sent
        return sent

    def _store_again_from(self, request: str, first: int) -> None:
        """Requests that a later step of the request stores its blocks again, from ``first`` on."""
        again = self._report.store_from
        again[request] = min(first, again.get(request, first))

    def _store_ended(self, request: str) -> None:
        self._report.ended[request] = self._report.ended.get(request, 0) + 1

    def close(self) -> None:
        """Writes all blocks to the disk and closes the cache. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._close_cache()
