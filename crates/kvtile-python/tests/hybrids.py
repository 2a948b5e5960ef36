"""Tiny models of four layers with random weights, one for each way in which transformers keeps the past of a model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

torch.set_num_threads(1)

VOCABULARY = 211
WINDOW = 16
_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "sliding_window": WINDOW,
    "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16,
    "linear_head_dim": 8, "linear_num_heads": 2, "index_head_dim": 8, "index_n_heads": 2, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8,
    "mamba_chunk_size": 8, "shared_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
}  # fmt: skip
_MIXED = ["sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "full_attention"] * 2
# What the types need besides the sizes.
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"layer_types": _MIXED, "query_pre_attn_scalar": 8},
    "gemma3_text": {"layer_types": _MIXED, "query_pre_attn_scalar": 8},
    "cohere2": {"layer_types": _MIXED},
    "olmo3": {"layer_types": _MIXED},
    "gpt_oss": {"layer_types": _MIXED},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"] * 2, "attention_chunk_size": WINDOW,
        "intermediate_size_mlp": 48, "no_rope_layers": [1, 0, 1, 0],
    },
    "gemma3n_text": {
        "layer_types": _MIXED, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [48] * 4,
    },
    "gemma4_text": {
        "layer_types": _MIXED, "num_kv_shared_layers": 0, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "mimo_v2_flash": {"layer_types": _MIXED, "head_dim": 8, "v_head_dim": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "qwen3_next": {"layer_types": _LINEAR},
    "qwen3_5_text": {"layer_types": _LINEAR},
    "olmo_hybrid": {"layer_types": _LINEAR},
    "bailing_hybrid": {"layer_types": _LINEAR, "num_key_value_heads": 4},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention", "full_attention"]},
    "kimi_linear": {"layer_types": _LINEAR, "num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mamba", "mlp"]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
        "d_rel": 4, "rel_extent": 32,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "deepseek_v4": {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        "compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4}},
    "minimax_m3_vl_text": {},
    "deepseek_v32": {"num_key_value_heads": 4, "index_topk": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
}  # fmt: skip
# They continue one token at a time, or from states alone.
STEPWISE = ["jamba", "mamba", "falcon_mamba", "mamba2"]


# Those that the installed version of transformers has.
KINDS = [kind for kind in OWN if kind in CONFIG_MAPPING]


def config(kind: str, **changes: Any) -> Any:
    mapped = CONFIG_MAPPING[kind]
    fields = set(mapped.__dataclass_fields__)
    wanted = {}
    for name, value in _SMALL.items():
        own = mapped.attribute_map.get(name, name)
        if own in fields:
            wanted[own] = value
    return mapped(**{**wanted, **OWN[kind], **changes})


def model(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = AutoModelForCausalLM.from_config(config(kind, **changes), attn_implementation="eager")
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    made.generation_config.suppress_tokens = [0]  # an answer has no padding in it
    return made.float().eval()
