"""Adapters are identified by their files' contents, and by what vLLM has loaded of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager

from kvtile.vllm._adapters import Digests, LoadedAdapters, folder_of


def adapter(folder: Path, content: bytes = b"one", weights: str = "adapter_model.safetensors", rank: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / weights).write_bytes(content)
    return folder


def named(path: Path | str, number: int = 1, name: str = "lora", **more: Any) -> LoRARequest:
    return LoRARequest(name, number, str(path), **more)


def test_content_counts_and_names_do_not(tmp_path: Path) -> None:
    digests = Digests()
    one = digests.of(named(adapter(tmp_path / "one")))
    assert one is not None and len(one) == 16
    assert digests.of(named(adapter(tmp_path / "two"), 2, "another")) == one
    assert digests.of(named(adapter(tmp_path / "other", b"two"))) != one
    assert digests.of(named(adapter(tmp_path / "alpha", rank=8))) != one
    assert digests.of(named(tmp_path / "one", is_3d_lora_weight=True)) != one
    assert digests.of(named(adapter(tmp_path / "bin", weights="adapter_model.bin"))) not in (None, one)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_files_that_are_written_again_are_read_again(tmp_path: Path, file: str, how: str) -> None:
    digests, folder = Digests(), adapter(tmp_path / "lora")
    before = digests.of(named(folder))
    old = (folder / file).stat()
    content = (folder / file).read_bytes().replace(b"one", b"two").replace(b"4", b"8")
    if how == "in place":
        (folder / file).write_bytes(content)
    else:
        (folder / "new").write_bytes(content)
        (folder / "new").rename(folder / file)
    # The same size and modification time as before.
    os.utime(folder / file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert digests.of(named(folder)) not in (None, before)


def test_files_that_do_not_change_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, folder = Digests(), adapter(tmp_path / "lora")
    first = digests.of(named(folder))
    monkeypatch.setattr("kvtile.vllm._adapters.digest_of_files", lambda files: pytest.fail("read again"))
    assert digests.of(named(folder)) == first


def test_files_that_change_while_they_are_read_have_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "lora")

    def meanwhile(files: list[Path]) -> str:
        (folder / "adapter_model.safetensors").write_bytes(b"another")
        return "00" * 16

    monkeypatch.setattr("kvtile.vllm._adapters.digest_of_files", meanwhile)
    assert Digests().of(named(folder)) is None


def test_unreadable_files_have_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    digests, folder = Digests(), adapter(tmp_path / "lora")
    for path in (tmp_path / "none", "~/no/such/adapter", "org/not-downloaded", "no such\nname"):
        assert digests.of(named(path)) is None
    (folder / "adapter_config.json").unlink()
    assert digests.of(named(folder)) is None
    (adapter(tmp_path / "empty") / "adapter_model.safetensors").unlink()
    assert digests.of(named(tmp_path / "empty")) is None


def test_the_folder_is_the_one_that_vllm_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.utils import get_adapter_absolute_path

    folder = adapter(tmp_path / "lora")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(folder), "lora", "~/lora"):
        assert folder_of(path) == Path(get_adapter_absolute_path(path)) == folder


class Manager(LRUCacheWorkerLoRAManager):
    """vLLM's manager, with a load that does nothing."""

    def __init__(self) -> None:
        self.during: Any = None


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedAdapters:
    def load(manager: Any, request: Any) -> str:
        if manager.during is not None:
            manager.during()
        return f"loaded {request.lora_name}"

    monkeypatch.setattr(WorkerLoRAManager, "_load_adapter", load)
    made = LoadedAdapters()
    made.watch()
    made.watch()
    return made


def test_loads_are_recorded_when_they_happen(tmp_path: Path, loaded: LoadedAdapters) -> None:
    digests, manager, folder = Digests(), Manager(), adapter(tmp_path / "lora")
    one = digests.of(named(folder))
    assert one is not None
    assert loaded.may_be((1, one)) and not loaded.is_loaded((1, one)), "nothing is loaded yet"
    assert manager._load_adapter(named(folder)) == "loaded lora"
    assert loaded.may_be((1, one)) and loaded.is_loaded((1, one))
    # The files change, and vLLM keeps the adapter that it has loaded.
    two = digests.of(named(adapter(folder, b"two")))
    assert two is not None and two != one
    assert loaded.is_loaded((1, one)) and not loaded.may_be((1, two)) and not loaded.is_loaded((1, two))
    # vLLM loads the adapter again: in place, or after it was evicted.
    manager._load_adapter(named(folder, load_inplace=True))
    assert loaded.is_loaded((1, two)) and not loaded.may_be((1, one))
    assert loaded.may_be((2, one)), "another number is another adapter"


def test_files_that_change_during_a_load_are_unknown(tmp_path: Path, loaded: LoadedAdapters) -> None:
    digests, manager, folder = Digests(), Manager(), adapter(tmp_path / "lora")
    one = digests.of(named(folder))
    manager.during = lambda: adapter(folder, b"two")
    manager._load_adapter(named(folder))
    two = digests.of(named(folder))
    assert one is not None and two is not None
    assert not any(check((1, digest)) for check in (loaded.may_be, loaded.is_loaded) for digest in (one, two))


def test_a_failed_load_is_unknown(tmp_path: Path, loaded: LoadedAdapters) -> None:
    manager, folder = Manager(), adapter(tmp_path / "lora")
    one = Digests().of(named(folder))
    assert one is not None
    manager._load_adapter(named(folder))

    def fail() -> None:
        raise ValueError("too many ranks")

    manager.during = fail
    with pytest.raises(ValueError, match="too many ranks"):
        manager._load_adapter(named(folder))
    assert not loaded.is_loaded((1, one))


def test_engines_that_disagree_about_a_number_have_no_known_adapter(tmp_path: Path, loaded: LoadedAdapters) -> None:
    first, second = Manager(), Manager()
    folder, copy = adapter(tmp_path / "lora"), adapter(tmp_path / "copy", b"two")
    one = Digests().of(named(folder))
    assert one is not None
    first._load_adapter(named(folder))
    second._load_adapter(named(copy))
    assert not loaded.is_loaded((1, one))
    del second
    shutil.rmtree(copy)
    assert loaded.is_loaded((1, one)), "an engine that has ended has none"
