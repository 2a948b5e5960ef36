"""Error messages for common mistakes in full; pickling; notebook output."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvtile
from kvtile import Shape

SIZES: dict[str, Any] = {"num_blocks": 8, "num_layers": 2, "page_size": 16}
SHAPE = Shape(**SIZES, num_heads=2, head_size=8, dtype="float32")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "torch_dtype": "bfloat16",
    "rope_theta": 10000.0,
}


def layout(shape: Shape = SHAPE, word: str = "BLKNHC") -> tuple[kvtile.Layout, np.ndarray[Any, Any]]:
    blocks = np.arange(shape.block_bytes // 4 * shape.num_blocks, dtype="float32")
    return kvtile.Layout(word, shape=shape, tensors=blocks), blocks


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (
            "blknhc",
            '"blknhc" has its axes in small letters; axes are capital letters, planes small ones: BLKNHC',
        ),
        (
            "BLKNH",
            "BLKNH lacks axis C (the content: the elements of one head of one token), of which plane k has 8; "
            "put C where it lies, for instance BLKNHC or BLKNCH or BLKCNH",
        ),
        (
            "vllm:LBHNC/cpu/float32/vec",
            '"vllm:LBHNC/cpu/float32/vec" is the name of a known layout; give it to '
            'Layout.preset("vllm:LBHNC/cpu/float32/vec", shape=…)',
        ),
    ],
)
def test_an_invalid_word_gets_a_suggestion(word: str, answer: str) -> None:
    with pytest.raises(kvtile.LayoutError) as said:
        kvtile.Layout(word, shape=SHAPE)
    assert str(said.value) == answer


def test_an_engine_name_lists_its_layouts() -> None:
    with pytest.raises(kvtile.LayoutError) as said:
        kvtile.Layout("vllm", shape=SHAPE)
    lines = str(said.value).splitlines()
    assert lines[0] == '"vllm" is no layout word; it names the engine vllm:'
    assert lines[1] == "  vllm:LBHNC/gpu/bf16"
    assert re.fullmatch(r"  and \d+ more", lines[-1])


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("half", "f16"),
        (np.float16, "f16"),
        (np.dtype("float32"), "f32"),
        ("fp8", "fp8_e4m3"),
        ("fp8_e5m2", "fp8_e5m2"),
        ("F8_E4M3", "fp8_e4m3"),
        ("torch.float8_e4m3fn", "fp8_e4m3"),
    ],
)
def test_dtypes_go_by_the_names_of_every_framework(dtype: Any, codec: str) -> None:
    assert Shape(**SIZES, num_heads=2, head_size=8, dtype=dtype).planes[0].codec == codec
    assert kvtile.Plane("c", dtype, C=4).codec == codec


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [
        ("float33", 'no data type is called "float33"; did you mean float32?'),
        (
            "auto",
            'no data type is called "auto"; auto stands for the model\'s own type; give that, for instance bfloat16',
        ),
        (
            float,
            "Python's own int and float have no fixed width: numpy takes float for 64 bits, torch for 32; "
            "give a dtype such as 'float32' or torch.bfloat16",
        ),
    ],
)
def test_an_invalid_dtype_gets_a_suggestion(dtype: Any, answer: str) -> None:
    with pytest.raises(kvtile.LayoutError) as said:
        Shape(**SIZES, num_heads=2, head_size=8, dtype=dtype)
    assert str(said.value) == answer


@pytest.mark.parametrize(
    ("given", "meant"),
    [("heads", "num_heads"), ("num_kv_heads", "num_heads"), ("head_dim", "head_size"), ("num_head", "num_heads")],
)
def test_a_wrong_keyword_gets_a_suggestion(given: str, meant: str) -> None:
    answer = rf"^Shape\(\) got an unexpected keyword argument '{given}'; did you mean {meant}\?$"
    with pytest.raises(TypeError, match=answer):
        Shape(**SIZES, **{given: 2})
    engine, _ = layout()
    identity = kvtile.Identity("m", "main", SHAPE)
    with pytest.raises(kvtile.ArgumentError, match=r"a cache has no setting \"host_byte\"; did you mean host_bytes\?; it has"):
        kvtile.Cache(identity, engine, host_byte=1 << 20)  # type: ignore[call-arg]


def test_missing_shape_arguments_are_named() -> None:
    with pytest.raises(kvtile.LayoutError) as said:
        Shape(**SIZES, num_heads=2)
    assert str(said.value) == (
        "a shape needs num_heads, head_size and dtype, or planes instead of them; missing: head_size, dtype"
    )


def test_a_config_is_a_dict_an_object_a_file_or_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    config = type("Config", (), {})()
    vars(config).update(CONFIG)
    for given in (CONFIG, config, file, str(file), tmp_path, str(tmp_path)):
        shape = Shape.from_hf_config(given, page_size=16)
        assert (shape.num_layers, shape.num_heads, shape.planes[0].codec) == (2, 2, "bf16")
        identity = kvtile.Identity.from_hf_config(given, page_size=16, model="m", revision="r")
        assert identity == kvtile.Identity.from_hf_config(CONFIG, page_size=16, model="m", revision="r")


def test_an_invalid_config_is_named(tmp_path: Path) -> None:
    none, text, listed = tmp_path / "none.json", tmp_path / "text.json", tmp_path / "list.json"
    text.write_text("{")
    listed.write_text("[]")
    hint = "; give the folder of the model, or what AutoConfig.from_pretrained returns for a name on the hub"
    for given, answer in [
        (none, f"{none}: No such file or directory{hint}"),
        (tmp_path, f"{tmp_path / 'config.json'}: No such file or directory{hint}"),
        (text, f"{text} is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (listed, f"{listed} is not a config: it holds a list, and a config is an object"),
    ]:
        with pytest.raises(kvtile.IdentityError) as said:
            Shape.from_hf_config(given, page_size=16)
        assert str(said.value) == answer
    with pytest.raises(kvtile.ArgumentError) as refused:
        kvtile.Identity.from_hf_config(7, page_size=16)
    assert str(refused.value) == (
        "config is a PretrainedConfig, a dict, or the path of a config.json or of its folder, not a value of type int"
    )


def test_settings_layers_times_and_pages_out_of_range_are_refused() -> None:
    engine, _ = layout()
    identity = kvtile.Identity("m", "main", SHAPE)
    with pytest.raises(kvtile.SettingsError, match=r"^workers is 1000000; give 0 to 1024$"):
        kvtile.Cache(identity, engine, workers=10**6)
    with pytest.raises(kvtile.RequestError) as said:
        kvtile.TokenHasher(identity, page_size=32)
    assert str(said.value) == (
        "page_size is 32, and blocks of this identity have 16 tokens, so no cache would find the keys; leave page_size "
        'out, or make the identity with page_size=32 (only the profile "router" has pages of its own)'
    )
    assert kvtile.TokenHasher(identity, page_size=32, profile="router", seed=7).page_size == 32
    with kvtile.Cache(identity, engine, host_bytes=1 << 20) as cache:
        keys = kvtile.TokenHasher(identity).keys(range(32))
        stored = cache.store(keys, [0, 1])
        stored.wait()
        with pytest.raises(kvtile.RequestError) as said:
            cache.load(cache.lookup(keys), [2, 3], within=float("nan"))
        assert str(said.value) == "within is nan; give 0 seconds or more"
        load = cache.load(cache.lookup(keys), [2, 3])
        assert load.wait_layer(1)
        for completion in (load, stored):
            with pytest.raises(kvtile.RequestError, match=r"^layer is 7, and there are 2 layers, counted from 0$"):
                completion.wait_layer(7)


@pytest.mark.parametrize("pages", [(16, 32), (32, 16), (16, 64)])
def test_pages_of_different_sizes_exchange_tokens(pages: tuple[int, int]) -> None:
    page, other = pages
    make = lambda size: Shape(  # noqa: E731
        num_blocks=128 // size, num_layers=2, page_size=size, num_heads=2, head_size=8, dtype="float32"
    )
    src, values = layout(make(page))
    dst, copied = layout(make(other))
    copied[:] = 0
    blocks, others = list(range(128 // page))[::-1], list(range(128 // other))
    assert kvtile.plan(src, dst).bytes == values.nbytes
    report = kvtile.copy_blocks(src, dst, blocks, others, verify=True)
    assert report.bytes == values.nbytes
    # Axes: block, layer, plane, token; the tokens of both sides in list order.
    tokens = values.reshape(-1, 2, 2, page, 16)[blocks].transpose(1, 2, 0, 3, 4).reshape(2, 2, 128, 16)
    found = copied.reshape(-1, 2, 2, other, 16).transpose(1, 2, 0, 3, 4).reshape(2, 2, 128, 16)
    assert np.array_equal(tokens, found)


def round_trips(value: Any) -> list[Any]:
    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    return [copy.copy(value), copy.deepcopy(value), *(pickle.loads(pickle.dumps(value, p)) for p in protocols)]


def facts(value: Any) -> dict[str, Any]:
    names = [name for name in dir(value) if not name.startswith("_")]
    return {name: getattr(value, name) for name in names if not callable(getattr(value, name))}


def test_plain_data_is_restored_equal(tmp_path: Path) -> None:
    part = Shape(**SIZES, num_heads=2, head_size=8, dtype="bf16", first_layer=2, total_layers=8, total_heads=4)
    identity = kvtile.Identity("m", "r", part, rope={"rope_theta": 1e4, "factor": 8.0}, extra={"a": "ä"})
    planes = [kvtile.Plane("c", "q8_0", C=4), kvtile.Plane("x", "secret", unit_bytes=64, opaque=True, per_page=True)]
    for value in (part, identity, *planes, Shape(**SIZES, planes=planes)):
        for again in round_trips(value):
            assert again == value and hash(again) == hash(value) and type(again) is type(value)
            assert facts(again) == facts(value)
    for hasher in (
        kvtile.TokenHasher(identity, salt="tenant"),
        kvtile.TokenHasher(identity, profile="xxh3"),
        kvtile.TokenHasher(identity, profile="router", seed=3, page_size=4),
    ):
        for again in round_trips(hasher):
            assert again.keys(range(40)) == hasher.keys(range(40))
    engine, _ = layout()
    identity = kvtile.Identity("m", "main", SHAPE)
    with kvtile.Cache(identity, engine, host_bytes=1 << 20, disk=tmp_path / "disk", disk_bytes=1 << 20) as cache:
        subscriber = cache.subscribe()
        keys = kvtile.TokenHasher(identity).keys(range(32))
        reports = [
            cache.store(keys, [0, 1]).wait(),
            cache.load(cache.lookup(keys), [2, 3]).wait(),
            cache.flush(),
            kvtile.copy_blocks(engine, engine, [0], [5]),
        ]
        cache.clear()
        events = subscriber.poll()
        assert {event.kind for event in events} >= {"stored", "cleared"} or {event.kind for event in events} >= {
            "stored",
            "removed",
        }
        for value in (*reports, *events):
            for again in round_trips(value):
                assert repr(again) == repr(value) and facts(again) == facts(value)


def test_objects_with_memory_or_threads_refuse_pickling() -> None:
    engine, _ = layout()
    identity = kvtile.Identity("m", "main", SHAPE)
    with kvtile.Cache(identity, engine, host_bytes=1 << 20) as cache:
        hasher = kvtile.TokenHasher(identity)
        keys = hasher.keys(range(32))
        store = cache.store(keys, [0, 1])
        store.wait()
        for value, answer in [
            (engine, "it holds the memory of its tensors; pickle its word and its shape"),
            (cache, "it has memory and threads; open another one with its identity and a layout"),
            (store, "it waits for an operation of this process; pickle the report that wait returns"),
            (cache.lookup(keys), "it pins blocks of its cache; pickle the keys and look them up again"),
            (cache.subscribe(), "it holds a position in the events of its cache; subscribe again"),
            (cache.snapshot(), "it belongs to its cache; pickle its blocks"),
            (kvtile.plan(engine, engine, [0], [1]), "it is computed from two layouts; call plan again where it is needed"),
            (
                kvtile.TokenSequence(hasher, range(3)),
                "it grows, and cannot restore its marks; pickle its hasher and its tokens",
            ),
        ]:
            expected = f"a {type(value).__name__} cannot be pickled or copied: {answer}"
            calls: list[Callable[[Any], Any]] = [pickle.dumps, copy.copy, copy.deepcopy]
            for call in calls:
                with pytest.raises(TypeError) as said:
                    call(value)
                assert str(said.value) == expected


def test_notebooks_show_layouts_and_caches() -> None:
    engine, _ = layout()
    picture = engine._repr_html_()
    assert picture.startswith("<svg ") and "BLKNHC" in picture and picture.rstrip().endswith("</svg>")
    identity = kvtile.Identity("m", "main", SHAPE)
    cache = kvtile.Cache(identity, engine, host_bytes=1 << 20)
    keys = kvtile.TokenHasher(identity).keys(range(32))
    cache.store(keys, [0, 1]).wait()
    table = cache._repr_html_()
    assert table.startswith("<table><caption>&lt;kvtile.Cache for BLKNHC: open&gt;</caption>")
    assert '<th style="text-align:left">moves</th><td style="text-align:left">device to host: 2 blocks</td>' in table
    assert table.endswith("</table>") and "lookups" in table
    # The table escapes the cache's text.
    inside = re.sub(r"</?(table|caption|tr|th|td)( style=\"text-align:left\")?>", "", table)
    assert "<" not in inside and ">" not in inside
    cache.close()
    assert cache._repr_html_() == "<table><caption>&lt;kvtile.Cache for BLKNHC: closed&gt;</caption></table>"


def test_an_invalid_pickle_is_refused() -> None:
    for kind in (Shape, kvtile.Identity, kvtile.Plane, kvtile.TokenHasher, kvtile.LoadReport, kvtile.Event):
        for text in ("", "[]", '{"num_blocks": -1}', "null"):
            with pytest.raises(kvtile.ArgumentError, match="^not a pickled kvtile object: "):
                kind._from_pickle(text)  # type: ignore[attr-defined]
