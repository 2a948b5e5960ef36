"""vLLM's own options beside the tier: each works with it, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_policy import serve
from tiers import ROW, ROWS, count, entry, keys, tiers
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

import kvtile

POLICIES: list[dict[str, Any]] = [
    {"eviction_policy": "lru"}, {"eviction_policy": "arc"},
    {"eviction_policy": "KvtilePolicy", "cache_policy_module_path": "kvtile.vllm.policy"},
]


def spec(*entries: dict[str, Any], rows: int = ROWS, **options: Any) -> dict[str, Any]:
    """vLLM's extra config."""
    return {"cpu_bytes_to_use": rows * ROW, "secondary_tiers": list(entries), **options}


@pytest.mark.parametrize("policy", POLICIES, ids=[str(policy["eviction_policy"]) for policy in POLICIES])
def test_every_policy_of_the_primary_tier(policy: dict[str, Any], tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv"), extra_config=spec(entry(tmp_path / "kv"), **policy)) as made:
        for first in range(0, 4 * ROWS, 4):
            assert made.store(keys(range(first, first + 4)))
        for first in range(0, 4 * ROWS, 4):
            assert made.lookup(keys(range(first, first + 4))) == 4
        assert count(made, "lookups", "hit") >= 3 * ROWS


def test_two_tiers_with_folders_of_their_own(tmp_path: Path) -> None:
    one, two = entry(tmp_path / "one"), entry(tmp_path / "two")
    with tiers(one, extra_config=spec(one, two)) as made:
        assert made.store(keys(range(4)))
        made.forget_primary()
        assert made.lookup(keys(range(4))) == 4
    for described in (one, two):
        with tiers(described) as made:
            assert made.lookup(keys(range(4))) == 4


def test_two_tiers_with_one_folder_are_refused(tmp_path: Path) -> None:
    one = entry(tmp_path / "kv")
    refused = pytest.raises(kvtile.FolderInUseError, match="give each process a folder of its own")
    with refused, tiers(one, extra_config=spec(one, one)):
        pass


@pytest.mark.parametrize("is_first", [True, False])
def test_vllms_own_tier_for_files_beside_it(is_first: bool, tmp_path: Path) -> None:
    ours, files = entry(tmp_path / "kv"), {"type": "fs", "root_dir": str(tmp_path / "fs")}
    both = (ours, files) if is_first else (files, ours)
    with tiers(ours, extra_config=spec(*both)) as made:
        assert made.store(keys(range(4)))
        made.forget_primary()
        assert made.lookup(keys(range(4))) == 4
        for tier in made.manager.secondary_tiers:
            assert not tier.has_pending_work()


@pytest.mark.parametrize("chunks", [2, 4])
def test_rows_of_several_blocks(chunks: int, tmp_path: Path) -> None:
    extra = {"cpu_bytes_to_use": ROWS * ROW * chunks, "secondary_tiers": [entry(tmp_path / "kv")]}
    with tiers(entry(tmp_path / "kv"), blocks_per_chunk=chunks, extra_config=extra) as made:
        assert made.view.shape == (ROWS, chunks * ROW)
        assert made.tier._tokens == {0: 16 * chunks}
    with pytest.raises(kvtile.IdentityError, match=r"row\.(blocks_per_chunk|bytes)|block"), tiers(entry(tmp_path / "kv")):
        pass


def test_a_primary_tier_of_one_row(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv"), extra_config=spec(entry(tmp_path / "kv"), rows=1)) as made:
        assert made.store(keys([1])) and made.store(keys([2]))
        assert made.lookup(keys([1])) == 1 and made.lookup(keys([2])) == 1
        assert not made.store(keys(range(10, 12))), "vLLM refuses what its primary tier cannot hold"


def test_vllm_refuses_thresholds_of_stores_with_tiers(tmp_path: Path) -> None:
    extra = spec(entry(tmp_path / "kv"), store_threshold=2)
    with pytest.raises(ValueError, match="store_threshold"), tiers(entry(tmp_path / "kv"), extra_config=extra):
        pass


@pytest.mark.parametrize("capacity", [1, 2])
def test_the_learned_policy_with_hardly_any_chunks(capacity: int) -> None:
    made = CPUOffloadingManager(
        num_chunks=capacity, cache_policy="KvtilePolicy", cache_policy_module_path="kvtile.vllm.policy"
    )
    for number in range(20):
        chain = keys(range(number, number + capacity))
        serve(made, chain, f"request {number}")
        assert serve(made, chain, f"request {number} again") == capacity
