"""Models with windows, chunks, states and latents continue from kept stops as from the live cache, bit by bit."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import hybrids  # noqa: E402
from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402
from kvtile.transformers._prompts import prompts_of  # noqa: E402
from kvtile.transformers._kinds import SEVERAL, cache_name, forward, groups_of_model, new_cache  # noqa: E402

PAGE = 8
PROMPT = 57  # the last stop before its last token is 56
SMALL = {"page_size": PAGE, "host_gib": 0.02, "disk_gib": 0.02}
MEMORY = {"page_size": PAGE, "host_gib": 0.02}
# Each byte with one bit flipped.
FLIPPED = bytes(byte ^ 1 for byte in range(256))
# For what does not depend on the type: a window, states, both in one layer.
SOME = ["gemma3_text", "qwen3_next", "inkling_text"]


def steps(model: Any, past: Any, tokens: list[int], more: int = 4) -> list[Any]:
    """The logits of the rest of a prompt and of some greedy tokens."""
    found = []
    with torch.no_grad():
        for _ in range(more):
            rest = torch.tensor([tokens[past.get_seq_length() :]])
            given = {"input_ids": rest, cache_name(model): past, "use_cache": True}
            found.append(model(**given).logits[0, -1])
            tokens = [*tokens, int(found[-1].argmax())]
    return found


def same(left: list[Any], right: list[Any]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in hybrids.KINDS if kind not in hybrids.STEPWISE])
def test_a_kept_stop_continues_as_the_live_cache(kind: str, tmp_path: Path) -> None:
    """sglang#32759: after a hit windows were computed again, and not byte for byte. vllm#38230, sglang#23659,
    sglang#24121: models with states or windows were refused by the tiers below, or ended the engine at its restart."""
    model, inputs, disk = hybrids.model(kind), prompt(1, PROMPT), tmp_path / "kv"
    tokens = inputs[0].tolist()
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        past = cache.prefill(inputs)
        computed = past.get_seq_length()
        live = steps(model, past, tokens)
        answer = cache.generate(model, inputs, **GREEDY)
        before = loaded_tokens(cache)
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 56 and loaded_tokens(cache) - before == 56
        # A model whose every page's end is a stop computed the whole prompt at once.
        assert computed == 0 or same(steps(model, past, tokens), live)
        assert torch.equal(cache.generate(model, inputs, **GREEDY), answer)
        # The answer ends at 69 tokens, so its last stop is 64: the live cache came there token by token.
        longer = [*answer[0].tolist(), *prompt(2, 10)[0].tolist()]
        by_hand = cache.prefill(inputs) if computed else new_cache(model)
        for begin, end in [(computed, 57), *((at, at + 1) for at in range(57, 64))]:
            forward(model, longer[begin:end], by_hand)
        if computed:
            forward(model, longer[64:72], by_hand)
        found = cache.prefill(torch.tensor([longer]))
        assert loaded_tokens(cache) - before >= 56 + 64
        assert same(steps(model, found, longer), steps(model, by_hand, longer))
    kept = tmp_path / "kept"
    shutil.copytree(disk, kept)
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 56 and loaded_tokens(cache) == 56
        assert computed == 0 or same(steps(model, past, tokens), live)
    parts = sorted(part.name for part in kept.glob("slots*"))
    assert len(parts) == len(cache.identity.groups)
    for part in parts:
        broken = tmp_path / part
        shutil.copytree(kept, broken)
        slots = broken / part
        slots.write_bytes(slots.read_bytes().translate(FLIPPED))
        with PrefixCache(model, disk=broken, **SMALL) as cache:
            past = cache.prefill(inputs)
            assert loaded_tokens(cache) == 0 and cache.stats()["lost"] > 0
            assert past.get_seq_length() == computed and same(steps(model, past, tokens), live)


def loaded_tokens(cache: PrefixCache) -> int:
    return cache.stats()["loaded_tokens"]


def test_a_restored_stop_is_not_computed_again(tmp_path: Path) -> None:
    """llama.cpp#28194, llama.cpp#25913: a restore reported success, and the whole prompt was computed."""
    model, inputs = hybrids.model("inkling_text"), prompt(1, PROMPT)
    with PrefixCache(model, disk=tmp_path / "kv", **SMALL) as cache:
        wanted = cache.generate(model, inputs, **GREEDY)
    computed = []

    def count(module: Any, arguments: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            computed.append(arguments[0].shape[-1])

    with PrefixCache(model, disk=tmp_path / "kv", **SMALL) as cache:
        # A hook of all modules, because one of this module would be a change of the model.
        hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted)
        finally:
            hook.remove()
        # The last token of the prompt, each of the answer but the last one, and what `save` computes to compare.
        assert computed[:12] == [1] * 12
        assert all(tokens == 1 for tokens in computed), "each token that save compares is a sequence of its own"


def test_each_stop_that_is_asked_for_is_kept() -> None:
    model, first = hybrids.model("gemma3_text"), prompt(1, PROMPT)
    second = torch.cat([first[:, :37], prompt(3, 20)], dim=1)
    third = torch.cat([first[:, :37], prompt(4, 20)], dim=1)

    def known(cache: PrefixCache, inputs: Any) -> int:
        before = loaded_tokens(cache)
        cache.prefill(inputs)
        return loaded_tokens(cache) - before

    with PrefixCache(model, stops=("prompt", "branch"), **MEMORY) as cache:
        assert [known(cache, first), known(cache, second), known(cache, third), known(cache, first)] == [0, 0, 32, 56]
    with PrefixCache(model, stops=("prompt",), **MEMORY) as cache:
        assert [known(cache, first), known(cache, second), known(cache, third), known(cache, first)] == [0, 0, 0, 56]
    with PrefixCache(model, stops=(), every=16, **MEMORY) as cache:
        assert [known(cache, first), known(cache, second), known(cache, first)] == [0, 32, 48]
    with PrefixCache(model, stops=("answer",), **MEMORY) as cache:
        answer = cache.generate(model, first, **GREEDY)
        assert [known(cache, first), known(cache, torch.cat([answer, prompt(5, 3)], dim=1))] == [0, 64]
    # A prompt that is whole pages is kept at its end too: it is the beginning of a longer one.
    with PrefixCache(model, stops=("prompt",), **MEMORY) as cache:
        answer = cache.generate(model, first[:, :48], **GREEDY)
        assert [known(cache, first[:, :48]), known(cache, first)] == [40, 48]
    with PrefixCache(model, **MEMORY) as cache:
        cache.generate(model, first[:, :3], **GREEDY)
        assert known(cache, first[:, :3]) == 0


def test_conversations_get_the_tokens_that_the_model_gives_alone() -> None:
    """vllm#56972: states of answers were never stored, so each turn continued from the end of its prompt."""
    for kind in SOME:
        model = hybrids.model(kind)
        with PrefixCache(model, **MEMORY) as cache:
            talk = prompt(7, 30)
            for turn in range(3):
                wanted = model.generate(talk, **GREEDY)
                before = loaded_tokens(cache)
                assert torch.equal(cache.generate(model, talk, **GREEDY), wanted), (kind, turn)
                assert loaded_tokens(cache) - before == [0, 40, 56][turn]
                talk = torch.cat([wanted, prompt(20 + turn, 5)], dim=1)


def test_the_groups_of_a_model_say_what_a_stop_needs() -> None:
    def described(kind: str) -> dict[str, tuple[list[int], int]]:
        return {group.name: (group.layers, len(group.parts)) for group in groups_of_model(hybrids.model(kind))}

    assert described("gemma3_text") == {"full": ([1, 3], 4), "window16": ([0, 2], 4)}
    assert described("llama4_text") == {"full": ([1, 3], 4), "chunk16": ([0, 2], 4)}
    assert described("gemma3n_text") == {"full": ([1], 2), "window16": ([0], 2)}, "two layers share the KV of these"
    assert described("falcon_h1") == {"full": ([0, 1, 2, 3], 8), "state": ([0, 1, 2, 3], 8)}
    assert described("inkling_text") == {"full": ([1, 3], 4), "window16": ([0, 2], 4), "state": ([0, 1, 2, 3], 16)}
    assert described("nemotron_h") == {"full": ([1], 2), "state": ([0, 2], 4)}, "an MLP keeps nothing"
    assert described("deepseek_v3") == {"full": ([0, 1, 2, 3], 8)}
    assert described("deepseek_v4") == {
        "full4": ([1, 3], 4), "full8": ([0, 2], 2), "window16": ([0, 1, 2, 3], 4), "state": ([1, 3], 8),
    }  # fmt: skip
    lines = [str(group) for group in groups_of_model(hybrids.model("qwen3_next"))]
    assert lines[1].startswith("state: 0.conv_states.0 float32[48, 4], 0.recurrent_states.0 float32[2, 8, 8]")


def test_models_and_settings_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    for kind, why in [
        ("recurrent_gemma", "in its modules"),
    ]:
        model = hybrids.model("gemma3_text")
        model.config.model_type = kind
        with pytest.raises(kvtile.IdentityError, match=f"{kind}: .*{why}"):
            PrefixCache(model, **MEMORY)
    rope = {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    with pytest.raises(kvtile.IdentityError, match="dynamic"):
        PrefixCache(hybrids.model("gemma3_text", rope_parameters=rope), **MEMORY)
    model = hybrids.model("gemma3_text")
    for settings, why in [
        ({"connect": tmp_path / "socket"}, "host_gib has no effect with connect"),
        ({"stops": ("end",)}, "prompt, answer, branch"),
        ({"stops": "prompt"}, "prompt, answer, branch"),
        ({"every": 12}, "multiples of the page_size 8"),
        ({"every": 0}, "multiples of the page_size 8"),
    ]:
        with pytest.raises(kvtile.SettingsError, match=why):
            PrefixCache(model, **MEMORY, **settings)
    with pytest.raises(kvtile.SettingsError, match="entries of 8 tokens"):
        PrefixCache(hybrids.model("deepseek_v4"), page_size=4, host_gib=0.02)
    with pytest.raises(kvtile.SettingsError, match="stops and every have no effect"):
        PrefixCache(llama(), every=16, **MEMORY)
    PrefixCache(model, disk=tmp_path / "kv", **SMALL).close()
    narrow = hybrids.model("gemma3_text", sliding_window=8)
    for other, field in [(hybrids.model("gemma3_text", 1), "revision"), (narrow, "window")]:
        with pytest.raises(kvtile.IdentityError, match=field):
            PrefixCache(other, disk=tmp_path / "kv", **SMALL)


def kept_tensors(cache: PrefixCache, past: Any) -> list[Any]:
    parts = [part for group in cache._kept._contents.groups for part in group.parts]
    return [part.place.get(past.layers[part.layer]) for part in parts]


@pytest.mark.parametrize("kind", hybrids.STEPWISE)
def test_states_alone_and_models_that_continue_token_by_token(kind: str, tmp_path: Path) -> None:
    model, inputs, disk = hybrids.model(kind), prompt(1, PROMPT), tmp_path / "kv"
    rows = prompts_of(inputs)
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        live = kept_tensors(cache, cache._kept.begin(model, rows))
        wanted = model.generate(inputs, **GREEDY)
        before = loaded_tokens(cache)
        assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted)
        assert loaded_tokens(cache) - before == 56
        assert same(kept_tensors(cache, cache._kept.begin(model, rows)), live)
        # The last stop of the answer is at 64, and then a conversation goes on.
        longer = torch.cat([wanted, prompt(2, 10)], dim=1)
        before = loaded_tokens(cache)
        assert torch.equal(cache.generate(model, longer, **GREEDY), model.generate(longer, **GREEDY))
        assert loaded_tokens(cache) - before == 64
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        assert same(kept_tensors(cache, cache._kept.begin(model, rows)), live) and loaded_tokens(cache) == 56
        if kind == "jamba":
            assert cache.prefill(inputs).get_seq_length() == 56
        else:
            with pytest.raises(kvtile.RequestError, match="states alone"):
                cache.prefill(inputs)
    slots = sorted(disk.glob("slots*"))[-1]
    slots.write_bytes(bytes(byte ^ 1 for byte in slots.read_bytes()))
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted)
        assert loaded_tokens(cache) == 0 and cache.stats()["lost"] > 0


@pytest.mark.parametrize("kind", ["inkling_text", "deepseek_v3", "llama4_text", "mamba2", "jamba"])
def test_the_rows_of_a_batch_have_stops_of_their_own(kind: str) -> None:
    model = hybrids.model(kind)
    talks = [prompt(seed, length)[0].tolist() for seed, length in ((1, 57), (2, 30), (3, 1), (4, 64))]
    with PrefixCache(model, **MEMORY) as cache:
        for turn in range(2):
            inputs = padded(talks)
            wanted = model.generate(**inputs, **GREEDY)
            for _ in range(2):
                before = loaded_tokens(cache)
                assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted), turn
            assert cache.cache.stats()["lookups"] >= 8
            # 48 of 64, because the last token is always computed.
            assert loaded_tokens(cache) - before == sum((len(talk) - 1) // PAGE * PAGE for talk in talks)
            answers = [row[-12:] for row in wanted.tolist()]
            talks = [[*talk, *answer, 7, 8, 9] for talk, answer in zip(talks, answers, strict=True)]
            before = loaded_tokens(cache)
            for talk in talks:
                cache._kept.begin(model, prompts_of([talk]))
            # A row continues alone from the last stop that its answer passed in the batch.
            ends = [(len(talk) - 4) // PAGE * PAGE for talk in talks]
            assert loaded_tokens(cache) - before == sum(ends), turn


def test_a_row_whose_answer_ended_keeps_its_last_stop() -> None:
    model = hybrids.model("qwen3_next")
    inputs = padded([prompt(3, 21)[0].tolist(), prompt(23, 30)[0].tolist()])
    answers = model.generate(**inputs, **GREEDY)[:, 30:].tolist()
    end = answers[0][4]
    assert answers[0].index(end) == 4 and end not in answers[1], "the first answer has 5 tokens, the second one 12"
    with PrefixCache(model, **MEMORY) as cache:
        options = {**GREEDY, "eos_token_id": end}
        wanted = model.generate(**inputs, **options)
        assert torch.equal(cache.generate(model, inputs, **options), wanted)
        before = loaded_tokens(cache)
        talk = [*wanted[0, 9 : 30 + 5].tolist(), 5, 6, 7, 8, 9, 10]
        cache.prefill(torch.tensor([talk]))
        assert loaded_tokens(cache) - before == 24


def test_other_caches_and_batches_are_refused_or_computed_without() -> None:
    model, inputs = hybrids.model("gemma3_text"), prompt(1, PROMPT)
    with PrefixCache(model, **MEMORY) as cache:
        past = cache.prefill(inputs)
        other = copy.deepcopy(past)
        outputs = model.generate(inputs, **{cache_name(model): past}, **GREEDY)
        options = {**GREEDY, "suppress_tokens": [0, int(outputs[0, 60])]}
        sampled = model.generate(inputs, **{cache_name(model): other}, **options)
        assert not torch.equal(sampled, outputs)
        static = transformers.StaticCache(model.config, max_cache_len=99)
        refused: list[tuple[Callable[[], Any], str]] = [
            (lambda: cache.save(inputs, outputs, new_cache(model)), "not a cache that prefill returned"),
            (lambda: cache.save(inputs, outputs, static), "not a cache that prefill returned"),
            (lambda: cache.save(inputs, sampled, past), "holds other KV"),
            (lambda: cache.save(outputs[:, :60], outputs, past), "of other prompts"),
        ]
        for call, why in refused:
            with pytest.raises(kvtile.RequestError, match=why):
                call()
        (report,) = cache.save(inputs, outputs, past)
        assert report.stored > 0
    # Compressed entries of padded rows would begin in other columns.
    model = hybrids.model("deepseek_v4")
    with PrefixCache(model, **MEMORY) as cache:
        batch = torch.cat([inputs, prompt(2, PROMPT)])
        with pytest.raises(kvtile.RequestError, match="2 prompts: .*entries of 8 tokens"):
            cache.prefill(batch)
        assert torch.equal(cache.generate(model, batch, **GREEDY), model.generate(batch, **GREEDY))


def test_every_type_of_the_list_is_tried_here() -> None:
    assert {kind for kind in SEVERAL if kind in hybrids.CONFIG_MAPPING} == set(hybrids.KINDS)
    text = (Path(__file__).parents[3] / "docs/transformers.md").read_text()
    for kind in hybrids.KINDS:
        assert f"`{kind}`" in text, kind
