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
    return torch.tensor([[choose.randrange(1, 211) for _ in range(length)]])


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
        (report,) = cache.save(inputs, outputs)
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


def padded(prompts: list[list[int]]):
    """A batch as a tokenizer with ``padding_side="left"`` gives it."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]),
    }


def test_batches_continue_each_row_from_what_is_known_of_it() -> None:
    model = llama()
    choose = random.Random(8)
    base = prompt(1, 80)[0].tolist()
    known = 0
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        for number in range(14):
            prompts = [
                base[: choose.randrange(0, 80)] + prompt(200 + 10 * number + row, choose.randrange(1, 12))[0].tolist()
                for row in range(choose.randrange(1, 5))
            ]
            inputs = padded(prompts)
            wanted = model.generate(**inputs, **OPTIONS)
            past = cache.prefill(inputs)
            # What is restored is what a prompt alone has at these places.
            for row, tokens in enumerate(prompts):
                start, length = inputs["input_ids"].shape[1] - len(tokens), past.get_seq_length()
                if length <= start:
                    continue
                with torch.no_grad():
                    alone = model(torch.tensor([tokens])).past_key_values
                for ours, theirs in zip(past.layers, alone.layers, strict=True):
                    for restored, computed in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                        torch.testing.assert_close(
                            restored[row, :, start:], computed[0, :, : length - start], rtol=1e-3, atol=1e-4
                        )
                known += length - start
            outputs = model.generate(**inputs, past_key_values=past, **OPTIONS)
            assert torch.equal(outputs, wanted), number
            assert len(cache.save(inputs, outputs)) == len(prompts)
    assert known > 300


def test_a_large_batch_is_not_too_much(tmp_path: Path) -> None:
    model = llama()
    inputs = torch.cat([prompt(seed, 9) for seed in range(400)])
    with PrefixCache(model, host_gib=0.1, disk=tmp_path / "kv", disk_gib=0.1, page_size=4) as cache:
        with torch.no_grad():
            past = model(inputs).past_key_values
        assert sum(report.stored for report in cache.save(inputs, inputs, past)) == 800
        assert cache.prefill(inputs).get_seq_length() == 8


def test_answers_that_end_before_others_are_kept_up_to_their_end() -> None:
    model = llama()
    prompts = [prompt(seed, 20)[0].tolist() for seed in (1, 2)]
    inputs = padded(prompts)
    free = model.generate(**inputs, **OPTIONS)
    # The first answer ends with its second token.
    model.generation_config.eos_token_id = int(free[0, 21])
    with PrefixCache(model, host_gib=0.05, page_size=4) as cache:
        outputs = cache.generate(model, inputs, **OPTIONS)
        assert outputs.shape[1] > 24 and not outputs[0, 22:].any(), "the first is filled up"
        assert cache.prefill(outputs[:1]).get_seq_length() == 20
        assert cache.prefill(outputs[1:]).get_seq_length() == (outputs.shape[1] - 1) // 4 * 4


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
        assert [report.stored for report in cache.save(inputs, inputs, computed)] == [2]
        past = cache.prefill(inputs)
        assert past.layers[2].values.dtype == torch.bfloat16
        assert torch.equal(past.layers[2].values, computed.layers[2].values[:, :, :32])


def test_what_cannot_be_right_is_refused() -> None:
    model = llama()
    with PrefixCache(model, host_gib=0.05) as cache:
        for mask in ([1, 1, 1, 0], [1, 0, 1, 1]):
            with pytest.raises(kvtile.RequestError, match="pad on the left"):
                cache.prefill({"input_ids": prompt(1, 4), "attention_mask": torch.tensor([mask])})
        with pytest.raises(kvtile.RequestError, match="no tokens"):
            cache.prefill({"input_ids": prompt(1, 4), "attention_mask": torch.zeros(1, 4)})
        with pytest.raises(kvtile.RequestError, match="not of the size"):
            cache.prefill({"input_ids": prompt(1, 4), "attention_mask": torch.ones(1, 3)})
        with pytest.raises(kvtile.RequestError, match="several lengths"):
            cache.prefill([[1, 2, 3], [4, 5]])
        with pytest.raises(kvtile.RequestError, match="1 prompts have 2 outputs"):
            cache.save(prompt(1, 4), torch.ones(2, 5, dtype=torch.long))
        for options in ({"num_beams": 2}, {"num_return_sequences": 3, "do_sample": True}):
            with pytest.raises(kvtile.RequestError, match="one sequence for each prompt"):
                cache.generate(model, prompt(1, 4), **options)
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
