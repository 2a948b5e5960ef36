"""Model types of transformers whose cache object has several groups, and how the model takes that object.

Every type of the list has a test that continues from a restored stop with the same logits, bit by bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache

from kvtile._errors import IdentityError
from kvtile._hf.fields import empty, text, unimportant
from kvtile.transformers._groups import Group, groups_of
from kvtile.transformers._model import bare

# Types whose layers are of several kinds, or keep something else than keys and values of one size.
SEVERAL = frozenset(
    """
    bailing_hybrid cohere2 deepseek_v3 deepseek_v32 deepseek_v4 falcon_h1 gemma2 gemma3_text gemma3n_text gemma4_text
    gpt_oss granitemoehybrid inkling_text kimi_linear lfm2 lfm3 llama4_text mimo_v2_flash minimax_m3_vl_text nemotron_h olmo3
    olmo_hybrid qwen3_5_text qwen3_next jamba mamba mamba2 falcon_mamba
    """.split()
)
# Types that compute several tokens without the state before them. They continue token by token.
BY_TOKEN = frozenset({"jamba", "mamba", "falcon_mamba"})
# Types whose past kvtile cannot keep, with the reason.
REFUSED = {
    "recurrent_gemma": "its states are in its modules, and not in the cache object that generate takes",
}
_BY_LENGTH = ("dynamic", "longrope")


def several_groups(config: Any) -> bool:
    """Whether a model of this config has several groups, or one that is not of plain keys and values.

    Raises:
        IdentityError: a type that cannot be kept.
    """
    kind = getattr(config, "model_type", None)
    if kind in REFUSED:
        raise IdentityError(f"{kind}: {REFUSED[kind]}")
    return kind in SEVERAL


def cache_name(model: Any) -> str:
    """The name under which a model takes its cache object: ``cache``, in older transformers ``past_key_values``, for
    models of states alone ``cache_params``."""
    taken = inspect.signature(bare(model).forward).parameters
    return next((name for name in ("cache", "cache_params") if name in taken), "past_key_values")


def new_cache(model: Any, kind: type[DynamicCache] = DynamicCache) -> DynamicCache:
    """An unused cache object of this model."""
    return kind(config=model.config)


def computes_by_token(model: Any) -> bool:
    """Whether a model continues right with one token at a time only."""
    return model.config.model_type in BY_TOKEN


def forward(model: Any, tokens: list[int], past: Any) -> None:
    """Computes the KV of more tokens into a cache object, in one step."""
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(bare(model).forward).parameters else {}
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens], device=bare(model).device), use_cache=True, **{cache_name(model): past}, **options)


def groups_of_model(model: Any) -> tuple[Group, ...]:
    """The groups of a model, from a cache object after a few tokens.

    Raises:
        IdentityError: KV that is no function of the prefix, or layers that kvtile does not know.
    """
    config = model.config.get_text_config(decoder=True)
    _refuse_by_length(config)
    past = new_cache(model)
    # A layer of overlapping entries has all its tensors after its first entry.
    tokens = max([2, *(layer.compress_rate for layer in past.layers if hasattr(layer, "overlap_kv"))])
    try:
        with torch.random.fork_rng(devices=[]):
            forward(model, [0] * tokens, past)
    except Exception as error:  # the code of a model's class may raise any exception
        raise IdentityError(f"{type(model).__name__} does not continue from a DynamicCache ({error})") from error
    kinds = getattr(config, "layer_types", None) or ()
    return groups_of(past, frozenset(at for at, kind in enumerate(kinds) if kind == "chunked_attention"))


def config_fields(config: Any) -> dict[str, str]:
    """The fields of a config that may change KV, as text."""
    return {
        f"config.{name}": text(value)
        for name, value in config.to_dict().items()
        if name != "model_type" and not unimportant(name) and not empty(value)
    } | {"config.model_type": str(config.model_type)}


def _refuse_by_length(config: Any) -> None:
    rope = getattr(config, "rope_parameters", None)
    parts = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    for part in parts:
        kind = part.get("rope_type") if isinstance(part, Mapping) else None
        if kind in _BY_LENGTH:
            raise IdentityError(
                f"its rotary embedding is of the type {kind}, so KV depends on the length of the whole sequence"
            )
    for field, wrong in (("use_bidirectional_attention", True), ("is_causal", False)):
        if getattr(config, field, None) in (wrong, "all"):
            raise IdentityError(f"its attention is not causal ({field}): KV depends on later tokens")
