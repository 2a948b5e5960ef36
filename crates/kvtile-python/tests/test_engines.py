"""Checks presets against the bytes that engines write, if the engine can run here."""

from __future__ import annotations

import pytest

import kvtile

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ["vec", "vec16"])
def test_the_cpu_backend_of_vllm_matches_its_preset(dtype: str, isa: str) -> None:
    pytest.importorskip("vllm")
    from vllm import _custom_ops as ops

    if not hasattr(torch.ops._C, "cpu_attn_reshape_and_cache"):
        pytest.skip("this vLLM has no CPU backend")
    blocks, layers, heads, page, size = 6, 2, 3, 32, 64
    kind = getattr(torch, dtype)
    pool = torch.zeros((layers, blocks, heads, page, 2 * size), dtype=kind)
    keys, values = torch.rand((2, layers, blocks * page, heads, size)).to(kind)
    for layer in range(layers):
        halves = pool[layer].view(blocks, heads, 2 * page, size).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(keys[layer], values[layer], *halves, torch.arange(blocks * page), isa)
    shape = kvtile.Shape(
        num_blocks=blocks, num_layers=layers, page_size=page, num_heads=heads, head_size=size, dtype=dtype
    )
    engine = kvtile.Layout.preset(f"vllm:LBHNC/cpu/{dtype}/{isa}", shape=shape, tensors=list(pool))
    plain = torch.zeros((blocks, layers, 2, page, heads, size), dtype=kind)
    kvtile.copy_blocks(engine, kvtile.Layout("BLKNHC", shape=shape, tensors=plain), range(blocks))
    wanted = torch.stack([keys, values], 1).view(layers, 2, blocks, page, heads, size).permute(2, 0, 1, 3, 4, 5)
    assert torch.equal(plain, wanted)
