"""SGLang's backend for a long time: a folder that is too small, restarts, damage. It serves no wrong byte and grows by nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import sglang_pools as pools
import torch
from growth import TURN, Growth, flip_one_bit, turns
from sglang_pools import created, indices, keys

PAGES, AT_ONCE = 3000, 4
CAPACITY = 3 << 20


def pages_of(pool: Any, page: int) -> list[torch.Tensor]:
    """The numbers that a page consists of."""
    return [pool.kv_buffer[plane][page].view(torch.int16) for plane in range(2)]


def exchange(backend: Any, pool: Any, numbers: random.Random) -> int:
    """Stores some pages, and loads some; the number that came, each with its own bytes."""
    first = numbers.randrange(PAGES - AT_ONCE)
    for page in range(AT_ONCE):
        for part in pages_of(pool, page):
            part.fill_(first + page)
    backend.batch_set_v1(keys(AT_ONCE, first), indices(list(range(AT_ONCE))))
    first = numbers.randrange(PAGES - AT_ONCE)
    where = list(range(AT_ONCE, 2 * AT_ONCE))
    for page in where:
        for part in pages_of(pool, page):
            part.fill_(-1)
    came = backend.batch_get_v1(keys(AT_ONCE, first), indices(where))
    for at, (page, is_there) in enumerate(zip(where, came, strict=True)):
        for part in pages_of(pool, page) if is_there else ():
            assert set(part.flatten().tolist()) == {first + at}
    return sum(came)


@pytest.mark.parametrize("layout", ["page_first_direct"])
def test_a_backend_that_works_for_a_long_time(tmp_path: Path, layout: str) -> None:
    pool, numbers, growth = pools.mha(layout), random.Random(3), Growth(tmp_path, CAPACITY)
    loaded = 0
    for _ in turns():
        backend = created(tmp_path, pool, capacity=CAPACITY)
        end = time.monotonic() + TURN
        while time.monotonic() < end:
            loaded += exchange(backend, pool, numbers)
        assert backend.counts() == {"errors": 0, "pages_refused": 0, "pools_refused": 0}
        backend.close()
        growth.look()
        flip_one_bit(tmp_path, numbers)
    assert loaded > 100
    growth.report()
