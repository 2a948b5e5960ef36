"""Which config fields change KV, and a canonical text form of their values."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

# Longer values (quantisation lists modules by name) are replaced by a digest.
_LONG = 200

ROPE = frozenset(
    "rope_parameters rope_scaling rope_theta partial_rotary_factor rotary_emb_base rotary_pct rotary_dim "
    "original_max_position_embeddings".split()
)
"""Fields of the rotary embedding; ``rope_of`` reads them."""

OTHER_KINDS = {
    "kv_lora_rank": "its KV is a latent, whose planes only its engine knows; make a Shape with planes",
    "attention_chunk_size": "its attention ends at chunks",
    "cross_attention_layers": "some of its layers read something else than text",
    "add_cross_attention": "its layers read something else than text",
    "use_bidirectional_attention": "its attention is not causal: KV depends on later tokens",
    "prefix_lm": "its attention is not causal inside of a prefix: KV depends on later tokens",
    "num_kv_shared_layers": "some of its layers use the keys and values of other layers",
    "per_layer_config": "its layers differ from each other",
    "block_configs": "its layers differ from each other",
    "layers_block_type": "it has recurrent layers",
    "dual_chunk_attention_config": "its keys depend on chunks of the sequence",
    "sparse_attention_config": "it has sparse attention, which keeps more than keys and values",
    "index_topk": "it has sparse attention, which keeps more than keys and values",
}
"""Fields that mark other attention or KV than plain, anywhere in a config, and the reason for the refusal."""

SHAPE = frozenset(OTHER_KINDS) | frozenset(
    "num_hidden_layers num_key_value_heads num_kv_heads n_head_kv multi_query head_dim v_head_dim "
    "layer_types sliding_window sliding_window_pattern use_sliding_window max_window_layers attention_layers window_size is_causal".split()
)
"""Fields that determine the amount of KV and the visible part of it; the shape and the refusals read them."""

_UNIMPORTANT = frozenset(
    # Storage and origin of the config.
    "name_or_path transformers_version architectures auto_map model_type tokenizer_class "
    "dtype torch_dtype torchscript use_bfloat16 task_specific_params kwargs "
    # Returned values, and alternative implementations of the same computation.
    "return_dict use_return_dict output_hidden_states output_attentions output_router_logits use_cache "
    "attn_implementation experts_implementation base_model_tp_plan tf_legacy_loss "
    "base_model_pp_plan base_model_ep_plan base_model_fsdp_plan ignore_keys_at_rope_validation pretraining_tp "
    "chunk_size_feed_forward pruned_heads gradient_checkpointing tie_encoder_decoder is_encoder_decoder "
    "slow_but_exact init_device allow_global_per_layer_attribute_access tie_last_hidden_states "
    # Training.
    "initializer_range initializer_factor init_std init_method_std input_jitter_noise moe_loss_weight "
    "router_aux_loss_coef router_z_loss_coef aux_loss_coef is_decoder "
    # Everything after the last layer, and sizes of weights only.
    "tie_word_embeddings vocab_size logit_scale logits_scaling final_logit_softcapping lm_head_multiplier lm_head_bias "
    "num_logits_to_keep num_mtp_layers num_nextn_predict_layers id2label label2id num_labels problem_type finetuning_task "
    # Context length: KV of a position does not depend on it; where it does, rope_of includes it.
    "max_position_embeddings n_ctx max_seq_len "
    # Generation.
    "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_beams do_sample "
    "max_length min_length early_stopping num_beam_groups diversity_penalty num_return_sequences bad_words_ids "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty remove_invalid_values return_dict_in_generate "
    "output_scores suppress_tokens begin_suppress_tokens max_new_tokens prefix".split()
)
_UNIMPORTANT_KINDS = re.compile(r"dropout|pdrop$|layerdrop|drop_?path|_token_ids?$|_token_index$|^summary_")


def unimportant(name: str) -> bool:
    """Whether changes of a field leave KV unchanged."""
    return name in _UNIMPORTANT or name.startswith("_") or _UNIMPORTANT_KINDS.search(name) is not None


def text(value: Any) -> str:
    """A canonical text: equal values give equal text, from JSON or from a config object."""
    plain = _plain(value)
    written = plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True, separators=(",", ":"))
    if len(written) <= _LONG:
        return written
    return f"blake2b:{hashlib.blake2b(written.encode(), digest_size=16).hexdigest()}"


def empty(value: Any) -> bool:
    """Whether a value is None or an empty list, tuple or dict."""
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            # transformers writes numbers that JSON does not have in this form.
            return str(value["__float__"])
        return {str(key): _plain(each) for key, each in value.items() if not empty(each)}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return str(value).removeprefix("torch.")
