"""Words, shapes, planes and presets."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest

import kvtile
from helpers import shape


def test_the_package_has_a_version() -> None:
    assert kvtile.__version__.count(".") == 2


def test_the_default_order_of_stored_blocks_is_a_word() -> None:
    assert kvtile.STORAGE_WORD in repr(kvtile.Layout(kvtile.STORAGE_WORD, shape=shape()))


def test_dtypes_are_accepted_in_every_form() -> None:
    for dtype in ["float32", "f32", "torch.float32", np.float32, np.dtype("float32")]:
        assert shape(dtype) == shape("float32")
    assert shape(ml_dtypes.bfloat16) == shape("bf16") == shape(np.dtype("bfloat16"))
    assert shape("float8_e4m3fn") == shape("fp8_e4m3") != shape("float8_e4m3fnuz")
    with pytest.raises(kvtile.LayoutError, match="'float33'|\"float33\""):
        shape("float33")


def test_shapes_describe_themselves() -> None:
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
    assert record.unit_bytes == 34 and record.codec == "q8_0" and record.axes == {"H": 2, "C": 4}
    page = kvtile.Plane("kv", "vllm-cpu-neon-bf16-128", unit_bytes=4096, opaque=True, per_page=True)
    made = kvtile.Shape(num_blocks=3, num_layers=2, page_size=16, planes=[page])
    assert made.block_bytes == 2 * 4096
    for wrong in [{"Hh": 2}, {"h": 2}, {"B": 2}, {"H": 0}]:
        with pytest.raises(kvtile.LayoutError):
            kvtile.Shape(num_blocks=1, num_layers=1, page_size=1, planes=[kvtile.Plane("k", "f32", **wrong)])
    with pytest.raises(kvtile.LayoutError):
        kvtile.Plane("k", "x", opaque=True)


def test_an_invalid_word_shows_where() -> None:
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


def test_a_panic_is_an_exception_like_others(capfd: pytest.CaptureFixture[str]) -> None:
    panic = getattr(kvtile._kvtile, "_panic", None)
    if panic is None:
        pytest.skip("release builds lack the panic function")
    with pytest.raises(kvtile.InternalError, match="defect of kvtile.*something broke"):
        panic("something broke")
    assert "something broke" in capfd.readouterr().err
    assert kvtile.plan(kvtile.Layout("BLKNHC", shape=shape()), kvtile.Layout("BHLKNC", shape=shape())).runs > 0


def test_exceptions_are_a_small_hierarchy() -> None:
    names = [name for name in dir(kvtile) if name.endswith("Error")]
    for name in names:
        error = getattr(kvtile, name)
        assert issubclass(error, kvtile.KvtileError) and error.__module__ == "kvtile" and error.__doc__
    assert issubclass(kvtile.TensorError, ValueError) and issubclass(kvtile.DiskError, OSError)
    assert issubclass(kvtile.WaitTimeoutError, TimeoutError)


LLAMA = {
    "model_type": "llama",
    "_name_or_path": "a/llama",
    "_commit_hash": "0e9e39f",
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_size": 1024,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
    "rope_scaling": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


class Config:
    """A config object in the style of transformers."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def test_identities_come_from_configs_of_hugging_face() -> None:
    identity = kvtile.Identity.from_hf_config(LLAMA, page_size=16)
    assert (identity.model, identity.revision, identity.page_size) == ("a/llama", "0e9e39f", 16)
    assert identity == kvtile.Identity.from_hf_config(Config(**LLAMA), page_size=16)
    nested = {"text_config": LLAMA, "_name_or_path": "a/llama", "_commit_hash": "0e9e39f"}
    assert identity == kvtile.Identity.from_hf_config(nested, page_size=16)
    newer = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    rope = {"rope_theta": 500000.0, **LLAMA["rope_scaling"], "rope_type": "llama3"}
    del rope["type"]
    assert identity == kvtile.Identity.from_hf_config({**newer, "rope_parameters": rope}, page_size=16)
    shape = kvtile.Shape.from_hf_config(LLAMA, page_size=16, num_blocks=7)
    assert (shape.num_blocks, shape.num_layers, shape.num_heads) == (7, 8, 4)
    assert shape.block_bytes == 8 * 2 * 16 * 4 * 64 * 2
    by_hand = kvtile.Identity("a/llama", "0e9e39f", shape, rope=rope, extra=identity.extra)
    assert by_hand == identity and hash(by_hand) == hash(identity)
    assert by_hand.fingerprint == identity.fingerprint and "a/llama" in repr(identity)
    assert kvtile.Identity.from_json(identity.to_json()) == identity


def test_facts_that_determine_values_are_in_the_identity() -> None:
    base = kvtile.Identity.from_hf_config(LLAMA, page_size=16)
    assert base.difference(base) is None
    for field, changed in {
        "rope.base": {"rope_theta": 1e4},
        "rope.params.factor": {"rope_scaling": {**LLAMA["rope_scaling"], "factor": 4.0}},
        "revision": {"_commit_hash": "1"},
        "model": {"_name_or_path": "b"},
        "planes.k.codec": {"torch_dtype": "float16"},
        "planes.k.C": {"head_dim": 32},
        "shard.layers.count": {"num_hidden_layers": 9},
    }.items():
        other = kvtile.Identity.from_hf_config({**LLAMA, **changed}, page_size=16)
        assert (base.difference(other) or "").startswith(field), (field, base.difference(other))
        assert other != base and other.fingerprint != base.fingerprint
    for settings in [{"dtype": "fp8_e4m3"}, {"tp_size": 2, "tp_rank": 1}, {"layers": (0, 4)}, {"extra": {"lora": "x"}}]:
        assert kvtile.Identity.from_hf_config(LLAMA, page_size=16, **settings) != base
    assert kvtile.Identity.from_hf_config(LLAMA, page_size=32) != base


def test_ranks_hold_parts_of_the_model() -> None:
    halves = [kvtile.Identity.from_hf_config(LLAMA, page_size=16, tp_rank=rank, tp_size=2) for rank in range(2)]
    assert (halves[0].difference(halves[1]) or "").startswith("shard.heads.start")
    replicas = [kvtile.Identity.from_hf_config(LLAMA, page_size=16, tp_rank=rank, tp_size=8) for rank in range(8)]
    assert replicas[0] == replicas[1] != replicas[2] and len(set(replicas)) == 4
    with pytest.raises(kvtile.IdentityError, match="rank 2 of 2"):
        kvtile.Identity.from_hf_config(LLAMA, page_size=16, tp_rank=2, tp_size=2)
    with pytest.raises(kvtile.IdentityError, match="rank 0 of 3"):
        kvtile.Identity.from_hf_config(LLAMA, page_size=16, tp_size=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_commit_hash": None}, "revision="),
        ({"_name_or_path": ""}, "model="),
        ({"torch_dtype": None}, "dtype="),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"rope_theta": None}, "rope_theta"),
        ({"kv_lora_rank": 512}, "latent"),
        ({"sliding_window": 1024}, "sliding window"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"rope_scaling": {"full_attention": {"rope_theta": 1.0}}}, "several kinds"),
    ],
)
def test_missing_config_fields_are_requested(changes: dict, message: str) -> None:
    with pytest.raises(kvtile.IdentityError, match=message):
        kvtile.Identity.from_hf_config({**LLAMA, **changes}, page_size=16)


def test_keys_depend_on_everything_before_and_beside_the_tokens() -> None:
    identity = kvtile.Identity.from_hf_config(LLAMA, page_size=4)
    hasher = kvtile.TokenHasher(identity)
    keys = hasher.keys(range(11))
    assert len(keys) == 2 and hasher.page_size == 4
    assert keys == hasher.keys(np.arange(11)) == hasher.keys(np.arange(11, dtype=np.int32)) == hasher.keys(list(range(8)))
    assert hasher.keys(range(4, 8), parent=keys[0]) == keys[1:]
    assert hasher.keys(range(4, 8)) != keys[1:]
    others = [
        kvtile.TokenHasher(identity, salt="tenant").keys(range(4)),
        kvtile.TokenHasher(identity, profile="xxh3").keys(range(4)),
        kvtile.TokenHasher(kvtile.Identity.from_hf_config(LLAMA, page_size=4, revision="2")).keys(range(4)),
        hasher.keys(range(4), extra=[b"adapter"]),
        hasher.keys(range(4), extra=[b"adap", b"ter"]),
    ]
    assert len({key for (key,) in [*others, keys[:1]]}) == 6
    for wrong in [
        {"profile": "md5"}, {"page_size": 0}, {"page_size": 2}, {"profile": "router"}, {"profile": "xxh3", "seed": 1},
        {"profile": "router", "seed": 1, "salt": "tenant"},
    ]:
        with pytest.raises(kvtile.RequestError):
            kvtile.TokenHasher(identity, **wrong)
    with pytest.raises(kvtile.RequestError):
        hasher.keys([-1, 2, 3, 4])
    # The hashes that routers of this kind publish for these tokens.
    router = kvtile.TokenHasher(identity, profile="router", seed=1337).keys(range(1, 13))
    assert [struct.unpack("<QQ", key) for key in router] == [
        (14643705804678351452, 14643705804678351452),
        (4945711292740353085, 16777012769546811212),
        (12583592247330656132, 483935686894639516),
    ]


def test_sequences_grow_and_shrink() -> None:
    hasher = kvtile.TokenHasher(kvtile.Identity.from_hf_config(LLAMA, page_size=4))
    sequence = kvtile.TokenSequence(hasher, range(3))
    assert sequence.keys == [] and sequence.extend([3, 4]) == hasher.keys(range(4))
    assert len(sequence) == 5 and sequence.tokens == [0, 1, 2, 3, 4]
    sequence.extend(np.arange(5, 12))
    assert sequence.keys == hasher.keys(range(12)) and "3 full blocks" in repr(sequence)
    sequence.truncate(5)
    assert sequence.keys == hasher.keys(range(4))
    sequence.mark(6, 8, b"an image")
    sequence.extend(range(5, 8))
    assert sequence.keys[0] == hasher.keys(range(4))[0] and sequence.keys[1] != hasher.keys(range(8))[1]
    with pytest.raises(kvtile.RequestError, match="made already"):
        sequence.mark(2, 3, b"late")
    assert kvtile.TokenSequence(hasher, range(4), extra=[b"a"]).keys == hasher.keys(range(4), extra=[b"a"])
