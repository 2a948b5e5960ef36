"""kvtile below LMCache's own storage manager: its L1, its store, prefetch and eviction controllers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmcache_side as side
import pytest
from lmcache_side import PIECE, wait_until
from test_lmcache_faults import damage

pytestmark = side.QUIET

torch = side.torch
LAYOUT = side.MemoryLayoutDesc([torch.Size([2, 4, 16, 40])], [torch.bfloat16])
STATE = side.MemoryLayoutDesc([torch.Size([1, 3, 1000])], [torch.float32])
COUNT = 6


@contextmanager
def manager_over(folder: Path, **more: object) -> Iterator[side.ManagerSide]:
    opened = side.ManagerSide(side.plugin_of(folder, capacity="32MiB", **more))
    try:
        yield opened
    finally:
        opened.manager.close()


def stored(manager: side.ManagerSide, count: int = COUNT) -> None:
    """Writes objects to L1, waits until they are in L2, and clears L1."""
    keys = side.keys_of(count)
    manager.write(keys, LAYOUT)
    wait_until(lambda: manager.status("stored") == count, "the objects are stored")
    manager.clear()


def test_objects_come_back_after_l1_lost_them(tmp_path: Path) -> None:
    with manager_over(tmp_path / "kv") as manager:
        stored(manager)
        hits, contents = manager.read(side.keys_of(COUNT), LAYOUT)
        assert hits == COUNT
        assert contents == list(range(1, COUNT + 1))
        wait_until(lambda: manager.status("locked") == 0, "all locks are released")


def test_objects_come_back_after_a_restart(tmp_path: Path) -> None:
    with manager_over(tmp_path / "kv") as manager:
        stored(manager)
    with manager_over(tmp_path / "kv") as manager:
        assert manager.read(side.keys_of(COUNT), LAYOUT) == (COUNT, list(range(1, COUNT + 1)))
        assert manager.used() == COUNT * 3 * PIECE


def test_objects_of_two_groups(tmp_path: Path) -> None:
    attention = [side.key_of(number, group=0) for number in range(3)]
    states = [side.key_of(number, group=1) for number in range(3)]
    with manager_over(tmp_path / "kv") as manager:
        manager.write(attention, LAYOUT)
        manager.write(states, STATE)
        wait_until(lambda: manager.status("stored") == 6, "the objects are stored")
        manager.clear()
        hits, contents = manager.read(attention, LAYOUT, (states, STATE))
        assert hits == 6
        assert contents == [1, 2, 3, 1, 2, 3]


def test_damage_is_a_shorter_prefix(tmp_path: Path) -> None:
    with manager_over(tmp_path / "kv") as manager:
        stored(manager)
    damage(tmp_path / "kv")
    with manager_over(tmp_path / "kv") as manager:
        hits, _ = manager.read(side.keys_of(COUNT), LAYOUT)
        assert hits == 0
        manager.write(side.keys_of(COUNT), LAYOUT)
        wait_until(lambda: manager.status("stored") == COUNT, "the objects are stored anew")
        manager.clear()
        assert manager.read(side.keys_of(COUNT), LAYOUT) == (COUNT, list(range(1, COUNT + 1)))


def test_lmcaches_own_eviction_works_on_top(tmp_path: Path) -> None:
    eviction = {"eviction_policy": "LRU", "trigger_watermark": 0.0001, "eviction_ratio": 1.0}
    with manager_over(tmp_path / "kv") as manager:
        stored(manager)
    with manager_over(tmp_path / "kv", eviction=eviction) as manager:
        wait_until(lambda: manager.used() == 0, "LMCache evicts objects from before the restart")
        assert manager.status("deleted") == COUNT
        assert manager.read(side.keys_of(COUNT), LAYOUT)[0] == 0


def test_a_serde_of_lmcache_works_on_top(tmp_path: Path) -> None:
    with manager_over(tmp_path / "kv", serde={"type": "fp8"}) as manager:
        keys = side.keys_of(COUNT)
        manager.write(keys, LAYOUT, fill=0)
        wait_until(lambda: manager.status("stored") == COUNT, "the objects are stored")
        assert manager.used() == COUNT * 2 * PIECE, "half of the bytes"
        manager.clear()
        assert manager.read(keys, LAYOUT) == (COUNT, [0] * COUNT)


def test_an_adapter_is_added_and_removed_at_run_time(tmp_path: Path) -> None:
    with manager_over(tmp_path / "one") as manager:
        number = manager.manager.add_l2_adapter(side.parsed(side.plugin_of(tmp_path / "two", capacity="32MiB")))
        stored(manager)
        manager.manager.delete_l2_adapter(number)
        assert manager.read(side.keys_of(COUNT), LAYOUT) == (COUNT, list(range(1, COUNT + 1)))


def test_unknown_settings_end_lmcaches_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'capacity'"):
        side.ManagerSide(side.plugin_of(tmp_path / "kv", capacty="1GiB"))
