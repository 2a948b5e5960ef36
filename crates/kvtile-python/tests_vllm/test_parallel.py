"""Several workers share the heads of a model: each keeps its own heads, and the scheduler decides for all of them. Other
numbers of workers read what they wrote."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import PAGE, flip_bytes, run, told

# The number of the model's KV heads.
RANKS = 3
# Each worker is a process with one thread.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# vLLM's own way: its core and each worker are new interpreters that import vLLM, which takes a quarter of a minute each.
AS_USUAL: dict[str, Any] = {"environment": {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}
FORKED: dict[str, Any] = {"environment": ENVIRONMENT, "patches": {"start_method": "forkserver"}}
PROMPTS = 12
LAYERS = 30
PARTS = [f"layers-0-{LAYERS}.heads-{rank}-{rank + 1}" for rank in range(RANKS)]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts that share prefixes of many lengths."""
    numbers = random.Random(3)
    text = [numbers.randrange(1000, 40000) for _ in range(420)]
    lengths = [31, 64, 100, 161, 257, 300, 333, 384, 400, 400, 416, 420]
    assert len(lengths) == PROMPTS
    return [text[:length] + [numbers.randrange(1000, 40000) for _ in range(7)] for length in lengths]


def parallel(rounds: list[dict[str, Any]], disk: Path, processes: dict[str, Any] = FORKED) -> dict[str, Any]:
    engine = {"tensor_parallel_size": RANKS, "num_gpu_blocks_override": 34, "max_num_seqs": 4}
    return run(told(rounds, disk, engine=engine, **processes))


def whole_blocks(prompts: list[list[int]]) -> list[int]:
    """Tokens of the prompts in blocks that can be loaded: the last token is always computed."""
    return [(len(prompt) - 1) // PAGE * PAGE for prompt in prompts]


def counts(turn: dict[str, Any]) -> dict[str, int]:
    return {name.removeprefix("vllm:kvtile_"): count for name, count in turn["kvtile"].items()}


def test_ranks_keep_their_own_heads_and_agree_about_hits(prompts: list[list[int]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    # The first round reuses nothing; the second one reuses the blocks that the first one stored.
    first = parallel([{"prompts": prompts, "alone": True}, {"prompts": prompts}], disk, AS_USUAL)
    alone, again = first["rounds"]
    assert not any(alone["cached"]) and again["tokens"] == alone["tokens"]
    assert sum(again["cached"]) > sum(map(len, prompts)) * 3 // 4
    found = counts(again)
    assert found["from_host_blocks"] > 10 * RANKS and found["failed_blocks"] == 0
    assert sorted(folder.name for folder in disk.iterdir()) == PARTS

    # One worker with all heads assembles the blocks from the parts of all workers.
    copy = tmp_path / "copy"
    shutil.copytree(disk, copy)
    one = run(told([{"prompts": prompts}], copy))
    assert one["ready"]["blocks_on_disk"] == 0
    assert one["rounds"][0]["tokens"] == alone["tokens"]
    assert one["rounds"][0]["cached"] == whole_blocks(prompts)
    found = counts(one["rounds"][0])
    assert found["from_disk_blocks"] > 10 and found["failed_blocks"] == 0

    # After a restart all blocks are on disk, where one worker has lost some.
    flip_bytes(disk / PARTS[1] / "slots", every=1 << 22)
    second = parallel([{"prompts": prompts}], disk)
    assert second["rounds"][0]["tokens"] == alone["tokens"]
    found = counts(second["rounds"][0])
    assert found["from_disk_blocks"] > 2 * RANKS and found["failed_blocks"] > 0


def test_one_worker_computes_blocks_of_which_a_part_is_damaged(prompts: list[list[int]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    written = parallel([{"prompts": prompts}], disk)
    flip_bytes(disk / PARTS[1] / "slots", every=1 << 16)
    one = run(told([{"prompts": prompts}], disk))
    assert one["rounds"][0]["tokens"] == written["rounds"][0]["tokens"]
    found = counts(one["rounds"][0])
    assert found["failed_blocks"] > 0


def test_several_workers_read_what_one_wrote(prompts: list[list[int]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    written = run(told([{"prompts": prompts}], disk))
    several = parallel([{"prompts": prompts}], disk)["rounds"][0]
    assert several["tokens"] == written["rounds"][0]["tokens"]
    assert several["cached"] == whole_blocks(prompts)
    found = counts(several)
    assert found["from_disk_blocks"] > 10 * RANKS and found["failed_blocks"] == 0
