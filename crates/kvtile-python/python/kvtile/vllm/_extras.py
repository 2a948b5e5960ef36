"""How an engine's options affect KV: entries of the identity, and refusals. ``_options`` classifies the options."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from kvtile._errors import SettingsError
from kvtile.vllm._options import ENVIRONMENT, OPTIONS, Effect

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Longer values are replaced by a digest, because the values of an identity are short.
_LONGEST = 500
# Loaders that read only the model's folder, or its commit.
_FROM_FILES = ("auto", "hf", "safetensors", "pt", "npcache", "fastsafetensors", "instanttensor", "runai_streamer", "mistral")
_DRAFTERS = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")

# For each option that may be refused: the allowed values, and why others are refused.
_ALLOWED: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("ParallelConfig", "pipeline_parallel_size"): ((1,), "pipeline parallelism is not supported yet; tensor parallelism is"),
    ("ParallelConfig", "prefill_context_parallel_size"): ((1,), "prefill context parallelism is not supported yet; tensor parallelism is"),
    ("ParallelConfig", "decode_context_parallel_size"): ((1,), "decode context parallelism is not supported yet; tensor parallelism is"),
    ("VllmConfig", "diffusion_config"): ((None,), "tokens of a canvas attend to later ones, so KV is not a function of its prefix"),
    ("VllmConfig", "weight_transfer_config"): (
        (None,), "the identity does not cover weights that are replaced in a running engine; run this engine without kvtile",
    ),
    ("ModelConfig", "enable_sleep_mode"): (
        (False,), "a sleeping engine frees the memory that kvtile reads, and may wake with other weights",
    ),
    ("SchedulerConfig", "async_scheduling"): (
        (False, None), "a step would begin before the failed loads of the last one are known; switch it off",
    ),
    ("CacheConfig", "use_replayssm"): ((False,), "vLLM keeps a part of each state as inputs that it has not applied yet"),
    ("CacheConfig", "use_kda_recoverssm"): ((False,), "vLLM keeps a part of each state as inputs that it has not applied yet"),
    ("AttentionConfig", "use_non_causal"): ((False,), "a token would attend to later ones, so KV is not a function of its prefix"),
    ("MultiModalConfig", "mm_encoder_attn_dtype"): ((None,), "its scales depend on the encoder's earlier inputs"),
    ("SpeculativeConfig", "method"): (
        _DRAFTERS, f"KV of a drafter depends on the token after it; {', '.join(_DRAFTERS)} have none",
    ),
}
# The same for the source of the weights, unless the setting ``revision`` identifies them.
_ALLOWED_WITHOUT_REVISION: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("ModelConfig", "model_weights"): (("",), "the weights are in an object store"),
    ("LoadConfig", "load_format"): (_FROM_FILES, "the weights do not come from the model's own files"),
    ("LoadConfig", "model_loader_extra_config"): ((), "the loader may take the weights from another source"),
}
_HARMLESS_LOADER_KEYS = {"enable_multithread_load", "num_threads", "concurrency", "memory_limit", "distributed"}


def refuse_options(
    config: VllmConfig, revision: str | None, environment: Mapping[str, str], only: Collection[str] | None = None
) -> None:
    """Raises SettingsError, with one sentence, for options under which KV would not match its key.

    ``revision`` is kvtile's own setting, with which a user vouches for the weights. ``only`` are the options that the
    caller refuses; default: all of the table.
    """
    for name, part in configs(config):
        for field, effect in OPTIONS.get(name, {}).items():
            if effect is not Effect.REFUSED or not hasattr(part, field) or (only is not None and field not in only):
                continue
            value = getattr(part, field)
            rule = _ALLOWED.get((name, field))
            if rule is not None and value not in rule[0]:
                raise SettingsError(f"kvtile.vllm: {field} of {text_of(value)} is refused: {rule[1]}")
            if rule is None and revision is None:
                _refuse_unknown_weights(name, field, value)
    forced = environment.get("VLLM_TEST_FORCE_LOAD_FORMAT")
    if forced and revision is None:
        _refuse_unknown_weights("LoadConfig", "load_format", forced)


def _refuse_unknown_weights(name: str, field: str, value: Any) -> None:
    allowed, why = _ALLOWED_WITHOUT_REVISION[name, field]
    harmless = isinstance(value, Mapping) and set(value) <= _HARMLESS_LOADER_KEYS
    if value not in allowed and not harmless:
        raise SettingsError(
            f"kvtile.vllm: {field} of {text_of(value)}: {why}, so kvtile cannot identify them; "
            'give "revision" in kv_connector_extra_config'
        )


def extras_of(config: VllmConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Identity entries besides weights, config and shape: the options that affect KV and are not at their defaults.

    Options that are not in the table belong to a later vLLM; KV is assumed to depend on them.
    """
    found: dict[str, str] = {}
    for name, part in configs(config):
        known = OPTIONS.get(name, {})
        for field in dataclasses.fields(part):
            effect = known.get(field.name, Effect.IDENTITY)
            if effect is not Effect.IDENTITY or not hasattr(part, field.name):
                continue
            value = getattr(part, field.name)
            if value != default_of(field) and not _says_nothing(config, name, field.name, value):
                found[f"vllm.{name}.{field.name}"] = _short(text_of(value))
    found |= _from_model(config)
    for variable in ENVIRONMENT[Effect.IDENTITY].split():
        value = environment.get(variable)
        if value:
            found[f"vllm.{variable}"] = _short(value)
    return found


def _from_model(config: VllmConfig) -> dict[str, str]:
    """Identity entries that depend on several options."""
    model, found = config.model_config, {}
    if callable(model.hf_overrides) or model.hf_config_path:
        # Neither a function nor a path identifies the resulting config, so the identity contains the config's digest.
        found["vllm.hf_config"] = _digest(text_of(_plain(model.hf_config.to_dict())))
    quantised = getattr(model.hf_config, "quantization_config", None)
    if quantised and model.hf_config is not model.hf_text_config:
        # The text's own config lacks it.
        found["vllm.hf_config.quantization_config"] = _short(text_of(quantised))
    if is_quantised(config.cache_config.cache_dtype):
        # A quantised cache rounds values that were computed in this dtype.
        found["vllm.ModelConfig.dtype"] = text_of(model.dtype)
    if config.load_config.load_format == "dummy":
        found["vllm.ModelConfig.seed"] = text_of(model.seed)
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("transformers_version", "_name_or_path")}


def is_quantised(cache_dtype: str) -> bool:
    """Whether a dtype of the cache is narrower than what the model computes in."""
    return cache_dtype not in ("auto", "float16", "bfloat16", "float32", "half", "float")


def _says_nothing(config: VllmConfig, name: str, field: str, value: Any) -> bool:
    """Whether a non-default value is equivalent to the default, or is covered by the shape."""
    if (name, field) == ("CacheConfig", "cache_dtype"):
        return not is_quantised(str(value))
    if (name, field) == ("LoRAConfig", "lora_dtype"):
        return bool(value == config.model_config.dtype)
    if (name, field) == ("ParallelConfig", "worker_cls"):
        return isinstance(value, str) and value.startswith("vllm.")
    return (name, field) == ("ModelConfig", "hf_overrides") and callable(value)


def configs(config: Any) -> Iterator[tuple[str, Any]]:
    """A config and its nested configs, by class name; includes nested configs that are not in the table."""
    name = type(config).__name__
    yield name, config
    for field in dataclasses.fields(config):
        part = getattr(config, field.name, None)
        listed = OPTIONS.get(name, {}).get(field.name, Effect.PARTS)
        if listed is Effect.PARTS and dataclasses.is_dataclass(part):
            yield from configs(part)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, as its class gives it; MISSING if there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default = field.default
    # pydantic wraps the default in a field description.
    described = getattr(default, "get_default", None)
    return described(call_default_factory=True) if described is not None else default


def text_of(value: Any) -> str:
    """A canonical text of a value, the same in every process."""
    return json.dumps(_jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(_jsonable(key)): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(text_of, value))
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if hasattr(value, "model_dump"):
        return _jsonable(value.model_dump())
    shown = str(value)
    # Text with an object's address differs between processes.
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in shown else shown


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else _digest(text)


def _digest(text: str) -> str:
    return "blake2b:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
