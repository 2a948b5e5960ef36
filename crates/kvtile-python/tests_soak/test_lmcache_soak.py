"""LMCache's adapter for a long time: a folder that is too small, restarts, damage. It serves no wrong byte and grows by nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import lmcache_side as side
from growth import TURN, Growth, flip_one_bit, turns
from lmcache_side import AdapterSide, RecordingListener
from test_lmcache_random import RandomUser, check_sums

pytestmark = side.QUIET
CAPACITY = 1 << 20


def test_an_adapter_that_works_for_a_long_time(tmp_path: Path) -> None:
    numbers, growth = random.Random(5), Growth(tmp_path, CAPACITY)
    loaded = 0
    for turn in turns():
        there = AdapterSide.open(tmp_path / "kv", capacity="1MiB", staging="256KiB")
        # As LMCache does: its sums begin with the objects of the folder.
        there.adapter.set_backend_identity("soak")
        listener = RecordingListener()
        there.adapter.register_listener(listener)
        user, ended = RandomUser(there, turn), set[int]()
        end = time.monotonic() + TURN
        while time.monotonic() < end:
            user.step()

        def all_ended(there: AdapterSide = there, user: RandomUser = user, ended: set[int] = ended) -> bool:
            ended.update(there.adapter.pop_completed_store_tasks())
            user.collect()
            return not (user.loads or user.lookups or user.stores - ended)

        side.wait_until(all_ended, "all tasks end")
        side.wait_until(lambda there=there: there.status("locked") == 0, "all locks are released")
        assert there.status("errors") == 0
        check_sums(there, listener)
        loaded += user.loaded
        there.close()
        growth.look()
        flip_one_bit(tmp_path, numbers)
    assert loaded > 50
    growth.report()
