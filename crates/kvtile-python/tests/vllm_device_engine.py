"""The small engine of ``vllm_engine`` with its KV in memory of the stand-in's device, as vLLM's GPU backends keep it.

The engine enqueues what it reads, computes and poisons in one stream, and waits for it as late as it can. Not run on
hardware.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from standin import DeviceMemory, DeviceStorage, DlpackTensor, driver
from vllm_engine import BLOCKS, LAYERS, PAGE, POISON, Engine, Request

HEADS = 2
HEAD_SIZE = 4
# K and V of a token and head.
WIDE = 2 * HEAD_SIZE
ITEM = 4
# vLLM's orders of layers, blocks, heads and tokens, by its names for them.
ORDERS = {"LBHNC": "LBHN", "LBNHC": "LBNH", "LHBNC": "LHBN", "BLHNC": "BLHN", "BLNHC": "BLNH", "BHLNC": "BHLN"}


class Device:
    """A device as torch names it."""

    def __init__(self, kind: str = "cuda") -> None:
        self.type = kind

    def __str__(self) -> str:
        return f"{self.type}:0"


class GpuTensor(DlpackTensor):
    """A layer's KV on a device: the parts of a torch tensor that the connector and kvtile read."""

    def __init__(
        self, memory: DeviceMemory, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, dtype: str = "float32",
        device: str = "cuda",
    ) -> None:
        super().__init__(np.zeros(0, "float32"), memory=memory, sizes=sizes, strides=list(strides), offset=offset)
        self.dtype, self.device = f"torch.{dtype}", Device(device)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes)

    def stride(self, axis: int | None = None) -> Any:
        return tuple(self.strides) if axis is None else self.strides[axis]

    def permute(self, *order: int) -> GpuTensor:
        return GpuTensor(
            self.memory, tuple(self.sizes[axis] for axis in order), tuple(self.strides[axis] for axis in order), self.offset
        )

    def __getitem__(self, index: int) -> GpuTensor:
        return GpuTensor(self.memory, self.shape[1:], self.stride()[1:], self.offset + index * self.strides[0] * ITEM)

    def numel(self) -> int:
        return int(np.prod(self.sizes))

    def element_size(self) -> int:
        return ITEM

    def untyped_storage(self) -> DeviceStorage:
        return DeviceStorage(self.memory)


def tensors_in(order: str, data: np.ndarray, *, padding: int = 0) -> list[GpuTensor]:
    """The tensors of the layers in one of vLLM's orders, with the values of ``data`` by layer, block, head, token and K or V.

    Orders with layers outside have an allocation for each layer. ``padding`` elements are behind each block.
    """
    sizes = dict(zip("LBHN", data.shape, strict=False))
    strides, step = {}, data.shape[-1]
    for axis in reversed(order):
        strides[axis] = step
        step = step * sizes[axis] + (padding if order.index(axis) == order.index("B") + 1 else 0)
    apart = order[0] == "L"
    whole = np.zeros(step, data.dtype)
    item = data.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(whole, data.shape, [item * strides[axis] for axis in "LBHN"] + [item])
    view[:] = data
    each = whole.reshape(sizes["L"], -1) if apart else [whole]
    memories = [DeviceMemory(np.ascontiguousarray(part)) for part in each]
    of_layer = tuple(strides[axis] for axis in "BHN") + (1,)
    return [
        GpuTensor(memories[layer if apart else 0], data.shape[1:], of_layer, 0 if apart else layer * strides["L"] * item)
        for layer in range(sizes["L"])
    ]


class Stream:
    """A stream as torch has it, with pinned memory for what passes through it."""

    BYTES = 1 << 20

    def __init__(self) -> None:
        self.cuda_stream = driver().stream()
        self.pinned = driver().address("cuMemHostAlloc", self.BYTES, 0)
        self.used = 0

    def room(self, size: int) -> int:
        """Pinned memory until the next ``rewind``."""
        assert self.used + size <= self.BYTES, "a step passes more than the pinned memory"
        self.used += size
        return self.pinned + self.used - size

    def rewind(self) -> None:
        """Waits for the stream where little of the pinned memory is left."""
        if self.used > self.BYTES // 2:
            self.synchronize()
            self.used = 0

    def synchronize(self) -> None:
        driver().synchronize(self.cuda_stream)

    def close(self) -> None:
        driver().destroy(self.cuda_stream)
        driver().call("cuMemFreeHost", ctypes.c_void_p(self.pinned))


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """The stream that torch has as the current one."""
    current = Stream()
    cuda = SimpleNamespace(current_stream=lambda device: current if device.type == "cuda" else None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    yield current
    current.close()


def token_ranges(tensor: GpuTensor, block: int, tokens: range) -> Iterator[tuple[tuple[int, int], int, int]]:
    """The head and token, address and bytes of each run of some tokens of a block."""
    to_block, to_head, to_token, _ = tensor.stride()
    start = tensor.address + tensor.offset + block * to_block * ITEM
    for head in range(tensor.shape[1]):
        for token in tokens:
            yield (head, token), start + (head * to_head + token * to_token) * ITEM, WIDE * ITEM


class Seen:
    """What the stream reads of a block, once it is synchronised."""

    def __init__(self, address: int, count: int) -> None:
        self.address, self.count = address, count

    def values(self) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(self.address, self.count * ITEM), np.float32)


class DeviceEngine(Engine):
    """The engine with two heads for each rank, in an order of vLLM that the seed chooses."""

    def __init__(self, sides: Any, seed: int, ranks: int, disk: Any, monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
        self.stream = stream
        self.order = list(ORDERS)[seed % len(ORDERS)]
        self.late = random.Random(seed)
        # Requests, layers and counts of the step, with what the stream reads of their prefixes.
        self.seen: list[tuple[Request, int, int, list[tuple[int, int, Seen]]]] = []
        super().__init__(sides, seed, ranks, disk, monkeypatch)

    def memory(self) -> list[GpuTensor]:
        return tensors_in(ORDERS[self.order], np.full((LAYERS, BLOCKS, HEADS, PAGE, WIDE), POISON, np.float32))

    def tensor(self, memory: Any) -> Any:
        return memory

    def layout_and_identity(self, _: Any, caches: dict[str, GpuTensor], __: Any, rank: Any) -> tuple[kvtile.Layout, kvtile.Identity]:
        shape = kvtile.Shape(
            num_blocks=BLOCKS, num_layers=LAYERS, page_size=PAGE, num_heads=HEADS, head_size=HEAD_SIZE, dtype="float32",
            first_head=rank.number * HEADS, total_heads=rank.size * HEADS,
        )
        return self.sides.layout.layout_on_device(list(caches.values()), shape), kvtile.Identity("a-model", "main", shape)

    # What the stream does.

    def write(self, tensor: GpuTensor, block: int, first: int, values: list[float]) -> None:
        """Enqueues writing tokens of a block, from ``first`` on."""
        for (_, token), address, size in token_ranges(tensor, block, range(first, first + len(values))):
            source = self.stream.room(size)
            ctypes.memmove(source, np.full(WIDE, values[token - first], np.float32).tobytes(), size)
            driver().copy(address, source, size, self.stream.cuda_stream)

    def see(self, tensor: GpuTensor, block: int, count: int = PAGE) -> Seen:
        """Enqueues reading the first tokens of a block."""
        target = self.stream.room(HEADS * count * WIDE * ITEM)
        for (head, token), address, size in token_ranges(tensor, block, range(count)):
            driver().copy(target + (head * count + token) * size, address, size, self.stream.cuda_stream)
        return Seen(target, HEADS * count * WIDE)

    def prefix(self, request: Request, layer: int) -> list[tuple[int, int, Seen]]:
        """What the stream reads of the tokens that count as computed: rank, first token and values of each block."""
        return [
            (rank, start, self.see(kv[layer], request.blocks[start // PAGE], min(PAGE, request.computed - start)))
            for rank, kv in enumerate(self.kv)
            for start in range(0, request.computed, PAGE)
        ]

    def is_prefix(self, request: Request, layer: int, prefix: list[tuple[int, int, Seen]]) -> bool:
        for rank, start, seen in prefix:
            values = seen.values().reshape(HEADS, -1, WIDE)
            for token in range(values.shape[1]):
                if not (values[:, token] == self.content(request, rank, layer, start + token)).all():
                    return False
        return True

    # The model.

    def compute(self, request: Request, layer: int, count: int) -> bool:
        self.seen.append((request, layer, count, self.prefix(request, layer)))
        return True

    def computed(self) -> set[str]:
        self.stream.synchronize()
        wrong = set()
        for request, layer, count, prefix in self.seen:
            right = self.is_prefix(request, layer, prefix)
            if not right:
                wrong.add(request.request_id)
            for rank, kv in enumerate(self.kv):
                for at in range(request.computed, request.computed + count):
                    content = self.content(request, rank, layer, at) if right else POISON
                    self.write(kv[layer], request.blocks[at // PAGE], at % PAGE, [content])
                # The step still reads its blocks while kvtile stores them, and other blocks are loaded.
                self.see(kv[layer], request.blocks[0])
        self.seen.clear()
        return wrong

    def is_right(self, request: Request, layer: int) -> bool:
        prefix = self.prefix(request, layer)
        self.stream.synchronize()
        return self.is_prefix(request, layer, prefix)

    # The scheduler.

    def release(self, blocks: list[int]) -> None:
        for kv in self.kv:
            for tensor in kv:
                for block in blocks:
                    self.write(tensor, block, 0, [POISON] * PAGE)
        self.free += blocks

    def step(self) -> None:
        self.stream.rewind()
        super().step()

    def check(self) -> None:
        # A check waits for the stream.
        if self.late.random() < 0.2:
            super().check()
        self.stream.rewind()
