"""The events of kvtile's tiers, as a router reads them."""

from __future__ import annotations

from vllm.distributed.kv_events import BlockRemoved, BlockStored

from kvtile.vllm._events import TierChanges
from kvtile.vllm._messages import Change


def stored(tier: str, number: int, parent: int | None = None) -> Change:
    return "stored", tier, bytes([number]) * 16, None if parent is None else bytes([parent]) * 16


def held(changes: TierChanges, router: dict[str, set[bytes]]) -> dict[str, set[bytes]]:
    """The blocks by medium after the pending events; ``router`` is the state before."""
    for event in changes.take():
        assert isinstance(event, BlockStored | BlockRemoved)
        blocks = router.setdefault(str(event.medium), set())
        (blocks.update if isinstance(event, BlockStored) else blocks.difference_update)(event.block_hashes)
    return router


def test_a_cleared_tier_removes_its_blocks_and_no_others() -> None:
    changes = TierChanges()
    changes.add([stored("host", 1), stored("host", 2, 1), stored("disk", 1), stored("disk", 3, 1)], 16)
    changes.add([("removed", "host", bytes([2]) * 16, None), ("cleared", "host", b"", None)], 16)
    one, three = bytes([1]) * 16, bytes([3]) * 16
    router = held(changes, {"GPU": {one}})
    assert router == {"GPU": {one}, "kvtile:host": set(), "kvtile:disk": {one, three}}
    # Cleared again, and stored again: the snapshot after a lag is such a sequence.
    changes.add([("cleared", "host", b"", None), ("cleared", "disk", b"", None), stored("disk", 3)], 16)
    assert held(changes, router) == {"GPU": {one}, "kvtile:host": set(), "kvtile:disk": {three}}
    assert changes.take() == []


def test_events_keep_parents_and_page_sizes() -> None:
    changes = TierChanges()
    changes.add([stored("disk:parts", 2, 1), stored("shared", 4)], 32)
    first, second = changes.take()
    assert isinstance(first, BlockStored) and isinstance(second, BlockStored)
    assert (first.medium, first.parent_block_hash, first.block_size) == ("kvtile:disk", bytes([1]) * 16, 32)
    assert (second.medium, second.parent_block_hash) == ("kvtile:shared", None)
