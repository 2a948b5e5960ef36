"""Identifies what an engine's blocks belong to, for the adapters of all engines: the weights by their files' contents.

A name may later refer to other weights, so a name is never taken for its contents.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from pathlib import Path

from kvtile._errors import IdentityError

_logger = logging.getLogger("kvtile")

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
"""Patterns of files with weights."""

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of the hub."""

# Other files of these patterns that change neither the weights nor their use.
_NO_MATTER = {
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.json", "chat_template.json", "tekken.json",
}
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK = 1 << 22


def revision_of_path(path: Path) -> str | None:
    """The weights in a folder or a file: a commit of the hub, or a digest; None if there is neither.

    Raises IdentityError for a folder without weights.
    """
    if path.is_dir():
        return commit_of(path) or f"blake2b:{weights_digest(path)}"
    if path.is_file():
        return f"blake2b:{digest_of_files([path])}"
    return None


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, if every relevant file is one of its blobs, which are named by their
    contents; None for other folders."""
    if folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return None
    blobs = (folder.parent.parent / "blobs").resolve()
    files = files_that_count(folder)
    kept = [file.is_symlink() and file.resolve().parent == blobs for file in files]
    named = [_BLOB.fullmatch(file.resolve().name) for file in files]
    return folder.name if files and all(kept) and all(named) else None


def files_that_count(folder: Path) -> list[Path]:
    """A folder's weights, the configs that determine how they are read, and code, in a fixed order. Includes
    subfolders, except ``original``, from which engines load nothing, and hidden ones."""
    found = {file for kind in (*WEIGHTS, "*.json", "*.py") for file in folder.rglob(kind)}
    inside = {file: file.relative_to(folder).parts for file in found if file.name not in _NO_MATTER and file.is_file()}
    return sorted(file for file, parts in inside.items() if parts[0] != "original" and not any(part[0] == "." for part in parts))


def weights_digest(folder: Path) -> str:
    """A digest over all bytes of the relevant files."""
    files = files_that_count(folder)
    if not any(file.match(kind) for file in files for kind in WEIGHTS):
        raise IdentityError(
            f'{folder} has no weights that kvtile knows ({", ".join(WEIGHTS)}); give "revision" in the settings of kvtile'
        )
    start = time.monotonic()
    digest = digest_of_files(files, folder)
    seconds = time.monotonic() - start
    if seconds > 5:
        _logger.info('the digest of the weights took %.0f s; "revision" in the settings of kvtile avoids it', seconds)
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
