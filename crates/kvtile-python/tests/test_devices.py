"""Tensors of a device, under the stand-in driver: taken without a copy, or refused with an error that names them. Not run on
hardware."""

from __future__ import annotations

import ctypes
import gc
import itertools
import re
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kvtile
from helpers import WORDS, layout, shape
from standin import (
    PRODUCERS,
    DeviceMemory,
    DeviceTensor,
    DlpackTensor,
    InterfaceTensor,
    VersionedTensor,
    checked,
    driver,
    numbers,
    on_device,
    provokes,
)

__all__ = ["checked", "provokes"]  # The fixtures of the tests below.

PRESETS = Path(__file__).parents[3] / "crates/kvtile-layout/presets/layouts.toml"


def gpu_presets() -> list[str]:
    return re.findall(r'^name = "([^"]*/gpu/[^"]*)"', PRESETS.read_text(), re.MULTILINE)


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("word", WORDS)
def test_copies_equal_those_of_host_memory(producer: type[DeviceTensor], word: str) -> None:
    plain = shape()
    device, tensors, arrays = on_device(word, plain, producer)
    expected = kvtile.Layout(word, shape=plain, tensors=arrays)
    assert device.is_writable and device.region_bytes == expected.region_bytes
    (dst, [stored]), (host, [wanted]) = layout("BHLKNC", plain), layout("BHLKNC", plain)
    kvtile.copy_blocks(device, dst, [4, 0, 2], [1, 2, 3])
    kvtile.copy_blocks(expected, host, [4, 0, 2], [1, 2, 3])
    assert stored.tobytes() == wanted.tobytes()
    for source, target in [(dst, device), (host, expected)]:
        kvtile.copy_blocks(source, target, [1, 2], [0, 3], layers=(1, 2), verify=True)
    for target in (device, expected):
        kvtile.copy_blocks(target, target, [0], [1])
    assert [tensor.bytes() for tensor in tensors] == [array.tobytes() for array in arrays]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_slices_and_gaps_keep_the_bytes_between_them(producer: type[DeviceTensor]) -> None:
    """Each layer is every second row of a wider tensor, from an offset on."""
    plain = shape()
    wide = [numbers(np.zeros((5, 2, 2, 4, 24), "float32"), seed) for seed in range(2)]
    memory = [DeviceMemory(array) for array in wide]
    sizes, strides = [5, 2, 2, 4, 8], [2 * 2 * 4 * 24, 2 * 4 * 24, 4 * 24, 24, 1]
    tensors = [
        producer(array, memory=of, sizes=sizes, strides=strides, offset=16 * 4) for array, of in zip(wide, memory)
    ]
    device = kvtile.Layout("L|BKHNC", shape=plain, tensors=tensors)
    host = kvtile.Layout("L|BKHNC", shape=plain, tensors=[array[..., 16:24] for array in wide])
    (dst, [stored]), (other, [wanted]) = layout("BLKNHC", plain), layout("BLKNHC", plain)
    for source, target in [(device, dst), (host, other)]:
        kvtile.copy_blocks(source, target, range(5))
    assert stored.tobytes() == wanted.tobytes()
    stored[:] = wanted[:] = numbers(stored, 9)
    for source, target in [(dst, device), (other, host)]:
        kvtile.copy_blocks(source, target, [3, 1], [0, 2])
    assert [of.bytes() for of in memory] == [array.tobytes() for array in wide]


FLAT = np.zeros(1280, "float32")
HUGE = 1 << 60


def pinned() -> int:
    return driver().pinned


HOSTILE: list[tuple[str, type[DeviceTensor], dict[str, Any], str]] = [
    ("null", DlpackTensor, {"address": 0}, "its address is null"),
    ("null with an offset", DlpackTensor, {"address": 0, "offset": 64}, "is not memory of a device"),
    ("null", InterfaceTensor, {"address": 0}, "its address is null"),
    ("no entries", DlpackTensor, {"sizes": [0, 1280]}, "is empty"),
    ("no entries", InterfaceTensor, {"sizes": [0, 1280], "address": 0}, "is empty"),
    ("another device", DlpackTensor, {"device": (2, 1)}, "on device 1, and its address 0x.* is memory of device 0"),
    ("no such device", DlpackTensor, {"device": (2, 7)}, "on device 7, and its address"),
    ("a negative device", DlpackTensor, {"device": (2, -1)}, r"it is on cuda:-1"),
    ("managed by name", DlpackTensor, {"device": (13, 0)}, "managed memory of cuda:0, which moves"),
    ("another vendor", DlpackTensor, {"device": (10, 0)}, "it is on rocm:0"),
    ("two devices", DlpackTensor, {"inside": (2, 1)}, r"__dlpack_device__ is \(2, 0\), and the capsule is on \(2, 1\)"),
    ("two kinds", DlpackTensor, {"inside": (1, 0)}, r"and the capsule is on \(1, 0\)"),
    ("host memory", DlpackTensor, {"address": FLAT.ctypes.data}, "is not memory of a device"),
    ("host memory", InterfaceTensor, {"address": FLAT.ctypes.data}, "is not memory of a device"),
    ("pinned memory", InterfaceTensor, {"address": pinned}, "is not memory of a device"),
    ("too large", DlpackTensor, {"sizes": [1281]}, "is not 5124 bytes of memory of device 0: it is in an allocation of 5120"),
    ("too far", InterfaceTensor, {"offset": 64}, "is not 5120 bytes of memory"),
    ("misaligned", DlpackTensor, {"offset": 2}, "is not a multiple of the 4 bytes"),
    ("misaligned", InterfaceTensor, {"offset": 1}, "is not a multiple of the 4 bytes"),
    ("an offset around the end", DlpackTensor, {"offset": (1 << 64) - 8}, "no shape or no address"),
    ("backwards", DlpackTensor, {"sizes": [2, 640], "strides": [-640, 1]}, "goes backwards"),
    ("huge strides", DlpackTensor, {"sizes": [2, 640], "strides": [HUGE, 1]}, "memory of device 0|does not fit"),
    ("huge strides", InterfaceTensor, {"sizes": [2, 640], "strides": [HUGE, 1]}, "memory of device 0|does not fit"),
    ("huge sizes", DlpackTensor, {"sizes": [HUGE, HUGE]}, "does not fit"),
    ("negative sizes", DlpackTensor, {"sizes": [-1, 1280]}, r"its sizes are \[-1, 1280\]"),
    ("17 dimensions", DlpackTensor, {"sizes": [1] * 16 + [1280]}, "17 dimensions"),
    ("17 dimensions", InterfaceTensor, {"sizes": [1] * 16 + [1280]}, "17 dimensions"),
    ("a mask", InterfaceTensor, {"interface": {"mask": object()}}, "a mask"),
    ("version 1", InterfaceTensor, {"interface": {"version": 1}}, "version 1; kvtile reads versions 2 and 3"),
    ("version 4", InterfaceTensor, {"interface": {"version": 4}}, "version 4"),
    ("a version of text", InterfaceTensor, {"interface": {"version": "3"}}, "cannot be read"),
    ("no version", InterfaceTensor, {"interface": {"version": None}}, "version 0"),
    ("no data", InterfaceTensor, {"interface": {"data": None}}, "no shape, typestr or data"),
    ("data of text", InterfaceTensor, {"interface": {"data": "0x10"}}, "cannot be read"),
    ("a huge address", InterfaceTensor, {"interface": {"data": (1 << 70, False)}}, "cannot be read"),
    ("a negative address", InterfaceTensor, {"interface": {"data": (-8, False)}}, "cannot be read"),
    ("negative sizes", InterfaceTensor, {"interface": {"shape": (-1,)}}, "cannot be read"),
    ("other byte order", InterfaceTensor, {"interface": {"typestr": ">f4"}}, "byte order"),
    ("objects", InterfaceTensor, {"interface": {"typestr": "|O8"}}, "not a number type"),
    ("few strides", InterfaceTensor, {"interface": {"strides": ()}}, "1 sizes and 0 strides"),
    ("odd strides", InterfaceTensor, {"interface": {"strides": (3,)}}, "not multiples of 4"),
    ("no dict", InterfaceTensor, {"instead": []}, "cannot be read"),
    ("a failure", InterfaceTensor, {"fails": ValueError("gone")}, "cannot be read: ValueError: gone"),
    ("stream 0", InterfaceTensor, {"interface": {"stream": 0}}, "its stream is 0, which the interface forbids"),
    ("a negative stream", InterfaceTensor, {"interface": {"stream": -1}}, "cannot be read"),
    ("a stream of text", InterfaceTensor, {"interface": {"stream": "1"}}, "cannot be read"),
]


@pytest.mark.parametrize(("name", "producer", "changes", "message"), HOSTILE, ids=[f"{p.__name__}-{n}" for n, p, _, _ in HOSTILE])
def test_statements_that_the_driver_does_not_confirm_are_refused(
    name: str, producer: type[DeviceTensor], changes: dict[str, Any], message: str
) -> None:
    driver()
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    with pytest.raises(kvtile.TensorError, match=message):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=[producer(FLAT, **changes)])


def test_a_stream_that_the_driver_does_not_know_is_its_error() -> None:
    tensor = InterfaceTensor(FLAT, interface={"stream": 0xBAD0})
    with pytest.raises(kvtile.DeviceError, match=r"cuStreamGetCtx failed with CUDA_ERROR_INVALID_HANDLE \(400\)"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=[tensor])


def test_managed_memory_is_refused_whatever_its_producer_states() -> None:
    managed = driver().address("cuMemAllocManaged", 5120, 1)
    for producer in (DlpackTensor, InterfaceTensor):
        with pytest.raises(kvtile.TensorError, match="it is managed memory"):
            kvtile.Layout("BLKNHC", shape=shape(), tensors=[producer(FLAT, address=managed)])


def test_freed_memory_is_refused() -> None:
    tensor = DlpackTensor(FLAT, device=(2, 0))
    del tensor.memory
    gc.collect()
    with pytest.raises(kvtile.TensorError, match="is not memory of a device: the driver does not know it"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=[tensor])


def test_a_layout_has_one_kind_of_memory_and_one_device() -> None:
    half = FLAT[:640]
    first, other = DlpackTensor(half), DlpackTensor(half, memory=DeviceMemory(half, 1))
    for tensors, message in [
        ([first, half], "tensor 0 is in memory of a device and tensor 1 in host memory"),
        ([first, other], "tensor 0 is on device 0 and tensor 1 on device 1"),
    ]:
        with pytest.raises(kvtile.TensorError, match=message):
            kvtile.Layout("L|BKNHC", shape=shape(), tensors=tensors)


def test_one_tensor_twice_is_refused() -> None:
    tensor = DlpackTensor(FLAT[:640])
    with pytest.raises(kvtile.TensorError, match="overlap|share"):
        kvtile.Layout("L|BKNHC", shape=shape(), tensors=[tensor, tensor])


def test_copies_between_two_devices_are_right() -> None:
    plain = shape()
    data = numbers(FLAT)
    second = DeviceMemory(data, 1)
    source = kvtile.Layout("BLKNHC", shape=plain, tensors=DlpackTensor(data, memory=second))
    target, [tensor], [array] = on_device("BLKNHC", plain, InterfaceTensor)
    kvtile.copy_blocks(source, target, [0, 1], [3, 2])
    expected = array.reshape(5, -1)
    expected[[3, 2]] = data.reshape(5, -1)[[0, 1]]
    assert tensor.bytes() == expected.tobytes()


@pytest.mark.parametrize("producer", [VersionedTensor, InterfaceTensor])
def test_read_only_tensors_are_read_and_not_written(producer: type[DeviceTensor]) -> None:
    plain = shape()
    data = numbers(FLAT)
    source = kvtile.Layout("BLKNHC", shape=plain, tensors=producer(data, readonly=True))
    assert not source.is_writable
    target, [stored] = layout("BLKNHC", plain)
    kvtile.copy_blocks(source, target, range(5))
    assert stored.tobytes() == data.tobytes()
    with pytest.raises(kvtile.TransferError, match="read-only"):
        kvtile.copy_blocks(target, source, [0])


def test_the_producer_lives_as_long_as_the_layout() -> None:
    class Watched(DlpackTensor):
        pass

    tensor = Watched(numbers(FLAT))
    watch = weakref.ref(tensor)
    source = kvtile.Layout("BLKNHC", shape=shape(), tensors=[tensor])
    del tensor
    gc.collect()
    assert watch() is not None
    target, [stored] = layout("BLKNHC", shape())
    kvtile.copy_blocks(source, target, range(5))
    assert stored.tobytes() == numbers(FLAT).tobytes()
    del source
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("kind", ["own", "legacy", "thread"])
def test_work_in_the_stream_of_an_interface_ends_before_the_layout_is_used(kind: str) -> None:
    stream = {"own": driver().stream(), "legacy": 1, "thread": 2}[kind]
    memory = DeviceMemory(FLAT)
    driver().fill(memory.address, 7, memory.size, stream)
    tensor = InterfaceTensor(FLAT, memory=memory, interface={"stream": stream})
    source = kvtile.Layout("BLKNHC", shape=shape(), tensors=tensor)
    target, [stored] = layout("BLKNHC", shape())
    kvtile.copy_blocks(source, target, range(5))
    assert (stored.view("uint8") == 7).all()
    if kind == "own":
        driver().destroy(stream)


def test_the_checker_sees_a_stream_that_nothing_waits_for(provokes: str) -> None:
    stream = driver().stream()
    memory = DeviceMemory(FLAT)
    driver().fill(memory.address, 7, memory.size, stream)
    source = kvtile.Layout("BLKNHC", shape=shape(), tensors=InterfaceTensor(FLAT, memory=memory))
    target, _ = layout("BLKNHC", shape())
    kvtile.copy_blocks(source, target, range(5))
    driver().destroy(stream)


def test_pinned_memory_of_the_host_is_host_memory() -> None:
    plain = shape()
    data = numbers(FLAT)
    address = driver().address("cuMemHostAlloc", data.nbytes, 0)
    np.ctypeslib.as_array((ctypes.c_float * 1280).from_address(address))[:] = data

    class Pinned(DlpackTensor):
        def __dlpack__(self, **_: Any) -> Any:
            return self.capsule()

    tensor = Pinned(FLAT, memory=DeviceMemory(FLAT), address=address, device=(3, 0))
    source = kvtile.Layout("BLKNHC", shape=plain, tensors=tensor)
    target, [there], _ = on_device("BLKNHC", plain)
    kvtile.copy_blocks(source, target, range(5))
    assert there.bytes() == data.tobytes()


def test_ids_and_rows_in_memory_of_a_device_are_refused(tmp_path: Path) -> None:
    source, target = layout("BLKNHC", shape())[0], layout("BLKNHC", shape())[0]
    for ids in (DlpackTensor(np.arange(3)), InterfaceTensor(np.arange(3))):
        with pytest.raises(kvtile.KvtileError, match="memory of a device"):
            kvtile.copy_blocks(source, target, ids)
    group = kvtile.StoreGroup.opaque("kv", 512, model="a", revision="1")
    with kvtile.BlockStore(group, disk=tmp_path / "rows", disk_bytes=1 << 20) as store:
        with pytest.raises(kvtile.TensorError, match="is memory of a device; a block store takes host memory"):
            store.register(DlpackTensor(np.zeros(1024, "uint8")))


def test_random_strides_are_taken_or_refused_and_never_leave_the_memory() -> None:
    """A guard around each tensor keeps its bytes."""
    random = np.random.default_rng(5)
    planes = [kvtile.Plane(name, "float32", C=16) for name in "kv"]
    plain = kvtile.Shape(num_blocks=5, num_layers=2, page_size=4, planes=planes)
    taken = 0
    for _ in range(150):
        guarded = numbers(np.zeros(4096, "float32"), 1)
        memory = DeviceMemory(guarded)
        offset = int(random.integers(0, 64)) * 4
        order = random.permutation(5)
        sizes = np.array([5, 2, 2, 4, 16])
        strides, step = [0] * 5, 1
        for axis in reversed(range(5)) if random.random() < 0.7 else order:
            strides[axis] = step
            step *= int(sizes[axis]) + int(random.random() < 0.2)
        changes = {"sizes": sizes.tolist(), "strides": strides, "offset": offset}
        tensor = PRODUCERS[random.integers(0, 4)](guarded, memory=memory, **changes)
        span = offset // 4 + 1 + sum((int(size) - 1) * stride for size, stride in zip(sizes, strides))
        try:
            target = kvtile.Layout("BLKNC", shape=plain, tensors=tensor)
        except kvtile.LayoutError:
            continue
        assert span <= 4096
        taken += 1
        source, [data] = layout("BLKNC", plain)
        data[:] = 1
        kvtile.copy_blocks(source, target, range(5))
        after = np.frombuffer(memory.bytes(), "float32")
        inside = np.zeros(4096, bool)
        for index in itertools.product(*(range(size) for size in sizes)):
            inside[offset // 4 + sum(at * stride for at, stride in zip(index, strides))] = True
        assert (after[inside] == 1).all()
        assert (after[~inside].view("uint32") == guarded[~inside].view("uint32")).all()
    assert taken > 10


def preset_shape(name: str) -> kvtile.Shape:
    """The example shape of a preset, with six blocks."""
    known = pytest.importorskip("tomllib").loads(PRESETS.read_text())
    [preset] = [one for one in known["preset"] if one["name"] == name]
    example = known["shapes"][preset["shape"]]
    planes = []
    for facts in example["planes"]:
        facts = dict(facts)
        planes.append(kvtile.Plane(facts.pop("name"), facts.pop("unit"), **facts))
    sizes = {key: example[key] for key in ("num_layers", "page_size")}
    return kvtile.Shape(num_blocks=6, planes=planes, **sizes)


def through_caches(engine: kvtile.Layout, folder: Path) -> None:
    """Blocks 0 and 1 come back from host memory to 3 and 2, and from the disk to 4 and 5."""
    identity = kvtile.Identity("a/model", "1", engine.shape)
    keys = kvtile.TokenHasher(identity).keys(range(2 * engine.shape.page_size))
    settings = {"host_bytes": 1 << 20, "disk": folder, "disk_bytes": 4 << 20}
    with kvtile.Cache(identity, engine, **settings) as cache:
        assert cache.store(keys, [0, 1]).wait().stored == 2
        loaded = cache.load(cache.lookup(keys), [3, 2])
        assert all(loaded.wait_layer(layer) for layer in range(engine.shape.num_layers))
        assert loaded.wait().from_tiers == {"host": 2}
        assert cache.flush().durable
    with kvtile.Cache(identity, engine, **settings) as cache:
        report = cache.load(cache.lookup(keys), [4, 5]).wait()
        assert (report.blocks, report.from_tiers) == (2, {"disk": 2})


@pytest.mark.parametrize("name", gpu_presets())
def test_a_cache_keeps_the_blocks_of_every_layout_of_a_gpu(name: str, tmp_path: Path) -> None:
    plain = preset_shape(name)
    bare = kvtile.Layout.preset(name, shape=plain)
    wide = all(plane.codec == "bf16" for plane in plain.planes)
    dtype = np.dtype(ml_dtypes.bfloat16 if wide else "uint8")
    arrays = [numbers(np.zeros(size // dtype.itemsize, dtype), seed) for seed, size in enumerate(bare.region_bytes)]
    tensors = [PRODUCERS[index % 4](array) for index, array in enumerate(arrays)]
    before = driver().registrations()
    through_caches(kvtile.Layout.preset(name, shape=plain, tensors=tensors), tmp_path / "device")
    through_caches(kvtile.Layout.preset(name, shape=plain, tensors=arrays), tmp_path / "host")
    assert [tensor.bytes() for tensor in tensors] == [array.tobytes() for array in arrays]
    assert driver().registrations() == before


def test_a_cache_registers_its_host_memory_with_the_driver() -> None:
    engine, _, _ = on_device("L|BKNHC", shape())
    before = driver().registrations()
    with kvtile.Cache(kvtile.Identity("a", "1", shape()), engine, host_bytes=1 << 20):
        assert driver().registrations() > before
    assert driver().registrations() == before


class Storage:
    """A storage as torch has it."""

    def __init__(self, memory: DeviceMemory, size: int) -> None:
        self.memory, self.size = memory, size

    def data_ptr(self) -> int:
        return self.memory.address

    def nbytes(self) -> int:
        return self.size


class ViewTensor(DlpackTensor):
    """A view of a storage, of which it states the size."""

    def untyped_storage(self) -> Storage:
        return Storage(self.memory, self.changes["stated"])


def test_views_of_one_storage_are_one_region_which_the_driver_confirms() -> None:
    plain = shape()
    data = numbers(np.zeros(2 * 640, "float32"))
    memory = DeviceMemory(data)
    for stated in (memory.size, 1 << 40):
        views = [ViewTensor(data[:640], memory=memory, offset=640 * 4 * layer, stated=stated) for layer in range(2)]
        engine = kvtile.Layout("L|BKNHC", shape=plain, tensors=views)
        assert engine.num_regions == 1
    target, [stored] = layout("LBKNHC", plain)
    kvtile.copy_blocks(engine, target, range(5))
    assert stored.tobytes() == data.tobytes()
    beyond = [ViewTensor(data[:640], memory=memory, offset=640 * 4 * (layer + 1), stated=1 << 40) for layer in range(2)]
    with pytest.raises(kvtile.TensorError, match="tensor 1: its address 0x.* is not memory of a device"):
        kvtile.Layout("L|BKNHC", shape=plain, tensors=beyond)
