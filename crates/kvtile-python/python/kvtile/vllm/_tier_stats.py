"""The tier's metrics, in vLLM's own statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

_PREFIX = "vllm:kvtile_tier_"
_COUNTERS = {
    "blocks": ("Blocks of jobs, by operation (load, store) and outcome", ("tier", "operation", "outcome")),
    "lookups": ("Lookups of blocks, by answer", ("tier", "answer")),
    "errors": ("Exceptions that the tier has kept from vLLM, by method", ("tier", "method")),
    "bytes": ("Bytes of blocks that were loaded and stored", ("tier", "operation")),
    "shared": ("Events of the shared store, by kind", ("tier", "event")),
    "unwritten_blocks": ("Stored blocks that the disk did not take: it is full, fails, or has no room", ("tier",)),
}
_GAUGES = {
    "disk_blocks": ("Blocks on disk", ("tier",)),
    "disk_capacity_blocks": ("Blocks that fit on disk", ("tier",)),
}


def metric_definitions() -> dict[str, OffloadingMetricMetadata]:
    """The metrics, which vLLM creates before the engine starts."""
    counters = {
        _PREFIX + name: OffloadingCounterMetadata(documentation=f"kvtile: {text}.", labelnames=labels)
        for name, (text, labels) in _COUNTERS.items()
    }
    gauges = {
        _PREFIX + name: OffloadingGaugeMetadata(documentation=f"kvtile: {text}.", labelnames=labels)
        for name, (text, labels) in _GAUGES.items()
    }
    return {**counters, **gauges}


class TierStats:
    """Counts since the last take."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.totals: Counter[tuple[str, ...]] = Counter()
        self._gauges: dict[str, float] = {}

    def add(self, name: str, *labels: str, count: int = 1) -> None:
        """Adds to a counter, by its name and labels but the tier's."""
        if len(labels) + 1 != len(_COUNTERS[name][1]):
            raise ValueError(f"{name} has the labels {_COUNTERS[name][1]}, not {labels}")
        self._counts[name, (self._tier, *labels)] += count
        self.totals[(name, *labels)] += count

    def show(self, found: Mapping[str, Mapping[str, int]]) -> None:
        """Takes over the store's own statistics. Gauges that have not changed are not sent again."""
        gauges = {"disk_blocks": found["present"], "disk_capacity_blocks": found["capacity"]}
        for name, tiers in gauges.items():
            value = tiers.get("disk", 0)
            if self._gauges.get(name) != value:
                self._gauges[name] = value
                self._counts[name, (self._tier,)] = 1
        for event, total in (found.get("shared") or {}).items():
            change = total - self.totals["shared", event]
            if change > 0:
                self.add("shared", event, count=change)
        unwritten = found["left_out"].get("disk", 0) - self.totals["unwritten_blocks",]
        if unwritten > 0:
            self.add("unwritten_blocks", count=unwritten)

    def take(self) -> OffloadingConnectorStats | None:
        """Returns the counts and resets them; None if there are none."""
        if not self._counts:
            return None
        stats = OffloadingConnectorStats()
        for (name, labels), count in self._counts.items():
            if name in _GAUGES:
                stats.set_gauge(_PREFIX + name, self._gauges[name], labels)
            else:
                stats.increase_counter(_PREFIX + name, count, labels)
        self._counts.clear()
        return stats
