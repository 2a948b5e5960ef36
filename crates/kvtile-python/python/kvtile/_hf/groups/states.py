"""Model types with recurrent layers or convolutions, whose states are kept at stops.

The shapes of the states are those of vLLM 0.32 (``model_executor/layers/mamba/mamba_utils.py``), without columns for
speculative tokens and without tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf.config import short
from kvtile._hf.groups.attention import Layers, every
from kvtile._hf.groups.kept import KeptLayer, Reader, one_of
from kvtile._hf.groups.ropes import rope_for
from kvtile._kvtile import Plane


def _state(planes: tuple[Plane, ...]) -> KeptLayer:
    return KeptLayer("state", "stop", planes)


def _full(reader: Reader, rope: Mapping[str, Any] | None, size: int | None = None) -> KeptLayer:
    planes = reader.key_value(reader.kv_heads(), reader.head_size() if size is None else size)
    return KeptLayer("full", "full", planes, rope=rope)


def _linear(reader: Reader, step: int, first: int = -1) -> list[str]:
    full = every(step, first)
    count = reader.layers()
    return reader.list_of("layer_types", ["full_attention" if full(layer, count) else "linear_attention" for layer in range(count)])


def gated_delta_net(reader: Reader) -> Layers:
    """Qwen3-Next and Qwen3.5: a convolution over queries, keys and values, and one matrix for each value head."""
    keys, key = reader.number("linear_num_key_heads"), reader.number("linear_key_head_dim")
    values, value = reader.number("linear_num_value_heads"), reader.number("linear_value_head_dim")
    state = _state((
        reader.convolution(2 * keys * key + values * value, reader.number("linear_conv_kernel_dim")),
        reader.recurrent(None, H=values, D=key, C=value),
    ))
    known = {"linear_attention": state, "full_attention": _full(reader, rope_for(reader, "full_attention"))}
    return [[one_of(kind, known)] for kind in _linear(reader, reader.number("full_attention_interval", 4))]


def kimi_linear(reader: Reader) -> Layers:
    """Kimi Linear and K3: delta attention with a gate for each channel, and latents without a rotary embedding."""
    given = reader.get("linear_attn_config", {})
    given = given if isinstance(given, Mapping) else {}
    count = reader.layers()

    def number(name: str, flat: str) -> int:
        return reader.config.positive(name, given.get(name, reader.get(flat)))

    heads, size = number("num_heads", "linear_num_heads"), number("head_dim", "linear_head_dim")
    kernel = number("short_conv_kernel_size", "linear_conv_kernel_dim")
    # vLLM keeps these states in float32 unless an option names another type.
    state = _state((reader.convolution(3 * heads * size, kernel), reader.recurrent("float32", H=heads, D=size, C=size)))
    rope = None if reader.get("mla_use_nope", True) is True else rope_for(reader, "full_attention")
    latent = KeptLayer("full", "full", reader.latent(), rope=rope)
    if reader.get("layer_types") is None and given:
        # Layers count from 1 in these lists.
        lists = {name: given.get(name) for name in ("full_attn_layers", "kda_layers")}
        full, linear = (set(each) if isinstance(each, (list, tuple)) else set() for each in lists.values())
        if full & linear or full | linear != set(range(1, count + 1)):
            raise IdentityError(f"the config's full_attn_layers and kda_layers do not have each of {count} layers once")
        kinds = ["full_attention" if layer + 1 in full else "linear_attention" for layer in range(count)]
    else:
        kinds = reader.list_of("layer_types")
    known = {"linear_attention": state, "full_attention": latent}
    return [[one_of(kind, known)] for kind in kinds]


def _mamba2(reader: Reader, width: int, heads: int, head: int, names: tuple[str, str, str]) -> KeptLayer:
    groups, size, kernel = (reader.number(name) for name in names)
    if heads * head != width:
        raise IdentityError(f"its state has {heads} heads of {head}, which are not the {width} channels that the config gives")
    return _state((
        reader.convolution(width + 2 * groups * size, kernel),
        reader.recurrent(None, H=heads, D=head, C=size),
    ))


_PATTERN = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
_NEMOTRON = {"mamba": "state", "linear_attention": "state", "attention": "full", "full_attention": "full", "moe": None, "mlp": None}


def nemotron_h(reader: Reader) -> Layers:
    """Nemotron-H and Nemotron 3: Mamba-2, attention without a rotary embedding, and layers that keep nothing."""
    pattern = reader.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        kinds: Any = [one_of(letter, _PATTERN) for letter in pattern[: 1 << 16]]
    else:
        kinds = reader.get("layers_block_type", reader.get("layer_types"))
    if not isinstance(kinds, (list, tuple)) or not kinds:
        raise IdentityError("the config has no layers_block_type and no hybrid_override_pattern, the kinds of its layers; add one")
    if reader.get("num_hidden_layers", len(kinds)) != len(kinds):
        raise IdentityError(f"the config has {short(reader.get('num_hidden_layers'))} layers and kinds of {len(kinds)}")
    heads, head = reader.number("mamba_num_heads"), reader.number("mamba_head_dim")
    state = _mamba2(reader, heads * head, heads, head, ("n_groups", "ssm_state_size", "conv_kernel"))
    size = reader.number("attention_head_dim") if reader.get("attention_head_dim") else reader.head_size()
    of = {"state": [state], "full": [_full(reader, None, size)], None: []}
    return [of[one_of(str(kind), _NEMOTRON)] for kind in kinds]


def _mamba_width(reader: Reader) -> tuple[int, int, int]:
    """Channels, heads and their size, of types with the fields ``mamba_*``."""
    width = reader.number("mamba_d_ssm", reader.number("mamba_expand") * reader.number("hidden_size"))
    heads, head = reader.number("mamba_n_heads"), reader.get("mamba_d_head", "auto")
    return width, heads, width // heads if head == "auto" else reader.config.positive("mamba_d_head", head)


_MAMBA_NAMES = ("mamba_n_groups", "mamba_d_state", "mamba_d_conv")


def granite_hybrid(reader: Reader) -> Layers:
    """Granite 4 hybrid: Mamba-2 and attention, with a rotary embedding only where the config names one."""
    state = _mamba2(reader, *_mamba_width(reader), _MAMBA_NAMES)
    rope = rope_for(reader, "full_attention") if reader.get("position_embedding_type") == "rope" else None
    full = _full(reader, rope)
    known = {"mamba": state, "linear_attention": state, "attention": full, "full_attention": full}
    return [[one_of(kind, known)] for kind in reader.list_of("layer_types")]


def falcon_h1(reader: Reader) -> Layers:
    """Falcon-H1: each layer has both attention and Mamba-2."""
    both = [_full(reader, rope_for(reader, "full_attention")), _mamba2(reader, *_mamba_width(reader), _MAMBA_NAMES)]
    return [both for _ in range(reader.layers())]


def jamba(reader: Reader) -> Layers:
    """Jamba: Mamba-1, and attention without a rotary embedding."""
    width = reader.number("mamba_expand") * reader.number("hidden_size")
    state = _state((
        reader.convolution(width, reader.number("mamba_d_conv")),
        reader.recurrent(None, D=width, C=reader.number("mamba_d_state")),
    ))
    step, first = reader.number("attn_layer_period"), reader.get("attn_layer_offset")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise IdentityError(f"the config's attn_layer_offset is {short(first)}, not a whole number")
    known = {"linear_attention": state, "full_attention": _full(reader, None)}
    return [[one_of(kind, known)] for kind in _linear(reader, step, first)]


def bailing(reader: Reader) -> Layers:
    """Ling and Ring 2.5: delta attention as Kimi's, and latents with a rotary embedding."""
    # Config objects keep the size of a head of the delta attention apart.
    heads, size = reader.number("num_attention_heads"), reader.number("linear_head_dim", reader.get("head_dim"))
    conv = reader.convolution(3 * heads * size, reader.number("short_conv_kernel_size", 4))
    state = _state((conv, reader.recurrent("float32", H=heads, D=size, C=size)))
    latent = KeptLayer("full", "full", reader.latent(), rope=rope_for(reader, "full_attention"))
    known = {"linear_attention": state, "full_attention": latent}
    return [[one_of(kind, known)] for kind in _linear(reader, reader.number("layer_group_size", 6))]


def lfm3(reader: Reader) -> Layers:
    """LFM3: short convolutions, windows and full attention."""
    conv = _state((reader.convolution(reader.number("hidden_size"), reader.number("conv_L_cache", 7)),))
    planes = reader.key_value(reader.kv_heads(), reader.head_size())

    def near() -> KeptLayer:
        return KeptLayer("window", "window", planes, reader.number("sliding_window", 256), rope_for(reader, "sliding_attention"))

    def full() -> KeptLayer:
        return KeptLayer("full", "full", planes, rope=rope_for(reader, "full_attention"))

    known = {"conv": lambda: conv, "sliding_attention": near, "full_attention": full}
    return [[one_of(kind, known)()] for kind in reader.list_of("layer_types")]


def lfm2(reader: Reader) -> Layers:
    """LFM2: short convolutions and full attention."""
    kernel = reader.number("conv_L_cache")
    conv = _state((reader.convolution(reader.number("conv_dim", reader.number("hidden_size")), kernel),))
    known = {"conv": conv, "full_attention": _full(reader, rope_for(reader, "full_attention", theta=None))}
    count = reader.layers()
    full = reader.get("full_attn_idxs")
    usual = None
    if isinstance(full, (list, tuple)):
        usual = ["full_attention" if layer in full else "conv" for layer in range(count)]
    return [[one_of(kind, known)] for kind in reader.list_of("layer_types", usual)]


STATES: dict[str, Callable[[Reader], Layers]] = {
    "bailing_hybrid": bailing,
    "falcon_h1": falcon_h1,
    "granitemoehybrid": granite_hybrid,
    "jamba": jamba,
    "kimi_linear": kimi_linear,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
    "lfm3": lfm3,
    "nemotron_h": nemotron_h,
    "qwen3_5_moe_text": gated_delta_net,
    "qwen3_5_text": gated_delta_net,
    "qwen3_next": gated_delta_net,
}
"""What each layer keeps, by model type."""
