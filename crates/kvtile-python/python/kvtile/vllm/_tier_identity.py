"""What the rows of vLLM's primary tier belong to: the model, the engine's options, and the order of bytes in a row.

A row is opaque: vLLM joins the KV of all layers and ranks in it. vLLM's keys stand for tokens, adapters and images, but
not for the model, its weights, the data type or the layout, so these are in the identity.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtile._errors import IdentityError, SettingsError
from kvtile._hf import kv_fields
from kvtile.vllm._extras import extras_of, refuse_options, text_of
from kvtile.vllm._weights import revision_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from kvtile.vllm._tier_options import TierOptions

# Options under which keys or rows would not stand for the values. vLLM's tiers themselves bear the others.
_REFUSED = (
    "diffusion_config", "weight_transfer_config", "enable_sleep_mode", "use_non_causal", "mm_encoder_attn_dtype",
    "model_weights", "load_format", "model_loader_extra_config",
)
_SIZES = ("world_size", "tp_size", "pp_size", "pcp_size", "dcp_size")
_HASHES = ("sha256", "sha256_cbor")


@dataclass(frozen=True)
class RowIdentity:
    """The parts of the identity of opaque rows."""

    model: str
    revision: str
    extra: dict[str, str]


def identity_of_rows(offloading: Any, row_bytes: int, options: TierOptions) -> RowIdentity:
    """The identity of a primary tier's rows, from vLLM's ``OffloadingConfig`` and the engine's whole config.

    Raises SettingsError or IdentityError for engines whose rows cannot be kept.
    """
    extra = rows_of(offloading, row_bytes)
    config = engine_config(offloading)
    if config is None:
        return RowIdentity(options.model or offloading.model.name, _vouched(options), extra)
    refuse_options(config, options.revision, os.environ, only=_REFUSED)
    _refuse_keys(config, options)
    model = config.model_config
    extra |= kv_fields(model.hf_text_config, max_model_len=model.max_model_len, known=False)
    extra |= extras_of(config, os.environ)
    extra |= attention_of(config)
    return RowIdentity(options.model or str(model.model), options.revision or revision_of(config), extra)


def _vouched(options: TierOptions) -> str:
    """The revision, where the engine's config is not visible."""
    if options.revision is not None:
        return options.revision
    raise SettingsError(
        "the kvtile tier does not find the config of this engine, so it knows neither its weights nor its options: give "
        '"revision" in its entry of secondary_tiers, a name that you change with either of them'
    )


def engine_config(offloading: Any) -> VllmConfig | None:
    """The config of the engine that is creating its tiers; None if it is not visible.

    vLLM does not pass it to tiers, but a caller has it. It is the engine's own if the engine's id is equal, which is
    unique for each replica.
    """
    from vllm.config import VllmConfig

    frame = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if isinstance(value, VllmConfig) and value.kv_transfer_config is not None:
                if value.kv_transfer_config.engine_id == offloading.engine_id:
                    return value
        frame = frame.f_back  # type: ignore[assignment]
    return None


def rows_of(offloading: Any, row_bytes: int) -> dict[str, str]:
    """The entries that determine where a value is in a row."""
    cache, parallel = offloading.cache, offloading.parallel
    canonical = bool(getattr(offloading, "canonical_layout", False))
    replicated = bool(getattr(offloading, "replicated_layout", False))
    found = {
        "row.bytes": str(row_bytes),
        "row.cache_dtype": str(offloading.model.dtype),
        "row.kv_cache_layout": str(getattr(offloading, "kv_cache_layout", None)),
        "row.order": _canonical(offloading) if canonical else "replicated" if replicated else "direct",
        "row.tokens_per_hash": str(cache.tokens_per_hash),
        "row.blocks_per_chunk": str(cache.blocks_per_chunk),
    }
    # A canonical row is the same for every number of ranks where vLLM states so.
    if not (canonical and getattr(parallel, "is_parallelism_agnostic", False)):
        found |= {f"row.{name}": str(getattr(parallel, name, 1)) for name in _SIZES}
    for group in offloading.groups:
        names = hashlib.blake2b("\0".join(group.layer_names).encode(), digest_size=8).hexdigest()
        number = getattr(group, "group_id", len(found))
        found[f"row.group_{number}"] = f"{group.tokens_per_block} tokens, {len(group.layer_names)} layers, names {names}"
    return found


def hint_of_ranks(error: IdentityError) -> str:
    """What to do if a folder has rows of another number of ranks."""
    if not any(f"extra.row.{name} differs" in str(error) for name in _SIZES):
        return ""
    return (
        "; a row joins the values of all ranks in an order that kvtile does not know, so rows of another number of ranks "
        'cannot be cut: use that number, or "canonical_layout": true, whose rows are the same for every number of ranks, '
        "or KvtileConnector, which cuts blocks by heads"
    )


def _canonical(offloading: Any) -> str:
    """The name of vLLM's canonical order, with its version."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import canonical_format_id

        return f"canonical {canonical_format_id(offloading.kv_cache_layout)}"
    except (ImportError, KeyError, TypeError) as error:
        raise SettingsError(f"the kvtile tier does not know this vLLM's canonical_layout ({error!r}); remove it") from error


def _refuse_keys(config: VllmConfig, options: TierOptions) -> None:
    """Refuses engines whose keys do not stand for the tokens and adapters."""
    algorithm = str(getattr(config.cache_config, "prefix_caching_hash_algo", "sha256"))
    if algorithm not in _HASHES:
        raise SettingsError(
            f"the kvtile tier refuses prefix_caching_hash_algo={algorithm}: two prompts can have one key; use {_HASHES[0]}"
        )
    if config.lora_config is not None and not options.trust_adapter_paths:
        raise SettingsError(
            "the kvtile tier refuses adapters (LoRA): vLLM's keys have an adapter's name and path and not its contents, "
            'so another adapter there would get its blocks; if yours never change, set "trust_adapter_paths": true'
        )


def attention_of(config: VllmConfig) -> dict[str, str]:
    """The entries that determine the order of elements inside a layer: it depends on the attention backend, which vLLM
    selects by its version and the device."""
    import vllm
    from vllm.platforms import current_platform

    version = ".".join(str(vllm.__version__).split(".")[:2])
    backend = getattr(getattr(config, "attention_config", None), "backend", None)
    found = {
        "vllm.version": version,
        "vllm.attention": "selected by vLLM" if backend is None else text_of(backend),
        "vllm.device": str(current_platform.device_type),
        "vllm.hash": str(getattr(config.cache_config, "prefix_caching_hash_algo", "sha256")),
    }
    if current_platform.is_cpu():
        found["vllm.device"] += f", instruction set {_instruction_set(config)}"
    else:
        found["vllm.device"] += f", capability {_capability(current_platform)}"
    speculative = config.speculative_config
    if speculative is not None:
        drafter = [getattr(speculative, name, None) for name in ("method", "model", "revision")]
        found["vllm.speculative"] = text_of(drafter)
    return found


def _capability(platform: Any) -> str:
    capability = platform.get_device_capability()
    return "unknown" if capability is None else str(capability.as_version_str())


def _instruction_set(config: VllmConfig) -> str:
    """The instruction set that the CPU's attention backend selects."""
    from vllm.v1.attention.backends import cpu_attn

    model, cache = config.model_config, config.cache_config
    return str(cpu_attn._get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype))


def folder_of(path: Path, parallel: Any) -> tuple[Path, int]:
    """The folder of this data-parallel replica, and the number of replicas that share the capacity."""
    replicas = int(getattr(parallel, "data_parallel_size", 1) or 1)
    if replicas == 1:
        return path, 1
    return path / f"replica-{parallel.data_parallel_index}-of-{replicas}", replicas
