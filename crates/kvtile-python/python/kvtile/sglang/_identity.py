"""What the pages of SGLang's pools belong to: the model, its weights, the options that change KV, and the ranks.

SGLang's keys stand for tokens, adapters and salts. They do not stand for the model, its weights, the data type or the
page size, so these are in the identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kvtile import Identity
from kvtile._engine_identity import COMMIT, revision_of_path
from kvtile._errors import IdentityError, SettingsError
from kvtile.sglang._options import HiCacheOptions
from kvtile.sglang._pools import PoolPages, dtype_name

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.server_args import ServerArgs

# SGLang's options that change the values of KV for the same tokens.
_OPTIONS = (
    "dtype", "quantization", "kv_cache_dtype", "json_model_override_args", "load_format", "model_loader_extra_config",
    "context_length", "model_impl", "model_config_parser", "modelopt_quant", "rl_quant_profile", "custom_weight_loader",
    "weight_version", "mamba_ssm_dtype", "qsa_indexer_dtype", "speculative_algorithm", "speculative_draft_model_path",
    "speculative_draft_model_revision", "speculative_draft_model_quantization", "speculative_draft_kv_cache_dtype",
    "uno_lora_path",
)
_FILES = ("quantization_param_path",)
# Formats under which the weights are not those of the model's files.
_NO_FILES = ("dummy", "remote", "remote_instance")
# Types that only hold bytes: the type of the values is an option of SGLang.
_BYTES = (torch.uint8, torch.int8)


@dataclass(frozen=True)
class ModelIdentity:
    """The model, its weights, and the options that change its KV."""

    model: str
    revision: str
    options: dict[str, str]

    def of_pool(self, pages: PoolPages, dtype: torch.dtype, ranks: Mapping[str, str], options: HiCacheOptions) -> Identity:
        """The identity of a pool's pages. Raises SettingsError if the type of its values is not known."""
        extra = {**self.options, **pages.fields, **ranks, "engine": "sglang", "pool.kind": pages.kind}
        extra["pool.dtype"] = self._values(dtype, pages, options)
        return Identity(self.model, self.revision, pages.shape, extra=extra)

    def _values(self, dtype: torch.dtype, pages: PoolPages, options: HiCacheOptions) -> str:
        """The type of a pool's values."""
        if dtype not in _BYTES or pages.fields.get("sglang.version"):
            return dtype_name(dtype)
        named = options.kv_cache_dtype or self.options.get("sglang.kv_cache_dtype")
        if named is None:
            raise SettingsError(
                f"SGLang keeps KV as {dtype_name(dtype)}, and its kv_cache_dtype is not visible: give "
                '"kv_cache_dtype" beside "path"'
            )
        return f"{named} as {dtype_name(dtype)}"


def identity_of_model(config: HiCacheStorageConfig, options: HiCacheOptions) -> ModelIdentity:
    """The identity of the engine's model. Raises SettingsError or IdentityError if its weights are not known, or its keys
    do not stand for its values."""
    arguments = server_arguments()
    path = str(getattr(arguments, "model_path", None) or config.model_name or "")
    model = options.model or config.model_name or path
    if not model:
        raise SettingsError('SGLang gives the kvtile backend no model name: give "model" beside "path"')
    found = {} if arguments is None else _options_of(arguments, options)
    revision = options.revision or _revision(path, arguments)
    return ModelIdentity(str(model), revision, found)


def server_arguments() -> ServerArgs | None:
    """SGLang's options in this process; None outside a server."""
    from sglang.srt.runtime_context import get_server_args

    try:
        return get_server_args()
    except ValueError:
        return None


def _options_of(arguments: ServerArgs, options: HiCacheOptions) -> dict[str, str]:
    if (getattr(arguments, "enable_lora", None) or getattr(arguments, "lora_paths", None)) and not options.trust_adapter_paths:
        raise SettingsError(
            "kvtile refuses adapters (LoRA) with SGLang: its keys have an adapter's name and path and not its contents, so "
            'another adapter there would get its pages; if yours never change, set "trust_adapter_paths": true'
        )
    found = {name: getattr(arguments, name, None) for name in _OPTIONS}
    texts = {f"sglang.{name}": str(value) for name, value in found.items() if value not in (None, "", "{}")}
    for name in _FILES:
        if file := getattr(arguments, name, None):
            texts[f"sglang.{name}"] = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
    draft = getattr(arguments, "speculative_draft_model_path", None)
    if draft and draft != arguments.model_path and options.revision is None:
        draft_revision = getattr(arguments, "speculative_draft_model_revision", None)
        texts["draft.revision"] = _weights(str(draft), draft_revision, "the draft model")
    return texts


def _revision(path: str, arguments: ServerArgs | None) -> str:
    """The weights of the model."""
    if str(getattr(arguments, "load_format", "auto")) in _NO_FILES:
        raise IdentityError(
            f"with load_format={getattr(arguments, 'load_format', '')} the weights are not those of the model's files; "
            'give "revision" beside "path", a name that you change with the weights'
        )
    return _weights(path, getattr(arguments, "revision", None), "the model")


def _weights(path: str, revision: str | None, what: str) -> str:
    """The weights in a folder, or of a model of the hub that is in its cache."""
    found = revision_of_path(Path(path)) if path else None
    if found:
        return found
    if revision and COMMIT.fullmatch(revision):
        return revision
    if found := _cached(path, revision):
        return found
    raise IdentityError(
        f"it is not known which weights {what} {path!r} has (revision {revision!r}); give a folder or a commit, or "
        '"revision" beside "path", a name that you change with the weights'
    )


def _cached(repository: str, revision: str | None) -> str | None:
    """The weights of a model in the hub's cache, from which SGLang loads it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:
        return None
    return revision_of_path(Path(config).parent) if isinstance(config, str) else None


def ranks_of(config: HiCacheStorageConfig, is_shared: bool) -> dict[str, str]:
    """The ranks in the identity of a pool's pages. Pages that all tensor-parallel ranks have in common do not have one."""
    found = {"ranks.pipeline": f"{config.pp_rank} of {config.pp_size}"}
    found["ranks.context"] = f"{config.attn_cp_rank} of {config.attn_cp_size}"
    if not is_shared:
        found["ranks.tensor"] = f"{config.tp_rank} of {config.tp_size}"
    return found


def folder_of(path: Path, config: HiCacheStorageConfig, is_shared: bool) -> Path:
    """The subfolder of a rank's own pages, or of those that all tensor-parallel ranks have in common."""
    name = "shared" if is_shared else f"tp{config.tp_rank}-of-{config.tp_size}"
    if config.pp_size > 1:
        name += f"-pp{config.pp_rank}-of-{config.pp_size}"
    if config.attn_cp_size > 1:
        name += f"-cp{config.attn_cp_rank}-of-{config.attn_cp_size}"
    return path / (f"{name}-dp{config.dp_rank}" if config.dp_rank else name)


def folders_of_all_ranks(config: HiCacheStorageConfig, is_shared: bool) -> int:
    """The number of subfolders of this kind that share the capacity."""
    return int(config.pp_size * config.attn_cp_size * (1 if is_shared else config.tp_size))
