"""Tensors of torch that state to be on a CUDA device, over memory of the stand-in driver.

No build of torch with CUDA is here. torch computes with the contents in host memory, and a mode that sees each of its calls
keeps these equal to the stand-in's memory, once kvtile has seen that: what an operation reads, and what it has changed, is
enqueued in the stream that torch has as the current one, as work of a model is. The mode refuses what torch refuses: operations
on tensors of two devices, and NumPy views of a device. Nothing ran on hardware.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from standin import DeviceMemory, DeviceStorage, DlpackTensor, driver

CUDA = torch.device("cuda:0")
PINNED_BYTES = 8 << 20
# Operations of torch that read no contents.
VIEWS = set(
    """
    __get__ __getitem__ __iter__ __len__ unflatten permute transpose narrow unbind view detach size dim stride numel
    storage_offset element_size is_contiguous
    """.split()
)
# Operations that take tensors of the host beside those of a device.
MIXES = {"to", "copy_", "__getitem__", "__setitem__", "set_", "is_same_size", "data", "__set__", "__get__"}


class ComputeStream:
    """A stream as torch has it, with pinned memory for what passes through it."""

    def __init__(self) -> None:
        self.cuda_stream = driver().stream()
        self.pinned = driver().address("cuMemHostAlloc", PINNED_BYTES, 0)
        self.used = 0

    def room(self, size: int) -> int:
        if self.used + size > PINNED_BYTES:
            self.synchronize()
        assert size <= PINNED_BYTES
        self.used += size
        return self.pinned + self.used - size

    def synchronize(self) -> None:
        driver().synchronize(self.cuda_stream)
        self.used = 0

    def close(self) -> None:
        driver().destroy(self.cuda_stream)
        driver().call("cuMemFreeHost", ctypes.c_void_p(self.pinned))


class SharedStorage:
    """A storage of torch whose contents are in memory of the device too, because kvtile reads or writes it."""

    def __init__(self, storage: Any, stream: ComputeStream) -> None:
        self.storage, self.stream = storage, stream
        self.memory = DeviceMemory.__new__(DeviceMemory)
        self.memory.size, self.memory.ordinal = storage.nbytes(), 0
        self.memory.address = driver().allocate(self.memory.size)
        # Whether kvtile may have written it since torch has read it.
        self.may_differ = True
        self.push()

    def contents(self) -> bytes:
        return ctypes.string_at(self.storage.data_ptr(), self.memory.size)

    def push(self) -> None:
        """Enqueues writing what torch has computed."""
        room = self.stream.room(self.memory.size)
        ctypes.memmove(room, self.storage.data_ptr(), self.memory.size)
        driver().copy(self.memory.address, room, self.memory.size, self.stream.cuda_stream)

    def pull(self) -> None:
        """Reads behind what is in the stream, and waits."""
        if not self.may_differ:
            return
        self.may_differ = False
        room = self.stream.room(self.memory.size)
        driver().copy(room, self.memory.address, self.memory.size, self.stream.cuda_stream)
        self.stream.synchronize()
        ctypes.memmove(self.storage.data_ptr(), room, self.memory.size)


class StandinTensor(torch.Tensor):
    """A tensor that states to be on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def untyped_storage(self) -> Any:
        return DeviceStorage(StandinMode.active().shared(self).memory)

    def __dlpack_device__(self) -> Any:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        assert stream == -1, "kvtile orders its copies itself"
        with torch._C.DisableTorchFunction():
            offset, sizes, strides = self.storage_offset() * self.element_size(), self.shape, self.stride()
            name = str(self.dtype).removeprefix("torch.")
        # Numpy has no bfloat16: a kind that stands for it.
        dtype = "V2" if name == "bfloat16" else name
        memory = StandinMode.active().shared(self).memory
        self.exporter = DlpackTensor(np.zeros(0, dtype), memory=memory, sizes=sizes, strides=list(strides), offset=offset)
        return self.exporter.capsule()


class StandinMode(TorchFunctionMode):
    """Sees all calls of torch of this thread."""

    current: StandinMode | None = None

    def __init__(self, stream: ComputeStream) -> None:
        super().__init__()
        self.stream = stream
        # By the address of torch's storage, which each keeps.
        self.storages: dict[int, SharedStorage] = {}

    @classmethod
    def active(cls) -> StandinMode:
        assert cls.current is not None, "no mode is active"
        return cls.current

    def shared(self, tensor: Any) -> SharedStorage:
        """The storage of a tensor, in memory of the device from now on."""
        with torch._C.DisableTorchFunction():
            storage = torch.Tensor.untyped_storage(tensor)
            known = self.storages.get(storage._cdata)
            known = known or self.storages.setdefault(storage._cdata, SharedStorage(storage, self.stream))
            known.may_differ = True
            return known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = dict(kwargs or {})
        args, kwargs, to_device = without_device(name, args, kwargs)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        here = [one for one in tensors if isinstance(one, StandinTensor)]
        if here and name not in MIXES:
            for one in tensors:
                if not isinstance(one, StandinTensor) and one.dim() and one.device.type == "cpu":
                    raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
        if here and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        shared = {} if name in VIEWS else self.shared_of(here)
        for one in shared.values():
            one.pull()
        before = {key: one.contents() for key, one in shared.items()}
        if name == "__iter__" and here:
            return iter([placed(one, True) for one in args[0].unbind(0)])
        result = as_on_a_device(func, name, args, kwargs) if here else func(*args, **kwargs)
        for key, one in shared.items():
            if one.contents() != before[key]:
                one.push()
        on_device = bool(here) and name != "cpu" if to_device is None else to_device
        return tree_map(lambda one: placed(one, on_device) if isinstance(one, torch.Tensor) else one, result)

    def shared_of(self, tensors: list[Any]) -> dict[int, SharedStorage]:
        if not self.storages:
            return {}
        keys = {torch.Tensor.untyped_storage(one)._cdata for one in tensors}
        return {key: self.storages[key] for key in keys if key in self.storages}


def as_on_a_device(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result on the CPU, also of what torch has for whole numbers on a device alone."""
    if name == "histc" and not args[0].is_floating_point():
        return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def without_device(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], bool | None]:
    """The arguments with the CPU in place of the device; and whether they name the device, or another one."""
    named: bool | None = None

    def replaced(value: Any) -> Any:
        nonlocal named
        if isinstance(value, (str, torch.device)):
            kind = torch.device(value).type
            if kind != "meta":
                named = kind == "cuda"
                return "cpu"
            named = False
        return value

    if kwargs.get("device") is not None:
        kwargs["device"] = replaced(kwargs["device"])
    if name == "to":
        first, *rest = args
        args = (first, *(replaced(one) for one in rest))
        others = [one for one in rest if isinstance(one, torch.Tensor)]
        if others:
            named = isinstance(others[0], StandinTensor)
    return args, kwargs, True if name == "cuda" else named


def placed(tensor: Any, on_device: bool) -> Any:
    """A result of torch, which states where it is."""
    if on_device == isinstance(tensor, StandinTensor) or tensor.device.type == "meta":
        return tensor
    return tensor.as_subclass(StandinTensor if on_device else torch.Tensor)


def moved(model: Any) -> Any:
    """The model on the device, as ``model.to("cuda")`` leaves it."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().to(CUDA), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(CUDA)
    return model


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinMode]:
    """torch with a device."""
    stream = ComputeStream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    made = StandinMode(stream)
    StandinMode.current = made
    with made:
        yield made
    StandinMode.current = None
    stream.synchronize()
    made.storages.clear()
    stream.close()
