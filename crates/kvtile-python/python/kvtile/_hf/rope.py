"""The rotary embedding of a config in canonical form, and whether its angles make KV depend on more than the prefix.

The rules are those of ``modeling_rope_utils.py`` of transformers 5 and, where an engine's context length is given, of
``model_executor/layers/rotary_embedding`` of vLLM 0.32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf.config import Config, short
from kvtile._hf.models import table

# Kinds whose angles follow from the config alone, with their required fields.
_STATIC: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_LONG = ("short_factor", "long_factor", "original_max_position_embeddings")
# Defaults of transformers and vLLM. Explicit defaults are dropped, so that both configs are equal.
_USUAL: dict[str, Any] = {"partial_rotary_factor": 1.0, "beta_fast": 32, "beta_slow": 1, "truncate": True, "mrope_interleaved": False}
_NUMBERS = frozenset(
    "rope_theta factor partial_rotary_factor attention_factor beta_fast beta_slow mscale mscale_all_dim low_freq_factor "
    "high_freq_factor original_max_position_embeddings max_position_embeddings rotary_dim alpha short_mscale "
    "long_mscale llama_4_scaling_beta".split()
)


def rope_of(config: Config, max_model_len: int | None = None) -> dict[str, Any] | None:
    """The parameters in canonical form; None for types without a rotary embedding."""
    rope = _parameters(config)
    if rope is None:
        return None
    because = _depends_on_length(config, rope, max_model_len)
    if because is not None:
        raise IdentityError(because)
    if rope["rope_type"] == "longrope":
        longer = max_model_len is not None and max_model_len > rope["original_max_position_embeddings"]
        rope["factors"] = "long_factor" if longer else "short_factor"
    return {name: value for name, value in rope.items() if name not in _USUAL or value != _USUAL[name]}


def length_dependence(config: Config, max_model_len: int | None = None) -> str | None:
    """Why KV depends on more than its prefix, in one sentence; None if it does not."""
    rope = _parameters(config)
    return None if rope is None else _depends_on_length(config, rope, max_model_len)


def _depends_on_length(config: Config, rope: Mapping[str, Any], max_model_len: int | None) -> str | None:
    kind = rope["rope_type"]
    if max_model_len is not None:
        config.positive("max_model_len", max_model_len)
        return None
    if kind in _STATIC:
        return None
    return (
        f"this {config.model_type} model's rotary embedding is {kind}, whose angles depend on the length of the whole "
        "sequence: KV of a prompt differs from that of the same tokens in a longer one, and cannot be reused"
    )


def _parameters(config: Config) -> dict[str, Any] | None:
    fields, model = config.fields, table()[str(config.model_type)]
    if model.rope is None or fields.get("alibi"):
        return None
    given = fields.get("rope_scaling") or fields.get("rope_parameters")
    if given is not None and not isinstance(given, Mapping):
        raise IdentityError(f"the config's rotary embedding is {short(given)}, not a dict")
    # A type's own preset applies only if the config has no parameters.
    rope = {name: value for name, value in (given or model.rope["preset"]).items() if value is not None}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise IdentityError("its layers have rotary embeddings of several kinds (rope_parameters by layer type)")
    kind = rope.pop("type", None)
    rope["rope_type"] = _kind(config, rope.get("rope_type") or kind or "default")
    rope.setdefault("rope_theta", fields.get("rotary_emb_base", fields.get("rope_theta", model.rope["rope_theta"])))
    rope.setdefault("partial_rotary_factor", _partial(config, model.rope["partial_rotary_factor"]))
    if fields.get("rotary_dim") and config.model_type != "minimax_m2":
        rope["rotary_dim"] = fields["rotary_dim"]
    context = fields.get("max_position_embeddings")
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        # A top-level field takes precedence over the one in the rotary embedding.
        original = fields.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = original or context
    rope.pop("max_position_embeddings", None)
    if rope["rope_type"] in ("dynamic", "longrope"):
        rope["max_position_embeddings"] = context
    return _checked(config, rope)


def _kind(config: Config, kind: Any) -> str:
    if config.model_type == "phi3" and kind in ("su", "yarn"):
        return "longrope"
    # For text, the positions in all sections are equal.
    kind = "default" if kind == "mrope" else kind
    if isinstance(kind, str) and kind in (*_STATIC, "dynamic", "longrope"):
        return kind
    raise IdentityError(
        f"the config's rotary embedding is of the kind {short(kind)}; kvtile knows {', '.join(sorted(_STATIC))}, "
        "and with the engine's context length also dynamic and longrope"
    )


def _partial(config: Config, usual: float) -> Any:
    fields = config.fields
    if config.model_type == "minimax_m2" and fields.get("rotary_dim"):
        return config.number("rotary_dim") / config.number("head_dim")
    part = fields.get("rotary_pct", fields.get("partial_rotary_factor", usual))
    return 1.0 if part is None else part


def _checked(config: Config, rope: dict[str, Any]) -> dict[str, Any]:
    """Converts numbers and checks that the required fields of the kind are present."""
    kind = rope["rope_type"]
    needs = _STATIC.get(kind, _LONG if kind == "longrope" else ())
    if kind == "yarn" and rope.get("factor") is None:
        rope["factor"] = _number("max_position_embeddings", config.fields.get("max_position_embeddings")) / _number(
            "original_max_position_embeddings", rope["original_max_position_embeddings"]
        )
    for name in needs:
        if rope.get(name) is None:
            raise IdentityError(f"the config's rotary embedding is {kind} and has no {name}; add it")
    for name, value in rope.items():
        if name in _NUMBERS:
            rope[name] = _number(name, value)
        elif isinstance(value, (list, tuple)):
            rope[name] = [_number(name, each) for each in value]
        elif not isinstance(value, (str, bool, int, float)):
            raise IdentityError(f"the config's rotary embedding has {short(value)} as {name}, not a number or text")
    return rope


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise IdentityError(f"the config's rotary embedding has {short(value)} as {name}, not a number")
    return float(value)
