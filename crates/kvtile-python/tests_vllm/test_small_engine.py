"""A small engine with too little KV memory for its requests, which preempts some and has others aborted."""

from __future__ import annotations

import random
from pathlib import Path

from helpers import run, told
from tiny import CONFIG, tiny_model

BLOCKS = 120


def test_tokens_match_with_preemptions_aborts_and_after_a_restart(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    numbers = random.Random(7)
    texts = [[numbers.randrange(3, 990) for _ in range(700)] for _ in range(3)]
    prompts = []
    for _ in range(36):
        shared = numbers.choice(texts)[: numbers.choice([5, 31, 32, 33, 64, 150, 256, 257, 400, 512, 640])]
        prompts.append(shared + [numbers.randrange(3, 990) for _ in range(numbers.randrange(1, 40))])
    turn = {"prompts": prompts}
    expected = run(told([turn], kvtile=None, model=str(model)))["rounds"][0]["tokens"]

    # The identity contains the weights' digest here.
    block = 32 * CONFIG["num_hidden_layers"] * 2 * CONFIG["hidden_size"] * 4
    kvtile = {"host_gib": BLOCKS * block / (1 << 30), "disk_path": str(tmp_path / "disk"), "disk_gib": 1}
    given_up = {"prompts": prompts[:16], "abort": True}
    small = {"num_gpu_blocks_override": 34}
    first = run(told([turn, turn, given_up, turn], kvtile=kvtile, model=str(model), engine=small))
    assert [said["tokens"] for said in first["rounds"] if "tokens" in said] == [expected] * 3
    assert first["rounds"][-1]["preemptions"] > 0
    assert not any(first["ended"]["open"]) and first["ended"]["directory"]
    second = run(told([turn], kvtile=kvtile, model=str(model)))
    assert second["rounds"][0]["tokens"] == expected
    assert sum(second["rounds"][0]["cached"]) > sum(map(len, prompts)) // 2, "prefixes came from disk"
