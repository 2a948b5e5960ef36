"""Notices before each request whether a model is still the one that a cache was opened for.

The whole answer reads all weights. In between a mark is compared that takes some milliseconds at most: which modules there
are, their numbers, where each tensor lies, how often torch has changed it, and some of its values. Where the mark is
another, the whole is read again.
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
from kvtile._kvtile import Identity
from kvtile.transformers._digest import plain_parts
from kvtile.transformers._model import KNOWN_TO_TORCH, check_moment, is_plain, tensors_in

_SAMPLES = 8


class ModelWatch:
    """A model, held weakly, and the identity that it had."""

    def __init__(self, model: Any, identity_of: Callable[[Any], Identity]) -> None:
        self._model = weakref.ref(model)
        self._identity_of = identity_of
        self._lock = threading.Lock()
        self._mark = _Mark(_modules(model))
        self.identity = identity_of(model)

    def model(self) -> Any:
        """The model. Raises IdentityError where nothing else keeps it any more."""
        model = self._model()
        if model is None:
            raise IdentityError("the model of this cache is gone")
        return model

    def check(self) -> Any:
        """The model, as it was when the cache was opened.

        Raises:
            IdentityError: its KV would be another now.
            RequestError: it drops out or computes in another dtype at the moment.
        """
        model = self.model()
        modules = _modules(model)
        check_moment(modules)
        if not self._mark.holds(modules):
            with self._lock:
                self._look_again(model)
        return model

    def _look_again(self, model: Any) -> None:
        # The mark is taken first: what changes while the weights are read is seen by the next check.
        mark = _Mark(_modules(model))
        try:
            difference = self.identity.difference(self._identity_of(model))
        except KvtileError as error:
            difference = str(error)
        if difference is not None:
            raise IdentityError(
                f"the model has changed since this cache was opened, and its KV is another now: {difference}. Make a new "
                "PrefixCache for it, or change it back"
            )
        self._mark = mark


class _Mark:
    """What a model looks like from outside, without reading all of it. It keeps nothing of the model alive."""

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
    """The class of a module, how many attributes and hooks it has, and the numbers and words among them."""

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
    """All modules in an order of their own; faster than model.modules()."""
    found, waiting, seen = [], [model], set()
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            waiting.extend(child for child in module._modules.values() if child is not None)
    return found


def _configs(modules: list[Any]) -> list[dict[str, Any]]:
    """What the distinct configs of modules say. They compare equal where their attention is another, so their fields do."""
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
    """Where tensors lie and how often they changed; some of their values."""
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
    with torch.no_grad():
        for tensor in tensors:
            found.append((id(tensor), -1 if tensor.is_inference() else tensor._version))
            for plain in [tensor] if type(tensor) in _PLAIN else [part for _, part in plain_parts("", tensor)]:
                if plain.device.type == "cpu":
                    found.append((plain.data_ptr(), plain.dtype, plain.shape, _sample(plain)))
                else:
                    found.append(plain.device)
    return found


_PLAIN = {torch.Tensor, torch.nn.Parameter}


def _sample(tensor: Any) -> list[Any]:
    """Values of a tensor at even distances; one by one, as torch would share even these among threads."""
    count = tensor.numel()
    if count <= _SAMPLES or not tensor.is_contiguous():
        return list(tensor.reshape(-1)[:: max(1, count // _SAMPLES)].tolist())
    return list(tensor.as_strided((_SAMPLES,), (count // _SAMPLES,), tensor.storage_offset()).tolist())
