"""Identifies adapters (LoRA) by their files' contents, and tracks which ones vLLM has loaded.

The scheduler reads the files of an adapter when a request for it arrives. Each worker records the digest of the files
that vLLM loads. If the files are overwritten in between, the digests differ, and the worker neither loads nor stores
blocks.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from kvtile._engine_identity import digest_of_files

# The files that vLLM reads (vllm/lora/lora_model.py, peft_helper.py), in its order; only the first weights file counts.
_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")

# The metadata of files, without their bytes.
Signature = tuple[tuple[str, int, int, int, int, int], ...]
# vLLM's number of an adapter, and the digest of its files.
Adapter = tuple[int, bytes]


def folder_of(path: str) -> Path | None:
    """The folder from which vLLM reads an adapter (vllm/lora/utils.py:get_adapter_absolute_path); None if it is not on
    this machine yet."""
    expanded = Path(os.path.expanduser(path))
    if expanded.is_dir():
        return expanded.absolute()
    if os.path.isabs(path) or path.startswith("~") or os.environ.get("VLLM_USE_MODELSCOPE", "0").lower() in ("1", "true"):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (OSError, ValueError, HFValidationError):
        return None


def _files(folder: Path) -> list[Path]:
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    return [folder / _CONFIG, *weights[:1]] if weights else []


def _signature(files: list[Path]) -> Signature:
    """Raises OSError if a file is missing."""
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


@dataclass
class Digests:
    """Digests of adapters' files, computed again when the files change."""

    _known: dict[Path, tuple[Signature, bytes]] = field(default_factory=dict)

    def of(self, request: Any) -> bytes | None:
        """The digest of a LoRARequest's files as they are now; None if they cannot be read, or change during the
        read."""
        try:
            folder = folder_of(request.lora_path)
            files = _files(folder) if folder is not None else []
            if folder is None or not files:
                return None
            before = _signature(files)
            known = self._known.get(folder)
            if known is not None and known[0] == before:
                return self._with_form(request, known[1])
            digest = bytes.fromhex(digest_of_files(files))
            if _signature(files) != before:
                return None
        except OSError:
            return None
        self._known[folder] = before, digest
        return self._with_form(request, digest)

    @staticmethod
    def _with_form(request: Any, digest: bytes) -> bytes:
        """Adds the form of the weights, because vLLM reads one file in two ways (LoRARequest.is_3d_lora_weight)."""
        form = b"\1" if getattr(request, "is_3d_lora_weight", False) else b"\0"
        return hashlib.blake2b(digest + form, digest_size=16).digest()


class LoadedAdapters:
    """The adapters that vLLM's workers in this process have loaded, by manager and number."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._managers: WeakKeyDictionary[Any, dict[int, bytes | None]] = WeakKeyDictionary()
        self._digests = Digests()
        self._watching = False

    def watch(self) -> None:
        """Starts to record the adapters that vLLM loads. Call it before the first one."""
        from vllm.lora.worker_manager import WorkerLoRAManager

        with self._lock:
            load = getattr(WorkerLoRAManager, "_load_adapter", None)
            if self._watching or load is None:
                return
            self._watching = True
        loaded = self

        def noting(manager: Any, request: Any) -> Any:
            before = loaded._digests.of(request)
            # The previous adapter is replaced, even if this load fails.
            loaded.note(manager, request.lora_int_id, None)
            adapter = load(manager, request)
            # Equal digests before and after the load are those of the loaded files.
            same = before is not None and before == loaded._digests.of(request)
            loaded.note(manager, request.lora_int_id, before if same else None)
            return adapter

        WorkerLoRAManager._load_adapter = noting

    def note(self, manager: Any, number: int, digest: bytes | None) -> None:
        """Records a loaded adapter; None for unknown files."""
        with self._lock:
            self._managers.setdefault(manager, {})[number] = digest

    def may_be(self, adapter: Adapter) -> bool:
        """Whether vLLM has this adapter, or none, under this number."""
        number, digest = adapter
        with self._lock:
            return all(found.get(number, digest) == digest for found in self._managers.values())

    def is_loaded(self, adapter: Adapter) -> bool:
        """Whether vLLM has exactly this adapter under this number."""
        with self._lock:
            found = any(adapter[0] in adapters for adapters in self._managers.values())
        return found and self.may_be(adapter)


LOADED = LoadedAdapters()
"""One per process, because vLLM's adapter managers cannot be reached from a worker's connector."""
