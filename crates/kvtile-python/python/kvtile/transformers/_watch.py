"""Checks before each request whether the model has changed since its cache was opened.

The full check reads all weights. Between full checks, a cheap mark is compared, in a few milliseconds at most: the
modules, their numbers, and for each tensor its address, its version counter and some of its values. If the mark
differs, the full check runs.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig

from kvtile._errors import IdentityError, KvtileError
from kvtile.transformers._digest import plain_parts
from kvtile.transformers._model import KNOWN_TO_TORCH, check_moment, device_of, is_plain, tensors_in

_SAMPLES = 8


class ModelWatch:
    """A weak reference to a model, the identity that it had at first (an Identity, or a ModelIdentity), and its device."""

    def __init__(self, model: Any, identity_of: Callable[[Any], Any]) -> None:
        self._model = weakref.ref(model)
        self._identity_of = identity_of
        self._lock = threading.Lock()
        self._mark = _Mark(_modules(model))
        self.identity: Any = identity_of(model)
        self.device = device_of(model)

    def model(self) -> Any:
        """The model. Raises IdentityError if it was garbage-collected."""
        model = self._model()
        if model is None:
            raise IdentityError("the model of this cache no longer exists")
        return model

    def check(self) -> Any:
        """Returns the model after checking that it is unchanged.

        Raises:
            IdentityError: a change would change its KV.
            RequestError: dropout or autocast is active at the moment.
        """
        model = self.model()
        modules = _modules(model)
        check_moment(modules, self.device)
        if not self._mark.holds(modules):
            with self._lock:
                self._look_again(model)
        return model

    def _look_again(self, model: Any) -> None:
        # The mark is taken first, so the next check sees a change during the full check.
        mark = _Mark(_modules(model))
        try:
            difference = self.identity.difference(self._identity_of(model))
            device = device_of(model)
            if difference is None and device != self.device:
                difference = f"it was on {self.device} and is on {device}"
        except KvtileError as error:
            difference = str(error)
        if difference is not None:
            raise IdentityError(
                f"the model has changed since this cache was opened, and so has its KV: {difference}. Make a new "
                "PrefixCache for it, or change it back"
            )
        self._mark = mark


class _Mark:
    """A cheap summary of a model's state. It keeps nothing of the model alive."""

    def __init__(self, modules: list[Any]) -> None:
        self._attributes = [_Attributes(module) for module in modules]
        self._loose = [
            (at, key)
            for at, module in enumerate(modules)
            for key, value in vars(module).items()
            if key not in KNOWN_TO_TORCH and next(tensors_in(key, value), None) is not None
        ]
        self._tensors = _tensors_of(modules, self._loose)
        self._configs = copy.deepcopy(_configs(modules))
        self._precision = torch.get_float32_matmul_precision()

    def holds(self, modules: list[Any]) -> bool:
        return (
            len(modules) == len(self._attributes)
            and all(known.hold(module) for known, module in zip(self._attributes, modules, strict=True))
            and self._tensors == _tensors_of(modules, self._loose)
            and self._configs == _configs(modules)
            and self._precision == torch.get_float32_matmul_precision()
        )


class _Attributes:
    """The class of a module, its numbers of attributes and hooks, and its plain values."""

    def __init__(self, module: Any) -> None:
        attributes = vars(module)
        values = {key: value for key, value in attributes.items() if key != "training" and is_plain(value)}
        self._keys = tuple(values)
        self._shape = self._shape_of(module)
        self._values = copy.deepcopy(list(values.values()))

    def hold(self, module: Any) -> bool:
        attributes = vars(module)
        return self._shape == self._shape_of(module) and [attributes.get(key) for key in self._keys] == self._values

    @staticmethod
    def _shape_of(module: Any) -> tuple[Any, ...]:
        return type(module), len(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks)


def _modules(model: Any) -> list[Any]:
    """All modules, in a fixed order; faster than model.modules()."""
    found, waiting, seen = [], [model], set()
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            waiting.extend(child for child in module._modules.values() if child is not None)
    return found


def _configs(modules: list[Any]) -> list[dict[str, Any]]:
    """The fields of the modules' distinct configs. Configs that differ only in attention compare equal; their fields do
    not."""
    found: dict[int, Any] = {}
    for module in modules:
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            found.setdefault(id(config), config)
    return [_fields(config) for config in found.values()]


def _fields(config: Any) -> dict[str, Any]:
    return {
        name: _fields(value) if isinstance(value, PreTrainedConfig) else value for name, value in vars(config).items()
    }


def _tensors_of(modules: list[Any], loose: list[tuple[int, str]]) -> list[Any]:
    """Addresses, version counters and sample values of the tensors."""
    found: list[Any] = []
    tensors = [
        tensor
        for module in modules
        for known in (module._parameters, module._buffers)
        for tensor in known.values()
        if tensor is not None
    ]
    for at, key in loose:
        tensors += [tensor for _, tensor in tensors_in(key, vars(modules[at]).get(key))]
    # Samples in memory of devices, by dtype: they come to the host together.
    distant: dict[Any, list[Any]] = {}
    with torch.no_grad():
        for tensor in tensors:
            found.append((id(tensor), -1 if tensor.is_inference() else tensor._version))
            for plain in [tensor] if type(tensor) in _PLAIN else [part for _, part in plain_parts("", tensor)]:
                if plain.device.type == "meta":
                    found.append(plain.device)
                    continue
                found.append((plain.device, plain.data_ptr(), plain.dtype, plain.shape))
                if plain.device.type == "cpu":
                    found.append(_sample(plain).tolist())
                else:
                    distant.setdefault((plain.device, plain.dtype), []).append(_sample(plain).reshape(-1))
        found += [torch.cat(samples).tolist() for samples in distant.values()]
    return found


_PLAIN = {torch.Tensor, torch.nn.Parameter}


def _sample(tensor: Any) -> Any:
    """Equally spaced values of a tensor. They are converted one by one: torch would start threads even for these few."""
    count = tensor.numel()
    if count <= _SAMPLES or not tensor.is_contiguous():
        return tensor.reshape(-1)[:: max(1, count // _SAMPLES)]
    return tensor.as_strided((_SAMPLES,), (count // _SAMPLES,), tensor.storage_offset())
