"""The identity of an engine's blocks: its weights by their files' contents, and everything else that changes KV."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import engine_config
from helpers import MODEL

import kvtile
from kvtile._engine_identity import weights_digest
from kvtile.vllm import Settings
from kvtile.vllm._layout import layout_and_identity
from kvtile.vllm._rank import Rank
from kvtile.vllm._weights import revision_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}
PHI = LLAMA | {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "original_max_position_embeddings": 256, "pad_token_id": 0,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16},
}


def safetensors(content: bytes) -> bytes:
    """A file with one tensor."""
    header = json.dumps({"one": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    return len(header).to_bytes(8, "little") + header + content


def folder(path: Path, config: dict[str, Any] | None = None, **files: bytes) -> Path:
    """A model of a few bytes; names of files have two underscores for a dot."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or LLAMA))
    for name, content in (files or {"model__safetensors": safetensors(b"weights")}).items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def identity(config: Any, rank: Rank | None = None, settings: Settings | None = None, **kwargs: Any) -> kvtile.Identity:
    """The identity of the blocks of one rank of an engine."""
    rank, settings = rank or Rank(), settings or Settings(model="a-model")
    config.parallel_config.tensor_parallel_size = rank.size
    model, page = config.model_config, config.cache_config.block_size
    size, heads = model.get_head_size(), model.get_num_kv_heads(config.parallel_config)
    dtype = kwargs.get("dtype", torch.float32)
    layers = model.hf_text_config.num_hidden_layers
    caches = {f"model.layers.{layer}.self_attn.attn": torch.zeros(3, heads, page, 2 * size, dtype=dtype) for layer in range(layers)}
    return layout_and_identity(config, caches, settings, rank)[1]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "pytorch_model.bin", "old.pt", "older.pth", "one.gguf", "config.json", "model.safetensors.index.json",
             "params.json", "quantize_config.json", "preprocessor_config.json", "modeling_own.py",
             "whisper-large-v3/model.safetensors"],
)
def test_every_byte_of_a_relevant_file_counts(tmp_path: Path, file: str) -> None:
    model = folder(tmp_path / "model", model__safetensors=b"weights")
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_bytes(b'{"one": 1}')
    one = weights_digest(model)
    (model / file).write_bytes(b'{"one": 2}')
    assert weights_digest(model) != one
    (model / file).write_bytes(b'{"one": 1}')
    assert weights_digest(model) == one


@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json", "README.md", "special_tokens_map.json", "original/consolidated.00.pth", ".cache/one.json"])
def test_files_that_do_not_change_kv_do_not_count(tmp_path: Path, file: str) -> None:
    model = folder(tmp_path / "model")
    before = weights_digest(model)
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text("{}")
    assert weights_digest(model) == before


def test_the_digest_depends_on_file_boundaries(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", a__safetensors=b"12", b__safetensors=b"3")
    two = folder(tmp_path / "two", a__safetensors=b"1", b__safetensors=b"23")
    assert weights_digest(one) != weights_digest(two)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(kvtile.IdentityError, match="has no weights that kvtile knows"):
        weights_digest(tmp_path)


def config_of(path: Path | str, **changes: Any) -> Any:
    """A plain engine with another model."""
    config = engine_config()
    config.model_config.model = str(path)
    for name, value in changes.items():
        setattr(config.model_config, name, value)
    return config


def test_a_folder_is_identified_by_its_files_not_by_revision(tmp_path: Path) -> None:
    """vLLM ignores ``revision`` if the model is a folder."""
    model = folder(tmp_path / "model")
    expected = f"blake2b:{weights_digest(model)}"
    assert revision_of(config_of(model)) == revision_of(config_of(model, revision=COMMIT)) == expected


def snapshot(path: Path) -> Path:
    """A commit in the layout of the hub's cache: links to blobs that are named by their contents."""
    model, blobs = path / "snapshots" / COMMIT, path / "blobs"
    model.mkdir(parents=True)
    blobs.mkdir()
    for name, blob, content in (("config.json", OTHER, b"{}"), ("model.safetensors", "a" * 64, b"weights")):
        (blobs / blob).write_bytes(content)
        (model / name).symlink_to(Path("..") / ".." / "blobs" / blob)
    return model


def test_a_hub_snapshot_is_identified_by_its_commit(tmp_path: Path) -> None:
    assert revision_of(config_of(snapshot(tmp_path))) == COMMIT


@pytest.mark.parametrize("change", ["edited", "added", "elsewhere"])
def test_a_modified_snapshot_is_a_folder(tmp_path: Path, change: str) -> None:
    model = snapshot(tmp_path)
    file = model / "model.safetensors"
    if change == "edited":
        file.unlink()
        file.write_bytes(b"other weights")
    elif change == "added":
        (model / "adapter.safetensors").write_bytes(b"more weights")
    else:
        file.unlink()
        (tmp_path / "elsewhere").write_bytes(b"other weights")
        file.symlink_to(tmp_path / "elsewhere")
    assert revision_of(config_of(model)) == f"blake2b:{weights_digest(model)}"


def test_a_model_name_needs_a_commit() -> None:
    assert revision_of(config_of("org/model", revision=COMMIT)) == COMMIT
    config = config_of("org/model", revision="main")
    config.model_config.hf_config._commit_hash = COMMIT
    try:
        assert revision_of(config) == COMMIT
        # The commit is that of the config, and the weights come from another repository.
        config.model_config.hf_config_path = "org/other"
        with pytest.raises(kvtile.IdentityError, match="not known which weights org/model stands for"):
            revision_of(config)
    finally:
        del config.model_config.hf_config._commit_hash


def test_code_of_another_repository_needs_a_commit() -> None:
    config = config_of("org/model", revision=COMMIT, trust_remote_code=True)
    config.model_config.hf_config.auto_map = {"AutoModel": "org/model--modeling.Model"}
    try:
        assert revision_of(config) == COMMIT
        config.model_config.hf_config.auto_map = {"AutoModel": "org/code--modeling.Model"}
        with pytest.raises(kvtile.IdentityError, match="code comes from org/code"):
            revision_of(config)
        config.model_config.code_revision = OTHER
        assert revision_of(config) == COMMIT
    finally:
        del config.model_config.hf_config.auto_map


@pytest.mark.parametrize("field", ["audio_model_id", "text_model_id"])
def test_weights_of_another_repository_need_a_revision(field: str) -> None:
    config = config_of("org/model", revision=COMMIT)
    setattr(config.model_config.hf_config, field, "org/tower")
    try:
        with pytest.raises(kvtile.IdentityError, match=f"comes from org/tower .{field}."):
            revision_of(config)
    finally:
        delattr(config.model_config.hf_config, field)


def test_covered_options_are_in_the_identity(tmp_path: Path) -> None:
    """The options that are covered by other identity fields."""
    model = folder(tmp_path / "model")
    plain = identity(engine_config(model=str(model)))
    assert identity(engine_config(model=str(model), enforce_eager=True)) == plain
    different = {
        "revision": identity(engine_config(model=str(folder(tmp_path / "retrained", model__safetensors=safetensors(b"WEIGHTS"))))),
        "page_size": identity(engine_config(model=str(model), block_size=64)),
        "planes": identity(engine_config(model=str(model), dtype="bfloat16"), dtype=torch.bfloat16),
        "planes.k.H": identity(engine_config(model=str(model)), Rank(0, 2)),
    }
    for field, other in different.items():
        assert (plain.difference(other) or "").startswith(field), other.to_json()
    assert identity(engine_config(model=str(model)), Rank(1, 2)) != different["planes.k.H"]


@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", 1e-3), ("rope_theta", 20000.0), ("hidden_act", "gelu"), ("attention_bias", True)]
)
def test_fields_of_the_config_are_in_the_identity_though_the_weights_are_vouched_for(
    tmp_path: Path, field: str, value: Any
) -> None:
    settings = Settings(model="a-model", revision="the-same")
    one = identity(engine_config(model=str(folder(tmp_path / "one"))), settings=settings)
    two = identity(engine_config(model=str(folder(tmp_path / "two", LLAMA | {field: value}))), settings=settings)
    assert one.difference(two) is not None


def test_longrope_follows_the_context_that_the_engine_has(tmp_path: Path) -> None:
    """vLLM selects the long or the short factors for all sequences by max_model_len alone."""
    model = str(folder(tmp_path / "phi", PHI))
    short, shorter, long, longer = (
        identity(engine_config(model=model, max_model_len=length)) for length in (256, 128, 512, 1024)
    )
    assert short == shorter and long == longer
    assert (short.difference(long) or "").startswith(("rope", "extra.config.rope"))


def test_the_longrope_factors_match_vllms(tmp_path: Path) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import Phi3LongRoPEScaledRotaryEmbedding

    for length in (128, 256, 257, 512):
        config = engine_config(model=str(folder(tmp_path / "phi", PHI)), max_model_len=length)
        with set_current_vllm_config(config):
            rope = Phi3LongRoPEScaledRotaryEmbedding(32, 32, 2048, 256, 10000.0, True, torch.float32, [1.0] * 16, [4.0] * 16)
        said = json.loads(identity(config).to_json())["rope"]["params"]["factors"]
        assert ("long_factor" in str(said)) == rope.use_long_rope, said


def test_an_unknown_model_type_has_its_whole_config_in_the_identity() -> None:
    """vLLM itself reports full attention. The meaning of such a config's fields is unknown, and so is the effect of the
    context length (Llama 4's attention temperature depends on it, for one)."""

    def of(**changes: Any) -> kvtile.Identity:
        config = engine_config()
        hf = config.model_config.hf_text_config
        other = copy.copy(hf)
        other.__class__ = type("NewConfig", (type(hf),), {"model_type": "a-new-type"})
        config.model_config.hf_text_config = other
        config.model_config.max_model_len = changes.pop("max_model_len", 1024)
        for name, value in changes.items():
            setattr(other, name, value)
        return identity(config, settings=Settings(model="m", revision="r"))

    assert of().extra["config.max_model_len"] == "1024" and of().extra["config.model_type"] == "a-new-type"
    assert of() == of()
    for change in ({"max_model_len": 2048}, {"rms_norm_eps": 1e-3}, {"attention_temperature": 0.5}):
        assert of().difference(of(**change)) is not None


def test_the_identity_matches_transformers() -> None:
    from transformers import AutoConfig

    given = {"dtype": "float32", "model": "a-model", "revision": "a-revision"}
    theirs = kvtile.Identity.from_hf_config(AutoConfig.from_pretrained(MODEL), page_size=32, **given)
    ours = identity(engine_config(), settings=Settings(model="a-model", revision="a-revision"))
    assert ours.difference(theirs) is None


def test_the_quantisation_of_a_composite_model_is_in_the_identity() -> None:
    """The quantisation config is one level above the text's config."""
    settings = Settings(model="m", revision="r")
    config = engine_config()
    hf = config.model_config.hf_config
    config.model_config.hf_config = composite = copy.copy(hf)
    before = identity(config, settings=settings)
    composite.quantization_config = {"quant_method": "fp8"}
    assert (before.difference(identity(config, settings=settings)) or "").startswith("extra.vllm.hf_config.quantization_config")


def test_the_model_of_the_tests_is_known_by_its_content() -> None:
    assert revision_of(engine_config()) == f"blake2b:{weights_digest(MODEL)}"


def test_windows_that_vllm_keeps_as_full_attention_count_by_the_whole_config() -> None:
    """With vLLM's hybrid KV cache manager off, all layers are in one table that keeps all tokens."""
    config = engine_config()
    before = identity(config)
    config.compilation_config.static_forward_context = {"model.layers.0.self_attn.attn": SimpleNamespace(sliding_window=16)}
    assert identity(config) != before
