"""vLLM's tier for a long time: a folder that is too small, restarts, damage. It serves no wrong byte and grows by nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

from growth import TURN, Growth, flip_one_bit, turns
from tiers import ROWS, entry, keys, tiers

BLOCKS = 600
CAPACITY = 1 << 20


def test_a_tier_that_works_for_a_long_time(tmp_path: Path) -> None:
    numbers, growth = random.Random(7), Growth(tmp_path, CAPACITY)
    loaded = 0
    for _ in turns():
        with tiers(entry(tmp_path / "kv", capacity=CAPACITY)) as made:
            end = time.monotonic() + TURN
            while time.monotonic() < end:
                first = numbers.randrange(BLOCKS)
                made.store(keys(range(first, first + numbers.randrange(1, ROWS))))
                first = numbers.randrange(BLOCKS)
                loaded += made.lookup(keys(range(first, first + numbers.randrange(1, ROWS))))
                if numbers.random() < 0.1:
                    made.forget_primary()
            assert not [labels for labels in made.tier._stats.totals if labels[0] == "errors"]
        growth.look()
        flip_one_bit(tmp_path, numbers)
    assert loaded > 20
    growth.report()
