"""What a connector counts, in vLLM's own statistics."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

_COUNTS = (
    "looked_up_blocks",
    "found_blocks",
    "loaded_blocks",
    "from_host_blocks",
    "from_disk_blocks",
    "failed_blocks",
    "loaded_bytes",
    "load_seconds",
    "stored_blocks",
    "present_blocks",
    "dropped_blocks",
    "stored_bytes",
    "stores_refused",
)


class KvtileStats(KVConnectorStats):  # type: ignore[misc]
    """Counts since they were last taken. Blocks are vLLM's blocks; every ratio has its denominator."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=dict(data or {}))

    def add(self, **counts: float) -> None:
        """Adds to counts by name."""
        for name, count in counts.items():
            if name not in _COUNTS:
                raise ValueError(f"{name} is not counted; {', '.join(_COUNTS)} are")
            self.data[name] = self.data.get(name, 0) + count

    def take(self) -> KvtileStats | None:
        """What was counted until now, which starts anew; None for nothing."""
        if self.is_empty():
            return None
        taken = KvtileStats(self.data)
        self.reset()
        return taken

    def reset(self) -> None:
        """Starts anew."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Adds the counts of another."""
        self.add(**other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """What vLLM writes to its log."""
        shown: dict[str, int | float] = {name: self.data[name] for name in _COUNTS if self.data.get(name)}
        seconds = self.data.get("load_seconds", 0)
        if seconds:
            shown["load_gb_per_s"] = round(self.data["loaded_bytes"] / seconds / 1e9, 2)
            shown["load_seconds"] = round(seconds, 4)
        return shown

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self.data.values())
