"""Engines read each other's blocks, though their elements are in another order.

vLLM's CPU backend transposes K inside a block; transformers stores token after token. Both use the same stored blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MODEL, PAGE, REVISION, run, told
from test_parallel import ENVIRONMENT, RANKS
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from kvtile.transformers import PrefixCache

ANSWER = 16
# Blocks of one value of a shared store.
BUNDLE = 2
TEXTS = [
    "The history of the steam engine begins long before the first railways. In the first century, Hero of Alexandria "
    "described a ball that turned as steam left it through two bent pipes, and used it for nothing. It took until the end "
    "of the seventeenth century before somebody pumped water out of a mine with steam. The engine of Thomas Newcomen let "
    "steam into a cylinder and cooled it with water, so that the pressure of the air pushed the piston down. It burned so "
    "much coal that it was used where coal was free. James Watt noticed that most of the heat was lost because the "
    "cylinder was cooled and heated again with every stroke. His engine had a condenser that was always cold and a "
    "cylinder that was always hot, and it needed",
    "To bake a simple bread, mix five hundred grams of flour with three hundred and fifty grams of water, ten grams of "
    "salt and a little yeast. Let the dough rest for half an hour, then fold it a few times, and cover it with a cloth. "
    "After three or four hours it has doubled. Shape it into a ball on a floured table, put it into a basket, and leave it "
    "in a cold place over night. On the next day heat the oven together with an iron pot as hot as it gets. Turn the dough "
    "into the pot, cut it across with a sharp knife, and put the lid on. After thirty minutes take the lid off, and bake "
    "it for another",
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]



def open_cache(model: PreTrainedModel, disk: Path) -> PrefixCache:
    return PrefixCache(model, disk=disk, disk_gib=0.5, host_gib=0.1, page_size=PAGE, revision=REVISION)


def vllm(prompts: list[list[int]], disk: Path, shared: Path | None = None, **changes: Any) -> dict[str, Any]:
    """vLLM's answers to prompts, with this folder, and with a shared store if one is given."""
    wanted = told([{"prompts": prompts, "max_tokens": ANSWER}], disk, **changes)
    wanted["kvtile"]["model"] = str(MODEL)
    if shared is not None:
        wanted["kvtile"] |= {"shared": str(shared), "shared_bundle_blocks": BUNDLE}
    return run(wanted)["rounds"][0]


def answer(model: PreTrainedModel, prompt: list[int], past: DynamicCache) -> list[int]:
    tokens = torch.tensor([prompt])
    outputs = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), past_key_values=past, max_new_tokens=ANSWER,
        min_new_tokens=ANSWER, do_sample=False,
    )
    return outputs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("ranks", [1, RANKS])
def test_what_vllm_wrote_is_what_transformers_computes(
    model: PreTrainedModel, prompts: list[list[int]], ranks: int, tmp_path: Path
) -> None:
    """Several workers write a part of each block, and transformers assembles them. One worker writes a shared store too."""
    disk, shared = tmp_path / "disk", tmp_path / "shared" if ranks == 1 else None
    said = vllm(prompts, disk, shared, **({"engine": {"tensor_parallel_size": ranks}, "environment": ENVIRONMENT} if ranks > 1 else {}))
    with open_cache(model, disk) as cache:
        for prompt, tokens in zip(prompts, said["tokens"], strict=True):
            past = cache.prefill(prompt)
            length = past.get_seq_length()
            assert length == (len(prompt) - 1) // PAGE * PAGE > 3 * PAGE
            own = DynamicCache(config=model.config)
            with torch.no_grad():
                model(torch.tensor([prompt[:length]]), past_key_values=own)
            for restored, computed in zip(past.layers, own.layers, strict=True):
                torch.testing.assert_close(restored.keys, computed.keys, rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(restored.values, computed.values, rtol=1e-3, atol=1e-3)
            assert answer(model, prompt, past) == tokens == answer(model, prompt, DynamicCache(config=model.config))
        moves = cache.stats()["moves"]
        source = "disk" if ranks == 1 else "disk:parts"
        assert sum(move["blocks"] for move in moves if move["source"] == source) > 6
    if shared is not None:
        check_shared_store(model, prompts, said["tokens"], shared)


def check_shared_store(model: PreTrainedModel, prompts: list[list[int]], tokens: list[list[int]], shared: Path) -> None:
    """transformers without a folder of its own continues what vLLM wrote to a shared store."""
    options: dict[str, Any] = {"shared": shared, "shared_within": 20.0, "shared_bundle_blocks": BUNDLE}
    with PrefixCache(model, host_gib=0.1, page_size=PAGE, revision=REVISION, **options) as cache:
        for prompt, expected in zip(prompts, tokens, strict=True):
            past = cache.prefill(prompt)
            assert past.get_seq_length() >= (len(prompt) - 1) // PAGE // BUNDLE * BUNDLE * PAGE > 0
            assert answer(model, prompt, past) == expected
        assert cache.stats()["shared"]["read_blocks"] >= 2 * BUNDLE


def test_what_transformers_wrote_continues_in_vllm(
    model: PreTrainedModel, prompts: list[list[int]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    expected = []
    with open_cache(model, disk) as cache:
        for prompt in prompts:
            tokens = torch.tensor([prompt])
            mask = torch.ones_like(tokens)
            outputs = cache.generate(
                model, {"input_ids": tokens, "attention_mask": mask}, max_new_tokens=ANSWER, min_new_tokens=ANSWER,
                do_sample=False,
            )
            expected.append(outputs[0, len(prompt) :].tolist())
    said = vllm(prompts, disk)
    assert said["tokens"] == expected
    assert said["cached"] == [(len(prompt) - 1) // PAGE * PAGE for prompt in prompts], "only the last block was computed"
