"""Each function of the driver fails once, at its first calls: a typed error or a report, and nothing is lost. Under the
stand-in driver, not run on hardware."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

import kvtile
from helpers import layout, shape
from standin import InterfaceTensor, checked, driver, on_device

__all__ = ["checked"]  # The fixture of the tests below.

BLOCKS = 8
# Errors that leave the device usable: out of memory, and one that no document explains.
CODES = [2, 999]
# Calls of a function that fail, from the first one on.
CALLS = 3


class Work:
    """What one operation does with an engine's layout on the device, a host layout and a stream."""

    def __init__(self, folder: Path) -> None:
        self.plain = shape(B=BLOCKS)
        self.engine, self.tensors, self.arrays = on_device("L|BKNHC", self.plain, InterfaceTensor)
        self.host, [self.array] = layout("BLKNHC", self.plain)
        self.identity = kvtile.Identity("a", "1", self.plain)
        self.keys = kvtile.TokenHasher(self.identity).keys(range(8))
        self.stream, self.folder = driver().stream(), folder

    def layout(self) -> None:
        kvtile.Layout("L|BKNHC", shape=self.plain, tensors=self.tensors)

    def copy(self) -> None:
        kvtile.copy_blocks(self.engine, self.host, [0, 1], [2, 3], after=self.stream, verify=True)
        loaded = kvtile.copy_blocks_async(self.host, self.engine, [2, 3], [4, 5], after=self.stream)
        try:
            loaded.wait_layer_on(self.stream, 1)
        finally:
            loaded.wait()
        kvtile.copy_blocks(self.engine, self.engine, [0], [6])

    def cache(self) -> None:
        settings = {"host_bytes": 1 << 20, "disk": self.folder, "disk_bytes": 4 << 20}
        with kvtile.Cache(self.identity, self.engine, **settings) as cache:
            cache.clear()
            cache.store(self.keys, [0, 1], after=self.stream).wait()
            for target in ([4, 5], [6, 7]):
                with cache.lookup(self.keys) as found:
                    count = found.blocks
                    loaded = cache.load(found, target[:count], after=self.stream)
                [loaded.wait_layer_on(self.stream, layer) for layer in range(2)]
                report = loaded.wait()
                assert report.blocks == count or report.stopped is not None
                cache.evict("host", 2)

    def check(self) -> None:
        """The sources are as they were, and everything works."""
        driver().synchronize(self.stream)
        block = self.tensors[0].memory.size // BLOCKS
        for tensor, array in zip(self.tensors, self.arrays):
            assert tensor.bytes()[: 4 * block] == array.tobytes()[: 4 * block]
        kvtile.copy_blocks(self.engine, self.host, range(4), range(4))
        kvtile.copy_blocks(self.host, self.engine, [0, 1], [4, 5])
        for tensor in self.tensors:
            assert tensor.bytes()[4 * block : 6 * block] == tensor.bytes()[: 2 * block]


@pytest.mark.parametrize("name", ["layout", "copy", "cache"])
def test_a_call_that_fails_once_is_a_typed_error_and_loses_nothing(name: str, tmp_path: Path) -> None:
    work = Work(tmp_path)
    operation: Any = getattr(work, name)
    operation()
    work.check()
    gc.collect()
    before = driver().calls()
    operation()
    gc.collect()
    counts = {function: count - before.get(function, 0) for function, count in driver().calls().items()}
    left, failed = driver().left(), 0
    for function, count in counts.items():
        for nth in range(1, min(count, CALLS) + 1):
            for code in CODES:
                driver().fail(function, nth, code)
                try:
                    operation()
                except kvtile.KvtileError as error:
                    assert isinstance(error, (kvtile.DeviceError, kvtile.TransferError)), (function, nth, code, error)
                    assert function in str(error) or "memory" in str(error), error
                    failed += 1
                finally:
                    driver().forget_faults()
                work.check()
    gc.collect()
    operation()
    gc.collect()
    assert failed > len(counts) / 4, "few calls failed"
    now = driver().left()
    # Events are pooled, and the slots of staging memory are made when they are needed.
    assert now["pinned_memory"] <= left["pinned_memory"] + 4
    pooled = {"events": 0, "pinned_memory": 0}
    assert {**now, **pooled} == {**left, **pooled}
    driver().destroy(work.stream)
