"""What surrounds LMCache's adapter: other processes, a folder that is removed, batches that are large or odd."""

from __future__ import annotations

import shutil
from pathlib import Path

import lmcache_side as side
import pytest
from folder_holder import held
from lmcache_side import PIECE, AdapterSide

import kvtile

pytestmark = side.QUIET
there = side.there


def test_a_folder_of_another_process_is_refused_by_its_number(tmp_path: Path) -> None:
    with held(tmp_path / "kv" / "blocks") as pid, pytest.raises(kvtile.FolderInUseError, match=f"by process {pid}"):
        AdapterSide.open(tmp_path / "kv")


def test_a_removed_folder_loses_objects_and_serves_no_other_bytes(tmp_path: Path) -> None:
    there = AdapterSide.open(tmp_path / "kv", staging="256KiB", stage_within=0.1)
    keys, objects, into = side.keys_of(4), side.objects_of(4), side.empties_of(4)
    assert there.store(keys, objects)
    shutil.rmtree(tmp_path / "kv")
    # Objects in staging memory are served from there; then there is no room for more.
    stored = [there.store(side.keys_of(4, first), side.objects_of(4)) for first in range(10, 110, 4)]
    assert stored[0] and not stored[-1]
    came = there.fetch(keys, into)
    assert all(side.same(wanted, found) for wanted, found, ok in zip(objects, into, came, strict=True) if ok)
    assert there.status("store_failed_no_room") > 0
    side.wait_until(lambda: there.status("unwritten_pieces") > 0, "the pieces that the disk did not take are counted")
    assert there.adapter.report_status()["is_healthy"]
    there.close()
    again = AdapterSide.open(tmp_path / "kv")
    assert again.find(keys) == [False] * 4 and again.used() == 0
    assert again.store(keys, objects) and again.fetch(keys, into) == [True] * 4
    again.close()


def test_thousands_of_objects_in_one_task(tmp_path: Path) -> None:
    there = AdapterSide.open(tmp_path / "kv", capacity="64MiB")
    count = 2000
    keys, objects = side.keys_of(count), side.objects_of(count, PIECE)
    assert there.store(keys, objects)
    assert there.lookup(keys) == [True] * count
    into = side.empties_of(count, PIECE)
    assert there.load(keys, into) == [True] * count
    there.adapter.submit_unlock(keys)
    assert all(map(side.same, objects, into))
    there.close()


def test_a_key_twice_in_a_task_is_one_object(there: AdapterSide) -> None:
    [key], [wanted] = side.keys_of(1), side.objects_of(1)
    assert there.store([key, key], [wanted, wanted])
    into = side.empties_of(2)
    assert there.lookup([key, key]) == [True, True] and there.load([key, key], into) == [True, True]
    assert all(side.same(wanted, found) for found in into)
    there.adapter.submit_unlock([key, key])
    side.wait_until(lambda: there.status("locked") == 0, "both locks are released")
    assert there.used() == 4 * PIECE


def test_memory_twice_in_a_load_never_mixes_two_objects(there: AdapterSide) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2)
    assert there.store(keys, objects)
    for _ in range(20):
        into = side.object_of(content=0xA5)
        came = there.fetch(keys, [into, into])
        good = [wanted for wanted, ok in zip(objects, came, strict=True) if ok]
        assert len(good) == 1 and side.same(good[0], into)
    assert there.status("load_failed_error") == 20


@pytest.mark.parametrize("objects", [0, 1, 3])
def test_another_number_of_objects_than_keys_ends_the_task_without_any(there: AdapterSide, objects: int) -> None:
    keys = side.keys_of(2)
    assert not there.store(keys, side.objects_of(objects))
    assert there.find(keys) == [False, False]
    assert there.store(keys, side.objects_of(2))
    into = side.empties_of(objects)
    assert there.load(keys, into) == [False, False]
    assert all(set(found.raw_data.tolist()) == {0xA5} for found in into)
    side.wait_until(lambda: there.status("errors") == 2, "both are counted")


def test_objects_without_bytes_are_not_stored(there: AdapterSide) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2, 0)
    assert not there.store(keys, objects)
    assert there.find(keys) == [False, False]
    assert there.status("store_failed_error") == 2 and there.status("errors") == 0
