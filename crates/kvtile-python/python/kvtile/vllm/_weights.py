"""Identifies a model's weights by the contents of its files, never by a name that may later refer to others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvtile._engine_identity import COMMIT, revision_of_path
from kvtile._errors import IdentityError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def revision_of(config: VllmConfig) -> str:
    """A commit of the hub, or a digest of a folder's files.

    Raises IdentityError if neither is known.
    """
    model = config.model_config
    _refuse_code_of_another_repository(config)
    _refuse_weights_of_another_repository(config)
    found = revision_of_path(Path(model.model))
    if found is not None:
        return found
    if model.revision and COMMIT.fullmatch(model.revision):
        return str(model.revision)
    # With ``hf_config_path``, the config's commit is that of another repository.
    commit = getattr(model.hf_config, "_commit_hash", None) if not model.hf_config_path else None
    if commit and COMMIT.fullmatch(commit):
        return str(commit)
    raise IdentityError(
        f"it is not known which weights {model.model} stands for (revision {model.revision!r}); give a commit as the "
        'revision, or "revision" in kv_connector_extra_config'
    )


def _refuse_code_of_another_repository(config: VllmConfig) -> None:
    """Refuses code from another repository, which may change while this repository's commit stays the same."""
    model = config.model_config
    if not model.trust_remote_code or (model.code_revision and COMMIT.fullmatch(model.code_revision)):
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
