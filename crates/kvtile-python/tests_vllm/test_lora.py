"""Adapters in a real engine: KV computed with one adapter is never served for another, under any name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run, told
from safetensors.torch import save_file
from tiny import CONFIG, tiny_model

ENGINE = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, "max_cpu_loras": 2, "max_num_batched_tokens": 256, "max_model_len": 256}
RANK = 8
PROMPTS = [[17 * place % 990 + number for place in range(100)] for number in (3, 7)]
# Full blocks of a prompt's first 99 tokens.
FULL = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def train(folder: Path, seed: int) -> Path:
    """An adapter of random numbers, large enough to change every answer."""
    hidden, numbers = CONFIG["hidden_size"], torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden, generator=numbers) / hidden**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(hidden, RANK, generator=numbers)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def turn(path: Path, number: int = 1, name: str = "a-lora", **more: Any) -> dict[str, Any]:
    lora = {"lora_name": name, "lora_int_id": number, "lora_path": str(path)}
    return {"prompts": PROMPTS, "max_tokens": 3, "lora": lora | more.pop("lora", {})} | more


def test_an_adapter_that_is_trained_again_at_its_path(model: Path, tmp_path: Path) -> None:
    monday, tuesday, path = train(tmp_path / "monday", 1), train(tmp_path / "tuesday", 2), tmp_path / "lora"
    none = {"prompts": PROMPTS, "max_tokens": 3}

    def play(*rounds: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        return run(told(list(rounds), **({"engine": ENGINE, "model": str(model)} | more)))["rounds"]

    of_monday, of_tuesday, of_none = (said["tokens"] for said in play(turn(monday), turn(tuesday, 2), none, kvtile=None))
    assert of_monday != of_tuesday != of_none != of_monday

    disk = tmp_path / "disk"
    again, in_place = turn(path, copies=[(str(tuesday), str(path))]), turn(path, lora={"load_inplace": True})
    first = play(turn(path, copies=[(str(monday), str(path))]), turn(path), again, in_place, turn(path), disk=disk)
    # vLLM keeps the loaded adapter until it loads it again.
    assert [said["tokens"] for said in first] == [of_monday, of_monday, of_monday, of_tuesday, of_tuesday]
    assert [said["cached"][0] for said in first] == [0, FULL, 0, 0, FULL]

    second = play(turn(path), turn(monday, 2, "another-name"), none, disk=disk)
    assert [said["tokens"] for said in second] == [of_tuesday, of_monday, of_none]
    assert [said["cached"][0] for said in second] == [FULL, FULL, 0]


def test_blocks_of_other_weights_are_not_found_after_a_restart(tmp_path: Path) -> None:
    """An operator resets vLLM's caches after replacing the weights."""
    disk, prompt = tmp_path / "disk", list(range(1000, 1200))
    before, after = ({"prompts": [prompt], "max_tokens": 4} | more for more in ({}, {"forget_all": True}))
    first = run(told([before, before, after, before], disk))["rounds"]
    assert [said["cached"] for said in first] == [[0], [192], [0], [192]]
    second = run(told([before, before], disk))["rounds"]
    assert [said["cached"] for said in second] == [[0], [192]]


def test_weights_that_come_from_no_file_are_refused(tmp_path: Path) -> None:
    wanted = told([], tmp_path / "disk", engine={"load_format": "dummy"})
    del wanted["kvtile"]["revision"]
    refused = run(wanted)["refused"]
    assert refused["kind"] == "SettingsError" and "load_format" in refused["message"], refused
