"""What pages belong to, from SGLang's own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sglang.srt import runtime_context
from sglang.srt.server_args import ServerArgs

import sglang_pools as pools
from kvtile import IdentityError, SettingsError
from kvtile.sglang import _identity
from kvtile.sglang._options import HiCacheOptions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a config and weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def identity(monkeypatch: pytest.MonkeyPatch, model: Path, *, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """The model's identity in a server with these options."""
    given = ServerArgs(model_path=str(model), **arguments)
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: given)
    entry = {"path": "/nowhere", "capacity": 1 << 30, **(options or {})}
    return _identity.identity_of_model(pools.config({}), HiCacheOptions.read(entry))


def test_all_options_exist_in_sglang() -> None:
    arguments = ServerArgs(model_path="x")
    assert not [name for name in (*_identity._OPTIONS, *_identity._FILES) if not hasattr(arguments, name)]


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kv_cache_dtype="fp8_e5m2"),
        dict(quantization="fp8"),
        dict(json_model_override_args='{"rope_theta": 5}'),
        dict(context_length=77),
        dict(dtype="float16"),
        dict(weight_version="2"),
    ],
)
def test_options_that_change_kv_change_the_identity(
    monkeypatch: pytest.MonkeyPatch, model: Path, arguments: dict[str, Any]
) -> None:
    plain = identity(monkeypatch, model)
    other = identity(monkeypatch, model, **arguments)
    assert plain.revision == other.revision
    differing = set(plain.options.items()) ^ set(other.options.items())
    assert {name for name, _ in differing} == {f"sglang.{next(iter(arguments))}"}


def test_options_that_change_nothing_leave_the_identity(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    plain = identity(monkeypatch, model)
    assert identity(monkeypatch, model, mem_fraction_static=0.5, page_size=32, max_running_requests=3) == plain


def test_scales_count_by_their_contents(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    scales = tmp_path / "scales.json"
    scales.write_text("1")
    first = identity(monkeypatch, model, quantization_param_path=str(scales))
    scales.write_text("2")
    assert identity(monkeypatch, model, quantization_param_path=str(scales)).options != first.options


def test_a_draft_model_counts_by_its_weights(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"one")
    first = identity(monkeypatch, model, speculative_draft_model_path=str(draft))
    (draft / "model.safetensors").write_bytes(b"two")
    other = identity(monkeypatch, model, speculative_draft_model_path=str(draft))
    assert first.options["draft.revision"] != other.options["draft.revision"]


def test_adapters_are_refused_unless_trusted(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    with pytest.raises(SettingsError, match="trust_adapter_paths"):
        identity(monkeypatch, model, enable_lora=True)
    identity(monkeypatch, model, enable_lora=True, options={"trust_adapter_paths": True})


@pytest.mark.parametrize("load_format", ["dummy", "remote"])
def test_weights_that_are_not_the_files_need_a_revision(
    monkeypatch: pytest.MonkeyPatch, model: Path, load_format: str
) -> None:
    with pytest.raises(IdentityError, match="revision"):
        identity(monkeypatch, model, load_format=load_format)
    named = identity(monkeypatch, model, load_format=load_format, options={"revision": "7"})
    assert named.revision == "7"


def test_a_model_of_the_hub_counts_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    assert identity(monkeypatch, Path("some/model"), revision=commit).revision == commit
    with pytest.raises(IdentityError, match="some/model"):
        identity(monkeypatch, Path("some/model"))


def test_a_model_in_the_hubs_cache_counts_by_its_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "abcdef0123" * 4
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"w")
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = identity(monkeypatch, Path("some/model"))
    # The snapshot's files are no links to blobs, so their bytes count and not the folder's name.
    assert found.revision.startswith("blake2b:")
