"""Tensors are used without a copy, or refused with an error that names them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import re
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

import kvtile
from helpers import EXTENTS, layout, shape


def dense(dtype="float32", **changes: int) -> np.ndarray:
    return np.zeros(shape(dtype, **changes).block_bytes * 5 // np.dtype(dtype).itemsize, dtype)


def copied(source: np.ndarray | bytearray, dtype="float32", word="BLKNHC") -> np.ndarray:
    """The bytes of a copy from a tensor."""
    src = kvtile.Layout(word, shape=shape(dtype), tensors=source)
    dst, tensors = layout("BLKNHC", shape(dtype), dtype)
    kvtile.copy_blocks(src, dst, range(5))
    return tensors[0]


def test_arrays_of_any_dtype_are_read() -> None:
    for dtype in ["float32", "int32", "uint16", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, "complex64"]:
        source = np.random.default_rng(3).integers(0, 255, dense(dtype).nbytes, dtype=np.uint8)
        source = source.view(dtype)
        assert (copied(source, dtype).view(np.uint8) == source.view(np.uint8)).all(), dtype


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", ctypes.c_ubyte), ("float32", ctypes.c_float), ("int16", ctypes.c_short)])
def test_native_byte_order_is_native_however_it_is_spelled(dtype: str, kind: type) -> None:
    """ctypes writes the order of the machine before the format: ``<B``, ``<f``."""
    plain = shape(dtype)
    size = plain.block_bytes * 5
    elements = kind * (size // ctypes.sizeof(kind))
    source = elements.from_buffer_copy(np.random.default_rng(4).bytes(size))
    target, back = elements(), np.zeros(size // ctypes.sizeof(kind), dtype)
    assert memoryview(source).format[0] in "<>"
    layouts = [
        kvtile.Layout(word, shape=plain, tensors=tensors)
        for word, tensors in [("BLKNHC", source), ("BHLKNC", target), ("BLKNHC", back)]
    ]
    kvtile.copy_blocks(layouts[0], layouts[1], range(5))
    kvtile.copy_blocks(layouts[1], layouts[2], range(5))
    assert back.tobytes() == bytes(source) != bytes(target)


@pytest.mark.parametrize(("word", "planes", "sizes"), [
    ("LK|BNHC", {"k": {"H": 2, "C": 192}, "v": {"H": 2, "C": 128}}, [(5, 4, 2, 192), (5, 4, 2, 128)]),
    ("LK|BNC", {"c": {"C": 512}, "r": {"C": 64}}, [(5, 4, 512), (5, 4, 64)]),
])
def test_planes_of_unequal_width_are_tensors_of_unequal_shape(word: str, planes: dict, sizes: list[tuple[int, ...]]) -> None:
    unequal = kvtile.Shape(
        num_blocks=5, num_layers=2, page_size=4,
        planes=[kvtile.Plane(name, "float16", **extents) for name, extents in planes.items()],
    )
    numbers = np.random.default_rng(3)
    engine = [numbers.random(size, dtype="float32").astype("float16") for _ in range(2) for size in sizes]
    stored = np.zeros(unequal.block_bytes * 5 // 2, "float16")
    src = kvtile.Layout(word, shape=unequal, tensors=engine)
    kvtile.copy_blocks(src, kvtile.Layout("BLK" + word[4:], shape=unequal, tensors=stored), range(5))
    expected = [engine[2 * layer + plane][block].ravel() for block in range(5) for layer in range(2) for plane in range(2)]
    assert (stored == np.concatenate(expected)).all()
    assert kvtile.Identity("m", "1", unequal) == kvtile.Identity("m", "1", unequal)
    with pytest.raises(kvtile.TensorError, match="tensors of one plane"):
        kvtile.Layout(word, shape=unequal, tensors=[engine[0], engine[1], engine[2], engine[3].reshape(5, -1)])


def test_tensors_by_plane_have_types_and_axes_of_their_own() -> None:
    """The state of a recurrent layer: a convolution in float16 and a matrix in float32."""
    states = kvtile.Shape(
        num_blocks=3, num_layers=2, page_size=4,
        planes=[
            kvtile.Plane("conv", "float16", per_page=True, W=3, C=8),
            kvtile.Plane("recurrent", "float32", per_page=True, H=2, D=4, C=4),
        ],
    )
    numbers = np.random.default_rng(3)
    conv = [numbers.random((3, 3, 8)).astype("float16") for _ in range(2)]
    recurrent = [numbers.random((3, 2, 4, 4), dtype="float32") for _ in range(2)]
    mixed = kvtile.Layout("LK|BWHDC", shape=states, tensors=[conv[0], recurrent[0], conv[1], recurrent[1]])
    named = kvtile.Layout("LK|BWHDC", shape=states, tensors={"recurrent": recurrent, "conv": tuple(conv)})
    assert mixed.describe() == named.describe()
    stored = np.zeros(states.block_bytes * 3, "uint8")
    kvtile.copy_blocks(named, kvtile.Layout("BLKWHDC", shape=states, tensors=stored), range(3))
    expected = b"".join(tensor[block].tobytes() for block in range(3) for layer in range(2) for tensor in (conv[layer], recurrent[layer]))
    assert stored.tobytes() == expected
    for tensors, message in [
        ({"conv": conv}, "no plane recurrent"),
        ({"conv": conv[:1], "recurrent": recurrent}, r'tensors\["conv"\] has 1, and the plane has 2'),
        ({"conv": conv, "recurrent": recurrent, "k": conv}, r'tensors\["k"\] has 2, and the plane has 0'),
        ({"conv": recurrent, "recurrent": conv}, "tensor 0 has dtype f32, but plane conv is f16"),
        ({}, "no plane conv"),
    ]:
        with pytest.raises(kvtile.TensorError, match=message):
            kvtile.Layout("LK|BWHDC", shape=states, tensors=tensors)
    plain = shape()
    with pytest.raises(kvtile.TensorError, match="the planes k, v share tensors in L|BHNKC; give tensors as a list"):
        kvtile.Layout("L|BHNKC", shape=plain, tensors={"k": [], "v": []})


def test_foreign_byte_order_is_refused() -> None:
    plain = shape()
    foreign = ctypes.c_float.__ctype_be__ if sys.byteorder == "little" else ctypes.c_float.__ctype_le__
    for tensors in [(foreign * (plain.block_bytes * 5 // 4))(), np.zeros(plain.block_bytes * 5 // 4, "f4").view(">f4")]:
        with pytest.raises(kvtile.TensorError, match="native|byte order"):
            kvtile.Layout("BLKNHC", shape=plain, tensors=tensors)


def test_buffers_are_read_and_written() -> None:
    plain = shape("fp8_e4m3")
    source = bytearray(np.random.default_rng(4).bytes(plain.block_bytes * 5))
    assert copied(source, "int8").tobytes() == source  # bytes hold values of one byte
    with mmap.mmap(-1, len(source)) as mapped:
        dst = kvtile.Layout("BLKNHC", shape=plain, tensors=mapped)
        src = kvtile.Layout("BLKNHC", shape=plain, tensors=bytes(source))
        assert not src.is_writable and dst.is_writable
        kvtile.copy_blocks(src, dst, range(5))
        assert mapped[:] == source
        with pytest.raises(BufferError):
            mapped.close()
        del dst
        gc.collect()
    with pytest.raises(kvtile.TransferError, match="read-only"):
        kvtile.copy_blocks(src, src, [0], [1])
    kept = kvtile.Layout("BLKNHC", shape=plain, tensors=source)
    with pytest.raises(BufferError):
        source.clear()
    del kept


def test_padded_views_are_what_their_strides_say() -> None:
    numbers = np.arange(5 * 2 * 2 * 4 * 2 * 8, dtype=np.float32)
    blocks_last = np.ascontiguousarray(numbers.reshape(5, 2, 2, 4, 2, 8))
    # Blocks, each followed by a gap.
    pool = np.zeros((5, 3, 2, 4, 2, 8), np.float32)
    pool[:, :2] = blocks_last
    assert (copied(pool[:, :2]) == numbers).all()
    # Every other block of a larger pool, as destination.
    pool = np.zeros((10, 2, 2, 4, 2, 8), np.float32)
    dst = kvtile.Layout("BLKNHC", shape=shape(), tensors=pool[1::2])
    src = kvtile.Layout("BLKNHC", shape=shape(), tensors=blocks_last)
    kvtile.copy_blocks(src, dst, range(5))
    assert (pool[1::2] == blocks_last).all() and not pool[::2].any()


def as_array(array: np.ndarray) -> object:
    return array


def as_dlpack(array: np.ndarray) -> object:
    return OnlyDlpack(array)


def as_buffer(array: np.ndarray) -> object:
    return memoryview(array)


def as_torch(array: np.ndarray) -> object:
    return pytest.importorskip("torch").from_numpy(array)


@pytest.mark.parametrize("given", [as_array, as_dlpack, as_buffer, as_torch])
@pytest.mark.parametrize("word", ["L|BKNHC", "L|BKHNC", "L|KBNHC", "BLKNHC", "LK|BNHC", "L|BHNKC"])
def test_a_view_in_another_order_than_memory_is_refused_at_every_entry(given, word: str) -> None:
    plain = shape()
    letters = word.split("|")[-1]
    extents = {**EXTENTS, "K": 2}
    sizes = [extents[letter] for letter in letters]
    count = kvtile.Layout(word, shape=plain).num_regions
    random = np.random.default_rng(8)
    for order in itertools.permutations(range(len(sizes))):
        if random.random() > 0.1 and order != tuple(range(len(sizes))):
            continue
        memory = [np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes) for _ in range(count)]
        views = [given(array.transpose(order)) for array in memory]
        if order == tuple(range(len(sizes))):
            kvtile.Layout(word, shape=plain, tensors=views)
            continue
        with pytest.raises(kvtile.TensorError, match="read in two ways") as refused:
            kvtile.Layout(word, shape=plain, tensors=views)
        # The error names both readings, and the permutation for each.
        back = [order.index(dim) for dim in range(len(sizes))]
        for text in (word, str([sizes[dim] for dim in order]), str(sizes), str(back)):
            assert text in str(refused.value)


def test_presets_refuse_views_in_another_order_as_words_do() -> None:
    tensors = [np.zeros((5, 2, 16, 4), np.float32).transpose(0, 1, 3, 2) for _ in range(2)]
    with pytest.raises(kvtile.TensorError, match="read in two ways"):
        kvtile.Layout.preset("vllm:LBHNC/cpu/float32/vec", shape=shape(), tensors=tensors)
    tensors = [np.zeros((5, 2, 4, 16), np.float32) for _ in range(2)]
    kvtile.Layout.preset("vllm:LBHNC/cpu/float32/vec", shape=shape(), tensors=tensors)


def test_sizes_of_the_axes_in_another_order_are_refused() -> None:
    keys = kvtile.Plane("k", "float32", H=2, C=8)
    plain = kvtile.Shape(num_blocks=5, num_layers=2, page_size=4, planes=[keys])
    heads_first = [np.zeros((5, 2, 4, 8), np.float32) for _ in range(2)]
    with pytest.raises(kvtile.TensorError, match="B 5, N 4, H 2, C 8 in memory"):
        kvtile.Layout("L|BNHC", shape=plain, tensors=heads_first)
    kvtile.Layout("L|BHNC", shape=plain, tensors=heads_first)
    kvtile.Layout("L|BNHC", shape=plain, tensors=[array.reshape(-1) for array in heads_first])
    # The view's shape is B, N, H, C; its memory order is not.
    with pytest.raises(kvtile.TensorError, match=r"read in two ways.*\[0, 2, 1, 3\]"):
        kvtile.Layout("L|BNHC", shape=plain, tensors=[array.transpose(0, 2, 1, 3) for array in heads_first])


def test_strides_that_cut_what_the_word_keeps_together_are_refused() -> None:
    pool = np.zeros((5 * 2 * 2 * 4 * 2 * 8 // 10, 12), np.float32)[:, :10]
    with pytest.raises(kvtile.TensorError, match="gap"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=pool)
    with pytest.raises(kvtile.TensorError, match="backwards"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=dense()[::-1])
    with pytest.raises(kvtile.TensorError, match="stride 0"):
        tensor = np.broadcast_to(dense()[:1], (1280,))
        kvtile.Layout("BLKNHC", shape=shape(), tensors=tensor)


def test_equally_spaced_views_of_one_storage_are_one_region() -> None:
    pool = np.zeros((2, 5, 4, 2, 2 * 8), np.float32)
    one = kvtile.Layout("L|BNHKC", shape=shape(), tensors=[pool[0], pool[1]])
    assert one.num_regions == 1
    between = np.zeros((5, 2, 4, 2, 2 * 8), np.float32)
    inside = kvtile.Layout("L|BNHKC", shape=shape(), tensors=[between[:, 0], between[:, 1]])
    assert inside.num_regions == 1 and inside.fingerprint != one.fingerprint
    backwards = kvtile.Layout("L|BNHKC", shape=shape(), tensors=[pool[1], pool[0]])
    assert backwards.num_regions == 2
    src, tensors = layout("L|BNHKC", shape())
    assert src.num_regions == 2
    for index, tensor in enumerate(tensors):
        tensor[:] = index + 1
    for dst, array, axis in [(one, pool, 0), (inside, between, 1), (backwards, pool[::-1], 0)]:
        array[:] = 0
        kvtile.copy_blocks(src, dst, range(5))
        assert (array.take(0, axis) == 1).all() and (array.take(1, axis) == 2).all()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda: dense("float64"), "tensor 0 has dtype f64, but plane k is f32"),
        (lambda: dense()[1:], "tensor 0 of sizes .1279. has 5116 bytes, its region has 5120"),
        (lambda: [dense(), dense()], "2 tensors for BLKNHC, which has 1 region"),
        (lambda: [], "0 tensors"),
        (lambda: [17], "tensor 0: int is not a tensor"),
        (lambda: dense().astype(">f4"), "another byte order"),
        (lambda: np.array([object()] * 1280), "tensor 0: its dtype object"),
        (lambda: dense().view(np.uint8), "tensor 0 has dtype uint8"),
    ],
)
def test_wrong_tensors_are_value_errors_that_name_them(tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        kvtile.Layout("BLKNHC", shape=shape(), tensors=tensors())
    assert isinstance(raised.value, kvtile.TensorError)


def test_read_only_arrays_are_read_and_never_written() -> None:
    array = dense()
    array[:] = 3
    array.flags.writeable = False
    locked = kvtile.Layout("BLKNHC", shape=shape(), tensors=array)
    assert not locked.is_writable
    dst, tensors = layout("BLKNHC", shape())
    kvtile.copy_blocks(locked, dst, [0])
    with pytest.raises(kvtile.TransferError, match="read-only"):
        kvtile.copy_blocks(dst, locked, [0])
    assert (tensors[0][:256] == 3).all()


class Watched(np.ndarray):
    """An array that supports weak references."""


def test_tensors_live_as_long_as_their_layout() -> None:
    array = dense().view(Watched)
    watch = weakref.ref(array)
    src = kvtile.Layout("BLKNHC", shape=shape(), tensors=[array])
    del array
    gc.collect()
    assert watch() is not None
    dst, _ = layout("BHLKNC", shape())
    kvtile.copy_blocks(src, dst, [0])
    del src
    gc.collect()
    assert watch() is None


class Elsewhere:
    """A tensor on a device that kvtile does not use."""

    device = "mps:3"

    def __dlpack_device__(self) -> tuple[int, int]:
        return 8, 3

    def __dlpack__(self, **_) -> None:
        raise AssertionError


class Refusing(Elsewhere):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_) -> None:
        raise BufferError("it needs a gradient")


class OnlyDlpack:
    """An array with an old version of DLPack only."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self):
        return self.array.__dlpack__()


class OnlyDlpackVersioned(OnlyDlpack):
    def __dlpack__(self, *, max_version: tuple[int, int]):
        return self.array.__dlpack__(max_version=max_version)


def test_other_devices_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="tensor 0: it is on mps:3"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=[Elsewhere()])
    with pytest.raises(kvtile.TensorError, match="needs a gradient"):
        kvtile.Layout("BLKNHC", shape=shape(), tensors=[Refusing()])


def test_without_a_driver_the_package_works_and_a_tensor_of_a_device_tells_what_was_tried() -> None:
    script = """
        import ctypes, sys
        import numpy as np
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            pass
        else:
            sys.exit(77)
        import kvtile

        class Tensor:
            __cuda_array_interface__ = {"shape": (1280,), "typestr": "<f4", "data": (4096, False), "version": 3}

        shape = kvtile.Shape(num_blocks=5, num_layers=2, page_size=4, num_heads=2, head_size=8, dtype="float32")
        host = kvtile.Layout("BLKNHC", shape=shape, tensors=np.zeros(1280, "float32"))
        kvtile.copy_blocks(host, host, [0], [1])
        for _ in range(2):
            try:
                kvtile.Layout("BLKNHC", shape=shape, tensors=Tensor())
            except kvtile.DeviceError as error:
                print(error)
    """
    body = "\n".join(line.removeprefix("        ") for line in script.splitlines())
    ended = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=120, check=False)
    if ended.returncode == 77:
        pytest.skip("this machine has a CUDA driver")
    assert ended.returncode == 0, ended.stderr
    line = "no CUDA driver: tried libcuda.so.1: .*; /usr/lib/wsl/lib/libcuda.so.1: .*"
    assert re.fullmatch(f"{line}\n{line}\n", ended.stdout), ended.stdout


@pytest.mark.parametrize("wrap", [OnlyDlpack, OnlyDlpackVersioned])
def test_dlpack_is_read_in_both_versions(wrap) -> None:
    numbers = np.arange(1280, dtype=np.float32)
    assert (copied(wrap(numbers)) == numbers).all()
    assert (copied(wrap(numbers.reshape(5, 256)[:, ::-1][:, ::-1])) == numbers).all()
    watch = weakref.ref(tensor := wrap(np.zeros(1280, np.float32)))
    kept = kvtile.Layout("BLKNHC", shape=shape(), tensors=[tensor])
    assert kept.is_writable
    del tensor
    gc.collect()
    assert watch() is not None
    del kept
    gc.collect()
    assert watch() is None


def test_dlpack_tells_read_only_tensors() -> None:
    array = dense()
    array.flags.writeable = False
    assert not kvtile.Layout("BLKNHC", shape=shape(), tensors=OnlyDlpackVersioned(array)).is_writable


def test_tensors_of_torch_are_read_and_written_in_place() -> None:
    torch = pytest.importorskip("torch")
    for dtype in [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float16]:
        pool = torch.zeros((2, 5, 2, 4, 16), dtype=torch.float32).to(dtype)
        dst = kvtile.Layout("L|BH(kCN,vNC)", shape=shape(dtype), tensors=list(pool.unbind()))
        assert dst.num_regions == 1
        source = torch.rand((5, 2, 2, 2, 4, 8)).to(dtype)
        src = kvtile.Layout("BLKHNC", shape=shape(dtype), tensors=source)
        kvtile.copy_blocks(src, dst, range(5))
        keys = pool.float()[1, 3, 1].flatten()[:32].reshape(8, 4).T
        assert torch.equal(keys, source.float()[3, 1, 0, 1]), dtype
    with pytest.raises(kvtile.TensorError, match="tensor 0 has dtype f16"):
        kvtile.Layout("BLKHNC", shape=shape(), tensors=source)
    with pytest.raises(kvtile.TensorError, match="grad"):
        kvtile.Layout("BLKHNC", shape=shape(), tensors=torch.rand(1280, requires_grad=True))
    with pytest.raises(kvtile.TensorError, match="it is on meta"):
        kvtile.Layout("BLKHNC", shape=shape(), tensors=torch.rand(1280, device="meta"))


def test_arrays_of_jax_are_read_and_never_written() -> None:
    jax = pytest.importorskip("jax")
    for dtype in ["float32", "bfloat16"]:
        source = jax.numpy.arange(1280).astype(dtype)
        locked = kvtile.Layout("BLKNHC", shape=shape(dtype), tensors=source)
        assert not locked.is_writable
        dst, tensors = layout("BLKNHC", shape(dtype), np.dtype(dtype))
        kvtile.copy_blocks(locked, dst, range(5))
        assert (tensors[0] == np.asarray(source)).all()
