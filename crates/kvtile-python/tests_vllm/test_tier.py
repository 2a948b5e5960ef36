"""The tier under vLLM's own scheduler side: manager, primary tier, shared region and factory are the real ones.

Every lookup compares every byte of the rows. Every manager is shut down, and then vLLM's memory is unmapped, which fails
if the tier still exports it.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import flip_bytes
from tiers import ROW, ROWS, SECONDS, TOKENS, FailingLoads, Tiers, content, context, count, entry, job, key, keys, submit, tiers
from vllm.v1.kv_offload.base import LookupResult, OffloadPolicy
from vllm.v1.kv_offload.config import OffloadingGroupConfig

import kvtile


def blocks_files(folder: Path) -> list[Path]:
    """The files of a folder that have blocks."""
    return [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size >= 8 * ROW]


@pytest.mark.parametrize("count_of_blocks", [0, 1, 2, 5, 8])
def test_blocks_come_back_after_eviction_and_after_a_restart(count_of_blocks: int, tmp_path: Path) -> None:
    chain = keys(range(count_of_blocks))
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.lookup(chain) == 0
        assert made.store(chain)
        made.store(keys(range(100, 100 + ROWS)))
        assert made.lookup(chain) == count_of_blocks
        made.forget_primary()
        assert made.lookup(chain) == count_of_blocks
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.lookup(chain + keys([99])) == count_of_blocks
        assert count(made, "blocks", "load", "ok") == count_of_blocks


def test_jobs_are_sets_over_several_groups(tmp_path: Path) -> None:
    groups = tuple(
        OffloadingGroupConfig(tokens_per_block=TOKENS, layer_names=(f"model.layers.{number}.attn",), group_id=number)
        for number in range(2)
    )
    names = {*keys(range(3)), *keys(range(3), group=1)}
    with tiers(entry(tmp_path / "kv"), groups=groups) as made:
        order = list(names)
        for row, name in enumerate(order):
            made.rows[row] = content(name)
        assert submit(made, job(1, names, list(range(6)), is_load=False)).success
        made.rows[:] = 0
        assert submit(made, job(2, names, [5, 4, 3, 2, 1, 0], is_load=True)).success
        for row, name in zip([5, 4, 3, 2, 1, 0], order, strict=True):
            assert np.array_equal(made.rows[row], content(name))


def test_damage_is_a_miss_for_the_damaged_blocks_alone(tmp_path: Path) -> None:
    chain = keys(range(8))
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.store(chain)
    for file in blocks_files(tmp_path / "kv"):
        flip_bytes(file, 4 * ROW)
    with tiers(entry(tmp_path / "kv")) as made:
        request = context("a request", chain)
        made.manager.on_new_request(request)
        first = made.lookup(chain, request)
        damaged = count(made, "blocks", "load", "damaged")
        assert 0 < damaged < 8 and first < 8
        good = [name for name in chain if made.lookup([name]) == 1]
        assert len(good) == 8 - damaged, "the others are served"
        bad = [name for name in chain if name not in good]
        # The engine computes them, and they are stored again.
        assert made.store(bad)
        made.forget_primary()
        assert made.lookup(chain) == 8


def test_a_failed_block_is_a_miss_until_it_is_stored_again(tmp_path: Path) -> None:
    chain = keys(range(3))
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(chain)
        made.forget_primary()
        real, made.tier._store = made.tier._store, None
        made.tier._store = FailingLoads(real, chain[1])
        assert made.lookup(chain) == 1, "the request ends, with the blocks before the failed one"
        assert count(made, "blocks", "load", "failed") == 1
        assert made.lookup(chain[1:]) == 0
        assert count(made, "lookups", "failed before") >= 1
        made.tier._store = real
        assert made.lookup([chain[1]]) == 0
        made.store([chain[1]])
        made.forget_primary()
        assert made.lookup(chain) == 3


def test_the_folder_stays_within_its_capacity(tmp_path: Path) -> None:
    capacity = 32 * ROW
    with tiers(entry(tmp_path / "kv", capacity=capacity)) as made:
        for first in range(0, 256, 8):
            made.store(keys(range(first, first + 8)))
        # Blocks in staging memory are found too.
        made.tier._store.flush()
        size = sum(file.stat().st_blocks * 512 for file in (tmp_path / "kv").rglob("*") if file.is_file())
        assert size <= capacity
        there = made.tier._store.contains(keys(range(256)), group="kv")
        assert 8 <= sum(there) <= 32


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"kv_cache_layout": "LBNHC"}, "row.kv_cache_layout", ("LBHNC", "LBNHC")),
        ({"dtype": "fp8_e4m3"}, "row.cache_dtype", ("bfloat16", "fp8_e4m3")),
        ({"tokens_per_hash": 8}, "row.tokens_per_hash", ("16", "8")),
        ({"replicated_layout": True}, "row.order", ("direct", "replicated")),
        ({"pcp_size": 2}, "row.pcp_size", ("1", "2")),
        ({"groups": (OffloadingGroupConfig(TOKENS, ("other.attn",), 0),)}, "row.group_0", ("2 layers", "1 layers")),
        # The same bytes in a row, of two ranks.
        ({"tp_size": 2, "world_size": 2, "worker_kv_bytes_per_block": ROW // 2}, "row.", ("1", "2")),
    ],
)
def test_rows_of_another_engine_are_refused_by_field(
    changes: dict[str, Any], field: str, values: tuple[str, str], tmp_path: Path
) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(3)))
    with pytest.raises(kvtile.KvtileError) as raised, tiers(entry(tmp_path / "kv"), **changes):
        pass
    text = str(raised.value)
    assert field in text and all(value in text for value in values), text
    assert "another path" in text
    with tiers(entry(tmp_path / "kv")) as made:
        assert made.lookup(keys(range(3))) == 3, "the folder is untouched"


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys([1]))
    with pytest.raises(kvtile.KvtileError, match=r"(?s)revision.*r1.*r2|revision.*r2.*r1"), tiers(entry(tmp_path / "kv", revision="r2")):
        pass


def test_a_folder_is_for_one_engine_at_a_time(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")), pytest.raises(kvtile.FolderInUseError), tiers(entry(tmp_path / "kv")):
        pass


def test_rows_of_another_number_of_ranks_are_refused_with_the_reason(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys([1]))
    reason = r"(?s)extra\.row\.tp_size differs.*cannot be cut: use that number, or \"canonical_layout\": true"
    with pytest.raises(kvtile.IdentityError, match=reason), tiers(entry(tmp_path / "kv"), tp_size=2):
        pass


def test_replicas_share_the_capacity_and_have_folders_of_their_own(tmp_path: Path) -> None:
    described = entry(tmp_path / "kv", capacity="2MiB")
    with (
        tiers(described, data_parallel_size=2, data_parallel_index=0) as first,
        tiers(described, data_parallel_size=2, data_parallel_index=1) as second,
    ):
        first.store(keys(range(3)))
        assert second.lookup(keys(range(3))) == 0
        assert first.tier.config_info()["kvtile_capacity_bytes"] == 1 << 20
    assert sorted(found.name for found in (tmp_path / "kv").iterdir()) == ["replica-0-of-2", "replica-1-of-2"]


def test_shutdown_with_jobs_under_way_releases_the_memory(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv", capacity="8MiB")) as made:
        names = keys(range(ROWS))
        request = context("a request", names)
        made.manager.on_new_request(request)
        prepared = made.manager.prepare_store(names, request)
        for name, row in zip(names, prepared.store_spec.chunk_ids, strict=True):
            made.rows[row] = content(name)
        made.manager.complete_store(names, request)
        assert made.manager.has_pending_work()
        view = made.view
    with pytest.raises(ValueError, match="released"):
        view[0, 0]
    made.tier.shutdown()
    assert made.tier.lookup(names[0], request) is LookupResult.MISS
    made.tier.submit_load(job(77, names, list(range(ROWS)), is_load=True))
    assert [(result.job_id, result.success) for result in made.tier.get_finished_jobs()] == [(77, False)]


def test_reset_with_jobs_under_way_reports_every_job(tmp_path: Path) -> None:
    names = keys(range(ROWS))
    with tiers(entry(tmp_path / "kv")) as made:
        request = context("a request", names)
        made.manager.on_new_request(request)
        made.manager.prepare_store(names, request)
        made.manager.complete_store(names, request)
        made.forget_primary()
        assert not made.manager.has_pending_work()


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import conftest
from tiers import *
with tiers(entry(Path({folder!r}), capacity="8MiB")) as made:
    for first in range(0, 10**6, 4):
        made.store(keys(range(first % 512, first % 512 + 4)))
        print(first, flush=True)
"""


@pytest.mark.parametrize("after", [3, 150])
def test_a_killed_process_leaves_a_usable_folder(after: int, tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "kv"))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = 0
        for line in process.stdout:
            lines += line.strip().isdigit()
            if lines == after:
                process.send_signal(signal.SIGKILL)
                break
    with tiers(entry(tmp_path / "kv", capacity="8MiB")) as made:
        found = sum(made.lookup([name]) for name in keys(range(4 * after)))
        assert found >= (after > 100), "older blocks were synced before the kill"
        made.store(keys(range(1000, 1004)))
        made.forget_primary()
        assert made.lookup(keys(range(1000, 1004))) == 4


def test_two_requests_at_once_get_their_own_bytes(tmp_path: Path) -> None:
    one, two = keys(range(5)), keys(range(3)) + keys(range(20, 23))
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(one)
        made.store(two)
        made.forget_primary()
        requests = {"one": one, "two": two}
        contexts = {name: context(name, chain) for name, chain in requests.items()}
        for made_context in contexts.values():
            made.manager.on_new_request(made_context)
        # Both are looked up before any of their blocks has come.
        for name, chain in requests.items():
            for block in chain:
                made.manager.lookup(block, contexts[name])
        for name, chain in requests.items():
            assert made.lookup(chain, contexts[name]) == len(chain)
            made.manager.on_request_finished(contexts[name])
        assert not len(made.tier._requests), "requests are forgotten when they end"


def test_a_key_twice_in_a_job(tmp_path: Path) -> None:
    name, other = keys([1, 2])
    with tiers(entry(tmp_path / "kv")) as made:
        made.rows[0], made.rows[1], made.rows[2] = content(name), content(name), content(other)
        assert submit(made, job(1, [name, name, other], [0, 1, 2], is_load=False)).success
        made.rows[:] = 0
        assert submit(made, job(2, [name, other, name], [4, 5, 6], is_load=True)).success
        for row, found in ((4, name), (5, other), (6, name)):
            assert np.array_equal(made.rows[row], content(found))


@pytest.mark.parametrize(("names", "rows"), [([1, 2], [3, 3]), ([1, 2], [0]), ([1], [ROWS]), ([1], [-1])])
def test_a_load_that_would_mix_or_overrun_rows_fails(names: list[int], rows: list[int], tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys([1, 2]))
        before = made.rows.copy()
        found = submit(made, job(50, keys(names), rows, is_load=True))
        assert not found.success and not found.successful_keys
        assert count(made, "blocks", "load", "refused") == len(names)
        assert np.array_equal(made.rows, before)


def test_a_store_with_a_row_twice_is_refused_and_counted(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        assert not submit(made, job(1, keys([1, 2]), [3, 3], is_load=False)).success
        assert count(made, "blocks", "store", "refused") == 2


@pytest.mark.parametrize("is_load", [False, True])
@pytest.mark.parametrize("names", [None, [None], ["\ud800"]])
def test_jobs_with_keys_that_are_none_end_and_are_counted(names: Any, is_load: bool, tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        assert not submit(made, job(1, names, [0], is_load=is_load)).success
        operation = "load" if is_load else "store"
        assert count(made, "errors", f"submit_{operation}") == count(made, "blocks", operation, "failed") == 1
        made.store(keys([1]))


def test_unknown_keys_fail_alone(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys([1, 3]))
        found = submit(made, job(50, keys([1, 2, 3]), [5, 6, 7], is_load=True))
        assert not found.success and set(found.successful_keys) == set(keys([1, 3]))
        assert count(made, "blocks", "load", "absent") == 1
        assert made.tier.lookup(b"", context()) is LookupResult.MISS
        assert made.tier.lookup(b"x" * 1000, context()) is LookupResult.MISS


def test_a_full_disk_is_counted_and_serves_nothing_wrong(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv", capacity="64MiB")) as made:
        made.store(keys(range(4)))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * ROW, hard))
        try:
            for first in range(10, 200, 8):
                made.store(keys(range(first, first + 8)))
            # Writes are behind the jobs.
            made.tier._store.flush(5.0)
            made.forget_primary()
            found = [number for number in range(10, 202) if made.lookup([key(number)])]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
        assert 0 < len(found) < 192, "not all fit"
        stats = made.tier.get_stats().data["data"]
        unwritten = stats["vllm:kvtile_tier_unwritten_blocks"][("KvtileTier",)]
        assert unwritten >= 192 - len(found) - 4, "every lost block is counted"
        made.forget_primary()
        assert made.lookup(keys(range(4))) == 4


def test_other_engines_read_the_folder_of_one_that_writes(tmp_path: Path) -> None:
    described = {name: value for name, value in entry(tmp_path / "kv", read_only=True).items() if name != "capacity"}
    with tiers(entry(tmp_path / "kv")) as writer, tiers(described) as reader:
        assert reader.lookup(keys(range(3))) == 0
        writer.store(keys(range(3)))
        writer.tier._store.flush()
        end = time.monotonic() + SECONDS
        while reader.lookup(keys(range(3))) < 3:
            assert time.monotonic() < end, "the reader does not see the writer's blocks"
            reader.forget_primary()
        reader.store(keys(range(10, 13)))
        assert count(reader, "blocks", "store", "read only") == 3
        reader.forget_primary()
        assert reader.lookup(keys(range(10, 13))) == 0
        assert writer.lookup(keys(range(10, 13))) == 0
    other = entry(tmp_path / "kv", read_only=True, revision="r2")
    with pytest.raises(kvtile.KvtileError, match="revision"), tiers(other):
        pass


def test_a_folder_that_is_taken_away_takes_no_more_blocks(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(4)))
        made.tier._store.flush()
        (tmp_path / "kv").rename(tmp_path / "elsewhere")
        made.store(keys(range(10, 14)))
        assert not made.tier._store.flush(5.0).durable
        made.forget_primary()
        # Every byte that is served is compared.
        assert made.lookup(keys(range(4))) in range(5)
        stats = made.tier.get_stats().data["data"]
        assert stats["vllm:kvtile_tier_unwritten_blocks"][("KvtileTier",)] == 4
        assert "vllm:kvtile_tier_errors" not in stats
    with tiers(entry(tmp_path / "elsewhere")) as made:
        assert made.lookup(keys(range(4))) == 4
        assert made.lookup(keys([10])) == 0


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("text")
    with pytest.raises(kvtile.KvtileError, match="kv"), tiers(entry(tmp_path / "kv")):
        pass


def fill(made: Tiers, pinned: int) -> Any:
    """A request whose transfer to the GPU holds rows."""
    names = keys(range(200, 200 + pinned))
    made.store(names)
    request = context("holds rows", names)
    made.manager.on_new_request(request)
    assert made.lookup(names) == pinned
    made.manager.prepare_load(names, request)
    return lambda: made.manager.complete_load(names, request)


def test_a_request_waits_while_the_primary_tier_is_full(tmp_path: Path) -> None:
    chain = keys(range(4))
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(chain)
        release = fill(made, ROWS)
        request = context("waits", chain)
        made.manager.on_new_request(request)
        for _ in range(20):
            assert made.manager.lookup(chain[0], request) is LookupResult.RETRY
            made.step()
        release()
        assert made.lookup(chain, request) == 4
        assert count(made, "lookups", "wait for primary") >= 20


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_the_wait_for_the_primary_tier_is_bounded(seconds: float, tmp_path: Path) -> None:
    chain = keys(range(4))
    with tiers(entry(tmp_path / "kv", wait_seconds=seconds)) as made:
        made.store(chain)
        release = fill(made, ROWS)
        start = time.monotonic()
        assert made.lookup(chain, steps=10**6) == 0
        assert time.monotonic() - start < seconds + 5
        assert count(made, "lookups", "waited for primary") == 1
        release()


def test_a_request_longer_than_the_primary_tier_ends(tmp_path: Path) -> None:
    """Each promotion evicts a row of the same request, so without a bound its lookups would never end."""
    chain = keys(range(ROWS + 4))
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(chain[:6])
        made.store(chain[6:])
        made.forget_primary()
        assert made.lookup(chain, steps=500) <= ROWS
        assert count(made, "lookups", "longer than primary") >= 1


def test_requests_that_evict_each_other_end(tmp_path: Path) -> None:
    chains = {name: keys(range(start, start + 6)) for name, start in (("one", 0), ("two", 50), ("three", 70))}
    with tiers(entry(tmp_path / "kv")) as made:
        for chain in chains.values():
            made.store(chain)
        made.forget_primary()
        contexts = {name: context(name, chain) for name, chain in chains.items()}
        for found in contexts.values():
            made.manager.on_new_request(found)
        waiting = set(chains)
        for _ in range(500):
            # The other order each time, so that each evicts what the last one got.
            for name in sorted(waiting, reverse=bool(_ % 2)):
                answers = [made.manager.lookup(block, contexts[name]) for block in chains[name]]
                if not {LookupResult.RETRY, LookupResult.HIT_PENDING}.intersection(answers):
                    waiting.discard(name)
            made.step()
            time.sleep(0.001)
        assert not waiting


class Broken:
    """A store that fails in everything."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{name} failed")

        return fail


def test_no_exception_reaches_vllm(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        tier, real, names = made.tier, made.tier._store, keys(range(3))
        tier._store = Broken()
        assert tier.lookup(names[0], context()) is LookupResult.MISS
        assert tier.lookup(None, context()) is LookupResult.MISS
        tier.touch(names, context())
        assert tier.on_new_request(None).policy is OffloadPolicy.CHUNK_LEVEL
        tier.on_request_finished(None)
        tier.submit_store(job(1, names, [0, 1, 2], is_load=False))
        tier.submit_load(job(2, names, [0, 1, 2], is_load=True))
        assert {(result.job_id, result.success) for result in tier.get_finished_jobs()} == {(1, False), (2, False)}
        assert list(tier.take_events()) == []
        tier.drain_jobs()
        assert not tier.has_pending_work()
        counted = {labels[1] for labels in tier._stats.totals if labels[0] == "errors"}
        assert {"lookup", "touch", "on_new_request", "on_request_finished", "submit_store", "submit_load", "drain"} <= counted
        tier._store = real


def test_drain_reports_jobs_that_the_store_has_lost(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        real = made.tier._store
        made.tier._store = SimpleNamespace(
            submit_load=lambda *_: None, take_finished=list, drain=lambda: None, contains=real.contains
        )
        made.tier.submit_load(job(9, keys([1]), [0], is_load=True))
        assert made.tier.has_pending_work() and not list(made.tier.get_finished_jobs())
        made.tier.drain_jobs()
        assert [(found.job_id, found.success) for found in made.tier.get_finished_jobs()] == [(9, False)]
        made.tier._store = real
