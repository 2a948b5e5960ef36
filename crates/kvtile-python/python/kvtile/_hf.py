"""What a Hugging Face config says of a model's KV. Nothing is guessed: what is missing is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._kvtile import Identity, Shape

_LATENT = "its KV is a latent (kv_lora_rank), whose planes only its engine knows; make a Shape with planes"


def identity_of(
    config: Any,
    page_size: int,
    *,
    dtype: Any = None,
    model: str | None = None,
    revision: str | None = None,
    tp_rank: int = 0,
    tp_size: int = 1,
    layers: tuple[int, int] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Identity:
    """The identity of a model's KV: see Identity.from_hf_config."""
    read = _Reader(config)
    name = model or read.get("_name_or_path") or read.get("name_or_path")
    if not name:
        raise IdentityError("the config does not name its model; give model=")
    commit = revision or read.get("_commit_hash")
    if not commit:
        raise IdentityError("the config does not say which weights it is for; give revision=, a commit or a digest")
    shape = shape_of(config, page_size, dtype=dtype, tp_rank=tp_rank, tp_size=tp_size, layers=layers)
    return Identity(str(name), str(commit), shape, rope=rope_of(config), extra=dict(extra or {}))


def shape_of(
    config: Any,
    page_size: int,
    *,
    num_blocks: int = 1,
    dtype: Any = None,
    tp_rank: int = 0,
    tp_size: int = 1,
    layers: tuple[int, int] | None = None,
) -> Shape:
    """The shape of a model's KV, or of the part that one rank holds."""
    read = _Reader(config)
    _refuse_other_kinds(read)
    total_layers = read.need("num_hidden_layers")
    attention_heads = read.need("num_attention_heads")
    total_heads = read.get("num_key_value_heads") or attention_heads
    head_size = read.get("head_dim") or read.need("hidden_size") // attention_heads
    dtype = dtype or read.get("dtype") or read.get("torch_dtype")
    if dtype is None:
        raise IdentityError("the config does not say its dtype; give dtype=")
    if not 0 <= tp_rank < tp_size or (total_heads % tp_size and tp_size % total_heads):
        raise IdentityError(
            f"rank {tp_rank} of {tp_size} over {total_heads} KV heads: the size divides the heads or is a "
            "multiple of them, and the rank is below it"
        )
    heads = max(1, total_heads // tp_size)
    first_head = tp_rank * heads if tp_size <= total_heads else tp_rank * total_heads // tp_size
    first_layer, end_layer = layers or (0, total_layers)
    return Shape(
        num_blocks=num_blocks,
        num_layers=end_layer - first_layer,
        page_size=page_size,
        num_heads=heads,
        head_size=head_size,
        dtype=dtype,
        first_layer=first_layer,
        total_layers=total_layers,
        first_head=first_head,
        total_heads=total_heads,
    )


def rope_of(config: Any) -> dict[str, Any] | None:
    """The rotary embedding, in the words of ``rope_parameters``; None for models without."""
    read = _Reader(config)
    rope = dict(read.get("rope_parameters") or read.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise IdentityError("its layers have rotary embeddings of several kinds (rope_parameters by layer type)")
    theta = rope.pop("rope_theta", None) or read.get("rope_theta")
    if theta is None:
        if rope:
            raise IdentityError("the config has rotary embeddings without rope_theta; give it in the config")
        return None
    rope["rope_theta"] = float(theta)
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    partial = read.get("partial_rotary_factor")
    if partial is not None:
        rope.setdefault("partial_rotary_factor", float(partial))
    return rope


def _refuse_other_kinds(read: _Reader) -> None:
    if read.get("kv_lora_rank"):
        raise IdentityError(_LATENT)
    kinds = set(read.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        others = ", ".join(sorted(kinds - {"full_attention"}))
        raise IdentityError(f"it has layers of other kinds than full attention ({others}), whose blocks end early")
    if read.get("sliding_window") and read.get("use_sliding_window") is not False:
        raise IdentityError("its attention has a sliding window, whose blocks end early")


class _Reader:
    """A config's fields, whether it is an object or a dict; of a model of several kinds, those of its text."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.text = self.field(config, "text_config")

    @staticmethod
    def field(config: Any, name: str) -> Any:
        return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)

    def get(self, name: str) -> Any:
        value = self.field(self.config, name)
        if value is None and self.text is not None:
            return self.field(self.text, name)
        return value

    def need(self, name: str) -> int:
        value = self.get(name)
        if not isinstance(value, int):
            raise IdentityError(f"the config has no {name}; make a Shape and an Identity by hand")
        return value
