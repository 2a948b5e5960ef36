"""Object groups of hybrid models: LMCache folds what the adapter has of each group, and every object is its own group's."""

from __future__ import annotations

import random
from pathlib import Path

import lmcache_side as side
import pytest
from lmcache_side import wait_until
from test_lmcache_manager import LAYOUT, STATE, manager_over

pytestmark = side.QUIET

CHUNKS = 6
FULL = side.FULL_ATTENTION_WINDOW_CHUNKS
# Small objects, since L1 has room for all of a test.
SHAPES = [side.layout_of(700), side.layout_of(4096), side.layout_of(9000)]


def needed(stop: int, window: int) -> range:
    """The chunks of a group that a hit of ``stop`` chunks needs."""
    return range(0 if window == FULL else max(0, stop - window), stop)


def longest(has: list[list[bool]], windows: list[int]) -> int:
    """The longest hit that all groups can serve, by trying each length."""
    return max(
        stop for stop in range(CHUNKS + 1)
        if all(all(row[chunk] for chunk in needed(stop, window)) for row, window in zip(has, windows, strict=True))
    )


@pytest.mark.parametrize("seed", range(2))
def test_hits_are_those_of_the_rule_of_each_group(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    cases = []
    with manager_over(tmp_path / "kv") as there:
        total = 0
        for case in range(16):
            windows = [generator.choice([FULL, 1, 2, 3]) for _ in SHAPES[: generator.randint(1, 3)]]
            share = generator.choice([0.5, 0.8, 0.95])
            has = [[generator.random() < share for _ in range(CHUNKS)] for _ in windows]
            rows = [[side.key_of(100 * case + chunk, group=group) for chunk in range(CHUNKS)] for group in range(len(windows))]
            for row, stored, shape, group in zip(rows, has, SHAPES, range(3), strict=False):
                kept = [key for key, is_stored in zip(row, stored, strict=True) if is_stored]
                for key in kept:
                    there.write([key], shape, fill=(case * 3 + group) % 251)
                total += len(kept)
            cases.append((windows, has, rows))
        wait_until(lambda: there.status("stored") == total, "the objects are stored")
        there.clear()
        for case, (windows, has, rows) in enumerate(cases):
            stop = longest(has, windows)
            cells, contents = there.hit_cells(rows, SHAPES, windows)
            wanted = [(group, chunk) for group, window in enumerate(windows) for chunk in needed(stop, window)]
            assert cells == wanted, (case, windows, has)
            assert contents == [(case * 3 + group) % 251 for group, _ in wanted]
            there.clear()
        wait_until(lambda: there.status("locked") == 0, "all locks are released")
        assert there.status("errors") == 0


def test_an_evicted_state_is_a_shorter_hit(tmp_path: Path) -> None:
    """A state that is gone takes the hits that end at it, and the attention's chunks before an earlier state stay a hit."""
    with manager_over(tmp_path / "kv") as there:
        attention, states = side.keys_of(CHUNKS), [side.key_of(number, group=1) for number in range(CHUNKS)]
        there.write(attention, LAYOUT)
        there.write([states[1], states[4]], STATE)
        wait_until(lambda: there.status("stored") == CHUNKS + 2, "the objects are stored")
        for gone, stop in ((None, 5), (states[4], 2), (states[1], 0)):
            if gone is not None:
                there.delete(gone)
            there.clear()
            cells, _ = there.hit_cells([attention, states], [LAYOUT, STATE], [FULL, 1])
            assert cells == [(0, chunk) for chunk in range(stop)] + ([(1, stop - 1)] if stop else [])
