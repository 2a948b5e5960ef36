"""Adapters in a real engine: what is computed with one is never served for another, whatever it is called."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MODEL, run, told
from safetensors.torch import save_file

ENGINE = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, "max_cpu_loras": 2}
RANK = 8


def train(folder: Path, seed: int) -> Path:
    """An adapter of random numbers, large enough that every answer is another one."""
    config = json.loads((MODEL / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = {"q_proj": hidden, "v_proj": hidden // heads * config["num_key_value_heads"]}
    numbers = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden, generator=numbers) / hidden**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(size, RANK, generator=numbers)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": list(sizes), "peft_type": "LORA", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def turn(prompts: list[list[int]], path: Path, number: int = 1, name: str = "a-lora", **more: Any) -> dict[str, Any]:
    lora = {"lora_name": name, "lora_int_id": number, "lora_path": str(path)}
    return {"prompts": prompts, "max_tokens": 8, "lora": lora | more.pop("lora", {})} | more


def test_an_adapter_that_is_trained_again_at_its_path(tmp_path: Path) -> None:
    monday, tuesday, path = train(tmp_path / "monday", 1), train(tmp_path / "tuesday", 2), tmp_path / "lora"
    numbers = random.Random(3)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(200)] for _ in range(3)]
    told_it: dict[str, Any] = {"engine": ENGINE}
    alone = run(told([turn(prompts, monday), turn(prompts, tuesday, 2), {"prompts": prompts, "max_tokens": 8}], kvtile=None, **told_it))
    of_monday, of_tuesday, of_none = (said["tokens"] for said in alone["rounds"])
    assert of_monday != of_tuesday != of_none != of_monday

    disk = tmp_path / "disk"
    again = turn(prompts, path, copies=[(str(tuesday), str(path))])
    in_place = turn(prompts, path, lora={"load_inplace": True})
    first = run(
        told([turn(prompts, path, copies=[(str(monday), str(path))]), turn(prompts, path), again, in_place, turn(prompts, path)], disk, **told_it)
    )["rounds"]
    expected = [of_monday, of_monday, of_monday, of_tuesday, of_tuesday]
    assert [said["tokens"] for said in first] == expected, "vLLM goes on with what it has loaded until it loads anew"
    cached = [sum(said["cached"]) for said in first]
    assert cached[0] == cached[2] == cached[3] == 0 and cached[1] == cached[4] == 3 * 192

    renamed = turn(prompts, monday, 2, "another-name")
    second = run(told([turn(prompts, path), renamed, {"prompts": prompts, "max_tokens": 8}], disk, **told_it))["rounds"]
    assert [said["tokens"] for said in second] == [of_tuesday, of_monday, of_none]
    assert [sum(said["cached"]) for said in second] == [3 * 192, 3 * 192, 0]


def test_what_was_computed_with_other_weights_is_not_there_after_a_restart(tmp_path: Path) -> None:
    """vLLM is told to forget everything when its weights have become other ones."""
    disk, prompt = tmp_path / "disk", list(range(1000, 1200))
    before, after = ({"prompts": [prompt], "max_tokens": 4} | more for more in ({}, {"forget_all": True}))
    first = run(told([before, before, after, before], disk))["rounds"]
    assert [said["cached"] for said in first] == [[0], [192], [0], [192]]
    second = run(told([before, before], disk))["rounds"]
    assert [said["cached"] for said in second] == [[0], [192]]


@pytest.mark.parametrize("options", [{"enable_sleep_mode": True}, {"load_format": "dummy"}])
def test_what_no_identity_can_have_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = told([], tmp_path / "disk", engine=options)
    del wanted["kvtile"]["revision"]
    refused = run(wanted)["refused"]
    assert next(iter(options)) in refused["message"], refused
