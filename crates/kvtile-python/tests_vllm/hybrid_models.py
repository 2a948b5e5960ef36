"""Small random models with several groups of KV: windows beside full attention, and recurrent states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# With weights that are much smaller, greedy answers repeat one token and would hide wrong KV.
STD = 0.15

COMMON: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 2048, "initializer_range": STD,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
# Three layers with a window in three tables of blocks, and one with full attention.
GEMMA3 = {
    **COMMON, "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    # It begins in the middle of a block.
    "sliding_window": 80, "query_pre_attn_scalar": 32,
}
# Two layers of each kind, in two tables.
GPT_OSS = {
    **COMMON, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 96,
    "num_local_experts": 2, "num_experts_per_tok": 1,
}
# Three layers with chunks, and one with full attention. The chunk begins at pages.
LLAMA4 = {
    **COMMON, "attention_chunk_size": 128, "no_rope_layers": [1, 1, 1, 0], "moe_layers": [], "interleave_moe_layer_step": 0,
    "intermediate_size_mlp": 128, "num_local_experts": 1,
}

# Three layers with a recurrent state and a convolution, and one with full attention. vLLM makes blocks of 640 tokens.
QWEN3_NEXT = {
    **COMMON, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "dtype": "bfloat16",
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "tie_word_embeddings": False,
}


def _save(folder: Path, config: Any, architecture: str, dtype: Any = None) -> Path:
    import torch
    import transformers

    torch.manual_seed(5)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1 or "sinks" in name:
                # Small compared with what the layers add, so that the layers determine the answer.
                tensor.normal_(0, STD / 50 if "embed_tokens" in name else STD)
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    return folder


def gemma3(folder: Path) -> Path:
    """Writes a model like Gemma 3 to a folder."""
    from transformers import Gemma3TextConfig

    return _save(folder, Gemma3TextConfig(**GEMMA3), "Gemma3ForCausalLM")


def gemma3_of_two_heads(folder: Path) -> Path:
    """Writes a model like Gemma 3 with a KV head for each of two ranks to a folder."""
    from transformers import Gemma3TextConfig

    return _save(folder, Gemma3TextConfig(**{**GEMMA3, "num_key_value_heads": 2}), "Gemma3ForCausalLM")


def gpt_oss(folder: Path) -> Path:
    """Writes a model like gpt-oss to a folder."""
    from transformers import GptOssConfig

    return _save(folder, GptOssConfig(**GPT_OSS), "GptOssForCausalLM")


def llama4(folder: Path) -> Path:
    """Writes a model like Llama 4 to a folder."""
    from transformers import Llama4TextConfig

    return _save(folder, Llama4TextConfig(**LLAMA4), "Llama4ForCausalLM")


def qwen3_next(folder: Path) -> Path:
    """Writes a model like Qwen3-Next to a folder."""
    import torch
    from transformers import Qwen3NextConfig

    return _save(folder, Qwen3NextConfig(**QWEN3_NEXT), "Qwen3NextForCausalLM", torch.bfloat16)
