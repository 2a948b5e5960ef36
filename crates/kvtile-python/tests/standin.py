"""Memory and streams of a device under the stand-in driver, and producers of DLPack capsules and array interfaces over it.

``cargo x python`` builds the stand-in as a library and names it in ``KVTILE_STANDIN``. The library is loaded here, and
kvtile finds it under the driver's name. Nothing of it is in the package, and nothing ran on hardware.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kvtile
from helpers import regions

BYTES = 256 << 20

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

# Capsules refer to their names.
NAMES = {False: b"dltensor", True: b"dltensor_versioned"}

# The type codes of DLPack by the kind of a numpy dtype; 4 is bfloat.
CODES = {"i": 0, "u": 1, "f": 2}


class DLTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]


class DLManaged(ctypes.Structure):
    """``DLManagedTensor`` of dlpack.h."""

    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class DLManagedVersioned(ctypes.Structure):
    """``DLManagedTensorVersioned`` of dlpack.h."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64), ("tensor", DLTensor),
    ]


class Driver:
    """The stand-in with two devices; this thread uses the first one."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        self.library.kvtile_standin_start.argtypes = [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_size_t]
        self.library.kvtile_standin_fail.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint32]
        self.library.kvtile_standin_start(int(os.environ.get("KVTILE_STANDIN_SEED", "1")), 2, BYTES)
        self.call("cuInit", 0)
        self.contexts = []
        for ordinal in range(2):
            context = ctypes.c_void_p()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
            self.contexts.append(context)
        self.use(0)
        self.pinned = self.address("cuMemHostAlloc", 1 << 20, 0)

    def use(self, ordinal: int) -> None:
        """Makes a device current in this thread."""
        self.call("cuCtxSetCurrent", self.contexts[ordinal])

    def call(self, function: str, *arguments: Any) -> None:
        result = getattr(self.library, function)(*arguments)
        assert result == 0, f"{function} returned {result}"

    def address(self, function: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self.call(function, ctypes.byref(value), *arguments)
        return value.value or 0

    def allocate(self, size: int) -> int:
        return self.address("cuMemAlloc_v2", ctypes.c_size_t(size))

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def stream(self) -> int:
        """A stream without order with the legacy default stream."""
        return self.address("cuStreamCreate", 1)

    def destroy(self, stream: int) -> None:
        self.synchronize(stream)
        self.call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def synchronize(self, stream: int = 0) -> None:
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def fill(self, address: int, value: int, size: int, stream: int = 0) -> None:
        """Enqueues a fill and does not wait for it."""
        self.call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_uint8(value), ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        """Enqueues a copy and does not wait for it."""
        self.call("cuMemcpyAsync", ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def write(self, address: int, data: bytes) -> None:
        """Writes memory of a device, and waits."""
        for start in range(0, len(data), 1 << 20):
            piece = data[start : start + (1 << 20)]
            ctypes.memmove(self.pinned, piece, len(piece))
            self.copy(address + start, self.pinned, len(piece))
            self.synchronize()

    def read(self, address: int, size: int) -> bytes:
        """Reads memory of a device, and waits."""
        data = bytearray()
        for start in range(0, size, 1 << 20):
            piece = min(size - start, 1 << 20)
            self.copy(self.pinned, address + start, piece)
            self.synchronize()
            data += ctypes.string_at(self.pinned, piece)
        return bytes(data)

    def complaints(self) -> list[str]:
        """What the checker of the order of accesses found so far."""
        return self.lines("kvtile_standin_complaints")

    def lines(self, function: str) -> list[str]:
        """The lines that a function of the stand-in writes."""
        write = getattr(self.library, function)
        write.restype = ctypes.c_size_t
        size = write(None, ctypes.c_size_t(0))
        text = ctypes.create_string_buffer(size + 1)
        write(text, ctypes.c_size_t(size))
        return text.value.decode().splitlines()

    def counts(self, function: str) -> dict[str, int]:
        """The lines of a function that are names with numbers."""
        return {name: int(count) for name, count in (line.split() for line in self.lines(function))}

    def calls(self) -> dict[str, int]:
        """How often each function of the driver was called."""
        return self.counts("kvtile_standin_calls")

    def left(self) -> dict[str, int]:
        """What is left of what was made."""
        return self.counts("kvtile_standin_leaks")

    def registrations(self) -> int:
        """Pieces of host memory that are registered."""
        return self.left()["registrations"]

    def fail(self, function: str, nth: int, code: int) -> None:
        """The nth call of a function from now on does nothing and returns a code."""
        assert self.library.kvtile_standin_fail(function.encode(), nth, code) == 1, function

    def forget_faults(self) -> None:
        """Drops what ``fail`` has planned and no call has met."""
        self.library.kvtile_standin_fail(None, 0, 0)


@functools.cache
def driver() -> Driver:
    """The driver of this process."""
    library = os.environ.get("KVTILE_STANDIN")
    if library is None:
        pytest.skip("KVTILE_STANDIN names no stand-in driver; `cargo x python` builds it")
    return Driver(library)


class DeviceMemory:
    """Memory of a device with the contents of an array, freed with this object."""

    def __init__(self, data: np.ndarray, ordinal: int = 0) -> None:
        self.size, self.ordinal = data.nbytes, ordinal
        driver().use(ordinal)
        self.address = driver().allocate(max(self.size, 1))
        driver().write(self.address, data.tobytes())
        driver().use(0)

    def bytes(self) -> bytes:
        return driver().read(self.address, self.size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            driver().free(self.address)


class DeviceStorage:
    """A storage as torch has it, as far as kvtile reads it."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory

    def data_ptr(self) -> int:
        return self.memory.address

    def nbytes(self) -> int:
        return self.memory.size


class DeviceTensor:
    """What both protocols state about memory. ``changes`` replaces fields, as a producer with a defect would."""

    def __init__(self, data: np.ndarray, *, memory: DeviceMemory | None = None, **changes: Any) -> None:
        self.memory = memory or DeviceMemory(data)
        self.sizes = list(changes.get("sizes", data.shape))
        self.strides = changes.get("strides")
        self.address = changes.get("address", self.memory.address)
        self.offset = changes.get("offset", 0)
        self.readonly = changes.get("readonly", False)
        self.data_type = data.dtype
        if data.dtype.kind == "V":
            self.dtype = data.dtype
        self.changes = changes

    def bytes(self) -> bytes:
        return self.memory.bytes()


class DlpackTensor(DeviceTensor):
    """A producer of capsules without a version."""

    versioned = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.changes.get("device") or (2, self.memory.ordinal)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream == self.changes.get("wanted_stream", -1)
        return self.capsule()

    def capsule(self) -> Any:
        count = len(self.sizes)
        self.numbers = (ctypes.c_int64 * (2 * count))(*self.sizes, *(self.strides or [0] * count))
        shape = ctypes.addressof(self.numbers)
        bits = 8 * self.data_type.itemsize
        code = CODES.get(self.data_type.kind, 4)
        tensor = DLTensor(
            self.address, *self.changes.get("inside", self.__dlpack_device__()), count, code, bits, 1, shape,
            shape + 8 * count if self.strides else None, self.offset,
        )
        if self.versioned:
            self.managed: Any = DLManagedVersioned(1, 0, None, None, int(self.readonly), tensor)
        else:
            self.managed = DLManaged(tensor, None, None)
        return _new_capsule(ctypes.addressof(self.managed), NAMES[self.versioned], None)


class VersionedTensor(DlpackTensor):
    """A producer of capsules with a version."""

    versioned = True

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        assert stream == -1 and max_version == (1, 1)
        return self.capsule()


class InterfaceTensor(DeviceTensor):
    """A producer of the array interface, of version 3 unless ``changes`` has another."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if "fails" in self.changes:
            raise self.changes["fails"]
        item = self.data_type.itemsize
        interface = {
            "shape": tuple(self.sizes),
            "typestr": self.data_type.str,
            "data": (self.address + self.offset, self.readonly),
            "strides": tuple(stride * item for stride in self.strides) if self.strides else None,
            "version": 3,
        }
        interface.update(self.changes.get("interface", {}))
        return self.changes.get("instead", interface)


class InterfaceTensor2(InterfaceTensor):
    """Version 2 of the interface, which has no stream."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "version": 2}


PRODUCERS = [DlpackTensor, VersionedTensor, InterfaceTensor, InterfaceTensor2]


@pytest.fixture
def provokes() -> str:
    """Stands for a complaint of the checker, which the test provokes."""
    return "no order between"


@pytest.fixture(autouse=True)
def checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves no complaint of the checker, unless it provokes one."""
    before = len(driver().complaints())
    yield
    gc.collect()
    found = driver().complaints()[before:]
    if "provokes" in request.fixturenames:
        assert found and all("no order between" in one for one in found), found
    else:
        assert not found, found


def numbers(like: np.ndarray, seed: int = 3) -> np.ndarray:
    data = np.random.default_rng(seed).integers(0, 255, like.nbytes, dtype=np.uint8)
    return data.view(like.dtype).reshape(like.shape)


def on_device(word: str, plain: kvtile.Shape, producer: type[DeviceTensor] = DlpackTensor, dtype: str = "float32") -> Any:
    """A layout over random bytes, its tensors, and the same bytes in arrays."""
    arrays = [numbers(array, seed) for seed, array in enumerate(regions(word, plain, dtype))]
    tensors = [producer(array) for array in arrays]
    return kvtile.Layout(word, shape=plain, tensors=tensors), tensors, arrays
