"""Models of transformers reuse KV from kvtile, and generate the same tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402


def test_the_same_tokens_come_with_and_without_the_cache() -> None:
    model = llama()
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        base = prompt(1, 60)
        choose = random.Random(2)
        for number in range(12):
            shared = choose.randrange(0, 60)
            inputs = torch.cat([base[:, :shared], prompt(100 + number, choose.randrange(1, 30))], dim=1)
            wanted = model.generate(inputs, **GREEDY)
            assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted), number
        assert sum(cache.stats()["hits"].values()) > 10


def test_restored_blocks_are_what_the_model_computes() -> None:
    model = llama()
    inputs = {"input_ids": prompt(3, 41), "attention_mask": torch.ones(1, 41, dtype=torch.long)}
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        assert cache.prefill(inputs).get_seq_length() == 0
        past = cache.prefill(inputs)
        outputs = model.generate(**inputs, past_key_values=past, **GREEDY)
        (report,) = cache.save(inputs, outputs, past)
        assert report.stored == (41 + 11) // 8
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 40
        with torch.no_grad():
            computed = model(**inputs).past_key_values
        for ours, theirs in zip(past.layers, computed.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys[:, :, :40])
            assert torch.equal(ours.values, theirs.values[:, :, :40])
        again = model.generate(**inputs, past_key_values=past, **GREEDY)
        assert torch.equal(again, outputs)
        # save kept the answer too: a longer conversation starts with it.
        assert cache.prefill(torch.cat([outputs, prompt(4, 3)], dim=1)).get_seq_length() == 48


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
            wanted = model.generate(**inputs, **GREEDY)
            past = cache.prefill(inputs)
            # The restored KV equals that of a prompt alone, row by row.
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
            outputs = model.generate(**inputs, past_key_values=past, **GREEDY)
            assert torch.equal(outputs, wanted), number
            assert len(cache.save(inputs, outputs, past)) == len(prompts)
    assert known > 300


def test_a_large_batch_fits_the_queue(tmp_path: Path) -> None:
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
    free = model.generate(**inputs, **GREEDY)
    # The first answer ends with its second token.
    model.generation_config.eos_token_id = int(free[0, 21])
    with PrefixCache(model, host_gib=0.05, page_size=4) as cache:
        outputs = cache.generate(model, inputs, **GREEDY)
        assert outputs.shape[1] > 24 and not outputs[0, 22:].any(), "the first answer is padded"
        first, second = ({"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in outputs)
        assert cache.prefill(first).get_seq_length() == 20
        assert cache.prefill(second).get_seq_length() == (outputs.shape[1] - 1) // 4 * 4


def test_a_later_process_continues_from_the_disk(tmp_path: Path) -> None:
    inputs, settings = prompt(5, 50), {"disk": tmp_path / "kv", "host_gib": 0.05, "disk_gib": 0.1, "page_size": 8}
    model = llama()
    with PrefixCache(model, **settings) as cache:
        wanted = cache.generate(model, inputs, **GREEDY)
    same = llama()
    with PrefixCache(same, **settings) as cache:
        assert torch.equal(cache.generate(same, inputs, **GREEDY), wanted)
        assert cache.stats()["hits"] == {"disk": 6}


def test_requests_are_recorded(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "trace.jsonl"
    with PrefixCache(model, host_gib=0.05, page_size=8, record=path) as cache:
        for _ in range(2):
            cache.generate(model, prompt(5, 21), **GREEDY)
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["input_length"], first["page_size"], len(first["hash_ids"])) == (21, 8, 3)
    assert first["hash_ids"][:2] == second["hash_ids"][:2] and first["hash_ids"][2] != second["hash_ids"][2]
    assert first["timestamp"] <= second["timestamp"] and first["output_length"] > 0


def test_closing_may_be_given_a_time(tmp_path: Path) -> None:
    model = llama()
    with PrefixCache(model, disk=tmp_path / "kv", disk_gib=0.1, host_gib=0.05, close_within=5) as cache:
        cache.generate(model, prompt(5, 50), **GREEDY)
    with pytest.raises(kvtile.SettingsError, match="close_within"):
        PrefixCache(model, host_gib=0.05, close_within=5)


def test_another_model_never_reads_them(tmp_path: Path) -> None:
    settings = {"disk": tmp_path / "kv", "host_gib": 0.05, "disk_gib": 0.1}
    PrefixCache(llama(), **settings).close()
    rope = {"rope_type": "default", "rope_theta": 5e5}
    for other, field in [(llama(1), "revision"), (llama(rope_parameters=rope), r"rope\.base"),
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


def test_invalid_batches_are_refused() -> None:
    tokens = prompt(1, 4)
    wrong = [
        ({"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 1, 0]])}, "pad on the left"),
        ({"input_ids": tokens, "attention_mask": torch.tensor([[1, 0, 1, 1]])}, "pad on the left"),
        ({"input_ids": tokens, "attention_mask": torch.zeros(1, 4)}, "no tokens"),
        ({"input_ids": tokens, "attention_mask": torch.ones(1, 3)}, "does not have the size"),
        ({"input_ids": tokens, "attention_mask": torch.full((1, 4), -1e9)}, "0 and 1"),
        ({"input_ids": tokens, "attention_mask": torch.ones(1, 1, 4, 4)}, "0 and 1"),
        ({"input_ids": tokens, "attention_mask": 1}, "0 and 1"),
        ({"inputs_embeds": torch.ones(1, 4, 48)}, "inputs_embeds, and no input_ids"),
        ({}, "no input_ids"),
        ([[1, 2, 3], [4, 5]], "several lengths"),
        ([], "no tokens"),
        ([[]], "no tokens"),
        (torch.zeros(1, 0, dtype=torch.long), "no tokens"),
        (torch.tensor([[0, 5, 6]]), "padding token 0 and no attention_mask"),
        (torch.ones(1, 4), "whole numbers"),
        ([[1, -1]], "whole numbers"),
        ([[1, None]], "whole numbers"),
        ([1, [2]], "whole numbers"),
        ("a text", "str are not token ids"),
        (b"bytes", "bytes are not token ids"),
        (7, "and not 7"),
        (None, "and not None"),
    ]
    model = llama()
    with PrefixCache(model, host_gib=0.05) as cache:
        for inputs, message in wrong:
            with pytest.raises(kvtile.RequestError, match=message):
                cache.prefill(inputs)
            with pytest.raises(kvtile.RequestError, match=message):
                cache.save(inputs, prompt(1, 8), transformers.DynamicCache())
        assert "LlamaForCausalLM" in repr(cache)


def test_tokens_may_come_in_any_form() -> None:
    model, tokens = llama(), prompt(1, 20)
    forms = [
        tokens, tokens[0], tokens.int(), tokens.numpy(), tokens.tolist(), tokens[0].tolist(), [tokens[0]],
        {"input_ids": tokens}, transformers.BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones(1, 20)}),
        {"input_ids": tokens, "attention_mask": torch.ones(1, 20, dtype=torch.bool)},
        {"input_ids": tokens, "attention_mask": [1] * 20},
    ]  # fmt: skip
    with PrefixCache(model, host_gib=0.05, page_size=4) as cache:
        cache.generate(model, tokens, **GREEDY)
        assert [cache.prefill(form).get_seq_length() for form in forms] == [16] * len(forms)


def test_mismatched_outputs_are_refused() -> None:
    model, tokens = llama(), prompt(1, 4)
    with PrefixCache(model, host_gib=0.05) as cache:
        for inputs, outputs, past, message in [
            (tokens, torch.ones(2, 5, dtype=torch.long), transformers.DynamicCache(), "1 prompts have 2 outputs"),
            (tokens, prompt(2, 8), transformers.DynamicCache(), "do not begin"),
            (tokens, tokens, None, "give past_key_values"),
            (tokens, tokens, cache.prefill(tokens), "holds 0 tokens"),
            (tokens, tokens, transformers.StaticCache(model.config, 16), "StaticCache is not a DynamicCache"),
            (tokens, tokens, "a text", "str is not a DynamicCache"),
        ]:
            with pytest.raises(kvtile.RequestError, match=message):
                cache.save(inputs, outputs, past)
        with pytest.raises(kvtile.IdentityError, match="another model"):
            cache.generate(llama(1), tokens)
        with pytest.raises(kvtile.RequestError, match="input_ids: among the inputs and among the options"):
            cache.generate(model, tokens, input_ids=tokens)
    with pytest.raises(kvtile.ClosedError):
        cache.generate(model, tokens)
    with pytest.raises(kvtile.ClosedError):
        cache.prefill(prompt(1, 40))


def test_another_process_continues_from_a_shared_store(tmp_path: Path) -> None:
    model = llama()
    inputs = {"input_ids": prompt(3, 41), "attention_mask": torch.ones(1, 41, dtype=torch.long)}
    settings = {"host_gib": 0.05, "page_size": 8, "shared": tmp_path / "shared", "shared_bundle_blocks": 2}
    with PrefixCache(model, **settings) as cache:
        outputs = cache.generate(model, inputs["input_ids"], **GREEDY)
        assert cache.stats()["stored"]["host"] == (41 + 11) // 8
    with PrefixCache(model, **settings, shared_within=20) as cache:
        # Six blocks are stored as three bundles; the prompt without its last token has five of the blocks.
        assert cache.prefill(inputs).get_seq_length() >= 32
        assert torch.equal(cache.generate(model, inputs["input_ids"], **GREEDY), outputs)
        assert cache.stats()["hits"]["shared"] >= 4 and cache.stats()["shared"]["damaged"] == 0


def test_settings_of_a_shared_store_need_one() -> None:
    for settings in ({"shared_within": 5.0}, {"shared_bundle_blocks": 2}):
        with pytest.raises(kvtile.SettingsError, match="without shared"):
            PrefixCache(llama(), host_gib=0.05, **settings)
    with pytest.raises(kvtile.SharedTierError, match="ftp"):
        PrefixCache(llama(), host_gib=0.05, shared="ftp://host")
