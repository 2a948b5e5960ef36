"""The config reader: real configs, all model types of transformers, and invalid configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import kvtile
from kvtile._hf import config_digest, kv_fields, length_dependence, length_limit, rope_of, shape_of
from kvtile._hf.fields import unimportant
from kvtile._hf.models import PLAIN, WIDTH_FOLLOWS, table

ROOT = Path(__file__).parents[3]
REAL = json.loads(Path(__file__).with_name("hf_real_configs.json").read_text(encoding="utf-8"))["configs"]

IMAGES = "takes images"
LATENT = "latent"
WINDOWS = "sliding_attention"
RECURRENT = "nemotron_h.*known to keep plain"
WINDOW = r"sliding window \(sliding_window\)"
UNKNOWN = "is not known to keep plain"

# The expected result for each config: layers, KV heads and head size, or the reason for the refusal.
EXPECTED: dict[str, tuple[int, int, int] | str] = {
    "MiniMaxAI/MiniMax-M2.5": (62, 8, 128),
    "MiniMaxAI/MiniMax-M2.7": (62, 8, 128),
    "MiniMaxAI/MiniMax-M3": "minimax_m3.*sparse attention",
    "Qwen/Qwen3-0.6B": (28, 8, 128),
    "Qwen/Qwen3-1.7B": (28, 8, 128),
    "Qwen/Qwen3-235B-A22B-FP8": (94, 4, 128),
    "Qwen/Qwen3-235B-A22B": (94, 4, 128),
    "Qwen/Qwen3-30B-A3B-FP8": (48, 4, 128),
    "Qwen/Qwen3-30B-A3B": (48, 4, 128),
    "Qwen/Qwen3-32B-FP8-Static-PerTensor": (64, 8, 128),
    "Qwen/Qwen3-32B-FP8": (64, 8, 128),
    "Qwen/Qwen3-32B": (64, 8, 128),
    "Qwen/Qwen3-8B": (36, 8, 128),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (62, 8, 128),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": IMAGES,
    "Qwen/Qwen3-VL-2B-Instruct": IMAGES,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": IMAGES,
    "Qwen/Qwen3-VL-32B-Instruct": IMAGES,
    "Qwen/Qwen3-VL-32B-Thinking": IMAGES,
    "Qwen/Qwen3-VL-4B-Instruct": IMAGES,
    "Qwen/Qwen3-VL-8B-Instruct": IMAGES,
    "Qwen/Qwen3.5-122B-A10B": IMAGES,
    "Qwen/Qwen3.5-27B": IMAGES,
    "Qwen/Qwen3.5-35B-A3B": IMAGES,
    "Qwen/Qwen3.5-397B-A17B": IMAGES,
    "XiaomiMiMo/MiMo-7B-Base": f"'mimo' {UNKNOWN}",
    "XiaomiMiMo/MiMo-V2-Flash": WINDOW,
    "deepseek-ai/DeepSeek-R1": LATENT,
    "deepseek-ai/DeepSeek-V3.2": LATENT,
    "deepseek-ai/DeepSeek-V3": LATENT,
    "deepseek-ai/DeepSeek-V4-Flash": WINDOW,
    "deepseek-ai/DeepSeek-V4-Pro": WINDOW,
    "google/gemma-4-26B-A4B": IMAGES,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": IMAGES,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": IMAGES,
    "meta-llama/Meta-Llama-3.1-405B": (126, 8, 128),
    "meta-llama/Meta-Llama-3.1-70B": (80, 8, 128),
    "meta-llama/Meta-Llama-3.1-8B": (32, 8, 128),
    "mistralai/Mixtral-8x22B-v0.1": (56, 8, 128),
    "mistralai/Mixtral-8x7B-v0.1": (32, 8, 128),
    "moonshotai/Kimi-K2-Instruct": LATENT,
    "moonshotai/Kimi-K2.5": IMAGES,
    "moonshotai/Kimi-K3": IMAGES,
    "nvidia/DeepSeek-V3.1-NVFP4": LATENT,
    "nvidia/DeepSeek-V3.2-NVFP4": LATENT,
    "nvidia/DeepSeek-V4-Flash-NVFP4": WINDOW,
    "nvidia/DeepSeek-V4-Pro-NVFP4": WINDOW,
    "nvidia/GLM-5-NVFP4": LATENT,
    "nvidia/GLM-5.1-NVFP4": LATENT,
    "nvidia/GLM-5.2-NVFP4": LATENT,
    "nvidia/GLM-5.3-NVFP4": LATENT,
    "nvidia/Gemma-4-26B-A4B-NVFP4": IMAGES,
    "nvidia/Gemma-4-31B-IT-NVFP4": IMAGES,
    "nvidia/Kimi-K2.5-NVFP4": IMAGES,
    "nvidia/Kimi-K2.6-NVFP4": IMAGES,
    "nvidia/Kimi-K2.7-Code-NVFP4": IMAGES,
    "nvidia/Llama-3.1-70B-Instruct-FP8": (80, 8, 128),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": "nemotron-nas.*differ from each other",
    "nvidia/MiniMax-M2.5-NVFP4": (62, 8, 128),
    "nvidia/MiniMax-M2.7-NVFP4": (62, 8, 128),
    "nvidia/MiniMax-M3-NVFP4": IMAGES,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": RECURRENT,
    "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": RECURRENT,
    "nvidia/Nemotron-H-56B-Base-8K": RECURRENT,
    "nvidia/Qwen3-235B-A22B-NVFP4": (94, 4, 128),
    "nvidia/Qwen3.5-122B-A10B-NVFP4": IMAGES,
    "nvidia/Qwen3.5-397B-A17B-NVFP4": IMAGES,
    "nvidia/Qwen3.6-27B-NVFP4": IMAGES,
    "nvidia/Qwen3.6-35B-A3B-NVFP4": IMAGES,
    "openai/gpt-oss-120b": WINDOWS,
    "openai/gpt-oss-20b": WINDOWS,
    "sgl-project/DeepSeek-V4-Flash-FP8": WINDOW,
    "sgl-project/DeepSeek-V4-Pro-FP8": WINDOW,
    "stepfun-ai/Step-3.7-Flash-FP8": WINDOWS,
    "stepfun-ai/Step-3.7-Flash": WINDOWS,
    "zai-org/GLM-5-FP8": LATENT,
    "zai-org/GLM-5.1-FP8": LATENT,
    "zai-org/GLM-5.1": LATENT,
    "zai-org/GLM-5.2-FP8": LATENT,
    "zai-org/GLM-5.2": LATENT,
    "zai-org/GLM-5.3-FP8": LATENT,
    "zai-org/GLM-5.3": LATENT,
    "zai-org/GLM-5": LATENT,
}
# The results for their text parts.
TEXT = {
    "Qwen/Qwen3-VL-235B-A22B-Instruct": (94, 4, 128),
    "Qwen/Qwen3-VL-2B-Instruct": (28, 8, 128),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (48, 4, 128),
    "Qwen/Qwen3-VL-32B-Instruct": (64, 8, 128),
    "Qwen/Qwen3-VL-32B-Thinking": (64, 8, 128),
    "Qwen/Qwen3-VL-4B-Instruct": (36, 8, 128),
    "Qwen/Qwen3-VL-8B-Instruct": (36, 8, 128),
}
# Models that are not in the file above, of kinds that the reader once misread; sizes as published.
OLDER: dict[str, tuple[dict[str, Any], tuple[int, int, int] | str]] = {
    "falcon-7b": (
        {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True,
         "new_decoder_architecture": False, "alibi": False, "parallel_attn": True},
        (32, 1, 64),
    ),
    "falcon-40b": (
        {"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
         "new_decoder_architecture": True, "multi_query": True},
        (60, 8, 64),
    ),
    "falcon-rw-1b": (
        {"model_type": "falcon", "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 24, "multi_query": False,
         "alibi": True, "new_decoder_architecture": False},
        (24, 32, 64),
    ),
    "starcoder": (
        {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_layer": 40, "n_positions": 8192, "multi_query": True},
        (40, 1, 128),
    ),
    "gpt-neox-20b": ({"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}, (44, 64, 96)),
    "gpt-j-6b": ({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary_dim": 64}, (28, 16, 256)),
    "bloom": ({"model_type": "bloom", "n_layer": 70, "n_head": 112, "hidden_size": 14336}, (70, 112, 128)),
    "mpt-7b": ({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "attn_config": {"alibi": True}}, (32, 32, 128)),
    "mpt with a prefix": ({"model_type": "mpt", "attn_config": {"prefix_lm": True}}, "prefix_lm"),
    "gpt-neo": ({"model_type": "gpt_neo", "attention_types": [[["global", "local"], 12]], "num_layers": 24}, "sliding window of 256"),
    "mistral-7b-v0.1": ({"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}, "window of 4096"),
    "mistral-7b-v0.3": ({"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6}, (32, 8, 128)),
    "mistral without a word": ({"model_type": "mistral"}, "window of 4096"),
    "qwen2.5-7b": (
        {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28,
         "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28, "max_position_embeddings": 131072},
        (28, 4, 128),
    ),
    "phi-3-mini-4k": (
        {"model_type": "phi3", "sliding_window": 2047, "max_position_embeddings": 4096, "num_key_value_heads": 32},
        "window of 2047",
    ),
    "chatglm": ({"model_type": "chatglm", "num_layers": 28, "multi_query_group_num": 2, "num_attention_heads": 32}, UNKNOWN),
    "gemma-2": ({"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 26}, WINDOW),
    "gemma-3n": ({"model_type": "gemma3n_text", "num_kv_shared_layers": 15, "num_hidden_layers": 35}, UNKNOWN),
    "mllama": ({"model_type": "mllama_text_model", "cross_attention_layers": [3, 8], "num_hidden_layers": 40}, "cross_attention_layers"),
    "llama-4": ({"model_type": "llama4_text", "attention_chunk_size": 8192}, "attention_chunk_size"),
    "t5": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    "t5gemma": ({"model_type": "t5gemma"}, UNKNOWN),
    "qwen2-vl": ({"model_type": "qwen2_vl", "vision_config": {"depth": 32}, "hidden_size": 3584}, IMAGES),
    "llava": ({"model_type": "llava", "vision_config": {"a": 1}, "text_config": {"model_type": "llama"}}, IMAGES),
    "a text config of another kind": ({"model_type": "fuyu", "text_config": {"model_type": "persimmon"}}, IMAGES),
    "no type": ({"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}, "no model_type"),
}  # fmt: skip


def sizes(config: Any, **settings: Any) -> tuple[int, int, int]:
    """The layers, heads and head size of a config."""
    shape = shape_of(config, 16, dtype="bfloat16", **settings)
    return shape.num_layers, shape.num_heads, shape.block_bytes // (shape.num_layers * 2 * 16 * 2 * shape.num_heads)


def outcome(config: Any, **settings: Any) -> tuple[int, int, int] | str:
    """The sizes, or the refusal; all entry points must agree."""
    try:
        found = sizes(config, **settings)
    except kvtile.IdentityError as error:
        for other in (kv_fields, config_digest, length_limit):
            with pytest.raises(kvtile.IdentityError):
                other(config, **settings)
        return str(error)
    fields = kv_fields(config, max_model_len=1 << 20, **settings)
    assert [fields[f"config.{name}"] for name in ("num_hidden_layers", "num_key_value_heads", "head_dim")] == [*map(str, found)]
    return found


def same(found: tuple[int, int, int] | str, expected: tuple[int, int, int] | str) -> bool:
    """Whether an outcome is the expected one."""
    if isinstance(expected, str):
        return isinstance(found, str) and re.search(expected, found) is not None
    return found == expected


def test_every_real_config_has_an_expectation() -> None:
    assert set(EXPECTED) == set(REAL) and len(REAL) > 80
    assert set(TEXT) <= {name for name, expected in EXPECTED.items() if expected == IMAGES}


@pytest.mark.parametrize("name", REAL)
def test_real_configs_are_read_or_refused_by_name(name: str) -> None:
    found = outcome(REAL[name])
    assert same(found, EXPECTED[name]), found
    if EXPECTED[name] == IMAGES:
        found = outcome(REAL[name], text_only=True)
        assert same(found, TEXT.get(name, f"{UNKNOWN}|no model_type")), found
        assert ("text_only=True" in str(outcome(REAL[name]))) == (name in TEXT)


@pytest.mark.parametrize("name", OLDER)
def test_older_configs_are_read_or_refused_by_name(name: str) -> None:
    config, expected = OLDER[name]
    found = outcome(config)
    assert same(found, expected), found
    if isinstance(expected, str) and "model_type" in config and expected in (UNKNOWN, WINDOW, IMAGES):
        assert repr(config["model_type"]) in str(found)


def test_a_flat_config_with_images_has_a_text_part() -> None:
    qwen = {"model_type": "qwen2_vl", "vision_config": {"depth": 32}, "hidden_size": 3584, "num_attention_heads": 28,
            "num_key_value_heads": 4, "num_hidden_layers": 28, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}  # fmt: skip
    assert sizes(qwen, text_only=True) == (28, 4, 128)
    assert rope_of(qwen, text_only=True) == {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [16, 24, 24]}
    llava = {"model_type": "llava", "vision_config": {"a": 1}, "text_config": {"model_type": "llama"}}
    assert sizes(llava, text_only=True) == sizes({"model_type": "llama"})
    assert kv_fields(llava, text_only=True) == kv_fields({"model_type": "llama"})


LLAMA = {
    "model_type": "llama", "_name_or_path": "a/llama", "_commit_hash": "1", "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "hidden_size": 512, "torch_dtype": "bfloat16", "max_position_embeddings": 4096,
}  # fmt: skip


def identity(**changes: Any) -> kvtile.Identity:
    """The identity of a Llama with some changed fields."""
    return kvtile.Identity.from_hf_config({**LLAMA, **changes}, page_size=16)


def test_fields_that_change_kv_are_in_the_identity() -> None:
    base = identity()
    for field, changed in {
        "extra.config.rms_norm_eps": {"rms_norm_eps": 1e-5},
        "extra.config.hidden_act": {"hidden_act": "gelu"},
        "extra.config.quantization_config": {"quantization_config": {"quant_method": "fp8"}},
        "extra.config.a_field_of_tomorrow": {"a_field_of_tomorrow": 3},
        "rope.base": {"rope_theta": 5e5},
    }.items():
        assert (base.difference(identity(**changed)) or "").startswith(field), base.difference(identity(**changed))
    mixtral = {**LLAMA, "model_type": "mixtral"}
    one, two = (kvtile.Identity.from_hf_config({**mixtral, "num_experts_per_tok": at}, page_size=16) for at in (1, 2))
    assert (one.difference(two) or "").startswith("extra.config.num_experts_per_tok")
    assert two == kvtile.Identity.from_hf_config(mixtral, page_size=16), "the type's default is 2"


def test_fields_that_cannot_change_kv_are_not_in_the_identity() -> None:
    base = identity()
    for changed in [
        {"use_cache": False}, {"transformers_version": "4.1"}, {"initializer_range": 0.5}, {"attention_dropout": 0.1},
        {"eos_token_id": [1, 2]}, {"tie_word_embeddings": True}, {"max_position_embeddings": 8192}, {"temperature": 0.5},
        {"architectures": ["LlamaForCausalLM"]}, {"vocab_size": 7}, {"head_dim": 64}, {"head_dim": None}, {"mlp_bias": False},
        {"partial_rotary_factor": 1.0}, {"rope_scaling": None}, {"rope_theta": 10000}, {"rms_norm_eps": 0.000001},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, {"rope_scaling": {"type": "default"}},
    ]:  # fmt: skip
        assert identity(**changed) == base, changed


def test_defaults_of_the_type_count() -> None:
    assert rope_of({"model_type": "llama"}) == {"rope_theta": 10000.0, "rope_type": "default"}
    assert rope_of({"model_type": "mixtral"}) == {"rope_theta": 1e6, "rope_type": "default"}
    assert rope_of({"model_type": "glm"}) == {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    apertus = rope_of({"model_type": "apertus"})
    assert apertus is not None and apertus["rope_type"] == "llama3" and apertus["factor"] == 8.0
    assert rope_of({"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 500}) == {
        "rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5,
    }  # fmt: skip
    assert rope_of({"model_type": "minimax_m2", "rotary_dim": 64, "head_dim": 128}) == {
        "rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.5,
    }  # fmt: skip
    for name in ("gpt2", "opt", "bloom", "mpt", "biogpt", "xglm", "gpt_bigcode", "gpt_neo"):
        assert rope_of({"model_type": name}) is None
    assert rope_of({"model_type": "falcon", "alibi": True}) is None and rope_of({"model_type": "falcon"}) is not None
    yarn = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 1000}
    assert rope_of({"model_type": "llama", **yarn})["original_max_position_embeddings"] == 1000.0  # type: ignore[index]


LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def test_embeddings_that_follow_the_length_are_refused_unless_the_engine_fixes_it() -> None:
    phi = {"model_type": "phi3", "rope_scaling": LONG, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    dynamic = {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    for config, kind in ((phi, "longrope"), (dynamic, "dynamic"), ({**phi, "rope_scaling": {**LONG, "type": "su"}}, "longrope")):
        because = length_dependence(config)
        assert because is not None and kind in because and str(config["model_type"]) in because
        with pytest.raises(kvtile.IdentityError, match=f"{kind}.*length of the whole sequence"):
            kvtile.Identity.from_hf_config(config, page_size=16, model="m", revision="1", dtype="bfloat16")
        with pytest.raises(kvtile.IdentityError, match=kind):
            rope_of(config)
        assert length_dependence(config, max_model_len=4096) is None
    short, longer = (rope_of(phi, max_model_len=length) for length in (4096, 4097))
    assert short is not None and longer is not None
    assert (short["factors"], longer["factors"]) == ("short_factor", "long_factor")
    assert config_digest(phi, max_model_len=4096) != config_digest(phi, max_model_len=4097)
    assert config_digest(phi, max_model_len=100) == config_digest(phi, max_model_len=4096)
    made = {"page_size": 16, "model": "m", "revision": "1", "dtype": "bfloat16"}
    one, two = (kvtile.Identity.from_hf_config(phi, max_model_len=at, **made) for at in (4096, 8192))
    assert (one.difference(two) or "").startswith("rope")
    for kind in ({"type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 2.0}):
        assert length_dependence({**LLAMA, "rope_scaling": kind}) is None


def test_windows_count_only_where_they_cut() -> None:
    wide = {"model_type": "mistral", "sliding_window": 32768, "max_position_embeddings": 32768}
    assert sizes(wide) == (32, 8, 128) and length_limit(wide) == 32768
    assert length_limit({**wide, "sliding_window": None}) is None and length_limit(LLAMA) is None
    with pytest.raises(kvtile.IdentityError, match="32767 tokens and a context of 32768"):
        sizes({**wide, "sliding_window": 32767})
    qwen = {"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 16, "use_sliding_window": True}
    assert length_limit({**qwen, "use_sliding_window": False}) is None
    assert length_limit({**qwen, "max_window_layers": 4}) is None
    for cut in ({"max_window_layers": 3}, {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}):
        with pytest.raises(kvtile.IdentityError, match="window of 16"):
            sizes({**qwen, **cut})
    assert length_limit({**qwen, "layer_types": ["full_attention"] * 4, "max_window_layers": 0}) is None
    with pytest.raises(kvtile.IdentityError, match="linear_attention"):
        sizes({**qwen, "layer_types": ["full_attention", "linear_attention"]})
    with pytest.raises(kvtile.IdentityError, match="gives no width"):
        sizes({**LLAMA, "layer_types": ["full_attention", "sliding_attention"]})
    # Classes of these types lack the field, but transformers' caches use it.
    with pytest.raises(kvtile.IdentityError, match="window of 128"):
        sizes({**LLAMA, "sliding_window": 128})


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_lora_rank": 512}, {"attention_chunk_size": 64}, {"cross_attention_layers": [1]}, {"add_cross_attention": True},
        {"use_bidirectional_attention": True}, {"use_bidirectional_attention": "all"}, {"prefix_lm": True}, {"is_causal": False},
        {"num_kv_shared_layers": 2}, {"per_layer_config": {"0": {}}}, {"block_configs": [1]}, {"v_head_dim": 32},
        {"dual_chunk_attention_config": {"chunk_size": 1}}, {"index_topk": 3}, {"multi_query": True}, {"num_kv_heads": 1},
        {"multi_query_group_num": 2}, {"vision_config": {"a": 1}}, {"audio_config": {"a": 1}}, {"is_encoder_decoder": True},
        {"rope_scaling": {"full_attention": {"rope_theta": 1.0}}}, {"rope_scaling": {"type": "of tomorrow"}}, {"rope_theta": None},
        {"rope_scaling": {"type": "llama3", "factor": 8.0}}, {"num_key_value_heads": 3}, {"model_type": "of tomorrow"},
    ],
)  # fmt: skip
def test_other_attention_is_refused_by_field(changes: dict[str, Any]) -> None:
    with pytest.raises(kvtile.IdentityError) as error:
        kvtile.Identity.from_hf_config({**LLAMA, **changes}, page_size=16)
    (name,) = changes
    value = changes[name] if isinstance(changes[name], str) else "rotary"
    assert name.removeprefix("rope_") in str(error.value) or value in str(error.value) or "KV heads" in str(error.value)


def test_head_sizes_that_a_type_does_not_have_are_refused() -> None:
    for name in WIDTH_FOLLOWS - {"falcon"}:
        with pytest.raises(kvtile.IdentityError, match="head_dim 24"):
            sizes({"model_type": name, "head_dim": 24, "attention_types": [[["global"], 24]]})


@pytest.mark.parametrize("name", PLAIN)
def test_wrong_values_are_refused_and_never_crash(name: str) -> None:
    fields = [*table()[name].fields, *table()[name].aliases, "rope_scaling", "rope_theta", "rope_parameters", "text_config"]
    fields += ["partial_rotary_factor", "sliding_window", "layer_types", "head_dim", "rotary_emb_base", "quantization_config", "dtype"]
    wrong = ([1, 2], [[1], "a"], "text", {"a": [1]}, -1, 0, True, 1.5, float("nan"), float("inf"), 1 << 80, b"\0", {1, 2}, object())
    for field in fields:
        for value in wrong:
            config = {"model_type": name, "_name_or_path": "m", "_commit_hash": "1", "dtype": "bfloat16", field: value}
            try:
                kvtile.Identity.from_hf_config(config, page_size=16)
            except kvtile.KvtileError as error:
                assert str(error), (field, value)


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"])
def test_lists_and_fractions_are_not_numbers(name: str) -> None:
    for value in ([8, 8], "8", 8.5, True, -8):
        with pytest.raises(kvtile.IdentityError, match=r"positive whole number|KV heads"):
            sizes({**LLAMA, name: value})


def test_types_that_are_not_listed_are_read_only_when_the_engine_vouches_for_them() -> None:
    config = {"model_type": "of_tomorrow", "num_hidden_layers": 2, "rope_theta": 1e4, "use_cache": True}
    for read in (kv_fields, config_digest, rope_of, length_dependence, length_limit):
        with pytest.raises(kvtile.IdentityError, match="'of_tomorrow' is not known"):
            read(config)
    fields = kv_fields(config, known=False, max_model_len=64)
    assert fields == {"config.model_type": "of_tomorrow", "config.num_hidden_layers": "2", "config.rope_theta": "10000",
                      "config.max_model_len": "64"}  # fmt: skip
    assert config_digest(config, known=False) != config_digest({**config, "rope_theta": 2e4}, known=False)
    # A listed type is read as without known=False.
    assert kv_fields(LLAMA, known=False, max_model_len=64) == kv_fields(LLAMA)
    with_images = {"model_type": "x", "vision_config": {"a": 1}, "text_config": {"model_type": "y", "num_hidden_layers": 3}}
    assert kv_fields(with_images, known=False)["config.num_hidden_layers"] == "3"


def test_the_fields_of_a_type_change_its_digest() -> None:
    # These fields count only with others: windows that are off, and LongRoPE.
    seen_elsewhere = (
        "sliding_window max_window_layers window_size layer_types attention_types use_sliding_window sliding_window_pattern "
        "original_max_position_embeddings"
    ).split()
    for name in PLAIN:
        base = {"model_type": name, "sliding_window": None, **({"attention_types": [[["global"], 24]]} if name == "gpt_neo" else {})}
        digest = config_digest(base)
        for field, default in table()[name].fields.items():
            if unimportant(field) or field in seen_elsewhere:
                continue
            if default is None or isinstance(default, dict):
                continue
            other: Any = not default if isinstance(default, bool) else "tanh"
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                other = 2 * default or 1
            try:
                changed = config_digest({**base, field: other})
            except kvtile.IdentityError:
                continue
            assert changed != digest, (name, field)


def row(name: str) -> str:
    """A type's row in the document, without its note."""
    model = table()[name]
    heads = "grouped" if "num_key_value_heads" in model.fields else "all"
    heads = "by kind" if name in ("falcon", "gpt_bigcode") else heads
    rope = "none"
    if model.rope is not None:
        kind = model.rope["preset"].get("rope_type")
        base = model.rope["preset"].get("rope_theta", model.rope["rope_theta"])
        part = model.rope["partial_rotary_factor"]
        rope = f"{base:,.0f}{f', {part:g} of a head' if part != 1 else ''}{f', `{kind}`' if kind else ''}"
    return f"| `{name}` | {heads} | {rope} |"


def test_the_document_has_the_list() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8").split("## Models with groups of layers")[0]
    assert re.findall(r"^\| `\w+` \| .*? \| .*? \|", text, re.MULTILINE)[-len(PLAIN) :] == [row(name) for name in PLAIN]
    source = json.loads((ROOT / "crates/kvtile-python/python/kvtile/_hf/models.json").read_text(encoding="utf-8"))["source"]
    assert f"transformers {'.'.join(source.split()[-1].split('.')[:2])} " in text
