"""Words, shapes, planes and presets."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import kvtile
from helpers import shape


def test_the_package_has_a_version() -> None:
    assert kvtile.__version__.count(".") == 2


def test_dtypes_may_be_said_in_any_way() -> None:
    for dtype in ["float32", "f32", "torch.float32", np.float32, np.dtype("float32")]:
        assert shape(dtype) == shape("float32")
    assert shape(ml_dtypes.bfloat16) == shape("bf16") == shape(np.dtype("bfloat16"))
    assert shape("float8_e4m3fn") == shape("fp8_e4m3") != shape("float8_e4m3fnuz")
    with pytest.raises(kvtile.LayoutError, match="'float33'|\"float33\""):
        shape("float33")


def test_shapes_say_what_they_are() -> None:
    made = shape()
    assert (made.num_blocks, made.num_layers, made.page_size, made.num_heads) == (5, 2, 4, 2)
    assert made.block_bytes == 2 * 2 * 4 * 2 * 8 * 4
    assert [plane.name for plane in made.planes] == ["k", "v"]
    assert made.with_num_blocks(9).num_blocks == 9
    assert "num_blocks=5" in repr(made) and hash(made) == hash(shape())
    for wrong in [{"num_heads": 2}, {"planes": [], "dtype": "f32"}, {}]:
        with pytest.raises(kvtile.LayoutError):
            kvtile.Shape(num_blocks=1, num_layers=1, page_size=1, **wrong)
    with pytest.raises(kvtile.LayoutError, match="num_blocks is 0"):
        shape(B=0)
    with pytest.raises(TypeError):
        kvtile.Shape(num_blocks=1, num_layers=1, page_size=1, head_sizes=3)


def test_planes_of_any_kind() -> None:
    latent = kvtile.Plane("c", "bfloat16", C=512)
    rope = kvtile.Plane("r", "bfloat16", C=64)
    made = kvtile.Shape(num_blocks=3, num_layers=2, page_size=16, planes=[latent, rope])
    assert kvtile.Layout("L|BN(c,r)C", shape=made).region_bytes == [3 * 16 * 576 * 2] * 2
    record = kvtile.Plane("k", "q8_0", H=2, C=4)
    assert record.unit_bytes == 34 and record.codec == "q8_0"
    page = kvtile.Plane("kv", "vllm-cpu-neon-bf16-128", unit_bytes=4096, opaque=True, per_page=True)
    made = kvtile.Shape(num_blocks=3, num_layers=2, page_size=16, planes=[page])
    assert made.block_bytes == 2 * 4096
    for wrong in [{"Hh": 2}, {"h": 2}, {"B": 2}, {"H": 0}]:
        with pytest.raises(kvtile.LayoutError):
            kvtile.Shape(num_blocks=1, num_layers=1, page_size=1, planes=[kvtile.Plane("k", "f32", **wrong)])
    with pytest.raises(kvtile.LayoutError):
        kvtile.Plane("k", "x", opaque=True)


def test_a_word_that_is_none_is_pointed_at() -> None:
    for word in ["BLKNH", "", "B(kC", "BLXKNHC", "BLKNHCC", "kNvC"]:
        with pytest.raises(kvtile.LayoutError):
            kvtile.Layout(word, shape=shape())


def test_layouts_describe_themselves() -> None:
    made = kvtile.Layout("L|BH(kCN,vNC)", shape=shape())
    assert made.word == "L|BH(kCN,vNC)" and made.shape == shape()
    assert "no tensors" in repr(made) and not made.is_writable
    assert "token" in made.describe()
    assert made.fingerprint == kvtile.Layout("L|BH(kCN,vNC)", shape=shape()).fingerprint
    assert made.fingerprint != kvtile.Layout("L|BHKNC", shape=shape()).fingerprint


def test_presets_are_for_their_dtype() -> None:
    made = kvtile.Layout.preset("vllm:LBHNC/cpu/float32/vec", shape=shape())
    assert made.word == "L|BH(kCN,vNC)" and made.preset_name == "vllm:LBHNC/cpu/f32/vec"
    with pytest.raises(kvtile.LayoutError, match="the shape has k bf16"):
        kvtile.Layout.preset("vllm:LBHNC/cpu/float32/vec", shape=shape("bfloat16"))
    with pytest.raises(kvtile.LayoutError, match="did you mean"):
        kvtile.Layout.preset("vllm:LBHNC/cpu/bf16/vex", shape=shape("bfloat16"))
    with pytest.raises(kvtile.LayoutError):
        kvtile.Layout.preset("transformers:quantised/any", shape=shape())


def test_shards_are_parts_of_a_model() -> None:
    part = {"num_blocks": 2, "num_layers": 2, "page_size": 4, "num_heads": 2, "head_size": 8, "dtype": "f32"}
    half = kvtile.Shape(**part, first_head=2, total_heads=4)
    assert half != kvtile.Shape(**part)
    with pytest.raises(kvtile.LayoutError, match="heads"):
        kvtile.Shape(**part, first_head=3, total_heads=4)


def test_exceptions_are_a_small_hierarchy() -> None:
    names = [name for name in dir(kvtile) if name.endswith("Error")]
    for name in names:
        error = getattr(kvtile, name)
        assert issubclass(error, kvtile.KvtileError) and error.__module__ == "kvtile" and error.__doc__
    assert issubclass(kvtile.TensorError, ValueError) and issubclass(kvtile.DiskError, OSError)
    assert issubclass(kvtile.WaitTimeoutError, TimeoutError)
