"""With every option of generate, the tokens equal those without the cache, on a miss and on a hit."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402
from kvtile.transformers import _one as under_test  # noqa: E402
from kvtile.transformers._options import INPUTS, NO_MATTER, WITHOUT  # noqa: E402

DOCUMENT = Path(__file__).parents[3] / "docs/transformers.md"
SETTINGS = {"host_gib": 0.05, "page_size": 8}
TOKENS = prompt(1, 40)
SAMPLE = {"do_sample": True, "temperature": 3.0}
DICT = {"return_dict_in_generate": True}


def words() -> Any:
    """A tokenizer with one character per token, and a word that transformers needs to read stop strings."""
    vocabulary = {**{chr(0x4E00 + number): number for number in range(210)}, "abcdef": 210}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=chr(0x4E00)))
    )


class Streamer:
    """Records the tokens that generate streams."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def _allowed(_: int, __: Any) -> list[int]:
    return list(range(5, 100))


def _decode(model: Any, input_ids: Any, **_: Any) -> Any:
    """A decoding loop of the caller."""
    return torch.cat([input_ids, input_ids[:, :1]], dim=1)


# Options that do not change KV, each with a value.
OPTIONS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 50, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 3},
    "max_new_tokens, one": {"max_new_tokens": 1},
    "min_length": {"min_length": 45},
    "min_new_tokens": {"min_new_tokens": 5},
    "early_stopping": {"early_stopping": False},
    "max_time": {"max_time": 100.0},
    "stop_strings": {"stop_strings": [chr(0x4E00 + 17)], "tokenizer": words()},
    "tokenizer": {"tokenizer": words()},
    "stopping_criteria": {"stopping_criteria": transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(46)])},
    "do_sample": SAMPLE,
    "temperature": {**SAMPLE, "temperature": 5.0},
    "top_k": {**SAMPLE, "top_k": 5},
    "top_p": {**SAMPLE, "top_p": 0.5},
    "min_p": {**SAMPLE, "min_p": 0.1},
    "top_h": {**SAMPLE, "top_h": 0.5},
    "typical_p": {**SAMPLE, "typical_p": 0.5},
    "epsilon_cutoff": {**SAMPLE, "epsilon_cutoff": 0.01},
    "eta_cutoff": {**SAMPLE, "eta_cutoff": 0.01},
    "renormalize_logits": {**SAMPLE, "renormalize_logits": True},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "length_penalty": {"length_penalty": 1.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [6, 7]]},
    "sequence_bias": {"sequence_bias": [[[8], 3.0]]},
    "suppress_tokens": {"suppress_tokens": [0, 9]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [10]},
    "forced_bos_token_id": {"forced_bos_token_id": 11},
    "forced_eos_token_id": {"forced_eos_token_id": 12},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.1), "eos_token_id": 13},
    "remove_invalid_values": {"remove_invalid_values": True},
    "watermarking_config": {"watermarking_config": transformers.WatermarkingConfig()},
    "logits_processor": {
        "logits_processor": transformers.LogitsProcessorList([transformers.NoBadWordsLogitsProcessor([[14]])])
    },
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": _allowed},
    "guidance_scale": {"guidance_scale": 1.5},
    "negative_prompt_ids": {"guidance_scale": 1.5, "negative_prompt_ids": prompt(9, 5)},
    "negative_prompt_attention_mask": {
        "guidance_scale": 1.5, "negative_prompt_ids": prompt(9, 5),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.long),
    },
    "pad_token_id": {"pad_token_id": 0},
    "bos_token_id": {"bos_token_id": 1},
    "eos_token_id": {"eos_token_id": list(range(1, 60))},
    "decoder_start_token_id": {"decoder_start_token_id": 1},
    "output_scores": {**DICT, "output_scores": True},
    "output_logits": {**DICT, "output_logits": True},
    "return_dict_in_generate": DICT,
    "streamer": {"streamer": Streamer},
    "synced_gpus": {"synced_gpus": False},
    "compile_config": {"compile_config": transformers.CompileConfig()},
    "disable_compile": {"disable_compile": True},
    "cache_config": {"cache_config": {}},
    "max_cache_len": {"max_cache_len": 100},
    "low_memory": {"low_memory": False},
    "trust_remote_code": {"trust_remote_code": False},
    "num_assistant_tokens": {"num_assistant_tokens": 3},
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "constant"},
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.5},
    "max_matching_ngram_size": {"max_matching_ngram_size": 2},
    "assistant_lookbehind": {"assistant_lookbehind": 5},
    "target_lookbehind": {"target_lookbehind": 5},
    "assistant_ensemble_weight": {"assistant_ensemble_weight": None},
    "assistant_tokenizer": {"assistant_tokenizer": None},
    "diversity_penalty": {"diversity_penalty": 0.0},
    "generation_config": {"generation_config": transformers.GenerationConfig(max_new_tokens=7, do_sample=False)},
    "transformers_version": {"transformers_version": "5"},
}
# Options that make a request run without the cache.
COMPUTED: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 3},
    "num_return_sequences": {"num_return_sequences": 2, **SAMPLE},
    "num_beam_groups": {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constraints": {"num_beams": 2, "constraints": [object()]},
    "force_words_ids": {"num_beams": 2, "force_words_ids": [[5]]},
    "assistant_model": {"assistant_model": llama},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "use_mtp": {"use_mtp": True},
    "speculation_type": {"speculation_type": "mtp"},
    "is_assistant": {"is_assistant": True},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "custom_generate": {"custom_generate": _decode},
    "continuous_batching_config": {"continuous_batching_config": {}},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static", "disable_compile": True},
    "past_key_values": {"past_key_values": transformers.DynamicCache},
    "prefill_chunk_size": {"prefill_chunk_size": 7},
    "token_healing": {"token_healing": True, "tokenizer": words()},
    "inputs": {},
    "inputs_embeds": {"inputs_embeds": torch.ones(1, 40, 48)},
    "position_ids": {"position_ids": torch.arange(3, 43)[None]},
    "cache_position": {"cache_position": torch.arange(40)},
    "token_type_ids": {"token_type_ids": torch.zeros(1, 40, dtype=torch.long)},
    "output_attentions": {**DICT, "output_attentions": True},
    "output_hidden_states": {**DICT, "output_hidden_states": True},
    # Other values of these options, and an option that no table has.
    "num_beams, sampled": {"num_beams": 2, "do_sample": True},
    "cache_implementation, dynamic": {"cache_implementation": "dynamic"},
    "cache_implementation, dynamic_full": {"cache_implementation": "dynamic_full"},
    "cache_implementation, offloaded_static": {"cache_implementation": "offloaded_static"},
    "cache_implementation, quantized": {"cache_implementation": "quantized"},
    "generation_config, beams": {"generation_config": transformers.GenerationConfig(max_new_tokens=7, num_beams=2)},
    "of the model's": {"logits_to_keep": 1},
    "unknown": {"an_option_of_tomorrow": 1},
}


def result(generate: Any, inputs: dict[str, Any], options: dict[str, Any]) -> tuple[Any, ...] | str:
    """The result of generate: tokens, scores, streamed tokens, the part of the prompt that it returned; or its error
    type."""
    made = {key: value() if value in (Streamer, llama, transformers.DynamicCache) else value
            for key, value in {**GREEDY, **options}.items()}  # fmt: skip
    if "generation_config" in options:
        made = {key: value for key, value in made.items() if key not in GREEDY}
    torch.manual_seed(7)
    try:
        outputs = generate({key: value.clone() for key, value in inputs.items()}, made)
    except Exception as error:
        assert not isinstance(error, kvtile.KvtileError), error
        return type(error).__name__
    found: list[Any] = [getattr(outputs, "sequences", outputs)]
    if not isinstance(outputs, torch.Tensor):
        found += [*(outputs.scores or ()), *(outputs.logits or ())]
        found += [layer for step in (outputs.attentions or ()) for layer in step]
        found += [layer for step in (outputs.hidden_states or ()) for layer in step]
    if "streamer" in made:
        found.append(torch.tensor(made["streamer"].tokens))
    return tuple(found)


def same(ours: tuple[Any, ...] | str, theirs: tuple[Any, ...] | str) -> None:
    if isinstance(theirs, str) or isinstance(ours, str):
        assert ours == theirs
        return
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.fixture(autouse=True)
def _warnings_of_transformers(recwarn: pytest.WarningsRecorder) -> None:
    """Ignores warnings of transformers."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*OPTIONS, *COMPUTED])
def test_with_every_option_the_answers_are_those_without_the_cache(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "kvtile.transformers")
    model, options = llama(), OPTIONS[name] if name in OPTIONS else COMPUTED[name]
    inputs = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    if name == "inputs_embeds":
        inputs = {"input_ids": TOKENS[:, :0]}
    if name == "inputs":
        inputs = {"inputs": TOKENS}
    wanted = result(lambda named, made: model.generate(**named, **made), inputs, options)
    with PrefixCache(model, **SETTINGS) as cache:
        # Store a prefix first, so that each call could hit it.
        known = cache.generate(model, TOKENS, **GREEDY)
        for _ in range(3):
            same(result(lambda named, made: cache.generate(model, named, **made), inputs, options), wanted)
        hits = cache.stats()["hits"].get("host", 0)
        # What generate has put into the model does not matter to later requests.
        assert torch.equal(cache.generate(model, TOKENS, **GREEDY), known)
        assert cache.stats()["hits"].get("host", 0) > hits
    ours = [record for record in caplog.records if record.name == "kvtile.transformers"]
    if name in OPTIONS:
        assert not isinstance(wanted, str), wanted
        assert hits >= 12 and not ours
    else:
        assert hits == 0
        assert len(ours) == 1 and "computed without the cache" in ours[0].getMessage()


def row(*numbers: int) -> list[int]:
    return prompt(numbers[0], numbers[1])[0].tolist()


BATCHES: dict[str, tuple[dict[str, Any], bool]] = {
    "one": ({"input_ids": TOKENS}, True),
    "one, without mask": ({"input_ids": TOKENS, "attention_mask": None}, True),
    "left padding": (padded([row(1, 40), row(2, 33), row(3, 9)]), True),
    "left padding of all": (
        {"input_ids": torch.cat([torch.zeros(1, 5, dtype=torch.long), TOKENS], 1),
         "attention_mask": torch.tensor([[0] * 5 + [1] * 40])}, True),
    "the same prompt twice": (padded([row(1, 40), row(1, 40)]), True),
    "shorter than a page": ({"input_ids": prompt(1, 5)}, False),
    "one token": ({"input_ids": prompt(1, 1)}, False),
    "exactly a page": ({"input_ids": prompt(1, 8)}, False),
    "exactly two pages": ({"input_ids": prompt(1, 16)}, True),
    "the padding token as a token": ({"input_ids": torch.cat([TOKENS, torch.zeros(1, 3, dtype=torch.long), TOKENS], 1),
                                      "attention_mask": torch.ones(1, 83, dtype=torch.long)}, True),
    "the padding token, without mask": ({"input_ids": torch.cat([TOKENS, torch.zeros(1, 3, dtype=torch.long), TOKENS], 1)},
                                        False),
    "left padding without mask": ({"input_ids": torch.cat([torch.zeros(1, 3, dtype=torch.long), TOKENS], 1)}, False),
    "right padding": ({"input_ids": torch.cat([TOKENS, torch.zeros(1, 3, dtype=torch.long)], 1),
                       "attention_mask": torch.tensor([[1] * 40 + [0] * 3])}, False),
    "a hole in the mask": ({"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 10 + [0] * 3 + [1] * 27])}, False),
    "a mask of four dimensions": ({"input_ids": TOKENS, "attention_mask": torch.ones(1, 1, 40, 40)}, False),
    "a mask of nothing": ({"input_ids": TOKENS, "attention_mask": torch.zeros(1, 40, dtype=torch.long)}, False),
    "no tokens": ({"input_ids": TOKENS[:, :0]}, False),
    "longer than the positions": ({"input_ids": prompt(1, 530)}, True),
    "until the positions end": ({"input_ids": prompt(1, 505)}, True),
    "400 rows": ({"input_ids": torch.cat([prompt(seed, 9) for seed in range(400)])}, True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("options", [{}, SAMPLE, {"eos_token_id": list(range(1, 40))}], ids=["greedy", "sampled", "ending"])
def test_with_every_batch_the_answers_are_those_without_the_cache(name: str, options: dict[str, Any]) -> None:
    model, (batch, cached) = llama(), BATCHES[name]
    inputs = {key: value for key, value in batch.items() if value is not None}
    wanted = result(lambda named, made: model.generate(**named, **made), inputs, options)
    with PrefixCache(model, **SETTINGS) as cache:
        for _ in range(3):
            same(result(lambda named, made: cache.generate(model, named, **made), inputs, options), wanted)
        assert (cache.stats()["hits"].get("host", 0) > 0) == cached


def _autocast(model: Any) -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def _config_without_cache(model: Any) -> None:
    model.config.use_cache = False


def _generation_without_cache(model: Any) -> None:
    model.generation_config.use_cache = False


def _training(model: Any) -> None:
    model.train()
    model.model.layers[1].self_attn.attention_dropout = 0.0


@pytest.mark.parametrize("setting", [_autocast, _config_without_cache, _generation_without_cache, _training])
@pytest.mark.parametrize("before", [False, True], ids=["set later", "set before"])
def test_settings_of_the_model_lose_no_answer(setting: Any, before: bool) -> None:
    model = llama()
    if before and setting is not _autocast:
        setting(model)
    with PrefixCache(model, **SETTINGS) as cache:
        cache.generate(model, TOKENS, **GREEDY)
        context = setting(model)
        with context if context is not None else torch.no_grad():
            wanted = model.generate(TOKENS, **GREEDY)
            for _ in range(3):
                assert torch.equal(cache.generate(model, TOKENS, **GREEDY), wanted)


def test_dropout_is_computed_without_the_cache() -> None:
    model = llama(attention_dropout=0.3)
    with PrefixCache(model, **SETTINGS) as cache:
        cache.generate(model, TOKENS, **GREEDY)
        model.train()
        torch.manual_seed(3)
        wanted = model.generate(TOKENS, **GREEDY)
        for _ in range(2):
            torch.manual_seed(3)
            assert torch.equal(cache.generate(model, TOKENS, **GREEDY), wanted)


@pytest.mark.parametrize("error", [
    kvtile.BusyError("full"), kvtile.TransferError("no memory"), kvtile.DiskError("gone"), kvtile.RequestError("no"),
    kvtile.InternalError("defect"), kvtile.ClosedError("closed"), kvtile.IdentityError("changed"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_failed_store_loses_no_answer(
    error: kvtile.KvtileError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvtile.transformers")
    model = llama()
    wanted = model.generate(TOKENS, **GREEDY)

    def fail(*_: Any) -> None:
        raise error

    with PrefixCache(model, **SETTINGS) as cache:
        monkeypatch.setattr(under_test, "check_first_tensors", fail)
        for _ in range(3):
            assert torch.equal(cache.generate(model, TOKENS, **GREEDY), wanted)
    messages = [record.getMessage() for record in caplog.records if record.name == "kvtile.transformers"]
    assert len(messages) == 1 and "an answer was not kept" in messages[0]


def test_every_option_that_transformers_has_is_in_a_table_and_tried_here() -> None:
    known = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    known |= set(inspect.signature(transformers.GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert known - NO_MATTER - WITHOUT.keys() - INPUTS == set()
    assert not NO_MATTER & WITHOUT.keys()
    assert {name.split(",")[0] for name in OPTIONS} == NO_MATTER
    assert WITHOUT.keys() <= set(COMPUTED)


def test_the_document_has_every_option_where_it_belongs() -> None:
    text = DOCUMENT.read_text()
    rows = dict(re.findall(r"^\| (no matter|without the cache) \| (.*?) \|$", text, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows["no matter"])) == NO_MATTER
    assert set(re.findall(r"`(\w+)`", rows["without the cache"])) == set(WITHOUT)
