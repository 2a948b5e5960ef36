"""The table has every option of vLLM, and the connector treats each as its row states."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import vllm.config
from configs import another, blank, engine_config
from vllm import envs

import kvtile
from kvtile.vllm import _extras
from kvtile.vllm._options import ENVIRONMENT, OPTIONS, Effect

# A model's own speech-to-text config, which an engine does not have, and configs that are refused as a whole.
NOT_OF_AN_ENGINE = {"SpeechToTextConfig", "DiffusionConfig", "WeightTransferConfig"}
EXAMINED = Path(__file__).with_name("environment.txt")
PAGE = Path(__file__).parents[3] / "docs" / "vllm-options.md"


def classes() -> dict[str, type]:
    found = {name: getattr(vllm.config, name) for name in dir(vllm.config) if name.endswith("Config")}
    return {name: kind for name, kind in found.items() if dataclasses.is_dataclass(kind) and name not in NOT_OF_AN_ENGINE}


def fields_with(*effects: Effect) -> list[Any]:
    return [
        pytest.param(name, field, id=f"{name}.{field}")
        for name, fields in OPTIONS.items()
        for field, effect in fields.items()
        if effect in effects
    ]


def engine_with(name: str, **values: Any) -> Any:
    """A plain engine with changed values in one of its configs."""
    config = engine_config()
    part = find(config, name)
    if part is None:
        part = attach(config, name)
    for field, value in values.items():
        object.__setattr__(part, field, value)
    return config


def find(config: Any, name: str) -> Any:
    return next((part for found, part in _extras.configs(config) if found == name), None)


def attach(config: Any, name: str) -> Any:
    """Adds a config that a plain engine lacks."""
    part = blank(classes()[name])
    owners = {
        "LoRAConfig": (config, "lora_config"),
        "SpeculativeConfig": (config, "speculative_config"),
        "MultiModalConfig": (config.model_config, "multimodal_config"),
        "PoolerConfig": (config.model_config, "pooler_config"),
        "HiSparseConfig": (config.attention_config, "hisparse_config"),
        "EngramConfig": (config, "engram_config"),
        "KVTransferConfig": (config, "kv_transfer_config"),
        "KVEventsConfig": (config, "kv_events_config"),
        "ECTransferConfig": (config, "ec_transfer_config"),
        "ReasoningConfig": (config, "reasoning_config"),
        "WatermarkConfig": (config, "watermark_config"),
    }
    owner, field = owners[name]
    object.__setattr__(owner, field, part)
    if name == "SpeculativeConfig":
        object.__setattr__(part, "method", "ngram")
    return part


def extras(config: Any) -> dict[str, str]:
    return _extras.extras_of(config, {})


def test_every_option_of_this_vllm_has_a_row() -> None:
    found = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in classes().items()}
    assert {name: fields - set(OPTIONS.get(name, {})) for name, fields in found.items() if fields - set(OPTIONS.get(name, {}))} == {}
    assert {name: set(fields) - found.get(name, set()) for name, fields in OPTIONS.items() if set(fields) - found.get(name, set())} == {}


def test_every_variable_of_this_vllm_was_examined() -> None:
    assert set(envs.environment_variables) == set(EXAMINED.read_text().split())
    named = " ".join(ENVIRONMENT[effect] for effect in (Effect.IDENTITY, Effect.COVERED, Effect.REFUSED)).split()
    assert set(named) <= set(envs.environment_variables)


def test_a_plain_engine_has_no_extras_and_is_not_refused() -> None:
    config = engine_config()
    assert extras(config) == {}
    _extras.refuse_options(config, None, {})


@pytest.mark.parametrize(("name", "field"), fields_with(Effect.IDENTITY))
def test_an_option_that_changes_kv_changes_the_identity(name: str, field: str) -> None:
    plain = engine_with(name)
    # The default is one of vLLM's own workers, which add no entry.
    before = "auto" if field == "worker_cls" else getattr(find(plain, name), field)
    one, two = another(before), another(another(before))
    told = extras(engine_with(name, **{field: one}))
    assert set(told) - set(extras(plain)) == {f"vllm.{name}.{field}"} or field == "cache_dtype"
    texts = {str(extras(plain)), str(told), str(extras(engine_with(name, **{field: two})))}
    assert len(texts) == (2 if two == before else 3)


@pytest.mark.parametrize(("name", "field"), fields_with(Effect.NOTHING, Effect.KEYS))
def test_an_option_that_does_not_change_kv_changes_nothing(name: str, field: str) -> None:
    plain = engine_with(name)
    changed = engine_with(name, **{field: another(getattr(find(plain, name), field))})
    assert extras(changed) == extras(plain)
    _extras.refuse_options(changed, None, {})


@pytest.mark.parametrize(("name", "field"), fields_with(Effect.REFUSED))
def test_an_option_under_which_kv_mismatches_its_key_is_refused(name: str, field: str) -> None:
    plain = engine_with(name)
    _extras.refuse_options(plain, None, {})
    changed = engine_with(name, **{field: another(getattr(find(plain, name), field))})
    with pytest.raises(kvtile.SettingsError, match=field):
        _extras.refuse_options(changed, None, {})


@pytest.mark.parametrize("method", ["eagle", "eagle3", "mtp", "draft_model", "dflash"])
def test_drafters_with_kv_of_their_own_are_refused(method: str) -> None:
    with pytest.raises(kvtile.SettingsError, match="depends on the token after it"):
        _extras.refuse_options(engine_with("SpeculativeConfig", method=method), None, {})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("LoadConfig", "load_format", "dummy"),
        ("LoadConfig", "load_format", "tensorizer"),
        ("LoadConfig", "load_format", "sharded_state"),
        ("LoadConfig", "load_format", "ipc_cache"),
        ("LoadConfig", "model_loader_extra_config", {"tensorizer_uri": "s3://weights"}),
        ("ModelConfig", "model_weights", "s3://weights"),
    ],
)
def test_weights_from_elsewhere_need_a_revision(name: str, field: str, value: Any) -> None:
    config = engine_with(name, **{field: value})
    with pytest.raises(kvtile.SettingsError, match=f'{field}.*"revision" in kv_connector_extra_config'):
        _extras.refuse_options(config, None, {})
    _extras.refuse_options(config, "the-weights-of-monday", {})


def test_a_loader_may_have_more_threads() -> None:
    _extras.refuse_options(engine_with("LoadConfig", model_loader_extra_config={"num_threads": 4}), None, {})


def test_an_option_of_a_later_vllm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {field: effect for field, effect in OPTIONS["CacheConfig"].items() if field != "gpu_memory_utilization"}
    monkeypatch.setitem(OPTIONS, "CacheConfig", known)
    assert "vllm.CacheConfig.gpu_memory_utilization" not in extras(engine_config())
    told = extras(engine_with("CacheConfig", gpu_memory_utilization=0.5))
    assert told == {"vllm.CacheConfig.gpu_memory_utilization": "0.5"}
    monkeypatch.delitem(OPTIONS, "SchedulerConfig")
    assert "vllm.SchedulerConfig.policy" in extras(engine_with("SchedulerConfig", policy="priority"))


@pytest.mark.parametrize("variable", ENVIRONMENT[Effect.IDENTITY].split())
def test_a_variable_that_changes_kv_changes_the_identity(variable: str) -> None:
    assert _extras.extras_of(engine_config(), {variable: "another"}) == {f"vllm.{variable}": "another"}


def test_a_forced_load_format_is_refused() -> None:
    with pytest.raises(kvtile.SettingsError, match="load_format"):
        _extras.refuse_options(engine_config(), None, {"VLLM_TEST_FORCE_LOAD_FORMAT": "dummy"})


def test_the_two_kinds_of_fp8_are_two_identities() -> None:
    kinds = {str(extras(engine_with("CacheConfig", cache_dtype=kind))) for kind in ("auto", "fp8_e4m3", "fp8_e5m2")}
    assert len(kinds) == 3
    # The tensors' dtype is in the shape already.
    assert extras(engine_with("CacheConfig", cache_dtype="bfloat16")) == {}


def test_fp8_depends_on_the_model_dtype() -> None:
    config = engine_with("CacheConfig", cache_dtype="fp8_e4m3")
    before = extras(config)
    config.model_config.dtype = "torch.bfloat16"
    assert extras(config) != before


def lower_epsilon(config: Any) -> Any:
    config.rms_norm_eps = 1e-3
    return config


def same(config: Any) -> Any:
    return config


def test_overrides_by_a_function_count_by_the_resulting_config() -> None:
    one = extras(engine_config(hf_overrides=lower_epsilon))
    two = extras(engine_config(hf_overrides=same))
    assert one.keys() == two.keys() == {"vllm.hf_config"} and one != two


def test_overrides_count() -> None:
    one, two = (extras(engine_config(hf_overrides=Frozen(rms_norm_eps=eps))) for eps in (1e-3, 1e-4))
    assert one.keys() == two.keys() == {"vllm.ModelConfig.hf_overrides"} and one != two


class Frozen(dict):
    """A hashable dict, as an argument of a cached function."""

    def __hash__(self) -> int:
        return hash(str(self))


def test_values_are_the_same_text_in_every_process() -> None:
    text = _extras.text_of({"b": {2, 1}, "a": (None, 1.5, Effect.KEYS), "c": same, "d": object()})
    assert text == '{"a":[null,1.5,"KEYS"],"b":["1","2"],"c":"test_options.same","d":"builtins.object"}'


def test_the_page_has_every_option_where_it_belongs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \| ([^|]+?) \|$", PAGE.read_text(), re.MULTILINE)
    said = {(name, effect, field) for name, effect, fields in rows for field in re.findall(r"`(\w+)`", fields)}
    assert said == {(name, effect.name.lower(), field) for name, fields in OPTIONS.items() for field, effect in fields.items()}


def test_the_page_has_every_variable_that_counts() -> None:
    rows = re.findall(r"^\| (\w+) \| (`VLLM[^|]+?) \|$", PAGE.read_text(), re.MULTILINE)
    said = {effect: re.findall(r"`(\w+)`", names) for effect, names in rows}
    counting = (Effect.IDENTITY, Effect.COVERED, Effect.REFUSED)
    assert said == {effect.name.lower(): ENVIRONMENT[effect].split() for effect in counting}


def test_the_connector_does_not_follow_a_sleeping_engine() -> None:
    """vLLM 0.33 calls it; its base class returns True."""
    from kvtile.vllm import KvtileConnector

    assert KvtileConnector.supports_sleep_mode(None) is False
