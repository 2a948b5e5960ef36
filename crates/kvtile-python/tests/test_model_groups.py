"""Models with groups of layers: identities by hand, and groups of the published configs."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import kvtile
from kvtile import _kvtile
from kvtile._hf.groups import FAMILIES
from kvtile._hf.models import GROUPED

PUBLISHED = json.loads(Path(__file__).with_name("hf_group_configs.json").read_text(encoding="utf-8"))["configs"]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HIT = 32_768


def model_of(config: Any, **settings: Any) -> kvtile.ModelIdentity:
    given = {"page_size": 16, "dtype": "bfloat16", "model": "m", "revision": "1", "text_only": True, **settings}
    return kvtile.ModelIdentity.from_hf_config(config, **given)


def full_bytes(model: kvtile.ModelIdentity) -> float:
    """Bytes of a token in groups with full attention."""
    groups = [group.shape for group in model.groups.values() if group.rule == "full"]
    return sum(shape.block_bytes / shape.page_size for shape in groups)


def needed(group: kvtile.ModelGroup, stop: int = HIT) -> int:
    return len(group.needs(stop)) * group.shape.block_bytes


def need(model: kvtile.ModelIdentity) -> int:
    return sum(needed(group) for group in model.groups.values())


def all_full(model: kvtile.ModelIdentity) -> int:
    shapes = [group.shape for group in model.groups.values() if group.rule != "stop"]
    return sum(HIT // shape.page_size * shape.block_bytes for shape in shapes)


def near(found: float, written: float) -> bool:
    """Whether a number is the written one, which has two or three digits."""
    return abs(found - written) <= 0.051 if written < 100 else abs(found - written) <= 0.6


# By checkpoint: KiB of a token in full groups, MiB of windows or a state, GiB of a hit by the rules, and if all attention
# were full. The numbers are worked out from the configs by hand, independently of kvtile.
BYTES: dict[str, tuple[float, float | None, float, float]] = {
    "deepseek-ai/DeepSeek-V3": (68.6, None, 2.1, 2.1),
    "moonshotai/Kimi-K2-Instruct": (68.6, None, 2.1, 2.1),
    "moonshotai/Kimi-K2.5": (68.6, None, 2.1, 2.1),
    "deepseek-ai/DeepSeek-V3.2": (76.5, None, 2.4, 2.4),
    "zai-org/GLM-5": (97.8, None, 3.1, 3.1),
    "zai-org/GLM-5.2": (90.5, None, 2.8, 2.8),
    "zai-org/GLM-5.3": (90.5, None, 2.8, 2.8),
    "MiniMaxAI/MiniMax-M3": (134.2, None, 4.2, 4.2),
    "openai/gpt-oss-20b": (24, 3, 0.75, 1.5),
    "openai/gpt-oss-120b": (36, 4.5, 1.1, 2.25),
    "google/gemma-4-26B-A4B": (20, 200, 0.82, 6.9),
    "nvidia/Gemma-4-31B-IT-NVFP4": (80, 800, 3.3, 27.5),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (48, 0, 1.5, 6),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (48, 0, 1.5, 6),
    "XiaomiMiMo/MiMo-V2-Flash": (22.5, 24.4, 0.73, 6.8),
    "stepfun-ai/Step-3.7-Flash": (48, 66, 1.6, 5.6),
    "Qwen/Qwen3.5-27B": (64, 147, 2.1, 2),
    "Qwen/Qwen3.5-35B-A3B": (20, 61.4, 0.68, 0.63),
    "Qwen/Qwen3.5-122B-A10B": (24, 147, 0.89, 0.75),
    "Qwen/Qwen3.5-397B-A17B": (30, 183, 1.12, 0.94),
    "moonshotai/Kimi-K3": (27, 429, 1.3, 0.84),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (6, 46.8, 0.23, 0.19),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8": (8, 162, 0.41, 0.25),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (12, 389, 0.75, 0.38),
}

# What the package's copy of a config.json leaves out; the file has a base for each layer.
LEFT_OUT = {"stepfun-ai/Step-3.7-Flash": {"rope_theta": [5e6, 1e4, 1e4, 1e4] * 12}}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_a_hit_are_those_worked_out_by_hand(name: str) -> None:
    model = model_of({**PUBLISHED[name], **LEFT_OUT.get(name, {})})
    per_token, other, hit, whole = BYTES[name]
    assert near(full_bytes(model) / KIB, per_token), full_bytes(model) / KIB
    others = [needed(group) / MIB for group in model.groups.values() if group.rule != "full"]
    assert near(sum(others), other or 0), others
    assert near(need(model) / GIB, hit), need(model) / GIB
    assert near(all_full(model) / GIB, whole), all_full(model) / GIB


@pytest.mark.parametrize(
    ("name", "layers", "per_token", "window", "compressors", "hit"),
    [("Flash", 43, 3.8, 3.1, 11.6, 0.13), ("Pro", 61, 5.4, 4.3, 17.8, 0.19)],
)
def test_deepseek_v4(name: str, layers: int, per_token: float, window: float, compressors: float, hit: float) -> None:
    model = model_of(PUBLISHED[f"deepseek-ai/DeepSeek-V4-{name}"], page_size=128)
    groups = model.groups
    assert sorted(groups) == ["compressed-128", "compressed-4", "compressor-128", "compressor-4", "window"]
    assert groups["window"].layers == list(range(layers))
    assert near(full_bytes(model) / KIB, per_token)
    assert near(needed(groups["window"]) / MIB, window)
    # Pages of 8 tokens hold no more than the 8 tokens that a compressor of 4 reads.
    pages = {name: 8 if name == "compressor-4" else 128 for name in groups}
    model = model_of(PUBLISHED[f"deepseek-ai/DeepSeek-V4-{name}"], page_size=pages)
    both = sum(needed(model.groups[f"compressor-{ratio}"]) for ratio in (4, 128))
    assert near(both / MIB, compressors)
    assert abs(need(model) / GIB - hit) < 0.006
    with pytest.raises(kvtile.LayoutError, match="every 128 tokens; the page size must be a multiple"):
        model_of(PUBLISHED[f"deepseek-ai/DeepSeek-V4-{name}"])


def test_layers_rules_and_heads_of_groups() -> None:
    model = model_of(PUBLISHED["XiaomiMiMo/MiMo-V2-Flash"])
    full, window = model.groups["full"], model.groups["window"]
    assert full.layers == [0, 5, 11, 17, 23, 29, 35, 41, 47] and len(window.layers) == 39
    assert [(plane.name, plane.axes) for plane in window.shape.planes] == [("k", {"H": 8, "C": 192}), ("v", {"H": 8, "C": 128})]
    assert (window.rule, window.tokens, full.rule, full.tokens) == ("window", 128, "full", None)
    kimi = model_of(PUBLISHED["moonshotai/Kimi-K3"]).groups
    assert kimi["full"].layers[-3:] == [87, 91, 92] and len(kimi["state"].layers) == 69
    llama = model_of(PUBLISHED["meta-llama/Llama-4-Scout-17B-16E-Instruct"]).groups
    assert llama["full"].layers == list(range(3, 48, 4)) and llama["chunk"].tokens == 8192
    assert list(llama["chunk"].needs(HIT)) == [] and list(llama["chunk"].needs(HIT + 32)) == [2048, 2049]
    glm = model_of(PUBLISHED["zai-org/GLM-5.2"]).groups
    assert (len(glm["full"].layers), len(glm["index"].layers)) == (78, 21)
    assert list(model_of(PUBLISHED["deepseek-ai/DeepSeek-V3.2"]).groups) == ["full"]


def test_rotary_embeddings_are_of_the_group() -> None:
    def rope(name: str) -> dict[str, Any]:
        stored = json.loads(model_of(PUBLISHED[name]).to_json())
        return {group["name"]: group.get("rope") for group in stored["groups"]}

    mimo = rope("XiaomiMiMo/MiMo-V2-Flash")
    assert (mimo["full"]["base"], mimo["window"]["base"]) == ("5000000.0", "10000.0")
    gemma = rope("nvidia/Gemma-4-31B-IT-NVFP4")
    assert (gemma["full"]["kind"], gemma["full"]["base"]) == ("proportional", "1000000.0")
    assert (gemma["window"]["kind"], gemma["window"]["base"]) == ("default", "10000.0")
    llama = rope("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert llama["full"] is None and llama["chunk"]["kind"] == "llama3"
    kimi = rope("moonshotai/Kimi-K3")
    assert kimi == {"full": None, "state": None}
    changed = copy.deepcopy(PUBLISHED["XiaomiMiMo/MiMo-V2-Flash"])
    changed["swa_rope_theta"] = 20_000
    ours = model_of(PUBLISHED["XiaomiMiMo/MiMo-V2-Flash"])
    assert ours.chain != model_of(changed).chain
    difference = ours.difference(model_of(changed))
    assert difference == "extra.config.swa_rope_theta differs: 10000 here, 20000 there"


def test_a_plain_config_is_the_identity_without_groups() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "dtype": "float32"}
    identity = kvtile.Identity.from_hf_config(config, page_size=16, model="m", revision="1")
    model = model_of(config, dtype=None)
    assert model == kvtile.ModelIdentity.of(identity) == model_of(config, dtype=None, page_size={"full": 16})
    assert (model.fingerprint, model.chain) == (identity.fingerprint, identity.model_fingerprint)
    assert model.group_identity("full") == identity
    assert kvtile.ModelIdentity.from_json(identity.to_json()) == model
    assert model.to_json() == identity.to_json()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("openai/gpt-oss-20b", {"model_type": "muse_spark"}, "model type 'muse_spark' is not covered .* make its ModelGroups"),
        ("openai/gpt-oss-20b", {"model_type": None}, "no model_type"),
        ("openai/gpt-oss-20b", {"sliding_window": None}, "no sliding_window"),
        ("openai/gpt-oss-20b", {"layer_types": ["full_attention"] * 3}, "not a list with a name for each of 24 layers"),
        ("openai/gpt-oss-20b", {"layer_types": ["ring_attention"] * 24}, "layers of the kind 'ring_attention'"),
        ("openai/gpt-oss-20b", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("openai/gpt-oss-20b", {"rope_scaling": {"rope_type": "dynamic"}}, "kind 'dynamic'"),
        ("openai/gpt-oss-20b", {"rope_theta": None}, "no rope_theta"),
        ("openai/gpt-oss-20b", {"is_causal": False}, "not causal"),
        ("XiaomiMiMo/MiMo-V2-Flash", {"swa_num_key_value_heads": 0.5}, "num_key_value_heads is 0.5"),
        ("XiaomiMiMo/MiMo-V2-Flash", {"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern is .* 48 layers"),
        ("deepseek-ai/DeepSeek-V4-Flash", {"compress_ratios": [0, 8] * 22}, "compress_ratios are .* not 0, 4 or 128"),
        ("zai-org/GLM-5.2", {"indexer_types": ["some"] * 78}, "indexer_types are"),
        ("zai-org/GLM-5.2", {"index_kpool": 16}, "keeps one key for several tokens"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"hybrid_override_pattern": "MX"}, "layers of the kind 'X'"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"mamba_ssm_cache_dtype": None}, "dtype of its states .* give state_dtype="),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"conv_kernel": 1}, "kernel of 1"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"num_hidden_layers": 53}, "53 layers and kinds of 52"),
    ],
)
def test_configs_that_are_not_covered_say_what_is_missing(name: str, change: dict[str, Any], message: str) -> None:
    config = {**copy.deepcopy(PUBLISHED[name]), **change}
    with pytest.raises(kvtile.IdentityError, match=message):
        model_of(config)


def test_a_model_with_images_needs_text_only() -> None:
    with pytest.raises(kvtile.IdentityError, match="takes images.*set text_only=True"):
        model_of(PUBLISHED["Qwen/Qwen3.5-27B"], text_only=False)


def test_page_sizes_by_group() -> None:
    config = PUBLISHED["Qwen/Qwen3.5-27B"]
    model = model_of(config, page_size={"full": 16, "state": 1024})
    assert model.unit == 16 and model.groups["state"].shape.page_size == 1024
    assert model.groups["state"].needs(2048) == range(1, 2)
    with pytest.raises(kvtile.RequestError, match="stop is 2032, and the pages of group state have 1024 tokens"):
        model.groups["state"].needs(2032)
    with pytest.raises(kvtile.ArgumentError, match="no tokens for the group state"):
        model_of(config, page_size={"full": 16})
    with pytest.raises(kvtile.ArgumentError, match="'ring', which is no group of this model; its groups are full, state"):
        model_of(config, page_size={"full": 16, "state": 16, "ring": 16})


def test_groups_by_hand() -> None:
    def shape(layers: int) -> kvtile.Shape:
        return kvtile.Shape(num_blocks=1, num_layers=layers, page_size=16, num_heads=2, head_size=8, dtype="float32")

    full = kvtile.ModelGroup("full", shape(2), layers=[3, 7], rope={"rope_theta": 1e6})
    window = kvtile.ModelGroup("window", shape(6), rule="window", tokens=64, layers=[0, 1, 2, 4, 5, 6], rope={"rope_theta": 1e4})
    draft = kvtile.ModelGroup("eagle", shape(1), draft=True, extra={"revision": "9"})
    model = kvtile.ModelIdentity("m", "1", [window, full], extra={"cache_dtype": "auto"})
    drafted = kvtile.ModelIdentity("m", "1", [draft, window, full], extra={"cache_dtype": "auto"})
    assert model.chain == drafted.chain and model.fingerprint != drafted.fingerprint
    assert drafted.groups["eagle"].draft and list(drafted.groups) == ["eagle", "full", "window"]
    assert drafted.group_identity("full") == model.group_identity("full")
    identity = model.group_identity("window")
    assert identity.extra["group.rule"] == "window of 64 tokens" and identity.extra["group.layers"] == "0..3, 4..7"
    for value in (model, full, identity):
        assert pickle.loads(pickle.dumps(value)) == value
    assert kvtile.ModelIdentity.from_json(model.to_json()) == model and hash(model) == hash(pickle.loads(pickle.dumps(model)))
    assert repr(model) == "<kvtile.ModelIdentity 'm' at '1': full (full), window (window of 64 tokens)>".replace("'", '"')
    with pytest.raises(kvtile.IdentityError, match="no group is called \"state\"; the groups are full, window"):
        model.group_identity("state")
    for arguments, message in [
        ({"rule": "window"}, "needs tokens"),
        ({"rule": "window", "tokens": 0}, "needs tokens"),
        ({"tokens": 4}, "has no tokens"),
        ({"rule": "ring"}, 'give "full", "window", "chunk" or "stop"'),
        ({"layers": [1, 2, 3]}, "3 layers .1..4., and its shape is a part of 2"),
        ({"name": "Full"}, "not a name of a group"),
    ]:
        with pytest.raises(kvtile.KvtileError, match=message):
            kvtile.ModelGroup(**{"name": "full", "shape": shape(2), **arguments})
    for groups, message in [([], "none is of the model"), ([draft], "none is of the model"), ([full, full], "two groups are called full")]:
        with pytest.raises(kvtile.IdentityError, match=message):
            kvtile.ModelIdentity("m", "1", groups)
    with pytest.raises(kvtile.KvtileError, match="ascending order"):
        kvtile.ModelGroup("full", shape(2), layers=[7, 3])


def test_the_list_of_types_is_that_of_the_readers() -> None:
    assert sorted(FAMILIES) == sorted(GROUPED) and len(set(GROUPED)) == len(GROUPED)
    listed = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    assert [name for name in GROUPED if f"| `{name}` |" not in listed] == []


@pytest.mark.parametrize("name", [*BYTES, "deepseek-ai/DeepSeek-V4-Pro"])
def test_the_program_shows_the_groups(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``kvtile layout groups`` takes what ``to_json`` writes, and counts the same bytes."""
    model = model_of({**PUBLISHED[name], **LEFT_OUT.get(name, {})}, page_size=128)
    path = tmp_path / "model.json"
    path.write_text(model.to_json())
    assert _kvtile.run_program(["layout", "groups", str(path), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["tokens"] == HIT and [row["name"] for row in told["groups"]] == list(model.groups)
    targets = [group for group in model.groups.values() if not group.draft]
    assert told["needed_bytes"] == sum(map(needed, targets))
