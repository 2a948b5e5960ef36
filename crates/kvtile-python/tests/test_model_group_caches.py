"""The groups of a config are what a small random model of transformers keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest

import kvtile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_tiny import tiny_config, tiny_model  # noqa: E402

TOKENS = 12
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
LATENT = {"kv_lora_rank": 24, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
NEAR = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

# By model type, the settings of its small config, and the groups with their layers.
SMALL: dict[str, tuple[dict[str, Any], dict[str, list[int]]]] = {
    "cohere2": (NEAR, {"full": [1], "window": [0]}),
    "deepseek_v3": (LATENT, {"full": [0, 1]}),
    "exaone4": (NEAR, {"full": [1], "window": [0]}),
    "falcon_h1": ({**MAMBA, "mamba_d_ssm": 128}, {"full": [0, 1], "state": [0, 1]}),
    "gemma3_text": (NEAR, {"full": [1], "window": [0]}),
    "gemma4_text": ({**NEAR, "hidden_size_per_layer_input": 0}, {"full": [1], "window": [0]}),
    "gpt_oss": (NEAR, {"full": [1], "window": [0]}),
    "granitemoehybrid": ({**MAMBA, "layer_types": ["mamba", "attention"]}, {"full": [1], "state": [0]}),
    "jamba": ({"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}, {"full": [1], "state": [0]}),
    "kimi_linear": (
        {**LATENT, "linear_num_heads": 4, "linear_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        {"full": [1], "state": [0]},
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, {"full": [1], "state": [0]}),
    "llama4_text": ({"attention_chunk_size": 5, "no_rope_layers": [1, 0]}, {"full": [1], "chunk": [0]}),
    "mimo_v2_flash": ({**NEAR, "v_head_dim": 8}, {"full": [1], "window": [0]}),
    "mistral4": (LATENT, {"full": [0, 1]}),
    "nemotron_h": (
        {"layer_types": ["linear_attention", "full_attention"], "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16,
         "n_groups": 1},
        {"full": [1], "state": [0]},
    ),
    "olmo3": (NEAR, {"full": [1], "window": [0]}),
    "qwen3_5_text": ({**LINEAR, "layer_types": ["linear_attention", "full_attention"]}, {"full": [1], "state": [0]}),
    "qwen3_next": ({**LINEAR, "layer_types": ["linear_attention", "full_attention"]}, {"full": [1], "state": [0]}),
}  # fmt: skip


def axes(group: kvtile.ModelGroup, name: str) -> dict[str, int]:
    return next(plane.axes for plane in group.shape.planes if plane.name == name)


def check_tokens(group: kvtile.ModelGroup, kept: Any) -> None:
    """Keys and values, or a latent and its rotated part."""
    count = TOKENS if group.rule == "full" else min(TOKENS, (group.tokens or 0) - 1)
    names = [plane.name for plane in group.shape.planes]
    for name, tensor in zip(["c", "r"] if "c" in names else ["k", "v"], (kept.keys, kept.values), strict=True):
        of = axes(group, name)
        assert tuple(tensor.shape) == (1, of.get("H", 1), count, of["C"]), name


def states(kept: Any, name: str) -> list[Any]:
    """The states of a layer, which are in a dict by number or in a list."""
    found = getattr(kept, name, ())
    return [state for state in (found.values() if isinstance(found, dict) else found) if state is not None]


def check_state(group: kvtile.ModelGroup, kept: Any) -> None:
    """The columns of a convolution, of which transformers keeps one more, and a recurrent state."""
    conv, columns = axes(group, "conv"), states(kept, "conv_states")
    assert sum(state.shape[1] for state in columns) == conv["C"]
    assert {state.shape[2] for state in columns} == {conv["W"] + 1}
    recurrent = [plane for plane in group.shape.planes if plane.name == "recurrent"]
    found = states(kept, "recurrent_states")
    assert [state.numel() for state in found] == [math.prod(plane.axes.values()) for plane in recurrent]
    for state, plane in zip(found, recurrent, strict=True):
        assert [size for size in state.shape if size > 1] == [plane.axes[axis] for axis in "HDC" if axis in plane.axes]


@pytest.mark.parametrize("model_type", SMALL)
def test_groups_are_what_a_small_model_keeps(model_type: str) -> None:
    changes, layers = SMALL[model_type]
    config = tiny_config(model_type, **changes)
    made = kvtile.ModelIdentity.from_hf_config(
        config, page_size=4, dtype="float32", state_dtype="float32", model="m", revision="1"
    )
    assert {name: group.layers for name, group in made.groups.items()} == layers
    model = tiny_model(config).eval()
    with torch.no_grad():
        answer = model(torch.arange(1, TOKENS + 1)[None], use_cache=True)
    cache = answer.past_key_values
    for name, group in made.groups.items():
        for layer in group.layers:
            (check_state if name == "state" else check_tokens)(group, cache.layers[layer])
