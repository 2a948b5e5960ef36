"""What each option of ``generate`` means for the KV, and which requests are computed without the cache.

Every option is in one of two tables; one that is in neither goes to the model itself, and the request is
computed without the cache. The tests hold the tables against the options that transformers has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtile._errors import RequestError
from kvtile.transformers._prompts import Prompt, prompts_of

# How the next token is chosen, when to stop and what to return: KV is a function of the tokens, whichever they are.
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

# What the cache reads itself.
INPUTS = frozenset({"input_ids", "attention_mask"})

_SEVERAL = "a prompt then has several sequences, and the KV that is left belongs to no one of them"
_DRAFTS = "drafted tokens are computed and taken back in a cache of its own"
_MODE = "its decoding has a cache of its own"
_NOT_TOKENS = "KV is then no function of the tokens alone"
_WHOLE = "it returns what is computed of every token of the prompt"

# Option: the values with which it means nothing, and why a request that has another is computed without the cache.
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
    "use_cache": ((None, True), "it asks for no cache"),
    "cache_implementation": ((None,), "it asks for a cache of another kind than DynamicCache"),
    "past_key_values": ((None,), "it brings a cache of its own"),
    "prefill_chunk_size": ((None,), "transformers computes all chunks of the prompt, whatever is in the cache"),
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
    """What an option is: as it is asked for, in the ``generation_config`` of the request, or in that of the model."""
    if name in asked:
        return asked[name]
    for config in (asked.get("generation_config"), model.generation_config):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def padding_of(model: Any, asked: Mapping[str, Any]) -> int | None:
    """The token that ``generate`` takes for padding where it gets no mask; None where it takes none for it."""
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
    """The prompts of a request; or of what kind one is that is computed without the cache, and why it is."""
    for name, (harmless, why) in WITHOUT.items():
        value = value_of(name, model, asked)
        if not any(_same(value, each) for each in harmless):
            return name, f"{name}: {why}"
    for name, value in asked.items():
        if value is not None and not (name in NO_MATTER or name in INPUTS or name in WITHOUT):
            return name, f"{name}: it goes to the model, and what it does to KV is not known"
    try:
        return prompts_of(asked, padding_of(model, asked))
    except RequestError as error:
        return "prompts", str(error)


def _same(value: Any, harmless: Any) -> bool:
    """Whether a value is a harmless one; values may be tensors and objects, which none is."""
    return value is harmless or (isinstance(value, (bool, int, float)) and harmless is not None and value == harmless)
