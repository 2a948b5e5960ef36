"""What the connector counts."""

from __future__ import annotations

import random

import pytest

from kvtile.vllm._directory import TIERS
from kvtile.vllm._stats import KvtileStats, blocks_by_tier


@pytest.mark.parametrize(
    ("blocks", "from_tiers", "host", "shared", "disk"),
    [
        (5, {"host": 2, "disk": 2, "disk:parts": 1}, 2, 0, 3),
        (5, {"host": 1, "shared": 4}, 1, 4, 0),
        (6, {"host": 1, "shared": 1, "shared:parts": 3, "disk": 1}, 1, 4, 1),
        # The first block is damaged, and host memory has some after it.
        (0, {"host": 3, "shared": 2}, 0, 0, 0),
        (4, {"host": 3, "shared": 9}, 3, 1, 0),
        (0, {}, 0, 0, 0),
    ],
)
def test_the_blocks_of_a_load_are_counted_by_tier(
    blocks: int, from_tiers: dict[str, int], host: int, shared: int, disk: int
) -> None:
    counts = blocks_by_tier(blocks, from_tiers)
    assert counts == {"from_host_blocks": host, "from_shared_blocks": shared, "from_disk_blocks": disk}


def test_no_count_is_negative_whatever_a_load_reports() -> None:
    numbers = random.Random(7)
    stats = KvtileStats()
    for _ in range(1000):
        blocks = numbers.randrange(9)
        counts = blocks_by_tier(blocks, {tier: numbers.randrange(9) for tier in TIERS})
        assert min(counts.values()) >= 0 and sum(counts.values()) == blocks
        stats.add(loaded_blocks=blocks, **counts)
    assert stats.data["loaded_blocks"] == sum(stats.data[name] for name in stats.data if name.startswith("from_"))
