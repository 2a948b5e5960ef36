"""Every parameter with every kind of value: the call succeeds or raises a KvtileError, quickly and without much
memory."""

from __future__ import annotations

import array
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvtile
from calls import SETTINGS, World, calls, public

NUMBERS: list[Any] = [
    -1,
    0,
    1 << 31,
    1 << 32,
    1 << 36,
    1 << 62,
    1 << 63,
    1 << 64,
    -(1 << 63),
    -(1 << 200),
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    1.5,
    True,
    None,
    "1",
]

OTHERS: list[Any] = [
    "",
    "text",
    "\ud800",
    b"",
    b"bytes",
    bytearray(b"bytes"),
    [],
    [-1],
    [1 << 64],
    [1.5],
    [None],
    ["1"],
    [b"x"],
    [[1]],
    [True],
    (),
    (1, 0),
    (-1, 2),
    ((0, 1), 2),
    (1 << 63, 1 << 64),
    {},
    {"a": 1},
    {1: "a"},
    {-1: 1},
    {"rope_theta": [1]},
    {"rope_theta": 10**400},
    {"rope_theta": 1e4, "factor": {}},
    set(),
    object(),
    int,
    np.zeros((2, 2)),
    np.zeros(3),
    np.float64(1.5),
    np.arange(3),
    np.int64(-1),
    np.array([True, False]),
    np.array([], "int64"),
    memoryview(b"abc"),
    lambda: None,
]

# Rust names, which must not occur in a message.
RUST = re.compile(
    r"::|\b[ui](8|16|32|64|128|size)\b|\b(struct|enum|impl|unwrap|Option|Some|Vec|Selection|TenantId|BlockId)\b|&mut|None\)"
)

# The config reader has its own tests.
ELSEWHERE = {(f"{name}.from_hf_config", "config") for name in ("Shape", "Identity", "ModelIdentity")}

# Valid settings that would really allocate: threads, memory and disk space.
AS_ASKED = {("Cache", "host_bytes", 1 << 31)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("arguments")
    made = World(folder)
    # Any text may name a folder for the disk tier, so run inside an empty one.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield made
    made.close()


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


NAMES = sorted(public() | {"Shape of planes"})


def test_every_public_callable_is_called_here(world: World) -> None:
    assert set(calls(world)) == set(NAMES)


def test_every_setting_of_a_cache_is_among_the_arguments(world: World) -> None:
    with pytest.raises(kvtile.ArgumentError) as refused:
        kvtile.Cache(world.identity, world.layout, settings=1)
    assert set(re.findall(r"\w+", str(refused.value).split("it has ")[1])) == set(SETTINGS)


@pytest.mark.parametrize("name", NAMES)
def test_valid_arguments_are_accepted(world: World, name: str) -> None:
    function, arguments = calls(world)[name]()
    if name == "Completion.__await__":
        with pytest.raises(kvtile.RequestError, match="asyncio"):
            function()
        return
    answer = function(**arguments)
    if isinstance(answer, kvtile.Cache):
        answer.close()


def refused(name: str, function: Any, arguments: dict[str, Any]) -> str | None:
    """The error message of a refused call; None if the call succeeds."""
    before, start = resident(), time.monotonic()
    try:
        answer = function(**arguments)
    except kvtile.KvtileError as error:
        assert not isinstance(error, kvtile.InternalError), (name, arguments)
        text = str(error)
        assert not RUST.search(text), text
        return text
    finally:
        assert time.monotonic() - start < 5, (name, arguments)
        assert resident() - before < 256 << 20, (name, arguments)
    if isinstance(answer, kvtile.Cache):
        answer.close()
    return None


# An exception in a callback that cannot be called with a completion is printed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", NAMES)
def test_any_value_succeeds_or_raises_a_kvtile_error(world: World, name: str) -> None:
    parameters = calls(world)[name]()[1]
    for parameter in parameters:
        if (name, parameter) in ELSEWHERE:
            continue
        for value in [*NUMBERS, *OTHERS]:
            function, arguments = calls(world)[name]()
            # A host_bytes as large as available memory is valid.
            if isinstance(value, int) and (name, parameter, value) in AS_ASKED:
                continue
            refused(f"{name}({parameter})", function, {**arguments, parameter: value})


TAKES_NUMBERS = {
    "Plane": ["unit_bytes", "H"],
    "Shape": ["num_blocks", "num_layers", "page_size", "num_heads", "head_size", "first_layer", "total_layers",
              "first_head", "total_heads", "replica"],
    "Shape.with_num_blocks": ["num_blocks"],
    "Shape.from_hf_config": ["page_size"],
    "Identity.from_hf_config": ["page_size"],
    "ModelGroup": ["tokens"],
    "ModelGroup.needs": ["stop"],
    "ModelIdentity.from_hf_config": ["page_size"],
    "TokenHasher": ["seed", "page_size"],
    "TokenSequence.mark": ["start", "stop"],
    "TokenSequence.truncate": ["length"],
    "Completion.wait": ["timeout"],
    "Completion.wait_layer": ["layer", "timeout"],
    "Completion.wait_layer_on": ["stream", "layer", "timeout"],
    "copy_blocks": ["after"],
    "Match.skip": ["blocks"],
    "Match.truncate": ["blocks"],
    "Subscriber.poll": ["count"],
    "Cache": ["host_bytes", "disk_bytes", "workers", "queue_capacity", "recompute_tokens_per_second", "event_capacity"],
    "Cache.lookup": ["owner", "hold", "priority", "lifetime", "output_tokens"],
    "Cache.load": ["within", "after"],
    "Cache.store": ["first", "tenant", "within", "keep", "lifetime", "output_tokens", "after"],
    "Cache.evict": ["blocks"],
}  # fmt: skip

MAY_BE_NEGATIVE = {("Cache.lookup", "priority"), ("Cache.store", "keep")}
MAY_BE_FRACTIONS = {"timeout", "hold", "lifetime", "within", "recompute_tokens_per_second"}


@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_wrong_numbers_are_refused_by_parameter_name(world: World, name: str) -> None:
    for parameter in TAKES_NUMBERS[name]:
        wrong = [True, "1", b"1", [1], {}, object(), float("nan"), float("-inf"), -(1 << 200)]
        if (name, parameter) not in MAY_BE_NEGATIVE:
            wrong.append(-1)
        if parameter not in MAY_BE_FRACTIONS:
            wrong += [1.5, float("inf"), 1 << 64, 10**400]
        for value in wrong:
            function, arguments = calls(world)[name]()
            text = refused(f"{name}({parameter})", function, {**arguments, parameter: value})
            assert text is not None, (name, parameter, value)
            assert parameter in text or "seconds" in text or "tokens per second" in text, text


def test_the_limits_of_settings_are_those_of_the_documents(world: World) -> None:
    text = (Path(__file__).parents[3] / "docs" / "python.md").read_text()
    for setting, most in {"workers": 1024, "queue_capacity": 1 << 24, "event_capacity": 1 << 24}.items():
        with pytest.raises(kvtile.SettingsError, match=f"{setting} is {most + 1}; give [01] to {most}"):
            world.open(**{setting: most + 1})
        assert f"| `{setting}` | " in text and f"{most:,}" in text, setting
    with pytest.raises(kvtile.SettingsError, match=f"host_bytes is {(1 << 46) + 1}"):
        world.open(host_bytes=(1 << 46) + 1)
    # The capacity is only a limit: an empty queue allocates nothing.
    before = resident()
    world.open(workers=0, queue_capacity=1 << 24).close()
    assert resident() - before < 16 << 20


@pytest.mark.parametrize("settings", [{"disk": ""}, {"disk": Path()}])
def test_a_disk_without_a_path_leaves_nothing_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    if settings["disk"] == "":
        with pytest.raises(kvtile.SettingsError, match="path of the disk tier's folder is empty"):
            world.open(**settings, disk_bytes=8 << 20)
        assert list(tmp_path.iterdir()) == []
    else:
        # "." is the working directory, which is empty and may be used.
        world.open(**settings, disk_bytes=8 << 20).close()


LARGE = 4_000_000


@pytest.mark.parametrize(
    "large",
    [
        np.zeros(LARGE, "float32"),
        np.zeros(LARGE, "uint8"),
        np.zeros((LARGE, 1), "int64"),
        np.zeros(LARGE, bool),
        bytes(LARGE),
        bytearray(LARGE),
        memoryview(bytes(LARGE)),
        array.array("d", bytes(8 * LARGE)),
        "x" * LARGE,
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_large_objects_are_not_iterated(world: World, large: Any) -> None:
    """Every list argument refuses a large object, or reads it as a whole, without an object per element."""
    lists = {"tensors", "src_blocks", "dst_blocks", "blocks", "keys", "tokens", "extra", "planes", "parent", "content"}
    seen = set()
    for name in NAMES:
        for parameter in calls(world)[name]()[1]:
            if parameter not in lists:
                continue
            seen.add(parameter)
            function, arguments = calls(world)[name]()
            before, start = resident(), time.thread_time()
            try:
                function(**{**arguments, parameter: large})
            except kvtile.KvtileError:
                pass
            assert time.thread_time() - start < 0.5, (name, parameter)
            assert resident() - before < 100 << 20, (name, parameter)
    assert seen == lists


def test_arrays_and_tensors_are_block_ids_and_tokens(world: World) -> None:
    torch = pytest.importorskip("torch") if _has("torch") else None
    tokens = list(range(3, 19))
    wanted = world.hasher.keys(tokens)
    kinds: list[Any] = [tuple(tokens), range(3, 19), array.array("l", tokens), array.array("B", tokens)]
    for dtype in ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]:
        kinds += [np.array(tokens, dtype), memoryview(np.array(tokens, dtype))]
        wide = np.zeros((16, 3), dtype)
        wide[:, 1] = tokens
        kinds += [wide[:, 1], np.array(tokens[::-1], dtype)[::-1]]
    if torch is not None:
        kinds += [torch.tensor(tokens), torch.tensor(tokens, dtype=torch.int32), list(torch.tensor(tokens))]
    kinds += [[np.int32(token) for token in tokens], memoryview(bytes(tokens))]
    for kind in kinds:
        assert world.hasher.keys(kind) == wanted, kind
        ids = np.arange(4)
        assert kvtile.copy_blocks(world.layout, world.other, ids).bytes == 4 * world.shape.block_bytes
    assert world.hasher.keys(np.array([], "int64")) == world.hasher.keys([]) == []
    for wrong in ["text", b"bytes", bytearray(b"ab"), np.zeros(4), np.zeros((1, 4), int), np.array([True]), {1, 2}, iter([1])]:
        with pytest.raises(kvtile.ArgumentError, match="tokens"):
            world.hasher.keys(wrong)
    for wrong in [[-1], np.array([-1]), [1 << 32], np.array([1 << 32])]:
        with pytest.raises(kvtile.RequestError, match=r"tokens\[0\] is"):
            world.hasher.keys(wrong)


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def test_large_arrays_are_read_quickly(world: World) -> None:
    tokens = np.arange(4_000_000, dtype="int64")
    start, before = time.monotonic(), resident()
    keys = world.hasher.keys(tokens)
    assert len(keys) == 1_000_000
    assert time.monotonic() - start < 10
    assert resident() - before < 512 << 20


def test_a_wrong_list_item_is_named_by_its_index(world: World) -> None:
    with pytest.raises(kvtile.RequestError, match=r"tokens\[2\] is -5; give a whole number of 0 to 4294967295"):
        world.hasher.keys([1, 2, -5, 4])
    with pytest.raises(kvtile.ArgumentError, match=r"tokens\[1\] is a whole number, not 1.5"):
        world.hasher.keys([1, 1.5])
    with pytest.raises(kvtile.ArgumentError, match=r"keys\[1\] is bytes, not 'a'"):
        world.cache.lookup([b"a", "a"])
    with pytest.raises(kvtile.LayoutError, match=r"src_blocks\[0\] is -1"):
        kvtile.copy_blocks(world.layout, world.other, [-1])
    with pytest.raises(kvtile.ArgumentError, match=r"src_blocks\[0\] is a whole number, not True"):
        kvtile.copy_blocks(world.layout, world.other, [True])


class Broken:
    """An object whose array interface is invalid."""

    def __init__(self, interface: object) -> None:
        self.__array_interface__ = interface


class Raising:
    @property
    def __array_interface__(self) -> object:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "broken",
    [
        Broken(3),
        Broken({}),
        Broken({"shape": "x", "typestr": "<f4", "data": (0, False)}),
        Broken({"shape": (1280,), "typestr": 4, "data": (0, False)}),
        Broken({"shape": (1280,), "typestr": "<f4", "data": "here"}),
        Broken({"shape": (-1,), "typestr": "<f4", "data": (0, False)}),
        Raising(),
    ],
)
def test_invalid_array_interfaces_are_refused(world: World, broken: object) -> None:
    for tensors in (broken, [broken]):
        with pytest.raises(kvtile.TensorError):
            kvtile.Layout("BLKNHC", shape=world.shape, tensors=tensors)
    with pytest.raises(kvtile.ArgumentError):
        world.hasher.keys(broken)


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", '{"model": 3}', "null", '{"model": "a"}', "{" * 1000, '{"shape": {"num_layers": -1}}']
)
def test_invalid_identity_json_is_refused_without_rust_names(text: str) -> None:
    with pytest.raises(kvtile.IdentityError) as refused:
        kvtile.Identity.from_json(text)
    assert not RUST.search(str(refused.value)), refused.value


def test_a_call_with_the_wrong_arguments_is_a_type_error_of_python(world: World) -> None:
    for call in [
        lambda: kvtile.Layout(),
        lambda: kvtile.Layout("BLKNHC"),
        lambda: world.cache.lookup(),
        lambda: world.cache.lookup([], 1, 2),
        lambda: world.cache.lookup([], unknown=1),
        lambda: kvtile.Match(),
    ]:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(kvtile.ArgumentError, match="a cache has no setting 'unknown'|\"unknown\""):
        kvtile.Cache(world.identity, world.layout, unknown=None)


@pytest.mark.parametrize("head_size", [1, 8, 64, 512])
def test_host_bytes_per_block_is_in_whole_pages(head_size: int) -> None:
    shape = kvtile.Shape(num_blocks=1, num_layers=1, page_size=4, num_heads=1, head_size=head_size, dtype="float32")
    layout = kvtile.Layout("BLKNHC", shape=shape, tensors=np.zeros(shape.block_bytes // 4, "float32"))
    identity = kvtile.Identity("a", "1", shape)
    with kvtile.Cache(identity, layout, host_bytes=1 << 20) as cache:
        assert cache.host_bytes_per_block == max(4096, shape.block_bytes)
        assert cache.pool_stats("host")["blocks"] == (1 << 20) // cache.host_bytes_per_block
    with pytest.raises(kvtile.SettingsError, match=f"give at least {max(4096, shape.block_bytes)}"):
        kvtile.Cache(identity, layout, host_bytes=cache.host_bytes_per_block - 1)
