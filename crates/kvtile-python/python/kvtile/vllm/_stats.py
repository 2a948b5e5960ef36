"""The counters of a connector, in vLLM's own statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Blocks are vLLM's blocks.
_COUNTS = {
    "looked_up_blocks": "full blocks of requests, when they were first scheduled",
    "found_blocks": "those of them that were in kvtile",
    "loaded_blocks": "blocks that were loaded",
    "from_host_blocks": "those of them that came from host memory",
    "from_disk_blocks": "those of them that came from disk",
    "from_shared_blocks": "those of them that came from the shared store",
    "seeks": "requests for which the shared store was queried",
    "seeks_late": "those of them that did not wait for its answer any longer",
    "failed_blocks": "blocks that were to be loaded and could not be; vLLM has computed them",
    "loaded_bytes": "bytes that were loaded",
    "load_seconds": "time from the start of each load to its end",
    "stored_blocks": "blocks that were stored",
    "present_blocks": "blocks that were to be stored and were there already",
    "dropped_blocks": "blocks that found no room",
    "stored_bytes": "bytes that were stored",
    "stores_refused": "stores that were put off because too many were waiting",
}


def blocks_by_tier(blocks: int, from_tiers: Mapping[str, int]) -> dict[str, int]:
    """The counts of the tiers that the ``blocks`` leading blocks of a load came from. Their sum is ``blocks``.

    ``from_tiers`` has all blocks of the load. If one is missing, those after it were of no use although a tier had them,
    and the counts take host memory first, then the shared store.
    """
    host = min(from_tiers.get("host", 0), blocks)
    in_store = sum(count for tier, count in from_tiers.items() if tier.startswith("shared"))
    shared = min(in_store, blocks - host)
    return {"from_host_blocks": host, "from_shared_blocks": shared, "from_disk_blocks": blocks - host - shared}


class KvtileStats(KVConnectorStats):  # type: ignore[misc]
    """Counts since the last take. Blocks are vLLM's blocks; every ratio has its denominator."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=dict(data or {}))

    def add(self, **counts: float) -> None:
        """Adds to counts by name."""
        for name, count in counts.items():
            if name not in _COUNTS:
                raise ValueError(f"{name} is not counted; {', '.join(_COUNTS)} are")
            self.data[name] = self.data.get(name, 0) + count

    def take(self) -> KvtileStats | None:
        """Returns the counts and resets them; None if there are none."""
        if self.is_empty():
            return None
        taken = KvtileStats(self.data)
        self.reset()
        return taken

    def reset(self) -> None:
        """Resets all counts."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Adds the counts of ``other``."""
        self.add(**other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """The values that vLLM logs."""
        shown: dict[str, int | float] = {name: self.data[name] for name in _COUNTS if self.data.get(name)}
        seconds = self.data.get("load_seconds", 0)
        if seconds:
            shown["load_gb_per_s"] = round(self.data["loaded_bytes"] / seconds / 1e9, 2)
            shown["load_seconds"] = round(seconds, 4)
        return shown

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self.data.values())


class KvtilePromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same counts as Prometheus counters, ``vllm:kvtile_…_total``."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[int, dict[str, Any]] = {engine: {} for engine in per_engine_labelvalues}
        for name, documentation in _COUNTS.items():
            counter = self._counter_cls(
                name=f"vllm:kvtile_{name}", documentation=f"kvtile: {documentation}.", labelnames=labelnames
            )
            for engine, values in per_engine_labelvalues.items():
                self._counters[engine][name] = counter.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds the counts since the last call."""
        for name, count in transfer_stats_data.items():
            self._counters[engine_idx][name].inc(count)
