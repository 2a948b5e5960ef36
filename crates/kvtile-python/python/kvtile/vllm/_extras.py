"""What an engine's options make of its KV: parts of the identity, and reasons to refuse. ``_options`` says of which."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from kvtile._errors import SettingsError
from kvtile.vllm._options import ENVIRONMENT, OPTIONS, Effect

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Values of an identity are short; a longer one has its digest there.
_LONGEST = 500
# Loaders that read the files of the model's folder, or of its commit.
_FROM_FILES = ("auto", "hf", "safetensors", "pt", "npcache", "fastsafetensors", "instanttensor", "runai_streamer", "mistral")
_DRAFTERS = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")

# Of each option that may be refused: the values that are not, and why others are.
_ALLOWED: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("ParallelConfig", "pipeline_parallel_size"): ((1,), "pipeline parallelism is not supported yet; tensor parallelism is"),
    ("ParallelConfig", "prefill_context_parallel_size"): ((1,), "prefill context parallelism is not supported yet; tensor parallelism is"),
    ("ParallelConfig", "decode_context_parallel_size"): ((1,), "decode context parallelism is not supported yet; tensor parallelism is"),
    ("VllmConfig", "diffusion_config"): ((None,), "tokens of a canvas see those after them, so KV is no function of its prefix"),
    ("VllmConfig", "weight_transfer_config"): (
        (None,), "weights that are replaced in a running engine are in no identity; run this engine without kvtile",
    ),
    ("ModelConfig", "enable_sleep_mode"): (
        (False,), "an engine that sleeps gives up the memory that kvtile reads, and may wake with other weights",
    ),
    ("SchedulerConfig", "async_scheduling"): (
        (False, None), "a step would begin before it is known what the last one could not load; switch it off",
    ),
    ("AttentionConfig", "use_non_causal"): ((False,), "a token would see those after it, so KV is no function of its prefix"),
    ("MultiModalConfig", "mm_encoder_attn_dtype"): ((None,), "its scales follow what the encoder has seen before"),
    ("SpeculativeConfig", "method"): (
        _DRAFTERS, f"KV of a drafter depends on the token after it; {', '.join(_DRAFTERS)} have none",
    ),
}
# The same of where the weights come from: the setting ``revision`` says it instead.
_ALLOWED_WITHOUT_REVISION: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("ModelConfig", "model_weights"): (("",), "the weights lie in an object store"),
    ("LoadConfig", "load_format"): (_FROM_FILES, "the weights do not come from the model's own files"),
    ("LoadConfig", "model_loader_extra_config"): ((), "the loader may take the weights from elsewhere"),
}
_HARMLESS_LOADER_KEYS = {"enable_multithread_load", "num_threads", "concurrency", "memory_limit", "distributed"}


def refuse_options(config: VllmConfig, revision: str | None, environment: Mapping[str, str]) -> None:
    """Raises SettingsError, in one sentence, for options with which KV would not be what its key says.

    ``revision`` is the connector's own setting, with which a user vouches for the weights.
    """
    for name, part in configs(config):
        for field, effect in OPTIONS.get(name, {}).items():
            if effect is not Effect.REFUSED or not hasattr(part, field):
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
            f"kvtile.vllm: {field} of {text_of(value)}: {why}, so which ones they are is not known; "
            'say it as "revision" in kv_connector_extra_config'
        )


def extras_of(config: VllmConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """What KV depends on beside the weights, the config and the shape: the options that are not at their defaults.

    Options that are not in the table belong to a later vLLM and count as if KV depended on them.
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
    """What no single option says."""
    model, found = config.model_config, {}
    if callable(model.hf_overrides) or model.hf_config_path:
        # Neither a function nor a path says what it makes of the config.
        found["vllm.hf_config"] = _digest(text_of(_plain(model.hf_config.to_dict())))
    quantised = getattr(model.hf_config, "quantization_config", None)
    if quantised and model.hf_config is not model.hf_text_config:
        # The text's own config does not have it.
        found["vllm.hf_config.quantization_config"] = _short(text_of(quantised))
    if _is_quantised(config.cache_config.cache_dtype):
        # What the cache rounds was computed in this type.
        found["vllm.ModelConfig.dtype"] = text_of(model.dtype)
    if config.load_config.load_format == "dummy":
        found["vllm.ModelConfig.seed"] = text_of(model.seed)
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("transformers_version", "_name_or_path")}


def _is_quantised(cache_dtype: str) -> bool:
    return cache_dtype not in ("auto", "float16", "bfloat16", "float32", "half", "float")


def _says_nothing(config: VllmConfig, name: str, field: str, value: Any) -> bool:
    """Whether a value that is not the default means what the default does, or what the shape says."""
    if (name, field) == ("CacheConfig", "cache_dtype"):
        return not _is_quantised(str(value))
    if (name, field) == ("LoRAConfig", "lora_dtype"):
        return bool(value == config.model_config.dtype)
    if (name, field) == ("ParallelConfig", "worker_cls"):
        return isinstance(value, str) and value.startswith("vllm.")
    return (name, field) == ("ModelConfig", "hf_overrides") and callable(value)


def configs(config: Any) -> Iterator[tuple[str, Any]]:
    """A config and those in it, by the names of their classes; parts that are not in the table are found as well."""
    name = type(config).__name__
    yield name, config
    for field in dataclasses.fields(config):
        part = getattr(config, field.name, None)
        listed = OPTIONS.get(name, {}).get(field.name, Effect.PARTS)
        if listed is Effect.PARTS and dataclasses.is_dataclass(part):
            yield from configs(part)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, as the class gives it; MISSING for none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default = field.default
    # pydantic keeps it in a description of the field.
    described = getattr(default, "get_default", None)
    return described(call_default_factory=True) if described is not None else default


def text_of(value: Any) -> str:
    """A value in a form that is the same in every process."""
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
    # The address of an object is another one in every process.
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in shown else shown


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else _digest(text)


def _digest(text: str) -> str:
    return "blake2b:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
