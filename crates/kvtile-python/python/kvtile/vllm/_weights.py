"""Identifies a model's weights by the contents of its files, never by a name that may later refer to others."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile._errors import IdentityError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.kvtile")

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
# Other files of these patterns that change neither the weights nor their use.
_NO_MATTER = {
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.json", "chat_template.json", "tekken.json",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK = 1 << 22


def revision_of(config: VllmConfig) -> str:
    """A commit of the hub, or a digest of a folder's files.

    Raises IdentityError if neither is known.
    """
    model = config.model_config
    _refuse_code_of_another_repository(config)
    _refuse_weights_of_another_repository(config)
    path = Path(model.model)
    if path.is_dir():
        return commit_of(path) or f"blake2b:{weights_digest(path)}"
    if path.is_file():
        return f"blake2b:{digest_of_files([path])}"
    if model.revision and _COMMIT.fullmatch(model.revision):
        return str(model.revision)
    # With ``hf_config_path``, the config's commit is that of another repository.
    commit = getattr(model.hf_config, "_commit_hash", None) if not model.hf_config_path else None
    if commit and _COMMIT.fullmatch(commit):
        return str(commit)
    raise IdentityError(
        f"it is not known which weights {model.model} stands for (revision {model.revision!r}); give a commit as the "
        'revision, or "revision" in kv_connector_extra_config'
    )


def _refuse_code_of_another_repository(config: VllmConfig) -> None:
    """Refuses code from another repository, which may change while this repository's commit stays the same."""
    model = config.model_config
    if not model.trust_remote_code or (model.code_revision and _COMMIT.fullmatch(model.code_revision)):
        return
    for name in (getattr(model.hf_config, "auto_map", None) or {}).values():
        repository = str(name).partition("--")[0] if "--" in str(name) else model.model
        if repository != model.model:
            raise IdentityError(
                f"the model's code comes from {repository} at an unknown commit; give code_revision, or "
                '"revision" in kv_connector_extra_config'
            )


def _refuse_weights_of_another_repository(config: VllmConfig) -> None:
    """Refuses parts that vLLM loads from the newest commit of other repositories
    (model_executor/models/ultravox.py)."""
    for field in ("audio_model_id", "text_model_id"):
        other = getattr(config.model_config.hf_config, field, None)
        if other is not None:
            raise IdentityError(
                f"a part of the weights comes from {other} ({field}) at an unknown commit; give \"revision\" in "
                "kv_connector_extra_config, which names both"
            )


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, if every relevant file is one of its blobs, which are named by their
    contents; None for other folders."""
    if folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return None
    blobs = (folder.parent.parent / "blobs").resolve()
    files = files_that_count(folder)
    kept = [file.is_symlink() and file.resolve().parent == blobs for file in files]
    named = [_BLOB.fullmatch(file.resolve().name) for file in files]
    return folder.name if files and all(kept) and all(named) else None


def files_that_count(folder: Path) -> list[Path]:
    """A folder's weights, the configs that determine how they are read, and code, in a fixed order. Includes
    subfolders, except ``original``, from which vLLM loads nothing, and hidden ones."""
    found = {file for kind in (*_WEIGHTS, "*.json", "*.py") for file in folder.rglob(kind)}
    inside = {file: file.relative_to(folder).parts for file in found if file.name not in _NO_MATTER and file.is_file()}
    return sorted(file for file, parts in inside.items() if parts[0] != "original" and not any(part[0] == "." for part in parts))


def weights_digest(folder: Path) -> str:
    """A digest over all bytes of the relevant files."""
    files = files_that_count(folder)
    if not any(file.match(kind) for file in files for kind in _WEIGHTS):
        raise IdentityError(
            f"{folder} has no weights that kvtile knows ({', '.join(_WEIGHTS)}); give \"revision\" in "
            "kv_connector_extra_config"
        )
    start = time.monotonic()
    digest = digest_of_files(files, folder)
    seconds = time.monotonic() - start
    if seconds > 5:
        logger.info('the digest of the weights took %.0f s; "revision" in kv_connector_extra_config avoids it', seconds)
    return digest


def digest_of_files(files: list[Path], folder: Path | None = None) -> str:
    """A digest over the names (inside a folder), sizes and bytes of files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        name = file.name if folder is None else file.relative_to(folder).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
