"""kvtile as an L2 adapter of LMCache when something is damaged, full, killed, evicted or closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import lmcache_side as side
import pytest
from lmcache_side import PIECE, SIZE, AdapterSide, RecordingListener

import kvtile

pytestmark = side.QUIET

_CHILD = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lmcache_side as side
from lmcache_side import AdapterSide
folder = Path(sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def there(folder: Path) -> Iterator[AdapterSide]:
    opened = AdapterSide.open(folder)
    yield opened
    opened.close()


def child(script: str, folder: Path) -> subprocess.Popen[str]:
    """A process of its own, with the folder as its argument."""
    code = _CHILD + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def slots_of(folder: Path) -> Path:
    """The largest file: it has the blocks."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def damage(folder: Path, every: int = PIECE) -> None:
    """Flips a bit in each piece of all files with blocks."""
    path = slots_of(folder)
    content = bytearray(path.read_bytes())
    for at in range(every // 2, len(content), every):
        content[at] ^= 0x40
    path.write_bytes(content)


def test_objects_outlive_the_process(folder: Path) -> None:
    keys, objects = [*side.keys_of(3), side.key_of(9, salt="tenant")], side.objects_of(4)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    used = first.used()
    first.close()
    second = AdapterSide.open(folder)
    listener = RecordingListener()
    second.adapter.register_listener(listener)
    assert second.used() == used == 16 * PIECE
    assert dict(second.adapter.get_usage().bytes_by_cache_salt) == {"": 12 * PIECE, "tenant": 4 * PIECE}
    into = side.empties_of(4)
    assert second.fetch(keys, into) == [True] * 4
    # Each listener and LMCache's own sum get an object once, in either order of registration.
    assert sorted(listener.stored, key=str) == sorted(keys, key=str)
    second.adapter.set_backend_identity("kvtile")
    later = RecordingListener()
    second.adapter.register_listener(later)
    second.adapter.set_backend_identity("kvtile")
    assert second.find(keys) == [True] * 4
    assert sorted(later.stored, key=str) == sorted(listener.stored, key=str) == sorted(keys, key=str)
    assert second.adapter._total_bytes_used == used
    assert all(map(side.same, objects, into))
    assert listener.sizes == dict.fromkeys(keys, 4 * PIECE), "LMCache's eviction knows them again"
    second.close()


def test_without_its_journal_an_object_counts_once_it_is_loaded(folder: Path) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    (folder / "objects.jsonl").unlink()
    second = AdapterSide.open(folder)
    assert second.used() == 0
    into = side.empties_of(2)
    assert second.fetch(keys, into) == [True, True]
    assert all(map(side.same, objects, into))
    assert second.used() == 8 * PIECE
    second.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"{}\n",
        b'["m", 1, 0, "zz", "", 10, "00", "00"]\n',
        b'["m@", 1, 0, "00", "", 10, "00", "00000000000000000000000000000000"]\n',
        b'["m", 1, 0, "00", "", 1e300, "00", "00000000000000000000000000000000"]\n',
        b'["m", 1, 0, "00", "", 99999999999999999999, "00", "00000000000000000000000000000000"]\n',
        b'["m", 1, 0, "00", "", 12, "00", "00000000000000000000000000000000"]\n',
        b'["a/model", 16777472, 0, "00',
        b"[" * 15_000,
    ],
)
def test_a_hostile_journal_changes_nothing_but_the_accounting(folder: Path, line: bytes) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    journal = folder / "objects.jsonl"
    journal.write_bytes(line + b"\n" + journal.read_bytes() + line)
    second = AdapterSide.open(folder)
    assert second.used() == 8 * PIECE
    into = side.empties_of(2)
    assert second.fetch(keys, into) == [True, True]
    assert all(map(side.same, objects, into))
    second.close()
    assert len(journal.read_bytes().splitlines()) == 2, "the journal is written anew"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe", "dangling link", "partial is a pipe", "partial is a link"])
def test_a_journal_that_is_no_file_is_not_waited_for(folder: Path, kind: str) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    journal, partial, other = folder / "objects.jsonl", folder / "objects.jsonl.partial", folder.parent / "another file"
    other.write_text("not ours")
    if not kind.startswith("partial"):
        journal.unlink()
    if kind == "folder":
        journal.mkdir()
    elif kind == "link to a pipe":
        os.mkfifo(folder.parent / "pipe")
        journal.symlink_to(folder.parent / "pipe")
    elif kind == "dangling link":
        journal.symlink_to(folder.parent / "nothing")
    elif kind == "partial is a link":
        partial.symlink_to(other)
    else:
        os.mkfifo(partial if kind == "partial is a pipe" else journal)
    second = AdapterSide.open(folder)
    assert second.used() == (8 * PIECE if kind.startswith("partial") else 0)
    into = side.empties_of(2)
    assert second.fetch(keys, into) == [True, True]
    assert all(map(side.same, objects, into))
    assert second.used() == 8 * PIECE
    second.close()
    assert other.read_text() == "not ours"


def test_a_journal_that_lies_about_an_object_serves_no_other_bytes(folder: Path) -> None:
    keys, objects = side.keys_of(2), side.objects_of(2)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    journal = folder / "objects.jsonl"
    one, two = journal.read_text().splitlines()
    generations = [line.split('"')[-2] for line in (one, two)]
    journal.write_text(f"{one.replace(*generations)}\n{two.replace(str(SIZE), str(SIZE - 512))}\n")
    second = AdapterSide.open(folder)
    into = side.empties_of(2)
    assert second.fetch(keys, into) == [True, True]
    assert all(map(side.same, objects, into))
    second.close()


def test_damage_is_a_miss(folder: Path) -> None:
    keys, objects = side.keys_of(5), side.objects_of(5)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    damage(folder)
    second = AdapterSide.open(folder)
    found = second.lookup(keys)
    loaded = second.load(keys, side.empties_of(5))
    second.adapter.submit_unlock([key for key, there in zip(keys, found, strict=True) if there])
    assert loaded == [False] * 5
    assert second.status("load_failed_damaged") + second.status("load_failed_absent") == 5
    assert second.find(keys) == [False] * 5, "LMCache would find and fail to load them for ever"
    assert second.used() == 0
    assert second.store(keys, objects)
    into = side.empties_of(5)
    assert second.fetch(keys, into) == [True] * 5
    assert all(map(side.same, objects, into))
    second.close()


def test_one_flipped_bit_is_one_miss(folder: Path) -> None:
    keys, objects = side.keys_of(5), side.objects_of(5)
    first = AdapterSide.open(folder)
    assert first.store(keys, objects)
    first.close()
    path = slots_of(folder)
    content = path.read_bytes()
    at = content.index(bytes(objects[3].raw_data[PIECE : PIECE + 64].tolist()))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    second = AdapterSide.open(folder)
    into = side.empties_of(5)
    assert second.fetch(keys, into) == [True, True, True, False, True]
    assert all(side.same(objects[index], into[index]) for index in (0, 1, 2, 4))
    assert second.find(keys) == [True, True, True, False, True]
    assert second.used() == 16 * PIECE
    second.close()


def test_lmcaches_own_file_adapter_serves_a_flipped_bit(tmp_path: Path) -> None:
    config = side.fs_config_of(tmp_path / "fs")
    keys, objects = side.keys_of(1), side.objects_of(1)
    first = AdapterSide(side.create_l2_adapter(config))
    assert first.store(keys, objects)
    first.close()
    damage(tmp_path / "fs")
    second = AdapterSide(side.create_l2_adapter(config))
    into = side.empties_of(1)
    assert second.fetch(keys, into) == [True]
    assert not side.same(objects[0], into[0])
    second.close()


def test_the_folder_stays_within_its_capacity(folder: Path) -> None:
    there = AdapterSide.open(folder, capacity="2MiB")
    listener = RecordingListener()
    there.adapter.register_listener(listener)
    for first in range(0, 400, 20):
        there.store(side.keys_of(20, first), side.objects_of(20))
        assert side.folder_bytes(folder) <= 2 << 20
    keys = side.keys_of(400)
    side.wait_until(lambda: there.used() <= there.adapter.get_usage().total_capacity_bytes, "all is written")
    side.wait_until(lambda: sum(there.find(keys)) * 4 * PIECE == there.used(), "usage is what is there")
    found = there.find(keys)
    assert 40 < sum(found) < 128
    assert {key for key, is_there in zip(keys, found, strict=True) if is_there} == set(listener.sizes)
    assert sum(listener.sizes.values()) == there.used()
    assert there.status("evicted") + there.status("write_failed") == 400 - sum(found)
    into = side.empties_of(400)
    loaded = there.fetch(keys, into)
    assert loaded == found, "an object is there whole, or not at all"
    there.close()
    assert side.folder_bytes(folder) <= 2 << 20


def test_evicted_while_locked_is_a_miss_that_is_counted(folder: Path) -> None:
    there = AdapterSide.open(folder, capacity="2MiB")
    key, stored = side.key_of(1000), side.object_of()
    assert there.store([key], [stored])
    assert there.lookup([key]) == [True]
    others = side.keys_of(1000)
    for first in range(0, 1000, 20):
        assert there.store(others[first : first + 20], side.objects_of(20))
        there.find(others[max(0, first - 60) : first + 20])
    side.wait_until(lambda: there.used() <= there.adapter.get_usage().total_capacity_bytes, "all is written")
    into = side.object_of(content=0xA5)
    loaded = there.load([key], [into])
    there.adapter.submit_unlock([key])
    assert loaded == [False], "a locked object outlived 1000 others that were used more"
    assert there.status("load_failed_absent") == 1
    side.wait_until(lambda: there.status("locked") == 0, "the lock is released")
    there.close()


def test_closing_with_tasks_under_way(folder: Path) -> None:
    there = AdapterSide.open(folder)
    adapter = there.adapter
    keys, objects = side.keys_of(40), side.objects_of(40)
    assert there.store(keys[:20], objects[:20])
    into = side.empties_of(20)
    loading = [adapter.submit_load_task(keys[:20], into) for _ in range(3)]
    storing = adapter.submit_store_task(keys[20:], objects[20:])
    looking = adapter.submit_lookup_and_lock_task(keys, {})
    there.close()
    there.close()
    results = [adapter.query_load_result(task) for task in loading]
    assert all(result is not None for result in results)
    for index in range(20):
        if results[0] is not None and results[0].test(index):
            assert side.same(objects[index], into[index])
    assert storing in adapter.pop_completed_store_tasks()
    assert adapter.query_lookup_and_lock_result(looking) is not None
    into[0].raw_data.zero_()


def test_a_closed_adapter_answers_with_nothing(folder: Path) -> None:
    there = AdapterSide.open(folder)
    there.close()
    adapter = there.adapter
    keys = side.keys_of(2)
    assert not adapter.pop_completed_store_tasks()
    task = adapter.submit_store_task(keys, side.objects_of(2))
    assert not adapter.pop_completed_store_tasks()[task].is_successful()
    found = adapter.query_lookup_and_lock_result(adapter.submit_lookup_and_lock_task(keys, {}))
    assert found is not None
    assert side.bits(found, 2) == [False, False]
    loaded = adapter.query_load_result(adapter.submit_load_task(keys, side.empties_of(2)))
    assert loaded is not None
    assert side.bits(loaded, 2) == [False, False]
    adapter.submit_unlock(keys)
    adapter.delete(keys)
    assert adapter.report_status()["is_healthy"] is False


def test_a_forked_child_finds_nothing_and_its_parent_goes_on(there: AdapterSide) -> None:
    keys, objects = side.keys_of(1), side.objects_of(1)
    assert there.store(keys, objects)
    child = os.fork()
    if child == 0:
        adapter = there.adapter
        found = adapter.query_lookup_and_lock_result(adapter.submit_lookup_and_lock_task(keys, {}))
        loaded = adapter.query_load_result(adapter.submit_load_task(keys, side.empties_of(1)))
        task = adapter.submit_store_task(keys, objects)
        stored = adapter.pop_completed_store_tasks()[task].is_successful()
        adapter.submit_unlock(keys)
        adapter.delete(keys)
        healthy = adapter.report_status()["is_healthy"]
        there.close()
        good = not (found is None or found.test(0) or loaded is None or loaded.test(0) or stored or healthy)
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert there.fetch(keys, side.empties_of(1)) == [True]


def test_memory_that_cannot_be_read_fails_its_object_alone(there: AdapterSide) -> None:
    class Elsewhere(side.TensorMemoryObj):
        @property
        def byte_array(self) -> memoryview:
            raise NotImplementedError("not in host memory")

    good, template = side.object_of(), side.object_of()
    bad = Elsewhere(template.raw_data, template.meta, parent_allocator=None)
    keys = side.keys_of(2)
    assert not there.store(keys, [bad, good])
    assert there.find(keys) == [False, True]
    assert there.store(keys[:1], [template])
    into = side.object_of(content=0)
    assert there.load(keys, [bad, into]) == [False, True]
    assert side.same(good, into)


def test_a_killed_process_leaves_whole_objects(folder: Path) -> None:
    script = """
    there = AdapterSide.open(folder)
    for number in range(10_000):
        assert there.store([side.key_of(number)], [side.object_of(content=number % 251)])
        print(number, flush=True)
    """
    with child(script, folder) as killed:
        assert killed.stdout is not None
        while int(killed.stdout.readline()) < 60:
            pass
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    there = AdapterSide.open(folder)
    keys = side.keys_of(400)
    into = side.empties_of(400)
    for index, loaded in enumerate(there.fetch(keys, into)):
        if loaded:
            assert set(into[index].raw_data.tolist()) == {index % 251}
    found = there.find(keys)
    assert there.used() == sum(found) * 4 * PIECE
    assert there.store(side.keys_of(1, 9000), side.objects_of(1))
    there.close()


def test_a_disk_without_room_fails_stores_and_nothing_else(folder: Path) -> None:
    script = """
    import resource
    there = AdapterSide.open(folder, capacity="64MiB", staging="4MiB", close_within=1)
    keys, objects = side.keys_of(4), side.objects_of(4)
    assert there.store(keys, objects)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    results = [there.store(side.keys_of(50, 50 * turn), side.objects_of(50)) for turn in range(1, 8)]
    into = side.empties_of(4)
    loaded = there.fetch(keys, into)
    assert all(side.same(objects[index], into[index]) for index in range(4) if loaded[index])
    assert False in results, "more than staging memory and the disk have room for"
    every = side.keys_of(400)
    came = there.fetch(every, side.empties_of(400))
    side.wait_until(lambda: there.used() == sum(there.find(every)) * 4 * side.PIECE, "usage is what is there")
    assert sum(there.find(every)) < 350
    assert there.adapter.report_status()["is_healthy"], "it goes on"
    assert there.status("errors") == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = side.objects_of(4)
    side.wait_until(lambda: there.store(side.keys_of(4, 800), again), "it stores again")
    assert there.fetch(side.keys_of(4, 800), into) == [True] * 4
    assert all(map(side.same, again, into))
    there.close()
    print("done", flush=True)
    """
    with child(script, folder) as process:
        shown, _ = process.communicate(timeout=300)
    assert shown.strip().endswith("done"), shown
    assert process.returncode == 0


def test_a_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    script = """
    folder.mkdir()
    folder.chmod(0o500)
    import kvtile, kvtile.lmcache
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        AdapterSide.open(folder)
    except kvtile.DiskError as error:
        print("refused:", error, flush=True)
    """
    folder.parent.chmod(0o755)
    with child(script, folder) as process:
        shown, _ = process.communicate(timeout=300)
    assert shown.startswith("refused:"), shown


def test_what_waits_too_long_is_not_started(there: AdapterSide, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, objects = side.keys_of(1), side.objects_of(1)
    assert there.store(keys, objects)
    monkeypatch.setattr("kvtile.lmcache._transfers._START_WITHIN", -1.0)
    into = side.object_of(content=0xA5)
    assert there.load(keys, [into]) == [False]
    assert set(into.raw_data.tolist()) == {0xA5}, "LMCache may have given this memory to others"
    assert not there.store(side.keys_of(1, 5), objects)
    assert there.status("load_failed_late") == there.status("store_failed_late") == 1
    monkeypatch.undo()
    assert there.fetch(keys, [into]) == [True]


def test_an_object_larger_than_the_folder_evicts_nothing(there: AdapterSide) -> None:
    keys, objects = side.keys_of(3), side.objects_of(3)
    assert there.store(keys, objects)
    assert not there.store([side.key_of(9)], [side.object_of(5 << 20)])
    assert there.find(keys) == [True] * 3
    assert there.status("store_failed_no_room") == 1


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "blocks").write_text("a file")
    with pytest.raises(kvtile.KvtileError):
        AdapterSide.open(folder)
