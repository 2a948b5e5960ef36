"""Interleaved requests: each gets the KV of its own tokens, in any order and from any thread."""

from __future__ import annotations

import copy
import random
import threading

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402

SETTINGS = {"host_gib": 0.05, "page_size": 8}


def computed(model, tokens):
    """The KV that the model computes for tokens."""
    with torch.no_grad():
        return model(tokens, use_cache=True).past_key_values


def check_kept(cache: PrefixCache, model, tokens) -> int:
    """Checks the stored KV of tokens against the model; returns how many tokens are stored."""
    past = cache.prefill(tokens)
    length = past.get_seq_length()
    if length:
        for ours, theirs in zip(past.layers, computed(model, tokens).layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys[:, :, :length], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values[:, :, :length], rtol=1e-3, atol=1e-4)
    return length


def test_the_cache_of_another_request_is_refused_in_every_combination() -> None:
    model = llama()
    with PrefixCache(model, **SETTINGS) as cache:
        prompts = [prompt(1, 40), prompt(2, 40)]
        pasts = [cache.prefill(tokens) for tokens in prompts]
        outputs = [
            model.generate(tokens, attention_mask=torch.ones_like(tokens), past_key_values=past, **GREEDY)
            for tokens, past in zip(prompts, pasts, strict=True)
        ]
        for wrong in (lambda at: (prompts[at], outputs[at], pasts[1 - at]),
                      lambda at: (prompts[at], outputs[1 - at], pasts[at]),
                      lambda at: (prompts[at], outputs[1 - at], pasts[1 - at])):
            for at in (0, 1):
                with pytest.raises(kvtile.RequestError, match="holds other KV|do not begin"):
                    cache.save(*wrong(at))
        assert [cache.prefill(output).get_seq_length() for output in outputs] == [0, 0]
        for tokens, output, past in zip(prompts, outputs, pasts, strict=True):
            cache.save(tokens, output, past)
        assert [check_kept(cache, model, output) for output in outputs] == [48, 48]


def test_two_answers_to_one_prompt_are_not_mixed() -> None:
    model, tokens = llama(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        pasts = [cache.prefill(tokens), cache.prefill(tokens)]
        outputs = [
            model.generate(tokens, past_key_values=past, do_sample=True, temperature=9.0, max_new_tokens=20)
            for past in pasts
        ]
        for at in (0, 1):
            with pytest.raises(kvtile.RequestError, match="holds other KV"):
                cache.save(tokens, outputs[at], pasts[1 - at])
        for output, past in zip(outputs, pasts, strict=True):
            cache.save(tokens, output, past)
            assert check_kept(cache, model, output) == 56


@pytest.mark.parametrize("change", ["other tokens", "other positions", "padding", "one layer", "zeros", "nan", "rows"])
def test_kv_of_other_tokens_is_not_stored(change: str) -> None:
    model = llama()
    inputs = padded([prompt(1, 24)[0].tolist(), prompt(2, 16)[0].tolist()])
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        if change == "other tokens":
            tokens = tokens.clone()
            tokens[1, 20] += 1
        elif change == "other positions":
            positions = positions + 1
        elif change == "padding":
            positions = None  # forward counts the padding too
        past = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
        first = past.layers[0]
        if change == "one layer":
            past.layers.pop()
        elif change == "zeros":
            first.values[0, 1, 20] = 0
        elif change == "nan":
            first.keys[0, 1, 20] = float("nan")
        elif change == "rows":
            past.batch_select_indices(torch.tensor([1, 0]))
    with PrefixCache(model, **SETTINGS) as cache:
        with pytest.raises(kvtile.RequestError, match="holds other KV|2 layers"):
            cache.save(inputs, inputs["input_ids"], past)
        assert cache.prefill(inputs).get_seq_length() == 0


def test_a_cache_may_be_copied_cropped_and_continued() -> None:
    model, tokens = llama(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        cache.generate(model, tokens[:, :24], **GREEDY)
        past = cache.prefill(tokens)
        assert past.get_seq_length() == 24
        twin = copy.deepcopy(past)
        outputs = model.generate(tokens, past_key_values=twin, return_dict_in_generate=True, **GREEDY)
        cache.save(tokens, outputs)
        assert check_kept(cache, model, outputs.sequences) == 48
        # The first cache is unchanged.
        assert past.get_seq_length() == 24
        longer = torch.cat([outputs.sequences, prompt(3, 13)], dim=1)
        second = model.generate(longer, past_key_values=twin, **GREEDY)
        twin.crop(-3)
        cache.save(longer, second[:, :-3], twin)
        assert check_kept(cache, model, second) == 72
        twin.reset()
        with pytest.raises(kvtile.RequestError, match="holds 0 tokens"):
            cache.save(longer, second, twin)


def test_outputs_bring_their_cache() -> None:
    model, tokens = llama(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        past = cache.prefill(tokens)
        outputs = model.generate(tokens, past_key_values=past, return_dict_in_generate=True, **GREEDY)
        with pytest.raises(kvtile.RequestError, match="another cache"):
            cache.save(tokens, outputs, cache.prefill(tokens))
        (report,) = cache.save(tokens, outputs, past)
        assert report.stored == 6


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_requests_gives_what_the_model_gives_alone(seed: int) -> None:
    """Interleaves prefill, generate and save of several requests at random; compares each step with the model alone."""
    choose, model = random.Random(seed), llama(seed)
    base = prompt(seed, 70)
    alone: dict[tuple[int, ...], object] = {}
    under_way: list[dict[str, object]] = []
    hits = 0
    with PrefixCache(model, **SETTINGS) as cache:
        for number in range(40):
            step = choose.choice(["prefill", "generate", "save", "at once"])
            if step in ("prefill", "at once") or not under_way:
                shared = choose.randrange(0, 70)
                tokens = torch.cat([base[:, :shared], prompt(choose.randrange(4), choose.randrange(1, 20))], dim=1)
                wanted = alone.setdefault(tuple(tokens[0].tolist()), model.generate(tokens, **GREEDY))
                if step == "at once":
                    assert torch.equal(cache.generate(model, tokens, **GREEDY), wanted), number
                else:
                    past = cache.prefill(tokens)
                    hits += past.get_seq_length()
                    under_way.append({"tokens": tokens, "past": past, "wanted": wanted})
                continue
            request = choose.choice(under_way)
            if "outputs" not in request:
                request["outputs"] = model.generate(request["tokens"], past_key_values=request["past"], **GREEDY)
                assert torch.equal(request["outputs"], request["wanted"]), number
            elif step == "save":
                cache.save(request["tokens"], request["outputs"], request["past"])
                under_way = [other for other in under_way if other is not request]
                assert check_kept(cache, model, request["outputs"]) >= request["tokens"].shape[1] // 8 * 8
    assert hits > 50


@pytest.mark.parametrize("recipe", ["generate", "prefill and save"])
def test_threads_get_the_tokens_that_the_model_gives_alone(recipe: str) -> None:
    model = llama()
    base = prompt(1, 64)
    prompts = [
        torch.cat([base[:, : 16 * (number % 4)], prompt(10 + number, 5 + 3 * number)], dim=1) for number in range(12)
    ]
    wanted = [model.generate(tokens, **GREEDY) for tokens in prompts]
    wrong: list[object] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(12):
                at = choose.randrange(len(prompts))
                if recipe == "generate":
                    outputs = cache.generate(model, prompts[at], **GREEDY)
                else:
                    past = cache.prefill(prompts[at])
                    outputs = model.generate(prompts[at], past_key_values=past, **GREEDY)
                    cache.save(prompts[at], outputs, past)
                if not torch.equal(outputs, wanted[at]):
                    wrong.append(at)
        except BaseException as error:
            wrong.append(error)

    with PrefixCache(model, **SETTINGS) as cache:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        for tokens in wanted:
            check_kept(cache, model, tokens)
        assert cache.stats()["hits"]["host"] > 50


def test_closing_with_requests_in_flight_loses_no_answer() -> None:
    model, tokens = llama(), prompt(1, 40)
    wanted = model.generate(tokens, **GREEDY)
    cache = PrefixCache(model, **SETTINGS)

    class Closes(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            cache.close()
            return torch.zeros(1, dtype=torch.bool)

    outputs = cache.generate(model, tokens, stopping_criteria=transformers.StoppingCriteriaList([Closes()]), **GREEDY)
    assert torch.equal(outputs, wanted)
    past = transformers.DynamicCache(config=model.config)
    with pytest.raises(kvtile.ClosedError):
        cache.save(tokens, model.generate(tokens, past_key_values=past, **GREEDY), past)
