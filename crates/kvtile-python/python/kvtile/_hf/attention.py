"""Refuses configs whose attention is not full and causal, and reads the number and size of KV heads."""

from __future__ import annotations

from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf.config import BY_HAND, Config, short
from kvtile._hf.fields import OTHER_KINDS, empty
from kvtile._hf.models import WIDTH_FOLLOWS, kv_heads, table, windowed_from

# Names that other types use for the number of KV heads.
_OTHER_HEADS = ("num_kv_heads", "n_head_kv", "multi_query", "multi_query_group_num", "num_query_groups", "kv_n_heads")


def refuse_other_kinds(config: Config) -> int | None:
    """Refuses every attention but full causal attention.

    Returns:
        The window of a model whose window is no smaller than its context: attention is full up to that length.
    """
    fields = config.fields
    nested = fields.get("attn_config")
    nested = nested if isinstance(nested, dict) else {}
    for name, what in OTHER_KINDS.items():
        for value in (fields.get(name), nested.get(name)):
            if not empty(value) and value not in (False, 0):
                raise IdentityError(f"{what} ({name} is {short(value)}); kvtile's config reader supports full causal attention only")
    if fields.get("is_causal") is False:
        raise IdentityError("its attention is not causal (is_causal is False): KV depends on later tokens")
    return _window(config)


def heads_and_size(config: Config) -> tuple[int, int]:
    """The number of KV heads, and the elements per head."""
    fields, name = config.fields, str(config.model_type)
    heads = config.number("num_attention_heads")
    known = table()[name].fields
    for alien in _OTHER_HEADS:
        if alien not in known and not empty(fields.get(alien)):
            raise IdentityError(
                f"the config has {alien} {short(fields[alien])}, which {name} models of transformers do not read; "
                f"the number of its KV heads is unknown; {BY_HAND}"
            )
    total = config.positive("number of KV heads", kv_heads(name, fields, heads))
    said = fields.get("num_key_value_heads")
    if said is not None and said != total:
        raise IdentityError(
            f"the config has num_key_value_heads {short(said)}, and {name} models of transformers have {total}; {BY_HAND}"
        )
    if heads % total:
        raise IdentityError(f"the config's {heads} attention heads do not share {total} KV heads evenly")
    hidden = config.number("hidden_size")
    size = fields.get("head_dim")
    if name in WIDTH_FOLLOWS and size not in (None, hidden // heads):
        raise IdentityError(
            f"the config has head_dim {short(size)}, and {name} models of transformers have {hidden // heads}; {BY_HAND}"
        )
    size = config.positive("head_dim", hidden // heads if size is None else size)
    other = fields.get("v_head_dim")
    if other is not None and other != size:
        raise IdentityError(f"its values have {short(other)} elements a head (v_head_dim) and its keys {size}; make a Shape with planes")
    return total, size


def _window(config: Config) -> int | None:
    fields, name = config.fields, str(config.model_type)
    known = table()[name].fields
    window = fields.get("sliding_window")
    if "use_sliding_window" in known and not fields.get("use_sliding_window"):
        window = None
    if name == "exaone4" and window is not None:
        raise IdentityError(
            f"it has sliding_window {short(window)}: its layers are of several kinds, and those without a window have no "
            "rotary embedding"
        )
    kinds = fields.get("layer_types", fields.get("attention_layers"))
    if kinds is None and name == "gpt_neo":
        kinds = fields["attention_layers"]
    kinds = None if empty(kinds) else kinds
    if kinds is not None:
        if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, str) for kind in kinds):
            raise IdentityError(f"the config's layer_types are {short(kinds)}, not a list of names")
        if name == "gpt_neo":
            kinds = ["sliding_attention" if kind == "local" else "full_attention" for kind in kinds]
            window = fields.get("window_size")
        kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]
        others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if others:
            raise IdentityError(
                f"it has layers of other kinds than full attention ({', '.join(others)}), which keep something else"
            )
        if "sliding_attention" not in kinds and ("layer_types" in known or name == "gpt_neo"):
            return None
    elif isinstance(window, int) and windowed_from(name, fields) >= config.number("num_hidden_layers"):
        return None
    if empty(window) or window is False:
        if kinds is not None and "sliding_attention" in kinds:
            raise IdentityError("it has layers with a sliding window (layer_types), and sliding_window gives no width")
        return None
    width = config.positive("sliding_window", window)
    context = fields.get("max_position_embeddings")
    if not isinstance(context, int) or width < context:
        raise IdentityError(
            f"its attention has a sliding window of {width} tokens and a context of {short(context)}: layers with a window "
            "keep their last tokens only"
        )
    return width
