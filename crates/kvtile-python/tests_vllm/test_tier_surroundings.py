"""What surrounds vLLM's tier: other processes, folders that cannot be used, forks, sizes of rows, large and empty jobs.

As in the other tests of the tier, every lookup compares every byte of the rows.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiers import ROW, ROWS, SECONDS, Tiers, content, context, count, entry, job, key, keys, submit, tiers
from vllm.v1.kv_offload.base import LookupResult

import kvtile

HOLDS = """
import sys, kvtile
group = kvtile.StoreGroup.opaque("kv", 4096, model="m", revision="r")
store = kvtile.BlockStore(groups=group, disk=sys.argv[1], disk_bytes=1 << 20)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_folder_of_another_process_is_refused_until_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "kv")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline().strip() == "open"
        with pytest.raises(kvtile.FolderInUseError, match=f"by process {process.pid}"), tiers(entry(tmp_path / "kv")):
            pass
        process.stdin.close()
    with pytest.raises(kvtile.KvtileError, match="give the kvtile tier another path"), tiers(entry(tmp_path / "kv")):
        pass


@pytest.mark.parametrize("capacity", [1, 4096, ROW])
def test_a_capacity_without_room_for_rows_is_refused_with_the_size(capacity: int, tmp_path: Path) -> None:
    described = entry(tmp_path / "kv", capacity=capacity)
    with pytest.raises(kvtile.SettingsError, match=rf"{capacity} bytes.*{ROW} bytes"), tiers(described):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(kvtile.DiskError, match="/proc/kvtile"), tiers(entry(Path("/proc/kvtile"))):
        pass
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(2)))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need a process that may become that user")
def test_a_folder_of_another_user_is_refused_and_unchanged(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(2)))
        made.tier._store.flush()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        with pytest.raises(kvtile.DiskError, match="ermission denied"), tiers(entry(tmp_path / "kv")):
            pass
    finally:
        os.seteuid(0)
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.lookup(keys(range(2))) == 2


def test_a_folder_that_is_removed_serves_no_other_bytes_and_a_new_engine_starts_anew(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(4)))
        made.tier._store.flush()
        shutil.rmtree(tmp_path / "kv")
        made.store(keys(range(10, 14)))
        assert not made.tier._store.flush(5.0).durable
        made.forget_primary()
        made.lookup(keys(range(4)))
        made.forget_primary()
        made.lookup(keys(range(10, 14)))
        assert count(made, "errors", "lookup") == 0
    assert not (tmp_path / "kv").exists()
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.lookup(keys(range(4))) == 0
        made.store(keys(range(4)))
        made.forget_primary()
        assert made.lookup(keys(range(4))) == 4


def test_a_forked_child_finds_nothing_and_its_parent_goes_on(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(3)))
        made.tier._store.flush()
        child = os.fork()
        if child == 0:
            os._exit(_of_child(made))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        made.forget_primary()
        assert made.lookup(keys(range(3))) == 3
        made.store(keys(range(10, 13)))
        made.forget_primary()
        assert made.lookup(keys(range(10, 13))) == 3


def _of_child(made: Tiers) -> int:
    """What a child gets: 0 if every call ends and nothing comes."""
    try:
        found = [made.tier.lookup(name, context()) for name in keys(range(3))]
        made.tier.submit_store(job(50, keys([20]), [0], is_load=False))
        made.tier.submit_load(job(51, keys([0]), [1], is_load=True))
        results = [result_of_either(made.tier) for _ in range(2)]
        made.tier.drain_jobs()
        made.tier.shutdown()
    except BaseException as error:
        print("the child:", repr(error), file=sys.stderr)
        return 1
    good = found == [LookupResult.MISS] * 3 and sorted(results) == [(50, False), (51, False)]
    return 0 if good else 2


def result_of_either(tier: Any) -> tuple[int, bool]:
    """The result of the next job."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not tier._results:
            tier._collect()
        if tier._results:
            result = tier._results.pop(0)
            return result.job_id, result.success
        time.sleep(0.001)
    raise AssertionError("the job does not end")


@pytest.mark.parametrize("row", [1, 100, 4095, 5000, 12288])
def test_rows_of_any_size_come_back(row: int, tmp_path: Path) -> None:
    """vLLM fills its rows up to whole pages; the tier keeps the padding too."""
    extra = {"cpu_bytes_to_use": 8 * (-(-row // 4096) * 4096), "secondary_tiers": [entry(tmp_path / "kv")]}
    with tiers(entry(tmp_path / "kv"), worker_kv_bytes_per_block=row, extra_config=extra) as made:
        wanted = np.arange(made.rows.size, dtype=np.int64).astype(np.int8).reshape(made.rows.shape)
        made.rows[:] = wanted
        names = keys(range(2))
        assert submit(made, job(1, names, [0, 1], is_load=False)).success
        made.tier._store.flush()
        made.rows[:] = 0
        assert submit(made, job(2, names, [3, 2], is_load=True)).success
        assert np.array_equal(made.rows[3], wanted[0]) and np.array_equal(made.rows[2], wanted[1])
        assert not made.rows[[0, 1]].any()


def fill(made: Tiers, names: list[bytes]) -> None:
    """Fills the rows with the contents of blocks."""
    for row, name in enumerate(names):
        made.rows[row] = content(name)


def has(made: Tiers, names: list[bytes]) -> bool:
    """Whether the rows have the contents of blocks, in this order."""
    return all(np.array_equal(made.rows[row], content(name)) for row, name in enumerate(names))


def test_jobs_without_blocks_end(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        for number, is_load in ((1, False), (2, True)):
            assert submit(made, job(number, [], [], is_load=is_load)).success
        made.tier.touch([], context())
        assert not made.tier.has_pending_work()


def test_thousands_of_blocks_in_one_job(tmp_path: Path) -> None:
    blocks = 3000
    described = entry(tmp_path / "kv", capacity="64MiB", stage_within=60)
    extra = {"cpu_bytes_to_use": blocks * ROW, "secondary_tiers": [described]}
    with tiers(described, extra_config=extra) as made:
        assert len(made.rows) == blocks
        names = keys(range(blocks))
        fill(made, names)
        assert submit(made, job(1, names, list(range(blocks)), is_load=False)).success
        made.rows[:] = 0
        assert submit(made, job(2, names, list(reversed(range(blocks))), is_load=True)).success
        assert has(made, names[::-1])


def test_a_job_that_does_not_fit_the_folder_keeps_what_fits(tmp_path: Path) -> None:
    """One batch of more blocks than the folder has room for: no failure for vLLM, and the bound holds."""
    blocks = 400
    extra = {"cpu_bytes_to_use": blocks * ROW, "secondary_tiers": [entry(tmp_path / "kv")]}
    with tiers(entry(tmp_path / "kv"), extra_config=extra) as made:
        names = keys(range(blocks))
        fill(made, names)
        submit(made, job(1, names, list(range(blocks)), is_load=False))
        made.tier._store.flush()
        taken = sum(file.stat().st_blocks * 512 for file in (tmp_path / "kv").rglob("*") if file.is_file())
        assert taken <= 1 << 20
        found = [name for name in names if made.tier.lookup(name, context(name.hex())) is LookupResult.HIT]
        assert 0 < len(found) < blocks
        made.rows[:] = 0
        loaded = submit(made, job(2, found, list(range(len(found))), is_load=True))
        came = set(found if loaded.success else loaded.successful_keys or ())
        assert all(np.array_equal(made.rows[row], content(name)) for row, name in enumerate(found) if name in came)


@pytest.mark.parametrize("seconds", [0, 2**33], ids=["1970", "2242"])
def test_a_reader_follows_a_writer_whose_clock_jumps(seconds: int, tmp_path: Path) -> None:
    described = {name: value for name, value in entry(tmp_path / "kv", read_only=True).items() if name != "capacity"}
    with tiers(entry(tmp_path / "kv")) as writer, tiers(described) as reader:
        for first in (0, 10, 20):
            writer.store(keys(range(first, first + 3)))
            assert writer.tier._store.flush().durable
            for file in (tmp_path / "kv").iterdir():
                os.utime(file, (seconds + first, seconds + first))
            end = time.monotonic() + SECONDS
            while reader.lookup(keys(range(first, first + 3))) < 3:
                assert time.monotonic() < end, "the reader does not see the writer's blocks"
                reader.forget_primary()
            time.sleep(0.05)


def test_a_process_without_descriptors_left_ends_its_jobs(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            made.store(keys(range(4)))
            made.forget_primary()
            made.lookup(keys(range(4)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        made.store(keys(range(20, 20 + ROWS)))
        made.forget_primary()
        assert made.lookup([key(20)]) == 1
