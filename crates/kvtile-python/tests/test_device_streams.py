"""Copies, stores and loads of device tensors in order with streams, under the stand-in driver. Not run on hardware."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvtile
from helpers import layout, shape
from standin import DeviceMemory, InterfaceTensor, checked, driver, on_device, provokes

__all__ = ["checked", "provokes"]  # The fixtures of the tests below.


class TorchStream:
    """A stream as torch has it."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class ProtocolStream:
    """A stream of the protocol of CUDA's Python packages."""

    def __init__(self, handle: int, version: int = 0) -> None:
        self.handle, self.version = handle, version

    def __cuda_stream__(self) -> tuple[int, int]:
        return self.version, self.handle


def an_engine(blocks: int = 5, tokens: int = 8) -> tuple[Any, list[Any], kvtile.Identity, list[bytes]]:
    """A layout on a device, its tensors, the identity of its blocks, and keys."""
    plain = shape(B=blocks)
    engine, tensors, _ = on_device("L|BKNHC", plain, InterfaceTensor)
    identity = kvtile.Identity("a", "1", plain)
    return engine, tensors, identity, kvtile.TokenHasher(identity).keys(range(tokens))


STREAMS = {"handle": lambda: driver().stream(), "torch": lambda: TorchStream(driver().stream()),
           "protocol": lambda: ProtocolStream(driver().stream()), "legacy": lambda: 0, "legacy too": lambda: 1,
           "thread": lambda: 2}


def raw(stream: Any) -> int:
    return stream if isinstance(stream, int) else getattr(stream, "cuda_stream", None) or stream.handle


@pytest.mark.parametrize("kind", STREAMS)
def test_a_store_waits_for_the_stream_that_computes_and_a_load_for_the_one_that_reads(kind: str, tmp_path: Path) -> None:
    """An engine's step: it computes two blocks, stores them, overwrites two more, and loads into blocks that it still reads."""
    stream = STREAMS[kind]()
    engine, tensors, identity, keys = an_engine()
    block = tensors[0].memory.size // 5
    scratch = DeviceMemory(np.zeros(2 * block, "uint8"))
    with kvtile.Cache(identity, engine, host_bytes=1 << 20, disk=tmp_path, disk_bytes=4 << 20) as cache:
        for turn in range(5):
            names = [bytes([turn]) + key[1:] for key in keys]
            for layer, tensor in enumerate(tensors):
                driver().fill(tensor.address, 10 * turn + layer + 1, 2 * block, raw(stream))
            stored = cache.store(names, [0, 1], after=stream)
            # The engine reads block 4, and then the load may write it.
            for tensor in tensors:
                driver().copy(scratch.address, tensor.address + 3 * block, 2 * block, raw(stream))
            assert stored.wait().stored == 2
            loaded = cache.load(cache.lookup(names), [4, 3], after=stream)
            for layer, tensor in enumerate(tensors):
                assert loaded.wait_layer_on(stream, layer)
                driver().copy(scratch.address, tensor.address + 3 * block, 2 * block, raw(stream))
                driver().synchronize(raw(stream))
                assert driver().read(scratch.address, 2 * block) == bytes([10 * turn + layer + 1]) * (2 * block)
            assert loaded.wait().blocks == 2
    del engine, cache
    if raw(stream) > 2:
        driver().destroy(raw(stream))


@pytest.mark.parametrize("left_out", ["store", "load"])
def test_the_checker_finds_each_wait_that_is_left_out(left_out: str, provokes: str) -> None:
    stream = driver().stream()
    engine, tensors, identity, keys = an_engine()
    block = tensors[0].memory.size // 5
    scratch = DeviceMemory(np.zeros(2 * block, "uint8"))
    with kvtile.Cache(identity, engine, host_bytes=1 << 20) as cache:
        for tensor in tensors:
            driver().fill(tensor.address, 9, 2 * block, stream)
        assert cache.store(keys, [0, 1], after=None if left_out == "store" else stream).wait().stored == 2
        driver().synchronize(stream)
        for tensor in tensors:
            driver().copy(scratch.address, tensor.address + 3 * block, 2 * block, stream)
        loaded = cache.load(cache.lookup(keys), [3, 4], after=None if left_out == "load" else stream)
        assert loaded.wait_layer_on(stream, 1) and loaded.wait().blocks == 2
    driver().destroy(stream)


class GroupEngine:
    """A group with full attention on the device, and states in host memory."""

    def __init__(self) -> None:
        plain = shape(B=8)
        full, self.tensors, _ = on_device("L|BKNHC", plain, InterfaceTensor)
        plane = kvtile.Plane("s", "float32", H=2, C=24, per_page=True)
        state = kvtile.Shape(num_blocks=8, num_layers=1, page_size=4, planes=[plane])
        self.host, _ = layout("BLHC", state)
        groups = [kvtile.ModelGroup("full", plain), kvtile.ModelGroup("state", state, rule="stop")]
        self.layouts = {"full": full, "state": self.host}
        self.cache = kvtile.GroupCache(kvtile.ModelIdentity("a/model", "1", groups), self.layouts, host_bytes=1 << 20)
        self.keys = self.cache.hasher().keys(range(8))
        self.block = self.tensors[0].memory.size // 8

    def step(self, stream: int, scratch: DeviceMemory, *, store: bool = True, load: bool = True) -> None:
        """Fills blocks 0 and 1 in the stream and stores them; copies from blocks 4 and 5 in the stream and loads into
        them. ``store`` and ``load``: whether that call gets ``after=stream``."""
        with self.cache:
            for tensor in self.tensors:
                driver().fill(tensor.address, 9, 2 * self.block, stream)
            blocks = {"full": [0, 1], "state": ([1], 1)}
            report = self.cache.store(self.keys, blocks, stop=8, after=stream if store else None).wait()
            assert report.stored == 3
            driver().synchronize(stream)
            for tensor in self.tensors:
                driver().copy(scratch.address, tensor.address + 4 * self.block, 2 * self.block, stream)
            found = self.cache.lookup(self.keys)
            loaded = self.cache.load(found, {"full": [4, 5], "state": [6]}, after=stream if load else None)
            assert loaded.wait().tokens == 8
            for tensor in self.tensors:
                assert tensor.bytes()[4 * self.block : 6 * self.block] == b"\x09" * (2 * self.block)
        driver().destroy(stream)


def test_stores_and_loads_of_groups_wait_for_a_stream() -> None:
    engine, stream = GroupEngine(), driver().stream()
    with pytest.raises(kvtile.RequestError, match="not in memory of a device"):
        engine.cache.store(engine.keys, {"state": ([1], 1)}, stop=8, after=stream)
    engine.step(stream, DeviceMemory(np.zeros(2 * engine.block, "uint8")))


@pytest.mark.parametrize("left_out", ["store", "load"])
def test_the_checker_finds_each_wait_of_groups_that_is_left_out(left_out: str, provokes: str) -> None:
    engine = GroupEngine()
    engine.step(driver().stream(), DeviceMemory(np.zeros(2 * engine.block, "uint8")), **{left_out: False})


def test_copies_wait_for_streams_and_streams_for_copies() -> None:
    plain = shape()
    engine, [tensor], _ = on_device("BLKNHC", plain)
    stream = driver().stream()
    target, [stored] = layout("BHLKNC", plain)
    driver().fill(tensor.address, 5, tensor.memory.size, stream)
    kvtile.copy_blocks(engine, target, range(5), after=stream)
    assert (stored.view("uint8") == 5).all()
    stored.view("uint8")[:] = 6
    scratch = DeviceMemory(np.zeros(tensor.memory.size, "uint8"))
    for layer in range(2):
        driver().copy(scratch.address, tensor.address, tensor.memory.size, stream)
        done = kvtile.copy_blocks_async(target, engine, range(5), layers=(layer, layer + 1), after=stream)
        assert done.wait_layer_on(stream, 0, timeout=30.0)
        driver().copy(scratch.address, tensor.address, tensor.memory.size, stream)
        driver().synchronize(stream)
        # The leases of a copy end with it, which may be after its last layer came.
        done.wait()
    assert driver().read(scratch.address, scratch.size) == b"\x06" * scratch.size
    across = kvtile.copy_blocks_async(engine, engine, [0], [1], after=stream)
    assert across.wait_layer_on(TorchStream(stream), 1)
    across.wait()
    driver().destroy(stream)


def test_streams_that_no_layout_has_are_refused() -> None:
    host, device = layout("BLKNHC", shape())[0], on_device("BLKNHC", shape())[0]
    identity = kvtile.Identity("a", "1", shape())
    driver().use(1)
    foreign = driver().stream()
    driver().use(0)
    with pytest.raises(kvtile.RequestError, match="no layout of the call is in memory of a device; leave it out"):
        kvtile.copy_blocks(host, host, [0], [1], after=0)
    with pytest.raises(kvtile.RequestError, match=f"the stream {foreign:#x} is not one of device 0"):
        kvtile.copy_blocks(device, host, [0], after=foreign)
    with pytest.raises(kvtile.DeviceError, match=r"CUDA_ERROR_INVALID_HANDLE \(400\)"):
        kvtile.copy_blocks(device, host, [0], after=0xBAD0)
    for wrong in [-1, 1 << 64, 1.5, True, "0", b"", object(), TorchStream(-1), TorchStream(None), ProtocolStream(4, 1)]:  # type: ignore[arg-type]
        with pytest.raises(kvtile.KvtileError, match="after|__cuda_stream__"):
            kvtile.copy_blocks(device, host, [0], after=wrong)  # type: ignore[arg-type]
    with kvtile.Cache(identity, host, host_bytes=1 << 20) as cache:
        keys = kvtile.TokenHasher(identity).keys(range(4))
        with pytest.raises(kvtile.RequestError, match="leave it out"):
            cache.store(keys, [0], after=0)
        done = cache.store(keys, [0])
        assert done.wait_layer_on(None, 0)
        with pytest.raises(kvtile.RequestError, match="layer is 2"):
            done.wait_layer_on(None, 2)
        done.wait()
        # A layout on a device in a call of a cache over host memory.
        loaded = cache.load(cache.lookup(keys), [1], layout=device, after=2)
        assert loaded.wait_layer_on(2, 1) and loaded.wait().blocks == 1
    driver().use(1)
    driver().destroy(foreign)
    driver().use(0)


def test_two_caches_share_a_device_and_close_with_transfers_in_flight() -> None:
    plain = shape(B=64)
    engine, tensors, arrays = on_device("L|BKNHC", plain)
    identity = kvtile.Identity("a", "1", plain)
    chains = [kvtile.TokenHasher(identity, salt=name).keys(range(4 * 30)) for name in ("x", "y")]
    for _ in range(3):
        caches = [kvtile.Cache(identity, engine, host_bytes=1 << 20) for _ in range(2)]
        stores = [cache.store(keys, range(index * 30, index * 30 + 30))
                  for index, (cache, keys) in enumerate(zip(caches, chains))]
        del stores[0]
        caches[0].close()
        [stored] = stores
        assert stored.wait().stored == 30
        loaded = caches[1].load(caches[1].lookup(chains[1]), range(30))
        caches[1].close()
        report = loaded.wait()
        assert report.blocks == 30 or report.stopped == "closed"
        if report.blocks == 30:
            for tensor, array in zip(tensors, arrays):
                wide = array.reshape(64, -1)
                wide[:30] = wide[30:60]
                assert tensor.bytes() == array.tobytes()
        for tensor, array in zip(tensors, arrays):
            driver().write(tensor.address, array.tobytes())


def test_a_layout_that_a_load_uses_outlives_its_last_name() -> None:
    engine, tensors, identity, keys = an_engine(64, 4 * 30)
    watches = [weakref.ref(tensor) for tensor in tensors]
    cache = kvtile.Cache(identity, engine, host_bytes=1 << 20)
    cache.store(keys, range(30)).wait()
    loaded = cache.load(cache.lookup(keys), range(30, 60))
    del engine, tensors, cache
    gc.collect()
    assert loaded.wait().stopped in (None, "closed")
    del loaded
    gc.collect()
    kvtile.copy_blocks(layout("BLKNHC", shape())[0], layout("BHLKNC", shape())[0], [0])
    assert [watch() for watch in watches] == [None, None]
