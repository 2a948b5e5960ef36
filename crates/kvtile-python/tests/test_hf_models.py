"""Compares the list of plain model types with transformers: its config classes, and small random models of each
type."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import kvtile
from kvtile import _hf
from kvtile._hf import identity_of, kv_fields, length_dependence, rope_of, shape_of
from kvtile._hf.fields import unimportant
from kvtile._hf.models import PLAIN, WIDTH_FOLLOWS, table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from hf_defaults import TARGET, rows  # noqa: E402
from hf_tiny import difference, kv, tiny_config, tiny_model  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

TOKENS = [3 + at * at * 7 % 120 for at in range(48)]
REAL = json.loads(Path(__file__).with_name("hf_real_configs.json").read_text(encoding="utf-8"))["configs"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)


def test_the_table_matches_the_config_classes() -> None:
    written = json.loads(TARGET.read_text(encoding="utf-8"))
    minor = ".".join(transformers.__version__.split(".")[:2])
    if f"version {minor}." not in written["source"]:
        pytest.skip(f"the table is of another version than transformers {transformers.__version__}: {written['source']}")
    assert written["models"] == json.loads(json.dumps(rows())), "run crates/kvtile-python/tests/hf_defaults.py"


@pytest.mark.parametrize("name", PLAIN)
def test_kv_of_a_plain_type_is_a_function_of_its_prefix(name: str) -> None:
    config = tiny_config(name)
    model = tiny_model(config)
    assert difference(model, TOKENS, 20) < 1e-4
    layers = kv(model, TOKENS)
    shape = shape_of(config, 16, dtype="float32")
    for keys, values in layers:
        assert keys.shape == values.shape == (shape.num_heads, len(TOKENS), config_head(shape))
    assert len(layers) == shape.num_layers
    assert any(bool((keys.std(dim=1) > 0).all()) for keys, _ in layers), "KV differs between tokens"


def config_head(shape: kvtile.Shape) -> int:
    """Elements of one head of one token."""
    return shape.block_bytes // (shape.num_layers * 2 * shape.page_size * 4 * shape.num_heads)


@pytest.mark.parametrize("name", PLAIN)
def test_a_config_is_the_same_as_dict_and_as_object(name: str) -> None:
    for made in (tiny_config(name), CONFIG_MAPPING[name]()):
        files = [json.loads(made.to_json_string(use_diff=diff)) for diff in (True, False)]
        if made.to_diff_dict() == CONFIG_MAPPING[name]().to_diff_dict():
            files.append({})
        read = [_read(config) for config in (made, *({**file, "model_type": name} for file in files))]
        assert all(each == read[0] for each in read), name


def _read(config: Any) -> Any:
    try:
        identity = identity_of(config, 16, dtype="float32", model="m", revision="1", max_model_len=1 << 20)
        return identity.to_json(), kv_fields(config, max_model_len=1 << 20)
    except kvtile.IdentityError as error:
        return str(error)


@pytest.mark.parametrize("name", [name for name, config in REAL.items() if config.get("model_type") in CONFIG_MAPPING])
def test_real_configs_are_the_same_as_dict_and_as_object(name: str) -> None:
    config = REAL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        except Exception as error:  # noqa: BLE001
            # transformers keeps only some fields of refused types.
            assert config["model_type"] not in PLAIN, error
            return
    found = _read(config)
    again = _read(made)
    if config["model_type"] in PLAIN:
        assert not isinstance(found, str) and again == found
    else:
        assert isinstance(found, str) and isinstance(again, str) and repr(config["model_type"]) in again


@pytest.mark.parametrize("name", sorted(set(CONFIG_MAPPING) - set(PLAIN)))
def test_every_other_type_of_transformers_is_refused_by_name(name: str) -> None:
    with pytest.raises(kvtile.IdentityError, match=name):
        shape_of({"model_type": name, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}, 16, dtype="float32")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = CONFIG_MAPPING[name]()
            made.to_dict()
    except Exception:  # noqa: BLE001
        return  # needs more than defaults
    if made.model_type in PLAIN:
        assert (name, made.model_type) == ("gpt-sw3", "gpt2"), "another name of a listed type"
        return
    with pytest.raises(kvtile.IdentityError) as error:
        shape_of(made, 16, dtype="float32")
    assert repr(made.model_type) in str(error.value) or "encoder-decoder" in str(error.value)


EMBEDDINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({"rope_type": "default"}, False),
    "linear": ({"rope_type": "linear", "factor": 2.0}, False),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        False,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, False),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, True),
    "longrope": (
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0,
         "original_max_position_embeddings": 32},
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_length_dependence_is_reported(kind: str) -> None:
    parameters, depends = EMBEDDINGS[kind]
    config = tiny_config("llama", rope_parameters={"rope_theta": 100.0, **parameters}, max_position_embeddings=32)
    off = difference(tiny_model(config), TOKENS, 20)
    assert (off > 0.1) == depends and (off < 1e-4) == (not depends), off
    because = length_dependence(config)
    assert (because is not None) == depends and (because is None or kind in because)
    if not depends:
        assert rope_of(config) == rope_of(json.loads(config.to_json_string()))


def test_scales_by_position_are_functions_of_the_prefix() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}
    config = tiny_config("ministral3", rope_parameters=yarn)
    assert difference(tiny_model(config), TOKENS, 20) < 1e-4 and length_dependence(config) is None
    none = tiny_config("ministral3", rope_parameters={**yarn, "llama_4_scaling_beta": 0.0})
    assert kv_fields(none) != kv_fields(config)


def test_windows_that_do_not_cut_leave_all_tokens() -> None:
    for window, cut in ((128, False), (16, True)):
        config = tiny_config("mistral", sliding_window=window)
        kept = kv(tiny_model(config), TOKENS)[0][0].shape[1]
        assert (kept < len(TOKENS)) == cut
        if cut:
            with pytest.raises(kvtile.IdentityError, match="window of 16"):
                shape_of(config, 16, dtype="float32")
        else:
            assert _hf.length_limit(config) == window
            plain = kv(tiny_model(tiny_config("mistral", sliding_window=None)), TOKENS)
            assert torch.equal(plain[1][0], kv(tiny_model(config), TOKENS)[1][0])
            assert kv_fields(config) == kv_fields(tiny_config("mistral", sliding_window=None))


def test_new_falcons_keep_each_head_several_times_in_transformers() -> None:
    config = tiny_config("falcon", new_decoder_architecture=True, num_kv_heads=2)
    keys = kv(tiny_model(config), TOKENS)[1][0]
    assert keys.shape[0] == 4 and torch.equal(keys[0], keys[1]) and not torch.equal(keys[1], keys[2])
    assert shape_of(config, 16, dtype="float32").num_heads == 2


@pytest.mark.parametrize("name", sorted(set(PLAIN) - {"falcon"}))
def test_head_sizes_are_read_where_the_models_read_them(name: str) -> None:
    changes: dict[str, Any] = {"head_dim": 32}
    if name in ("glm4v_moe_text", "glm_ocr_text"):
        sections = [2, 2, 4] if name == "glm4v_moe_text" else [4, 6, 6]
        changes["rope_parameters"] = {"rope_type": "default", "mrope_section": sections}
    if name.startswith("qwen3_vl"):
        changes["rope_parameters"] = {"rope_type": "default", "mrope_section": [6, 5, 5]}
    try:
        wide = kv(tiny_model(tiny_config(name, **changes)), TOKENS)[0][0].shape[2]
    except RuntimeError:
        wide = 0  # the model does not work with it
    assert (wide == 32) == (name not in WIDTH_FOLLOWS)


@pytest.mark.parametrize("name", PLAIN)
def test_fields_that_do_not_count_do_not_change_kv(name: str) -> None:
    config = tiny_config(name)
    model = tiny_model(config)
    kind = CONFIG_MAPPING[name]
    shared = {"vocab_size", "use_cache", "return_dict", "tie_word_embeddings", "chunk_size_feed_forward", "is_encoder_decoder"}
    changes: dict[str, Any] = {}
    for field in kind.__dataclass_fields__:
        value = getattr(config, field, None)
        if not unimportant(kind.attribute_map.get(field, field)) or field in shared or isinstance(value, (list, dict, str)):
            continue
        if field in ("dtype", "pretraining_tp", "num_mtp_layers", "is_decoder", "max_seq_len", "n_ctx", "slow_but_exact"):
            continue
        if field in ("max_position_embeddings", "n_positions"):
            if table()[name].rope is not None:
                changes[field] = 2 * value
        elif field.endswith("_token_id"):
            changes[field] = 77
        elif isinstance(value, bool):
            changes[field] = not value
        elif isinstance(value, (int, float)):
            changes[field] = value + 0.3 if isinstance(value, float) else value + 1
    changes.pop("pad_token_id", None)
    if name == "diffllama":
        del changes["attention_dropout"]  # its only supported value is 0
    other = tiny_config(name, **changes)
    assert kv_fields(other) == kv_fields(config), changes
    again = tiny_model(other)
    again.load_state_dict(model.state_dict(), strict=False)
    for (keys, values), (keys_, values_) in zip(kv(model, TOKENS), kv(again, TOKENS), strict=True):
        torch.testing.assert_close(keys, keys_, msg=lambda text: f"{name}: {changes}: {text}")
        torch.testing.assert_close(values, values_)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral", "gpt2", "falcon", "gemma", "mistral", "phi3", "granite", "smollm3"])
def test_a_loaded_model_has_the_config_of_its_file(name: str, tmp_path: Path) -> None:
    tiny_model(tiny_config(name)).save_pretrained(tmp_path)
    file = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    with torch.no_grad():
        loaded.generate(torch.tensor([TOKENS[:4]]), max_new_tokens=2, do_sample=False)
    assert kv_fields(loaded.config) == kv_fields(file)
    assert rope_of(loaded.config) == rope_of(file)
    made = {"page_size": 16, "model": "m", "revision": "1", "dtype": "float32"}
    assert identity_of(loaded.config, **made) == identity_of(file, **made)


@pytest.mark.parametrize("name", [name for name in PLAIN if "sliding_window" in table()[name].fields])
def test_windows_that_are_read_as_none_do_not_change_kv(name: str) -> None:
    full, sliding = ["full_attention"] * 2, ["sliding_attention"] * 2
    base = tiny_config(name, **({} if name == "exaone4" else {"sliding_window": None}))
    model = tiny_model(base)
    expected = kv(model, TOKENS)
    accepted = 0
    for changes in (
        {"sliding_window": 16},
        {"sliding_window": 128},
        {"sliding_window": 16, "use_sliding_window": False},
        {"sliding_window": 128, "use_sliding_window": True},
        {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 0},
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2},
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
        {"sliding_window": 16, "layer_types": full},
        {"sliding_window": 16, "use_sliding_window": True, "layer_types": full},
        {"sliding_window": 128, "use_sliding_window": True, "layer_types": sliding},
        {"sliding_window": None, "layer_types": full},
    ):
        if not set(changes) <= {*table()[name].fields, "sliding_window"}:
            continue
        config = tiny_config(name, **changes)
        try:
            fields = kv_fields(config)
        except kvtile.IdentityError:
            continue
        accepted += 1
        assert fields == kv_fields(base) == kv_fields(json.loads(config.to_json_string()))
        again = tiny_model(config)
        again.load_state_dict(model.state_dict())
        for (keys, values), (keys_, values_) in zip(expected, kv(again, TOKENS), strict=True):
            torch.testing.assert_close(keys, keys_, msg=lambda text: f"{changes}: {text}")
            torch.testing.assert_close(values, values_)
    assert accepted
