"""The two sides of the vLLM connector against a small engine, without vLLM."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_engine import BLOCKS, LAYERS, PAGE, Engine, Tensor, layout_and_identity, nothing, sides

__all__ = ["sides"]  # The fixture of the tests below.


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_block_is_right_and_every_operation_completes(
    sides: Any, seed: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several ranks that evict independently and disagree about the length of a hit."""
    on_disk = seed % 2 == 1
    engine = Engine(sides, seed, ranks, tmp_path / "disk" if on_disk else None, monkeypatch)
    try:
        for _ in range(400):
            engine.step()
        # Stores and loads end on threads, which may be slow on a busy machine.
        end = time.monotonic() + 60
        while (engine.requests or engine.scheduler.finishing) and time.monotonic() < end:
            time.sleep(0.001)
            for request in list(engine.requests.values()):
                if request.state != "loading":
                    engine.end(request)
            engine.run(pickle.loads(pickle.dumps(engine.scheduler.orders(nothing()))), {})
        scheduler = engine.scheduler
        assert not engine.requests and not engine.held and not any(engine.said.values())
        left = [scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading]
        for worker in engine.workers:
            left += [worker.loads, worker.stores, worker.held]
        assert not any(left)
        assert sorted(engine.free) == list(range(BLOCKS))
        # With several ranks, one may miss blocks that others have, so no step computes before all have reported.
        assert (engine.loaded_blocks["in step"] > 20) == (ranks == 1)
        assert engine.loaded_blocks["before"] > 20 if on_disk or ranks > 1 else engine.failed_blocks > 0
        for rank, worker in enumerate(engine.workers):
            stored = {(tier, key) for tier, _, key, _ in worker.cache.snapshot().blocks}
            known = scheduler.directories[rank]
            assert stored == {(tier, key) for tier in ("host", "disk") for key in known.blocks(tier)}
        assert all(engine.keys) and len(set().union(*engine.keys)) == sum(map(len, engine.keys)), "ranks share no keys"
    finally:
        for worker in engine.workers:
            worker.close()


def test_a_block_counts_when_all_workers_have_it(sides: Any) -> None:
    directory = sides.directory
    one = directory.directory_of([("stored", "host", b"a", None), ("stored", "disk", b"b", b"a")])
    two = directory.directory_of([("stored", "disk", b"A", None), ("stored", "host", b"B", b"A"), ("stored", "host", b"C", b"B")])
    keys = {0: [b"a", b"b", b"c"], 1: [b"A", b"B", b"C"]}
    both = {0: one, 1: two}
    assert directory.leading_tiers({0: one}, keys) == ["host", "disk"]
    assert directory.leading_tiers(both, keys) == ["disk", "disk"]
    one.apply([("removed", "host", b"a", None)])
    assert directory.leading_tiers(both, keys) == []
    two.apply([("cleared", "host", b"", None)])
    assert directory.leading_tiers({1: two}, keys) == ["disk"]
    assert directory.leading_tiers({}, keys) == []


def cache_in(folder: Path) -> kvtile.Cache:
    """A cache with a disk tier, like that of an engine with one worker."""
    kv = {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}
    layout, identity = layout_and_identity(None, kv, None, SimpleNamespace(number=0, size=1))
    return kvtile.Cache(identity, layout, host_bytes=1 << 20, disk=str(folder), disk_bytes=1 << 20)


def test_a_folder_has_the_blocks_of_one_number_of_workers(sides: Any, tmp_path: Path) -> None:
    rank = sides.rank.Rank
    assert rank().folder(tmp_path / "none") == tmp_path / "none"
    assert rank(1, 2).folder(tmp_path / "none") == tmp_path / "none" / "rank-1-of-2"
    cache_in(tmp_path / "one").close()
    (tmp_path / "two" / "rank-0-of-2").mkdir(parents=True)
    assert rank().folder(tmp_path / "one") == tmp_path / "one"
    assert rank(1, 2).folder(tmp_path / "two") == tmp_path / "two" / "rank-1-of-2"
    for folder, number, found in (("one", rank(0, 2), 1), ("two", rank(0, 3), 2), ("two", rank(), 2)):
        with pytest.raises(kvtile.IdentityError, match=f"tensor_parallel_size differs: .* of {found}, .* {number.size};"):
            number.folder(tmp_path / folder)
