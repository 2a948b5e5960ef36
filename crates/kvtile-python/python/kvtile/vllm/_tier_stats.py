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
}
_GAUGES = {
    "disk_blocks": ("Blocks on disk", ("tier",)),
    "disk_capacity_blocks": ("Blocks that fit on disk", ("tier",)),
}


def metric_definitions() -> dict[str, OffloadingMetricMetadata]:
    """The metrics, as vLLM wants them before the engine starts."""
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

    def show(self, gauges: Mapping[str, float]) -> None:
        """Sets gauges; those that have not changed are not sent again."""
        for name, value in gauges.items():
            if self._gauges.get(name) != value:
                self._gauges[name] = value
                self._counts[name, (self._tier,)] = 1

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
