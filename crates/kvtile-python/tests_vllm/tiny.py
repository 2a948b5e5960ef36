"""A small random model for tests of many steps: a real one takes minutes, and with adapters seconds per token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}


def tiny_model(folder: Path) -> Path:
    """Writes the model to a folder."""
    folder.mkdir()
    numbers = torch.Generator().manual_seed(5)
    hidden = CONFIG["hidden_size"]
    # Small compared with what the layers add, so that the layers determine the answer.
    tensors = {"model.embed_tokens.weight": torch.randn(CONFIG["vocab_size"], hidden, generator=numbers) / 50}
    tensors |= {"lm_head.weight": torch.randn(CONFIG["vocab_size"], hidden, generator=numbers), "model.norm.weight": torch.ones(hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            tensors[f"{prefix}.{name}.weight"] = torch.randn(hidden, hidden, generator=numbers) / hidden**0.5
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.ones(hidden)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
