"""How vLLM's KV lies in memory, and what it means: from the tensors that it reports and the backend in use."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile import Identity, Layout, Plane, Shape
from kvtile._errors import IdentityError, LayoutError
from kvtile._hf import rope_of

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kvtile.vllm._rank import Rank
    from kvtile.vllm._settings import Settings

logger = init_logger("vllm.kvtile")

# Instruction sets of the CPU backend of which the order of elements was checked.
_CHECKED = {("float32", "vec"), ("float32", "vec16"), ("bfloat16", "vec"), ("bfloat16", "vec16")}
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 22


def refuse_what_is_not_supported(config: VllmConfig, kv: KVCacheConfig | None) -> None:
    """Raises ValueError, in one sentence, for engines whose KV this connector cannot keep yet."""
    parallel = config.parallel_config
    for name, size in (
        ("pipeline parallelism", parallel.pipeline_parallel_size),
        ("prefill context parallelism", getattr(parallel, "prefill_context_parallel_size", 1)),
        ("decode context parallelism", getattr(parallel, "decode_context_parallel_size", 1)),
    ):
        if size != 1:
            raise ValueError(f"kvtile.vllm: {name} of {size} is not supported yet; tensor parallelism is")
    if kv is None:
        raise ValueError("kvtile.vllm: this vLLM does not tell its connectors of its KV cache (kv_cache_config)")
    groups = kv.kv_cache_groups
    if len(groups) != 1:
        raise ValueError(
            f"kvtile.vllm: the model has {len(groups)} groups of KV (a hybrid model), which is not supported yet"
        )
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec" or getattr(spec, "sliding_window", None):
        raise ValueError(
            f"kvtile.vllm: the model's KV is {type(spec).__name__}"
            f"{' with a sliding window' if getattr(spec, 'sliding_window', None) else ''}; "
            "only full attention is supported yet"
        )


def layout_and_identity(
    config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings, rank: Rank
) -> tuple[Layout, Identity]:
    """The layout over vLLM's tensors, and what they mean: all layers, and those heads that the rank has.

    Where the order of the elements inside a block is known, blocks are what the model's config says of them,
    and another engine's layout can read them. Where it is not, a block is opaque: it is moved whole, and its
    identity has the backend and its instruction set.
    """
    tensors = [caches[name] for name in in_order(caches)]
    first = tensors[0]
    dtype = str(first.dtype).removeprefix("torch.")
    page_size = config.cache_config.block_size
    model = settings.model or str(config.model_config.model)
    hf = config.model_config.hf_text_config
    revision = settings.revision or revision_of(config)
    if first.device.type != "cpu":
        raise ValueError(f"kvtile.vllm: the KV cache is on {first.device}; only the CPU's memory is supported yet")
    isa = _instruction_set(config, first, page_size)
    heads = config.model_config.get_num_kv_heads(config.parallel_config)
    expected = (first.shape[0], heads, page_size, 2 * config.model_config.get_head_size())
    if (dtype, isa) in _CHECKED and tuple(first.shape) == expected:
        part = {"page_size": page_size, "dtype": dtype, "tp_rank": rank.number, "tp_size": rank.size}
        shape = Shape.from_hf_config(hf, num_blocks=first.shape[0], **part)
        layout = Layout.preset(f"vllm:LBHNC/cpu/{dtype}/{isa}", shape=shape, tensors=tensors)
        return layout, Identity.from_hf_config(hf, model=model, revision=revision, **part)
    logger.warning(
        "the order of elements of vLLM's KV is not known for %s, instruction set %s, shape %s: blocks are kept whole, "
        "for this very backend",
        dtype,
        isa,
        tuple(first.shape),
    )
    layout, extra = _opaque(tensors, page_size, isa)
    if rank.size != 1:
        extra["rank"] = str(rank)
    return layout, Identity(model, revision, layout.shape, rope=rope_of(hf), extra=extra)


def _opaque(tensors: list[torch.Tensor], page_size: int, isa: str) -> tuple[Layout, dict[str, str]]:
    """Blocks that are moved whole, and what their values depend on."""
    import torch

    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or not tensor.is_contiguous():
            raise LayoutError(f"vLLM's KV tensors differ or have gaps: {tuple(tensor.shape)}, strides {tensor.stride()}")
    page = first[0].numel() * first.element_size()
    codec = f"vllm_{isa}_{str(first.dtype).removeprefix('torch.')}".lower()
    plane = Plane("p", codec, unit_bytes=page, opaque=True, per_page=True)
    shape = Shape(num_blocks=first.shape[0], num_layers=len(tensors), page_size=page_size, planes=[plane])
    flat = [tensor.reshape(first.shape[0], -1).view(torch.uint8) for tensor in tensors]
    layout = Layout("L|Bp", shape=shape, tensors=flat)
    return layout, {"attention": f"vllm.cpu, instruction set {isa}, blocks of {'x'.join(map(str, first.shape[1:]))}"}


def in_order(caches: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the layers from the first to the last; vLLM orders them as text."""
    return sorted(caches, key=_layer)


def _layer(name: str) -> int:
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise LayoutError(f"vLLM's KV tensor {name!r} does not say which layer it is of")
    return numbers[0]


def _instruction_set(config: VllmConfig, tensor: torch.Tensor, page_size: int) -> str:
    """That of the attention backend, as it chooses it itself."""
    from vllm.v1.attention.backends import cpu_attn

    cache_dtype = config.cache_config.cache_dtype
    return str(cpu_attn._get_attn_isa(tensor.dtype, page_size, config.model_config.get_head_size(), cache_dtype))


def revision_of(config: VllmConfig) -> str:
    """Which weights a model has: the revision that was asked for, the commit of the hub's cache, or a digest."""
    model = config.model_config
    if model.revision and _COMMIT.fullmatch(model.revision):
        return str(model.revision)
    commit = getattr(model.hf_config, "_commit_hash", None)
    if commit:
        return str(commit)
    folder = Path(model.model)
    if not folder.is_dir():
        raise IdentityError(
            f"which weights {model.model} stands for is not known (revision {model.revision!r}); give a commit as the "
            'revision, or "revision" in kv_connector_extra_config'
        )
    return f"blake2b:{weights_digest(folder)}"


def weights_digest(folder: Path) -> str:
    """A digest over all bytes of a folder's weights and its config."""
    files = sorted({*folder.glob("config.json"), *(file for kind in _WEIGHTS for file in folder.glob(kind))})
    start = time.monotonic()
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    seconds = time.monotonic() - start
    if seconds > 5:
        logger.info('the digest of the weights took %.0f s; "revision" in kv_connector_extra_config saves it', seconds)
    return digest.hexdigest()
