"""The model types that are known to be plain: one group of layers, full causal attention in each, keys and values of
one head size. Other types are refused by name.

``models.json`` has the fields of each type and their defaults, as the config classes of transformers give them;
``tests/hf_defaults.py`` writes it from an installed transformers, and a test compares it. The functions here derive
fields as those classes and models do. For each type, a test with a small random model checks that it is plain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Fields = dict[str, Any]

PLAIN = (
    "apertus arcee aria_text biogpt bitnet bloom codegen cohere diffllama dots1 ernie4_5 ernie4_5_moe exaone4 "
    "falcon flex_olmo gemma glm glm4 glm4_moe glm4v_moe_text glm4v_text glm_ocr_text gpt2 gpt_bigcode gpt_neo "
    "gpt_neox gpt_neox_japanese gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe "
    "hy_v3 hyperclovax jais2 jetmoe llama minimax_m2 ministral3 mistral mixtral mpt nanochat nemotron olmo olmo2 "
    "olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 qwen3_moe "
    "qwen3_vl_moe_text qwen3_vl_text seed_oss smollm3 solar_open stablelm starcoder2 xglm"
).split()
"""Model types, as in ``model_type`` of a config."""

GROUPED = (
    "bailing_hybrid cohere2 deepseek_v3 deepseek_v32 deepseek_v4 exaone4 falcon_h1 gemma3_text gemma3n_text gemma4_text glm_moe_dsa gpt_oss "
    "granitemoehybrid jamba kimi_k2 kimi_linear lfm2 lfm2_moe lfm3 llama4_text mimo_v2_flash minimax_m3 minimax_m3_vl_text "
    "mistral4 muse_glimmer_text muse_spark_text nemotron_h olmo3 qwen3_5_moe_text qwen3_5_text qwen3_next step3p5 step3p7"
).split()
"""Model types with groups of layers, as in ``model_type`` of a config; ``groups`` has what their layers keep."""

LAYERS = 1 << 16
"""The maximum number of layers."""

WIDTH_FOLLOWS = frozenset(
    "biogpt bitnet bloom codegen falcon glm4v_text gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj helium mpt olmoe opt "
    "persimmon qwen2_5_vl_text qwen2_vl_text stablelm xglm".split()
)
"""Types whose head size is always the hidden size divided by the heads, even if a config has ``head_dim``."""


@dataclass(frozen=True)
class Model:
    """The fields of a model type's config."""

    fields: Mapping[str, Any]
    """Fields and their defaults, by the names that most types use."""
    aliases: Mapping[str, str]
    """This type's own field names, and the usual names for them."""
    rope: Mapping[str, Any] | None
    """The default rotary embedding; None for types without one."""


@cache
def table() -> dict[str, Model]:
    """All plain model types."""
    rows = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))["models"]
    return {name: Model(**row) for name, row in rows.items()}


def kv_heads(model_type: str, fields: Fields, heads: int) -> Any:
    """The number of KV heads."""
    if model_type == "falcon":
        if fields["new_decoder_architecture"]:
            return fields["num_kv_heads"] or heads
        return 1 if fields["multi_query"] else heads
    if model_type == "gpt_bigcode":
        return 1 if fields["multi_query"] else heads
    if "num_key_value_heads" in table()[model_type].fields:
        return fields["num_key_value_heads"] or heads
    return heads


def windowed_from(model_type: str, fields: Fields) -> int:
    """The first layer with a sliding window, if the config has a window and does not list the layer types."""
    if model_type in {"qwen2", "qwen3", "dots1", "qwen2_vl_text", "qwen2_5_vl_text"}:
        first = fields["max_window_layers"]
        return first if isinstance(first, int) else 0
    return 0


def _layers(fields: Fields) -> int:
    layers = fields["num_hidden_layers"]
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= LAYERS:
        raise ValueError(f"num_hidden_layers is {layers!r:.60}, not a positive whole number up to {LAYERS}")
    return layers


def _smollm3(fields: Fields) -> None:
    if fields["no_rope_layers"] is None:
        step = fields["no_rope_layer_interval"]
        fields["no_rope_layers"] = [int((at + 1) % step != 0) for at in range(_layers(fields))]
    del fields["no_rope_layer_interval"]


def _hy_v3(fields: Fields) -> None:
    if fields["mlp_layer_types"] is None:
        fields["mlp_layer_types"] = ["dense", *["sparse"] * (_layers(fields) - 1)]


def _ernie(fields: Fields) -> None:
    if fields["moe_layer_end_index"] == -1:
        fields["moe_layer_end_index"] = _layers(fields) - 1


def _gemma(fields: Fields) -> None:
    if fields["hidden_act"] == "gelu":
        fields["hidden_act"] = "gelu_pytorch_tanh"


def _gpt_neo(fields: Fields) -> None:
    kinds = fields.pop("attention_types", None) or [[["global", "local"], 12]]
    if sum(times * len(group) for group, times in kinds) > LAYERS:
        raise ValueError(f"its attention_types have more than {LAYERS} layers")
    if not fields.get("attention_layers"):
        fields["attention_layers"] = [kind for group, times in kinds for _ in range(times) for kind in group]


def _falcon(fields: Fields) -> None:
    if fields["ffn_hidden_size"] is None:
        fields["ffn_hidden_size"] = 4 * fields["hidden_size"]


def _opt(fields: Fields) -> None:
    if fields["word_embed_proj_dim"] is None:
        fields["word_embed_proj_dim"] = fields["hidden_size"]


def _jetmoe(fields: Fields) -> None:
    fields["num_attention_heads"] = fields["num_key_value_heads"] * fields["num_experts_per_tok"]


def _hyperclovax(fields: Fields) -> None:
    if fields["attention_multiplier"] is None:
        head = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
        fields["attention_multiplier"] = head**-0.5


DERIVED: dict[str, Callable[[Fields], None]] = {
    "smollm3": _smollm3,
    "hy_v3": _hy_v3,
    "ernie4_5_moe": _ernie,
    "gemma": _gemma,
    "gpt_neo": _gpt_neo,
    "falcon": _falcon,
    "opt": _opt,
    "jetmoe": _jetmoe,
    "hyperclovax": _hyperclovax,
}
"""Functions that derive fields from others, as the config classes do, by model type."""
