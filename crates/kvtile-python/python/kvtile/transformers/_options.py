"""What each option of ``generate`` means for the KV, and which requests run without the cache.

Every known option is in one of two tables. A request with any other option runs without the cache, because that option
goes to the model itself. The tests compare the tables with the options of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtile._errors import RequestError
from kvtile.transformers._prompts import Prompt, prompts_of

# Sampling, stopping and return options: KV is a function of the tokens, however they are chosen.
NO_MATTER = frozenset(
    """
    max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings stopping_criteria tokenizer
    do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff renormalize_logits
    repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids sequence_bias suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    exponential_decay_length_penalty remove_invalid_values watermarking_config logits_processor prefix_allowed_tokens_fn
    guidance_scale negative_prompt_ids negative_prompt_attention_mask
    pad_token_id bos_token_id eos_token_id decoder_start_token_id
    output_scores output_logits return_dict_in_generate streamer synced_gpus
    compile_config disable_compile cache_config max_cache_len low_memory trust_remote_code
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size
    assistant_lookbehind target_lookbehind assistant_ensemble_weight assistant_tokenizer diversity_penalty
    generation_config transformers_version
    """.split()
)

# Options that the cache reads itself.
INPUTS = frozenset({"input_ids", "attention_mask"})

_SEVERAL = "a prompt then has several sequences, and the remaining KV belongs to none of them"
_DRAFTS = "it computes and discards drafted tokens in a cache of its own"
_MODE = "its decoding has a cache of its own"
_NOT_TOKENS = "KV is then not a function of the tokens alone"
_WHOLE = "it returns values of every token of the prompt"

# By option: the values that have no effect, and why a request with another value runs without the cache.
WITHOUT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), _SEVERAL),
    "num_return_sequences": ((None, 1), _SEVERAL),
    "num_beam_groups": ((None, 1), _SEVERAL),
    "constraints": ((None,), _SEVERAL),
    "force_words_ids": ((None,), _SEVERAL),
    "assistant_model": ((None,), _DRAFTS),
    "prompt_lookup_num_tokens": ((None,), _DRAFTS),
    "assistant_early_exit": ((None,), _DRAFTS),
    "use_mtp": ((None, False), _DRAFTS),
    "speculation_type": ((None,), _DRAFTS),
    "is_assistant": ((None, False), _DRAFTS),
    "penalty_alpha": ((None, 0), _MODE),
    "dola_layers": ((None,), _MODE),
    "custom_generate": ((None,), _MODE),
    "continuous_batching_config": ((None,), _MODE),
    "use_cache": ((None, True), "it disables the cache"),
    "cache_implementation": ((None,), "it selects another kind of cache than DynamicCache"),
    "past_key_values": ((None,), "it brings a cache of its own"),
    "prefill_chunk_size": ((None,), "transformers computes all chunks of the prompt, even those in the cache"),
    "token_healing": ((None, False), "it changes the tokens of the prompt"),
    "inputs": ((None,), "the tokens are input_ids"),
    "inputs_embeds": ((None,), _NOT_TOKENS),
    "position_ids": ((None,), _NOT_TOKENS),
    "cache_position": ((None,), _NOT_TOKENS),
    "token_type_ids": ((None,), _NOT_TOKENS),
    "output_attentions": ((None, False), _WHOLE),
    "output_hidden_states": ((None, False), _WHOLE),
}


def value_of(name: str, model: Any, asked: Mapping[str, Any]) -> Any:
    """The value of an option: from the request, its ``generation_config``, or the model's."""
    if name in asked:
        return asked[name]
    for config in (asked.get("generation_config"), model.generation_config):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def padding_of(model: Any, asked: Mapping[str, Any]) -> int | None:
    """The token that ``generate`` treats as padding without a mask; None if there is none."""
    padding = value_of("pad_token_id", model, asked)
    return None if padding is None or int(padding) in ends_of(model, asked) else int(padding)


def ends_of(model: Any, asked: Mapping[str, Any]) -> set[int]:
    """The tokens that end an answer."""
    ends = value_of("eos_token_id", model, asked)
    if ends is None:
        return set()
    ends = ends.tolist() if hasattr(ends, "tolist") else ends
    return set(ends) if isinstance(ends, (list, tuple, set)) else {ends}


def read_request(model: Any, asked: Mapping[str, Any]) -> list[Prompt] | tuple[str, str]:
    """The prompts of a request; or, for a request that runs without the cache, its kind and the reason."""
    for name, (harmless, why) in WITHOUT.items():
        value = value_of(name, model, asked)
        if not any(_same(value, each) for each in harmless):
            return name, f"{name}: {why}"
    for name, value in asked.items():
        if value is not None and not (name in NO_MATTER or name in INPUTS or name in WITHOUT):
            return name, f"{name}: it goes to the model, and its effect on KV is unknown"
    try:
        return prompts_of(asked, padding_of(model, asked))
    except RequestError as error:
        return "prompts", str(error)


def _same(value: Any, harmless: Any) -> bool:
    """Whether a value is the harmless one. Values may be tensors and objects, which never are."""
    return value is harmless or (isinstance(value, (bool, int, float)) and harmless is not None and value == harmless)
