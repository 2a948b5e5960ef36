"""Small random models of transformers, and a check that their KV is a function of its prefix."""

from __future__ import annotations

import warnings
from typing import Any

import torch

SMALL = {
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
EXPERTS = {
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_local_experts": 4, "n_group": 1, "topk_group": 1, "moe_topk": 2,
    "first_k_dense_replace": 1, "moe_num_experts": 4, "moe_k": 2, "shared_intermediate_size": 32, "moe_num_shared_experts": 1,
}  # fmt: skip
# Required settings of the types besides the sizes, and sizes under other names.
OWN: dict[str, dict[str, Any]] = {
    "falcon": {"num_kv_heads": 2},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "mistral": {"sliding_window": None},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "xglm": {"ffn_dim": 64},
    "ernie4_5_moe": {"moe_layer_end_index": 1},
    "jetmoe": {"num_attention_heads": 4},
    "glm4v_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    "glm4v_moe_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "glm_ocr_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    "qwen3_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}},
    "qwen3_vl_moe_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}},
}


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A config of a model type with two small layers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    fields = set(kind.__dataclass_fields__)
    wanted = {}
    for name, value in {**SMALL, **EXPERTS}.items():
        own = kind.attribute_map.get(name, name)
        if own in fields:
            wanted[own] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**{**wanted, **OWN.get(model_type, {}), **changes})


def tiny_model(config: Any) -> Any:
    """A model with random weights, the same in every run."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.manual_seed(1)
    listed = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = (AutoModelForCausalLM if listed else AutoModel).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            # Give every parameter an effect.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.float().eval()


def kv(model: Any, tokens: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, ``[heads, tokens, head size]``."""
    with torch.no_grad():
        past = model(input_ids=torch.tensor([tokens]), use_cache=True).past_key_values
    return [(layer.keys[0], layer.values[0]) for layer in past.layers]


def difference(model: Any, tokens: list[int], length: int) -> float:
    """The largest difference between the KV of a prefix alone and of the same tokens in a longer sequence, in standard
    deviations."""
    worst = 0.0
    for alone, within in zip(kv(model, tokens[:length]), kv(model, tokens), strict=True):
        for short, long in zip(alone, within, strict=True):
            off = (short - long[:, :length]).abs().max()
            worst = max(worst, float(off / long.std()))
    return worst
