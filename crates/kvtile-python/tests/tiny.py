"""A tiny model of transformers with random weights, and prompts for it."""

from __future__ import annotations

import random

import torch
import transformers

# Threads slow down products of tiny matrices, even more under load of other processes.
torch.set_num_threads(1)

VOCABULARY = 211
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def llama(seed: int = 0, **changes):
    """A Llama of three layers, whose answers differ from prompt to prompt."""
    config = transformers.LlamaConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
            **changes,
        }
    )  # fmt: skip
    return of(transformers.LlamaForCausalLM, config, seed)


def of(kind, config, seed: int = 0):
    """A model of this class and config."""
    torch.manual_seed(seed)
    model = kind(config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [0]  # an answer has no padding in it
    return model.eval()


def prompt(seed: int, length: int):
    """One prompt without the padding token, as a batch."""
    choose = random.Random(seed)
    return torch.tensor([[choose.randrange(1, VOCABULARY) for _ in range(length)]])


def padded(prompts: list[list[int]]):
    """A batch in the form of a tokenizer with ``padding_side="left"``."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]),
    }
