"""Layouts over vLLM's tensors on a device, from the attention backend and the strides, and what is refused. Not run on
hardware."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_device_engine import ORDERS, GpuTensor, tensors_in
from vllm_engine import sides

__all__ = ["sides"]  # The fixture of the tests below.

BACKENDS = {"FLASH_ATTN": "flash_attn", "FLASHINFER": "flashinfer", "FLEX_ATTENTION": "flex_attention", "TRITON_ATTN": "triton_attn"}
NAMES = ["model.layers.2.attn", "model.layers.10.attn", "model.layers.11.attn"]


def backend(name: str, module: str) -> Any:
    return type("Backend", (), {"get_name": staticmethod(lambda: name), "__module__": f"vllm.v1.attention.backends.{module}"})


def config(heads: int, *, total: int | None = None, cache_dtype: str = "auto", **backends: Any) -> Any:
    """What the layout reads of vLLM's config, for pages of 16 tokens with heads of 8."""
    layers = {name: backends.get(name[13:-5], backend("FLASH_ATTN", "flash_attn")) for name in NAMES}
    contexts = {name: SimpleNamespace(get_attn_backend=lambda one=one: one) for name, one in layers.items()}
    model = SimpleNamespace(
        get_num_kv_heads=lambda _: heads, get_total_num_kv_heads=lambda: total or heads, get_head_size=lambda: 8,
    )
    return SimpleNamespace(
        model_config=model, parallel_config=None, cache_config=SimpleNamespace(block_size=16, cache_dtype=cache_dtype),
        compilation_config=SimpleNamespace(static_forward_context=contexts),
    )


@pytest.fixture
def layout_of(sides: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The layout over tensors; the identity is that of engines in host memory, and needs a whole config of vLLM."""
    monkeypatch.setattr(sides.layout, "_identity", lambda *_: None)

    def made(of: Any, tensors: list[GpuTensor], rank: tuple[int, int] = (0, 1)) -> kvtile.Layout:
        caches = dict(sorted(zip(NAMES, tensors, strict=True)))
        layout, _ = sides.layout.layout_and_identity(of, caches, None, sides.rank.Rank(*rank))
        return layout

    return made


def values(heads: int, blocks: int = 5) -> np.ndarray:
    count = 3 * blocks * heads * 16 * 16
    return np.random.default_rng(7).permutation(count).astype(np.float32).reshape(3, blocks, heads, 16, 16)


@pytest.mark.parametrize("padding", [0, 64])
@pytest.mark.parametrize("heads", [1, 2, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_the_strides_of_each_order_name_the_same_elements(order: str, heads: int, padding: int, layout_of: Any) -> None:
    """16 heads are as many as tokens, so sizes name no order. Layers 10 and 11 come behind layer 2."""
    data = values(heads)
    tensors = tensors_in(ORDERS[order], data, padding=padding)
    device = layout_of(config(heads), tensors)
    shape = kvtile.Shape(num_blocks=5, num_layers=3, page_size=16, num_heads=heads, head_size=8, dtype="float32")
    plain = np.zeros((5, 3, 2, 16, heads, 8), np.float32)
    host = kvtile.Layout("BLKNHC", shape=shape, tensors=plain)
    assert device.shape == shape
    kvtile.copy_blocks(device, host, range(5))
    # By layer, block, head, token, K or V, and element.
    named = data.reshape(3, 5, heads, 16, 2, 8)
    assert (plain == named.transpose(1, 0, 4, 3, 2, 5)).all()
    before = [memory.bytes() for memory in {id(tensor.memory): tensor.memory for tensor in tensors}.values()]
    kvtile.copy_blocks(host, device, [1, 4], [4, 1])
    kvtile.copy_blocks(host, device, [1, 4], [1, 4])
    assert [memory.bytes() for memory in {id(tensor.memory): tensor.memory for tensor in tensors}.values()] == before


@pytest.mark.parametrize("name", BACKENDS)
def test_every_known_backend_is_taken_for_each_rank(name: str, layout_of: Any) -> None:
    known = backend(name, BACKENDS[name])
    of = config(2, total=8, **{number: known for number in ("2", "10", "11")})
    device = layout_of(of, tensors_in("LBNH", values(2)), (3, 4))
    shape = dict(num_blocks=5, num_layers=3, page_size=16, num_heads=2, head_size=8, dtype="float32")
    assert device.shape == kvtile.Shape(**shape, total_heads=8, first_head=6)


def changed(tensor: GpuTensor, **changes: Any) -> GpuTensor:
    facts = {"sizes": tensor.shape, "strides": tensor.stride(), "dtype": "float32", "device": "cuda", **changes}
    return GpuTensor(tensor.memory, facts["sizes"], facts["strides"], 0, facts["dtype"], facts["device"])


ROCM = backend("FLASH_ATTN", "rocm_aiter_fa")
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"10": backend("B12X", "b12x")}, {}, r"model\.layers\.10\.attn has the attention backend B12X .*is not known; it is for FLASH_ATTN"),
    ({"2": ROCM}, {}, r"FLASH_ATTN \(vllm\.v1\.attention\.backends\.rocm_aiter_fa\) .*is not known"),
    ({"2": backend("FLASH_ATTN_DIFFKV", "flash_attn_diffkv")}, {}, "FLASH_ATTN_DIFFKV"),
    ({"2": backend("TURBOQUANT", "flash_attn")}, {}, "TURBOQUANT"),
    ({"cache_dtype": "fp8"}, {}, "a cache of fp8 is not supported on devices; bfloat16, float16, float32 are"),
    ({"cache_dtype": "int8_per_token_head"}, {}, "a cache of int8_per_token_head is not supported"),
    ({}, {"dtype": "uint8"}, r"KV of uint8 \(5, 2, 16, 16\) .*is not supported on devices"),
    ({}, {"device": "xpu"}, "on xpu:0: only the memory of CPUs and of CUDA devices is supported"),
    ({}, {"sizes": (2, 5, 16, 2, 8), "strides": (1280, 256, 16, 8, 1)}, r"\(2, 5, 16, 2, 8\) .*\(2, 2, 16, 16\) was expected"),
    ({}, {"sizes": (10, 2, 8, 16), "strides": (256, 128, 16, 1)}, r"\(10, 2, 8, 16\) .*\(10, 2, 16, 16\) was expected: blocks, heads"),
    ({}, {"sizes": (5, 2, 16, 24), "strides": (768, 384, 24, 1)}, r"\(5, 2, 16, 16\) was expected"),
    ({}, {"strides": (16, 1280, 80, 1)}, r"strides \(16, 1280, 80, 1\) .*no such order"),
    ({}, {"strides": (512, 256, 1, 16)}, "no such order of blocks, heads and tokens"),
]


@pytest.mark.parametrize(("facts", "changes", "message"), REFUSED)
def test_what_is_not_known_is_refused_by_name(facts: dict[str, Any], changes: dict[str, Any], message: str, layout_of: Any) -> None:
    tensors = tensors_in("LBHN", values(2))
    tensors = [changed(tensor, **changes) for tensor in tensors]
    with pytest.raises(kvtile.SettingsError, match=message) as refused:
        layout_of(config(2, **facts), tensors)
    assert "kvtile.vllm.tier keeps the KV of every backend" in str(refused.value)


def test_layers_without_a_backend_are_refused(layout_of: Any) -> None:
    of = config(2)
    of.compilation_config.static_forward_context[NAMES[1]] = object()
    del of.compilation_config.static_forward_context[NAMES[2]]
    for name, kind in ((NAMES[1], "object"), (NAMES[2], "NoneType")):
        with pytest.raises(kvtile.SettingsError, match=f"has the attention backend of a {kind} "):
            layout_of(of, tensors_in("LBHN", values(2)))
        of.compilation_config.static_forward_context[name] = SimpleNamespace(get_attn_backend=lambda: backend("FLASH_ATTN", "flash_attn"))


def test_layers_in_unequal_orders_are_refused(layout_of: Any) -> None:
    data = values(2)
    tensors = [*tensors_in("LBHN", data)[:2], tensors_in("LBNH", data)[2]]
    with pytest.raises(kvtile.LayoutError, match=r"tensor 2 can be read in two ways as L\|BHNKC"):
        layout_of(config(2), tensors)


def test_models_with_several_groups_are_refused_on_devices(sides: Any) -> None:
    (tensor, *_) = tensors_in("LBHN", values(2))
    group = sides.groups.EngineGroup("full-1", 0, "full", 16, (NAMES[0],), "mla_attention")
    with pytest.raises(kvtile.SettingsError, match=r"the KV of model\.layers\.2\.attn is on cuda:0, .*not for latents \(MLA\)"):
        sides.group_layout.group_layouts({NAMES[0]: tensor}, [group], 5)
