"""The facts about vLLM's GPU backends that the connector relies on, from vLLM's own code, over memory of the CPU. Not run on
hardware."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheTensor,
    compute_layout_strides,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

import kvtile
from kvtile.vllm import _gpu_layout

BLOCKS, LAYERS, PAGE, HEAD = 5, 3, 16, 8


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 16])
@pytest.mark.parametrize("order", list(KVCacheLayout), ids=lambda order: order.name)
def test_the_views_of_vllm_have_the_elements_where_its_backends_put_them(order: KVCacheLayout, heads: int, padded: bool) -> None:
    content = heads * PAGE * 2 * HEAD * 2
    if padded and heads > 1 and order in (KVCacheLayout.LHBNC, KVCacheLayout.BHLNC):
        pytest.skip("vLLM pads no blocks that heads cut")
    spec = FullAttentionSpec(
        block_size=PAGE, num_kv_heads=heads, head_size=HEAD, dtype=torch.bfloat16, page_size_padded=content + 512 if padded else None
    )
    strides = compute_layout_strides(spec, BLOCKS, LAYERS, order)
    names = [f"model.layers.{layer}.attn" for layer in range(LAYERS)]
    size = max(stride * count for stride, count in zip(strides, (LAYERS, BLOCKS, heads, PAGE, 1)))
    raw = torch.zeros(size, dtype=torch.int8)
    tensor = KVCacheTensor(size=size, layers=names, layer_stride=strides[0], block_stride=strides[1])
    views = create_kv_cache_views(raw, spec, BLOCKS, order, tensor)
    # By block, layer, K or V, token, head, and element.
    wanted = torch.randn(BLOCKS, LAYERS, 2, PAGE, heads, HEAD).to(torch.bfloat16)
    for layer, view in enumerate(views):
        # As FlashAttention, Triton and FlexAttention read it.
        keys, values = view.transpose(1, 2).split(HEAD, dim=-1)
        keys[:], values[:] = wanted[:, layer, 0], wanted[:, layer, 1]
    config = SimpleNamespace(num_blocks=BLOCKS, num_layers=LAYERS, page_size=PAGE, num_heads=heads, head_size=HEAD)
    shape = kvtile.Shape(**vars(config), dtype="bfloat16")
    found = torch.zeros_like(wanted)
    host = kvtile.Layout("BLKNHC", shape=shape, tensors=found)
    kvtile.copy_blocks(_gpu_layout.layout_on_device(views, shape), host, range(BLOCKS))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("module", "name"), _gpu_layout._BACKENDS.items())
def test_the_backends_have_these_names_and_split_k_from_v_in_the_last_axis(module: str, name: str) -> None:
    """Their modules cannot all be imported without a GPU, so their text is read."""
    [folder] = importlib.util.find_spec("vllm").submodule_search_locations
    source = Path(folder, *module.split(".")[1:]).with_suffix(".py").read_text()
    named = [
        statement.value.value
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef) and function.name == "get_name"
        for statement in function.body
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Constant)
    ]
    assert named == [name]
    assert any(text in source for text in ("split(self.head_size, dim=-1)", "kv_cache_permute.split(hs, dim=-1)"))
