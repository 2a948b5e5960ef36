"""The tier below a real vLLM engine on the CPU, beside vLLM's own tier for files.

`cpu_spec` has the one part that vLLM refuses on CPUs, the copies between the engine and the primary tier.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers import MODEL, PAGE, run
from tiny import tiny_model

TOKENS = 200
# Full blocks of a prompt.
BLOCKS = TOKENS // PAGE
CACHED = BLOCKS * PAGE
# The primary tier holds one prompt and not two, so each comes from the tier below.
PRIMARY_ROWS = 8
STRIDE = 1 << 16
# Each worker is a process with one thread, and the scheduler is another one.
RANKS = 2
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def row_bytes(model: Path = MODEL) -> int:
    """Bytes of a block of 32 tokens in float32."""
    config = json.loads((model / "config.json").read_text())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(PAGE * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size * 2 * 4)


@pytest.fixture(scope="module")
def rounds() -> list[dict[str, Any]]:
    """Three prompts, one after the other."""
    numbers = random.Random(1)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(TOKENS)] for _ in range(3)]
    return [{"prompts": [prompt], "max_tokens": 8} for prompt in prompts]


def engine(tier: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The output of an engine with a tier."""
    tiers = {"cpu_bytes_to_use": PRIMARY_ROWS * row_bytes(), "secondary_tiers": [tier]}
    said = run({"model": str(MODEL), "tiers": tiers, "rounds": rounds})
    assert said["rounds"], said["refused"]
    return said


def kvtile_tier(folder: Path, **options: Any) -> dict[str, Any]:
    """The entry of kvtile's tier, by its short name."""
    return {"type": "kvtile", "path": str(folder), "capacity": "1GiB", **options}


def shared_beside(folder: Path) -> dict[str, Any]:
    """The options of a shared store beside a folder."""
    return {"shared": str(folder.with_name("shared")), "shared_within": 20}


def tokens(said: dict[str, Any]) -> list[Any]:
    return [turn["tokens"] for turn in said["rounds"]]


def cached(said: dict[str, Any]) -> list[int]:
    return [turn["cached"][0] for turn in said["rounds"]]


@pytest.fixture(scope="module")
def expected(rounds: list[dict[str, Any]]) -> list[Any]:
    """The tokens of an engine that keeps nothing."""
    return tokens(run({"model": str(MODEL), "rounds": rounds}))


@pytest.fixture(scope="module")
def folder(rounds: list[dict[str, Any]], expected: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that an engine has filled; the second time, the prompts came from it. It has a shared store beside it."""
    path = tmp_path_factory.mktemp("tier") / "kv"
    said = engine(kvtile_tier(path, **shared_beside(path)), rounds + rounds)
    assert tokens(said) == expected + expected
    assert cached(said) == [0, 0, 0] + 3 * [CACHED], "vLLM's primary tier has evicted them"
    assert said["closed"], "the engine has ended without an error"
    assert "BufferError" not in said["log"]
    return path


def flip_exponents(folder: Path) -> int:
    """Flips one exponent bit of a float32 in every 64 KiB of the blocks; returns how many."""
    flipped = 0
    for file in sorted(found for found in folder.rglob("*") if found.is_file()):
        size = file.stat().st_size
        if size < STRIDE:
            continue
        with file.open("r+b") as stream:
            for start in range(0, size - STRIDE + 1, STRIDE):
                stream.seek(start + STRIDE // 2)
                value = struct.unpack("<I", stream.read(4))[0]
                stream.seek(start + STRIDE // 2)
                stream.write(struct.pack("<I", value ^ (1 << 30)))
                flipped += 1
    return flipped


def test_the_same_tokens_come_from_the_disk_after_a_restart(
    folder: Path, rounds: list[dict[str, Any]], expected: list[Any]
) -> None:
    said = engine(kvtile_tier(folder), rounds)
    assert tokens(said) == expected and cached(said) == 3 * [CACHED]
    counted = said["rounds"][-1]["tier"]
    assert counted["blocks load ok"] == 3 * BLOCKS
    assert not [name for name in counted if name.startswith("errors")]


def test_another_engine_with_kvtiles_policy_reads_the_shared_store(
    folder: Path, rounds: list[dict[str, Any]], expected: list[Any], tmp_path: Path
) -> None:
    """Its own folder is empty. kvtile's policy ranks the primary tier."""
    policy = {"eviction_policy": "KvtilePolicy", "cache_policy_module_path": "kvtile.vllm.policy"}
    tier = kvtile_tier(tmp_path / "kv", **shared_beside(folder))
    tiers = {"cpu_bytes_to_use": PRIMARY_ROWS * row_bytes(), "secondary_tiers": [tier], **policy}
    said = run({"model": str(MODEL), "tiers": tiers, "rounds": rounds + rounds})
    assert tokens(said) == expected + expected and cached(said) == 6 * [CACHED]
    counted = said["rounds"][-1]["tier"]
    assert counted["shared read_blocks"] >= 3 * BLOCKS and "blocks load damaged" not in counted


def test_damaged_blocks_are_computed_and_counted(
    folder: Path, rounds: list[dict[str, Any]], expected: list[Any], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "kv"))
    assert flip_exponents(copy) >= 3 * BLOCKS
    said = engine(kvtile_tier(copy), rounds + rounds)
    assert tokens(said) == expected + expected
    assert cached(said)[:3] == [0, 0, 0]
    # Computed once, and stored again.
    assert cached(said)[3:] == 3 * [CACHED]
    assert said["rounds"][2]["tier"]["blocks load damaged"] >= 3


def test_the_same_damage_to_vllms_tier_for_files_changes_tokens(
    rounds: list[dict[str, Any]], expected: list[Any], tmp_path: Path
) -> None:
    """What the checksums are for. If this fails, vLLM verifies its files now, and the documents have to say so."""
    files = {"type": "fs", "root_dir": str(tmp_path / "fs")}
    assert tokens(engine(files, rounds)) == expected
    assert flip_exponents(tmp_path / "fs") >= 3 * BLOCKS
    said = engine(files, rounds)
    assert cached(said) == 3 * [CACHED] and tokens(said) != expected


def test_ranks_share_one_folder_and_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    """With a model of two heads: vLLM starts a process for each rank."""
    model = tiny_model(tmp_path / "tiny")
    numbers = random.Random(2)
    prompts = [[numbers.randrange(3, 990) for _ in range(TOKENS)] for _ in range(2)]
    rounds = [{"prompts": [prompt], "max_tokens": 8} for prompt in prompts]
    tiers = {"cpu_bytes_to_use": PRIMARY_ROWS * row_bytes(model), "secondary_tiers": [kvtile_tier(tmp_path / "kv")]}
    ordered = {"model": str(model), "tiers": tiers}
    first = run(ordered | {"rounds": rounds + rounds, "engine": {"tensor_parallel_size": RANKS}, "environment": ENVIRONMENT})
    assert cached(first) == [0, 0, CACHED, CACHED], first
    assert tokens(first)[2:] == tokens(first)[:2]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["kv", "tiny"]
    other = run(ordered | {"rounds": rounds})
    assert "row.tp_size" in other["refused"]["message"], other
