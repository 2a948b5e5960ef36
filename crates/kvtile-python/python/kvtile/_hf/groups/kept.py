"""What a layer keeps: a rule, planes and a rotary embedding, under the name of its group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from kvtile._errors import IdentityError
from kvtile._hf.config import Config, short
from kvtile._kvtile import Plane

ORDINARY = ("full_attention", "attention")
"""Names of layers with full attention."""


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """One thing that a layer keeps. Layers of equal things are a group."""

    group: str
    rule: Literal["full", "window", "chunk", "stop"]
    planes: tuple[Plane, ...]
    tokens: int | None = None
    rope: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Reader:
    """Fields of a config, and the data types of what the layers keep."""

    config: Config
    dtype: Any
    state_dtype: Any

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or a default where it is missing or None."""
        value = self.config.fields.get(name)
        return default if value is None else value

    def number(self, name: str, default: int | None = None) -> int:
        """A field that must be a positive integer."""
        return self.config.positive(name, self.get(name, default))

    def layers(self) -> int:
        """The number of layers."""
        return self.config.number("num_hidden_layers")

    def head_size(self, name: str = "head_dim") -> int:
        """Elements of a head: the field, or the hidden size divided by the heads."""
        if self.get(name) is not None:
            return self.number(name)
        hidden, heads = self.number("hidden_size"), self.number("num_attention_heads")
        if hidden % heads:
            raise IdentityError(f"the config has no {name}, and {heads} heads do not divide hidden_size {hidden}; add it")
        return hidden // heads

    def kv_heads(self) -> int:
        """The number of KV heads."""
        return self.number("num_key_value_heads", self.number("num_attention_heads"))

    def list_of(self, name: str, default: list[str] | None = None) -> list[str]:
        """A field with one text for each layer. Entries beyond the layers are of a drafter."""
        kinds = self.get(name, default)
        count = self.layers()
        if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, str) for kind in kinds) or len(kinds) < count:
            raise IdentityError(f"the config's {name} is {short(kinds)}, not a list with a name for each of {count} layers; add it")
        return list(kinds[:count])

    def of_layer(self, layer: int, name: str) -> Any:
        """A field of one layer that config classes keep in ``per_layer_config``; None without one."""
        layers = self.get("per_layer_config", {})
        own = layers.get(layer, layers.get(str(layer))) if isinstance(layers, Mapping) else None
        return own.get(name) if isinstance(own, Mapping) else None

    def key_value(self, heads: int, key: int, value: int | None = None) -> tuple[Plane, ...]:
        """Keys and values of a layer."""
        return (Plane("k", self.dtype, H=heads, C=key), Plane("v", self.dtype, H=heads, C=key if value is None else value))

    def latent(self) -> tuple[Plane, ...]:
        """The latent that all heads share, and its part with a rotary embedding, where there is one."""
        planes = (Plane("c", self.dtype, C=self.number("kv_lora_rank")),)
        if self.get("qk_rope_head_dim") == 0:
            return planes
        return (*planes, Plane("r", self.dtype, C=self.number("qk_rope_head_dim")))

    def convolution(self, channels: int, kernel: int) -> Plane:
        """The columns that the next token's convolution reads: one less than the kernel has."""
        if kernel < 2:
            raise IdentityError(f"the config's convolution has a kernel of {kernel}; a state needs at least 2 columns")
        return Plane("conv", self.dtype, per_page=True, W=kernel - 1, C=channels)

    def recurrent(self, default: str | None, **axes: Any) -> Plane:
        """A recurrent state."""
        named = self.get("mamba_ssm_dtype", self.get("mamba_ssm_cache_dtype", default))
        dtype = self.state_dtype or (self.dtype if named == "auto" else named)
        if dtype is None:
            raise IdentityError("the config does not name the dtype of its states (mamba_ssm_dtype); give state_dtype=")
        return Plane("recurrent", dtype, per_page=True, **axes)


def one_of(kind: str, known: Mapping[str, Any]) -> Any:
    """What a kind of layer keeps; refuses other kinds by name."""
    if kind not in known:
        raise IdentityError(f"it has layers of the kind {short(kind)}; kvtile knows {', '.join(sorted(known))} of this model type")
    return known[kind]
