"""What a model's KV depends on besides its config: the weights, and differences from what its class builds from the
config.

This module builds the model again from its config, without weights (on the meta device), and compares. Modules of
another class (adapters, quantised layers), changed numbers (a scaling, an epsilon) and buffers with other values are in
the ``state``. The state of an unchanged model is empty in every version of transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kvtile._errors import IdentityError, RequestError, TensorError
from kvtile.transformers._digest import DEVICES, digest

# Packages whose hooks and replaced forward functions do not change KV: they record outputs, compile, and place modules.
_KNOWN_CODE = ("transformers", "torch", "accelerate")
# Attributes of modules that do not affect KV.
_NO_MATTER = {
    "training",
    "name_or_path",
    "warnings_issued",
    "max_seq_len_cached",
    "all_tied_weights_keys",
    "loss_type",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
    "_is_torch_compile",
    # generate puts it there with a static cache, as the length of that.
    "_previous_max_cache_length",
}
_SCALARS = (int, float, complex, str, bytes, bool, type(None), torch.dtype)
# Implementations of the same attention; others are named in the identity.
_ATTENTION = {"eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4", None}


def bare(model: Any) -> Any:
    """The model inside a torch.compile wrapper, or the model itself."""
    return getattr(model, "_orig_mod", model)


def device_of(model: Any) -> torch.device:
    """The device of all tensors of a model, where its KV is too.

    Raises:
        TensorError: tensors on several devices, or on one that kvtile does not use.
    """
    found: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(tensor.device, name)
        if tensor.device.type not in DEVICES:
            raise TensorError(f"{name} is on {tensor.device}, and kvtile uses CPU memory and memory of CUDA devices")
    if len(found) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in found.items())
        raise TensorError(f"the model is on several devices ({places}); load it on one, without a device_map or offloading")
    return next(iter(found), torch.device("cpu"))


def check_kind(model: Any, *, hooks: bool = False) -> None:
    """Refuses models without plain causal attention, or whose KV is not a function of weights, config and tokens.

    Args:
        hooks: an entry of ``extra`` describes what the hooks do.

    Raises:
        IdentityError, TensorError: with the reason and what to do.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise IdentityError(f"{name} has an encoder: KV of its decoder depends on what the encoder was given")
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate():
        raise IdentityError(f"{name} cannot generate; open the causal language model (AutoModelForCausalLM)")
    if model.config.get_text_config(decoder=True) is not model.config:
        parts = ", ".join(sorted(getattr(model.config, "sub_configs", ())))
        raise IdentityError(
            f"{name} takes images, sound or more besides text ({parts}): KV depends on them, and PrefixCache makes keys of tokens "
            "alone; call model.generate, or load the language model alone where transformers has a class for it "
            "(Gemma3ForCausalLM)"
        )
    adapters = getattr(model, "peft_config", None)
    for adapter, settings in (adapters.items() if isinstance(adapters, Mapping) else ()):
        if getattr(settings, "is_prompt_learning", False):
            raise IdentityError(f"the adapter {adapter!r} puts learned tokens before the prompt, which have no token ids")
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise IdentityError(
                f"{path} is a {kind.__name__} of {kind.__module__}, whose results depend on all tokens of a forward pass; "
                "use weights that are quantised by channel or group (torchao)"
            )
        if not hooks:
            _check_hooks(path, module)
    device_of(model)


def check_moment(modules: list[Any], device: torch.device) -> None:
    """Refuses a model in a state that changes the KV of this request: dropout, and autocast on its device.

    Raises:
        RequestError: with what to do.
    """
    if torch.is_autocast_enabled(device.type):
        raise RequestError(
            f"autocast to {torch.get_autocast_dtype(device.type)} is on, and changes the dtype of KV; load the model with that dtype"
        )
    for module in [module for module in modules if module.training]:
        name = type(module).__name__
        for key, value in vars(module).items():
            drops = "dropout" in key or (key == "p" and "Dropout" in name)
            if drops and isinstance(value, float) and value > 0.0:
                raise RequestError(f"the model is in training mode, and the dropout of a {name} is active ({key} {value}); call model.eval()")
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            raise RequestError(f"the model is in training mode, and a {name} updates its statistics; call model.eval()")


def weights_digest(model: Any) -> str:
    """A 128-bit digest over all parameters, and the buffers that checkpoints contain."""
    return digest(sorted(_tensors(bare(model)).items()))


def state_of(model: Any) -> dict[str, str]:
    """Where a model differs from what its class builds from its config, and settings of torch that change its
    results."""
    state = {}
    texts, tensors = _differences(bare(model))
    if texts or tensors:
        state["state"] = digest(tensors, "\n".join(texts))
    config = model.config.get_text_config(decoder=True)
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _ATTENTION or getattr(config, "attn_logit_softcapping", None):
        state["attention"] = str(attention)
    precision = torch.get_float32_matmul_precision()
    if precision != "highest" and model.dtype == torch.float32:
        state["float32_matmul"] = precision
    return state


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text, or a container of such values."""
    if isinstance(value, _SCALARS):
        return True
    if isinstance(value, Mapping):
        return all(isinstance(key, _SCALARS) and is_plain(each) for key, each in value.items())
    return isinstance(value, (list, tuple, set, frozenset)) and all(is_plain(each) for each in value)


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Tensors in attributes of a module, or in containers there, that torch does not register."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from tensors_in(f"{name}[{key!r}]", each)
    elif isinstance(value, (list, tuple)):
        for at, each in enumerate(value):
            yield from tensors_in(f"{name}[{at}]", each)


# Attributes in which torch keeps a module's tensors and submodules.
KNOWN_TO_TORCH = {"_parameters", "_buffers", "_modules"}


def _text(value: Any) -> str:
    """The same text for equal values, in every process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{key!r}: {_text(each)}" for key, each in value.items())) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return repr(value)


def _differences(model: Any) -> tuple[list[str], list[tuple[str, Any]]]:
    """Differences from the plain model: classes and numbers as text, and tensors by name."""
    plain = _plain(model)
    modules = dict(plain.named_modules()) if plain is not None else {}
    texts: list[str] = []
    tensors: list[tuple[str, Any]] = []
    for path, module in sorted(model.named_modules(), key=lambda named: named[0]):
        expected = modules.pop(path, None)
        if type(expected) is not type(module):
            expected = None
            texts.append(f"{path} is {type(module).__module__}.{type(module).__qualname__}")
        theirs = vars(expected) if expected is not None else {}
        for key, value in sorted(vars(module).items()):
            if key in KNOWN_TO_TORCH or key in _NO_MATTER:
                continue
            tensors += tensors_in(f"{path}.{key}", value)
            if is_plain(value) and (value or key in theirs) and _text(value) != _text(theirs.get(key)):
                texts.append(f"{path}.{key} is {_text(value)}")
        known = {name for name, _ in own_tensors(expected)} if expected is not None else set()
        changed = _changed_buffers(module, expected, plain) if expected is not None else set()
        tensors += [
            (f"{path}.{name}", tensor) for name, tensor in own_tensors(module) if name not in known or name in changed
        ]
    return texts + [f"{path} is absent" for path in sorted(modules)], tensors


def _plain(model: Any) -> Any:
    """The model that its class builds from its config, without weights; None if it cannot be built."""
    try:
        with torch.device("meta"):
            return type(model)(copy.deepcopy(model.config)).eval()
    except Exception:  # the code of a model's class may raise any exception
        return None


def _changed_buffers(module: Any, expected: Any, plain: Any) -> set[str]:
    """Buffers outside checkpoints whose values differ from those that the class computes."""
    names = {name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None}
    values = _buffers_of_class(expected, plain) if names else {}
    return {name for name in names if name not in values or not _close(module._buffers[name], values[name])}


def _buffers_of_class(expected: Any, plain: Any) -> dict[str, Any]:
    """The buffers that a class computes, such as the frequencies of a rotary embedding; empty if it cannot compute
    them."""
    try:
        with torch.no_grad():
            for name, buffer in expected._buffers.items():
                if buffer is not None:
                    expected._buffers[name] = torch.zeros_like(buffer, device="cpu")
            # The plain model's parameters are on the meta device, so only these buffers are computed.
            plain._init_weights(expected)
    except Exception:  # the code of a model's class may raise any exception
        return {}
    return {name: buffer for name, buffer in expected._buffers.items() if buffer is not None}


def _close(ours: Any, theirs: Any) -> bool:
    """Equal up to rounding differences between processors."""
    return bool(ours.shape == theirs.shape and torch.allclose(ours.cpu().double(), theirs.double(), rtol=1e-4, atol=0.0))


def _tensors(model: Any) -> dict[str, Any]:
    """Parameters, and the other tensors of checkpoints (packed weights of quantised layers)."""
    found = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return {**found, **dict(model.named_parameters())}


def own_tensors(module: Any) -> Iterator[tuple[str, Any]]:
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None:
            yield name, tensor


def _check_hooks(path: str, module: Any) -> None:
    """Refuses the caller's own code inside the model, because its effect on KV is unknown."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if "forward" in vars(module):
        hooks.append(vars(module)["forward"])
    for hook in hooks:
        origin = getattr(hook, "__module__", None) or type(hook).__module__
        if origin.split(".")[0] not in _KNOWN_CODE:
            raise IdentityError(
                f"{path or 'the model'} has a hook or forward function of {origin}, whose effect on KV is "
                'unknown; remove it, or say what it does with extra={"hooks": "..."}'
            )
