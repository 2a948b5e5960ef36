"""Models of transformers continue from what kvtile kept, token for token."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvtile.transformers import PrefixCache  # noqa: E402


def llama(seed: int = 0, **changes):
    """A tiny Llama with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, **changes,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompt(seed: int, length: int):
    choose = random.Random(seed)
    return torch.tensor([[choose.randrange(211) for _ in range(length)]])


OPTIONS = {"max_new_tokens": 12, "do_sample": False}


def test_the_same_tokens_come_with_and_without_the_cache() -> None:
    model = llama()
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        base = prompt(1, 60)
        choose = random.Random(2)
        for number in range(12):
            shared = choose.randrange(0, 60)
            inputs = torch.cat([base[:, :shared], prompt(100 + number, choose.randrange(1, 30))], dim=1)
            wanted = model.generate(inputs, **OPTIONS)
            assert torch.equal(cache.generate(model, inputs, **OPTIONS), wanted), number
        assert sum(cache.stats()["hits"].values()) > 10


def test_restored_blocks_are_what_the_model_computes() -> None:
    model = llama()
    inputs = {"input_ids": prompt(3, 41), "attention_mask": torch.ones(1, 41, dtype=torch.long)}
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        assert cache.prefill(inputs).get_seq_length() == 0
        outputs = model.generate(**inputs, past_key_values=cache.prefill(inputs), **OPTIONS)
        report = cache.save(inputs, outputs)
        assert report.stored == (41 + 11) // 8
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 40
        with torch.no_grad():
            computed = model(**inputs).past_key_values
        for ours, theirs in zip(past.layers, computed.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys[:, :, :40])
            assert torch.equal(ours.values, theirs.values[:, :, :40])
        again = model.generate(**inputs, past_key_values=past, **OPTIONS)
        assert torch.equal(again, outputs)
        # The answer was kept too: a longer conversation begins with it.
        assert cache.prefill(torch.cat([outputs, prompt(4, 3)], dim=1)).get_seq_length() == 48


def test_a_later_process_continues_from_the_disk(tmp_path: Path) -> None:
    inputs, settings = prompt(5, 50), {"disk": tmp_path / "kv", "host_gib": 0.05, "disk_gib": 0.1, "page_size": 8}
    model = llama()
    with PrefixCache(model, **settings) as cache:
        wanted = cache.generate(model, inputs, **OPTIONS)
    same = llama()
    with PrefixCache(same, **settings) as cache:
        assert torch.equal(cache.generate(same, inputs, **OPTIONS), wanted)
        assert cache.stats()["hits"] == {"disk": 6}


def test_another_model_never_reads_them(tmp_path: Path) -> None:
    settings = {"disk": tmp_path / "kv", "host_gib": 0.05, "disk_gib": 0.1}
    PrefixCache(llama(), **settings).close()
    rope = {"rope_type": "default", "rope_theta": 5e5}
    for other, field in [(llama(1), "revision"), (llama(rope_parameters=rope), "rope.base"),
                         (llama().to(torch.bfloat16), "revision")]:
        with pytest.raises(kvtile.IdentityError, match=field):
            PrefixCache(other, **settings)
    with pytest.raises(kvtile.IdentityError, match="page_size"):
        PrefixCache(llama(), page_size=32, **settings)
    with pytest.raises(kvtile.IdentityError, match="extra.adapter"):
        PrefixCache(llama(), extra={"adapter": "x"}, **settings)
    PrefixCache(llama(), **settings).close()


def test_bfloat16_is_kept_as_it_is() -> None:
    model = llama().to(torch.bfloat16)
    inputs = prompt(6, 40)
    with PrefixCache(model, host_gib=0.05) as cache:
        with torch.no_grad():
            computed = model(inputs).past_key_values
        assert cache.save(inputs, inputs, computed).stored == 2
        past = cache.prefill(inputs)
        assert past.layers[2].values.dtype == torch.bfloat16
        assert torch.equal(past.layers[2].values, computed.layers[2].values[:, :, :32])


def test_what_cannot_be_right_is_refused() -> None:
    model = llama()
    with PrefixCache(model, host_gib=0.05) as cache:
        with pytest.raises(kvtile.RequestError, match="batch of 2"):
            cache.prefill(torch.ones(2, 4, dtype=torch.long))
        with pytest.raises(kvtile.RequestError, match="padded"):
            cache.prefill({"input_ids": prompt(1, 4), "attention_mask": torch.tensor([[0, 1, 1, 1]])})
        with pytest.raises(kvtile.RequestError, match="do not begin"):
            cache.save(prompt(1, 4), prompt(2, 8))
        with pytest.raises(kvtile.RequestError, match="nothing was prefilled"):
            cache.save(prompt(1, 4), prompt(1, 4))
        cache.prefill(prompt(1, 4))
        with pytest.raises(kvtile.RequestError, match="holds 0 tokens"):
            cache.save(prompt(1, 4), prompt(1, 4))
        with pytest.raises(kvtile.IdentityError, match="another model"):
            cache.generate(llama(1), prompt(1, 4))
        assert "LlamaForCausalLM" in repr(cache)
    with pytest.raises(kvtile.IdentityError, match="sliding"):
        PrefixCache(transformers.MistralForCausalLM(transformers.MistralConfig(
            vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, sliding_window=8)))
