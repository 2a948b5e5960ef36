"""vLLM generates the same tokens with the connector as without, under evictions, preemptions, kills and corruption."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import HOST_BLOCKS, MODEL, PAGE, SECONDS, Process, flip_bytes, run, told

PROMPTS = 36
# vLLM has room for about two of the longer requests, so it evicts blocks and preempts requests.
SMALL = {"num_gpu_blocks_override": 34}


def moved(said: dict[str, Any], source: str, destination: str) -> int:
    moves = said["ended"]["stats"]["moves"]
    return sum(move["blocks"] for move in moves if (move["source"], move["destination"]) == (source, destination))


def settled(said: dict[str, Any]) -> None:
    """No operation is open, and both sides agree about the tiers."""
    assert not any(said["ended"]["open"])
    assert said["ended"]["directory"]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Dozens of prompts that share prefixes of many lengths."""
    numbers = random.Random(7)
    texts = [[numbers.randrange(1000, 40000) for _ in range(700)] for _ in range(3)]
    made = []
    for _ in range(PROMPTS):
        shared = numbers.choice(texts)[: numbers.choice([5, 31, 32, 33, 64, 150, 256, 257, 400, 512, 640])]
        made.append(shared + [numbers.randrange(1000, 40000) for _ in range(numbers.randrange(1, 40))])
    return made


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """vLLM's answers without the connector, with its own prefix cache."""
    turn = {"prompts": prompts, "forget": False}
    said = run(told([turn, turn], kvtile=None))
    assert said["rounds"][0]["tokens"] == said["rounds"][1]["tokens"], "vLLM is deterministic"
    return said["rounds"][1]["tokens"]


@pytest.fixture(scope="module")
def folder(prompts: list[list[int]], expected: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk tier that was filled by an engine with little KV memory."""
    disk = tmp_path_factory.mktemp("kv") / "disk"
    order = list(range(PROMPTS))
    rounds = []
    for seed in range(3):
        random.Random(seed).shuffle(order)
        rounds.append((list(order), {"prompts": [prompts[at] for at in order]}))
    said = run(told([turn for _, turn in rounds], disk, engine=SMALL))
    for (order, _), turn in zip(rounds, said["rounds"], strict=True):
        assert turn["tokens"] == [expected[at] for at in order]
    assert said["rounds"][-1]["preemptions"] > 0, "the engine has too little KV memory"
    settled(said)
    assert moved(said, "host", "device") > 100 and moved(said, "disk", "host") > 10
    assert said["closed"]
    return disk


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "disk"))


def test_the_same_tokens_come_after_a_restart(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    said = run(told([{"prompts": prompts}], copy_of(folder, tmp_path)))
    assert said["rounds"][0]["tokens"] == expected
    assert moved(said, "disk", "host") > 20, "prefixes came from disk"
    longest = [len(prompt) for prompt in prompts]
    cached = said["rounds"][0]["cached"]
    assert sum(cached) > sum(longest) // 2 and all(c < length for c, length in zip(cached, longest, strict=True))


def wait_for_blocks(disk: Path) -> None:
    """Waits until a block is stored."""
    command = [sys.executable, "-m", "kvtile", "cache", "stat", str(disk), "--json"]
    for _ in range(SECONDS):
        stat = subprocess.run(command, capture_output=True, text=True, check=True)
        if json.loads(stat.stdout)["blocks"] > 0:
            return
        time.sleep(0.5)
    pytest.fail("nothing was stored")


def test_a_killed_engine_leaves_a_usable_disk_tier(
    prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    numbers = random.Random(11)
    process = Process(told([{"prompts": prompts}] * 50, disk, engine=SMALL))
    for event in process.events():
        if event["event"] == "ready":
            wait_for_blocks(disk)
            time.sleep(2 * numbers.random())
            process.kill()
            break
    said = run(told([{"prompts": prompts}] * 2, disk, engine=SMALL))
    assert said["ready"]["blocks_on_disk"] > 0, "blocks that were stored before the kill are found"
    assert [turn["tokens"] for turn in said["rounds"]] == [expected] * 2
    settled(said)


def test_corrupt_blocks_are_recomputed_and_counted(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    disk = copy_of(folder, tmp_path)
    flip_bytes(disk / "slots", every=1 << 18)
    said = run(told([{"prompts": prompts}], disk))
    assert said["rounds"][0]["tokens"] == expected
    assert said["ended"]["stats"]["checksum_failures"]["disk"] > 0
    settled(said)


def test_aborted_requests_leave_nothing_open(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    rounds = [{"prompts": prompts[:12], "abort": True}, {"prompts": prompts}]
    said = run(told(rounds, copy_of(folder, tmp_path)))
    assert said["rounds"][1]["tokens"] == expected
    settled(said)


def other_rope(tmp_path: Path) -> Path:
    model = Path(shutil.copytree(MODEL, tmp_path / "model", copy_function=os.symlink))
    config = json.loads((MODEL / "config.json").read_text())
    (model / "config.json").unlink()
    config["rope_theta"] = 12345.0
    config.pop("rope_parameters", None)
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope": True}, "rope"),
        ({"engine": {"dtype": "bfloat16"}, "patches": {"amx": False}}, "planes.k.codec"),
        ({"engine": {"block_size": 64}}, "page_size"),
        ({"patches": {"instruction_set": "amx"}}, "extra.attention"),
        ({"revision": "another"}, "revision"),
    ],
)
def test_blocks_of_another_identity_are_refused_by_field(
    folder: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    wanted = told([], folder)
    if change.pop("rope", False):
        wanted["model"] = str(other_rope(tmp_path))
    if "revision" in change:
        wanted["kvtile"]["revision"] = change.pop("revision")
    said = run(wanted | change)
    refused = said["refused"]
    assert refused["kind"] == "IdentityError"
    assert f"{field}" in refused["message"].split(" differs: ")[0], refused


def test_the_engine_may_be_in_processes_of_its_own(
    prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    """vLLM's default: the scheduler in one process, the worker in another."""
    disk = tmp_path / "disk"
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    # These processes take minutes on a machine with few processors.
    prompts, expected = prompts[:16], expected[:16]
    turn = {"prompts": prompts}
    endpoint = f"ipc://{tmp_path}/events"
    wanted = told([turn], disk, environment=environment, engine=SMALL, events=endpoint)
    wanted["kvtile"]["host_gib"] /= 3
    trace = tmp_path / "trace.jsonl"
    wanted["kvtile"]["record"] = str(trace)
    first = run(wanted)
    assert first["rounds"][0]["tokens"] == expected
    # The scheduler's process ended after it had written all requests.
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    lengths = sorted((line["input_length"], line["output_length"]) for line in lines)
    assert lengths == sorted((len(prompt), len(answer)) for prompt, answer in zip(prompts, expected, strict=True))
    assert len({line["hash_ids"][0] for line in lines if line["input_length"] >= PAGE}) < len(lines)
    events = first["ended"]["events"]
    assert events["BlockStored kvtile:disk"] > events["BlockRemoved kvtile:host"] > 0, events
    assert events["BlockStored kvtile:host"] > HOST_BLOCKS // 3, events
    second = run(told([turn], disk, environment=environment))
    assert second["rounds"][0]["tokens"] == expected
    assert sum(second["rounds"][0]["cached"]) > sum(map(len, prompts)) // 2, "prefixes came from disk"
    assert "stats" not in second["ended"], "the worker is in another process"
    # vLLM's own metrics contain the counts of both sides, from both processes.
    counts = {name.removeprefix("vllm:kvtile_"): count for name, count in second["rounds"][0]["kvtile"].items()}
    assert 0 < counts["found_blocks"] <= counts["looked_up_blocks"]
    assert counts["from_disk_blocks"] > 20
    assert counts["from_host_blocks"] + counts["from_disk_blocks"] == counts["loaded_blocks"]
    assert counts["failed_blocks"] == 0 and counts["stored_bytes"] > 0


def test_settings_that_kvtile_does_not_know_are_refused() -> None:
    said = run(told([], kvtile={"host_gigabytes": 3}))
    assert "host_gigabytes" in said["refused"]["message"]
    assert "host_gib" in said["refused"]["message"]
