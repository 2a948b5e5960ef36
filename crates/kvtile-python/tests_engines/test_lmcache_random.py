"""Random tasks from several threads on a small folder: nothing wrong is loaded, each task ends, the sums agree."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import lmcache_side as side
import pytest
from lmcache_side import PIECE, AdapterSide, RecordingListener

pytestmark = side.QUIET

SIZES = [300, PIECE, 2 * PIECE + 100, 5 * PIECE - 20]
KEYS = 120


class RandomUser:
    """A thread that stores, looks up, unlocks, loads and deletes. An object's bytes are its number and one more."""

    def __init__(self, there: AdapterSide, seed: int) -> None:
        self.there = there
        self.random = random.Random(seed)
        self.stores: set[int] = set()
        self.loads: dict[int, tuple[list[int], list[side.TensorMemoryObj]]] = {}
        self.lookups: dict[int, list[side.ObjectKey]] = {}
        self.loaded = 0

    def step(self) -> None:
        adapter = self.there.adapter
        numbers = self.random.sample(range(KEYS), self.random.randint(1, 6))
        keys = [side.key_of(number) for number in numbers]
        choice = self.random.random()
        if choice < 0.35:
            objects = [side.object_of(SIZES[number % 4], content=number) for number in numbers]
            self.stores.add(adapter.submit_store_task(keys, objects))
        elif choice < 0.85:
            into = [side.object_of(SIZES[number % 4], content=0xFF) for number in numbers]
            self.loads[adapter.submit_load_task(keys, into)] = (numbers, into)
        elif choice < 0.95:
            self.lookups[adapter.submit_lookup_and_lock_task(keys, {})] = keys
        else:
            adapter.delete(keys[:2])
        self.collect()

    def collect(self) -> None:
        for task in list(self.lookups):
            found = self.there.adapter.query_lookup_and_lock_result(task)
            if found is not None:
                keys = self.lookups.pop(task)
                self.there.adapter.submit_unlock([key for index, key in enumerate(keys) if found.test(index)])
        for task in list(self.loads):
            result = self.there.adapter.query_load_result(task)
            if result is None:
                continue
            numbers, into = self.loads.pop(task)
            for index, number in enumerate(numbers):
                if result.test(index):
                    assert set(into[index].raw_data.tolist()) == {number}
                    self.loaded += 1


@pytest.mark.parametrize("seed", range(3))
def test_random_tasks(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    there = AdapterSide.open(tmp_path / "kv", capacity="1MiB", staging="256KiB")
    listener = RecordingListener()
    there.adapter.register_listener(listener)
    users = [RandomUser(there, 100 * seed + number) for number in range(3)]
    failures: list[BaseException] = []

    def run(user: RandomUser) -> None:
        try:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                user.step()
                time.sleep(0.001)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    ended: set[int] = set()

    def all_ended() -> bool:
        ended.update(there.adapter.pop_completed_store_tasks())
        for user in users:
            user.collect()
        return not any(user.loads or user.lookups or user.stores - ended for user in users)

    side.wait_until(all_ended, "all tasks end")
    assert sum(user.loaded for user in users) > 50
    side.wait_until(lambda: there.status("locked") == 0, "all locks are released")
    assert there.status("errors") == 0
    check_sums(there, listener)
    there.close()


def check_sums(there: AdapterSide, listener: RecordingListener) -> None:
    """What LMCache counts is what can be loaded."""
    keys = side.keys_of(KEYS)

    def there_now() -> set[side.ObjectKey]:
        into = [side.object_of(SIZES[number % 4], content=0xFF) for number in range(KEYS)]
        return {key for key, came in zip(keys, there.fetch(keys, into), strict=True) if came}

    def agree() -> bool:
        used = there.used()
        counted = sum(listener.sizes.values()) == used <= there.adapter.get_usage().total_capacity_bytes
        return counted and set(listener.sizes) == there_now() and there.used() == used

    side.wait_until(agree, "LMCache counts what is there, once all is written")
