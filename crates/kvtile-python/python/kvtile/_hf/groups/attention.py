"""Model types all of whose layers have attention: windows, chunks, latents, indexers, compressed keys.

Fields and defaults are those of the config classes of transformers 5.19 (``muse_spark_text``: 5.24), and of config.json files where these have other
names. Each function returns what each layer keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf.config import short
from kvtile._hf.groups.kept import KeptLayer, Reader, one_of
from kvtile._hf.groups.ropes import rope_for
from kvtile._kvtile import Plane

Layers = list[list[KeptLayer]]

SCALED_VALUES = 128
"""Values of an indexer's key that share a scale (vLLM, ``v1/attention/backends/mla/indexer.py``)."""

RECORD_BYTES = 584
"""A compressed or windowed key of DeepSeek V4 in vLLM: 448 fp8 values, 64 of bf16, scales (``models/deepseek_v4``)."""


def every(step: int, first: int = -1) -> Callable[[int, int], bool]:
    """Whether a layer has full attention: each ``step``-th one."""
    return lambda layer, _: (layer - first) % step == 0


def _kinds(reader: Reader, full: Callable[[int, int], bool], other: str = "sliding_attention") -> list[str]:
    count = reader.layers()
    usual = ["full_attention" if full(layer, count) else other for layer in range(count)]
    return reader.list_of("layer_types", usual)


def _window(reader: Reader) -> int:
    return reader.number("sliding_window")


def windows(
    full: Callable[[int, int], bool] | None,
    *,
    rope: Callable[[Reader, str], Mapping[str, Any] | None] = rope_for,
) -> Callable[[Reader], Layers]:
    """Layers with full attention and with windows, all with keys and values of the same heads."""

    def read(reader: Reader) -> Layers:
        pattern = reader.get("sliding_window_pattern")
        usual = every(pattern) if isinstance(pattern, int) and pattern > 0 else full
        kinds = reader.list_of("layer_types") if usual is None else _kinds(reader, usual)
        planes = reader.key_value(reader.kv_heads(), reader.head_size())
        known = {"full_attention": lambda: KeptLayer("full", "full", planes, rope=rope(reader, "full_attention"))}
        known["sliding_attention"] = lambda: KeptLayer(
            "window", "window", planes, _window(reader), rope(reader, "sliding_attention")
        )
        return [[one_of(kind, known)()] for kind in kinds]

    return read


def only_windows(reader: Reader, kind: str) -> Mapping[str, Any] | None:
    """The rotary embedding of types whose layers with full attention have none."""
    return rope_for(reader, kind) if kind == "sliding_attention" else None


def _of_kind(reader: Reader, name: str, kinds: list[str], kind: str) -> Any:
    """The number that a field has for the layers of one kind: the field is a number, or a list with one for each layer."""
    numbers = reader.get(name)
    if not isinstance(numbers, (list, tuple)):
        return numbers
    if len(numbers) < len(kinds):
        raise IdentityError(f"the config's {name} is {short(numbers)}, not a list with a number for each of {len(kinds)} layers")
    own = {number for number, each in zip(numbers, kinds, strict=False) if each == kind}
    if len(own) > 1:
        raise IdentityError(f"its layers of the kind {kind} have several numbers in {name}; kvtile knows one for each kind")
    return next(iter(own), None)


def _muse_rope(reader: Reader, kind: str) -> Mapping[str, Any] | None:
    base = _of_kind(reader, "layer_rope_theta", _kinds(reader, _last_is_full), kind)
    if base is None:
        return only_windows(reader, kind)
    return rope_for(reader, kind, theta=base) if base else None


def _step_rope(reader: Reader, kind: str) -> Mapping[str, Any]:
    kinds = reader.list_of("layer_types")
    rope = rope_for(reader, kind, theta=_of_kind(reader, "rope_theta", kinds, kind), scaled=kind == "full_attention")
    part = _of_kind(reader, "partial_rotary_factors", kinds, kind)
    return rope if part is None else {"partial_rotary_factor": float(part), **rope}


def _last_is_full(layer: int, count: int) -> bool:
    """Whether a layer has full attention: the last one, and each fourth one before it."""
    return (count - 1 - layer) % 4 == 0


def _gemma3_rope(reader: Reader, kind: str) -> Mapping[str, Any]:
    # In files before transformers 5, windows have a base of their own and no scaling.
    local = reader.get("rope_local_base_freq", 10_000.0)
    full = kind == "full_attention"
    return rope_for(reader, kind, theta=reader.get("rope_theta", 1_000_000.0) if full else local, scaled=full)


def gemma3(reader: Reader) -> Layers:
    """Gemma 3, and Gemma 3n without the layers that use the keys and values of another layer."""
    full = every(5) if reader.config.model_type == "gemma3n_text" else every(6)
    layers = windows(full, rope=_gemma3_rope)(reader)
    if reader.config.model_type != "gemma3n_text":
        return layers
    shared = reader.get("num_kv_shared_layers", 15)
    if isinstance(shared, bool) or not isinstance(shared, int) or not 0 <= shared < len(layers):
        raise IdentityError(f"the config's num_kv_shared_layers is {short(shared)}, not a number below {len(layers)}")
    own = len(layers) - shared
    return [kept if layer < own else [] for layer, kept in enumerate(layers)]


def gemma4(reader: Reader) -> Layers:
    """Gemma 4: layers with full attention have heads of another number and size."""
    shared = reader.get("num_kv_shared_layers", 0)
    if shared != 0:
        raise IdentityError(f"some of its layers use the keys and values of other layers (num_kv_shared_layers is {short(shared)})")
    usual = {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}
    usual["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
    if reader.get("rope_parameters") is None:
        reader.config.fields["rope_parameters"] = usual
    heads, size = reader.kv_heads(), reader.head_size()
    layers: Layers = []
    for layer, kind in enumerate(_kinds(reader, every(6))):
        if kind == "full_attention":
            of_all = reader.get("num_global_key_value_heads") if reader.get("attention_k_eq_v", False) else None
            of_all = reader.of_layer(layer, "num_key_value_heads") or of_all or heads
            wide = reader.of_layer(layer, "head_dim") or reader.get("global_head_dim", 512)
            planes = reader.key_value(
                reader.config.positive("num_global_key_value_heads", of_all), reader.config.positive("global_head_dim", wide)
            )
            layers.append([KeptLayer("full", "full", planes, rope=rope_for(reader, kind))])
        elif kind == "sliding_attention":
            planes = reader.key_value(heads, size)
            layers.append([KeptLayer("window", "window", planes, _window(reader), rope_for(reader, kind))])
        else:
            one_of(kind, {"full_attention": None, "sliding_attention": None})
    return layers


def llama4(reader: Reader) -> Layers:
    """Llama 4: chunks with a rotary embedding, and full attention without one."""
    interval = reader.number("no_rope_layer_interval", 4)
    count = reader.layers()
    rotated = reader.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(count)]
    if not isinstance(rotated, (list, tuple)) or len(rotated) != count:
        raise IdentityError(f"the config's no_rope_layers is {short(rotated)}, not a list with a number for each of {count} layers")
    usual = ["chunked_attention" if each else "full_attention" for each in rotated]
    planes = reader.key_value(reader.kv_heads(), reader.head_size())
    layers: Layers = []
    for kind, has_rope in zip(reader.list_of("layer_types", usual), rotated, strict=True):
        rope = rope_for(reader, kind) if has_rope else None
        known = {"full_attention": KeptLayer("full", "full", planes, rope=rope)}
        known["chunked_attention"] = KeptLayer("chunk", "chunk", planes, reader.number("attention_chunk_size", 8192), rope)
        layers.append([one_of(kind, known)])
    return layers


def mimo(reader: Reader) -> Layers:
    """MiMo V2: keys and values of unequal width, and windows with a number of heads of their own."""
    pattern = reader.get("hybrid_layer_pattern")
    count = reader.layers()
    if pattern is None:
        kinds = _kinds(reader, lambda layer, _: layer == 0 or (layer + 1) % 6 == 0)
    elif isinstance(pattern, (list, tuple)) and len(pattern) == count:
        kinds = ["sliding_attention" if each else "full_attention" for each in pattern]
    else:
        raise IdentityError(f"the config's hybrid_layer_pattern is {short(pattern)}, not a list with a number for each of {count} layers")
    layers: Layers = []
    for kind in kinds:
        one_of(kind, {"full_attention": None, "sliding_attention": None})
        near = kind == "sliding_attention"

        def size(name: str, near: bool = near) -> int:
            own = reader.get(f"swa_{name}") if near else None
            return reader.config.positive(name, own or reader.get(name))

        heads = size("num_key_value_heads")
        if near and reader.get("swa_num_key_value_heads") is None:
            # The model class of transformers has no field for them and gives windows twice as many.
            heads = 2 * heads
        planes = reader.key_value(heads, size("head_dim"), size("v_head_dim"))
        rope = rope_for(reader, kind, theta=reader.get("swa_rope_theta") if near else None)
        layers.append([KeptLayer("window", "window", planes, _window(reader), rope) if near else KeptLayer("full", "full", planes, rope=rope)])
    return layers


def step(reader: Reader) -> Layers:
    """Step 3.5 and 3.7: windows with attention heads of their own, and the same KV heads."""
    other = reader.get("attention_other_setting", {})
    own = {"num_attention_groups": "num_key_value_heads", "num_key_value_heads": "num_key_value_heads", "head_dim": "head_dim"}
    for name, usual in own.items():
        if isinstance(other, Mapping) and other.get(name) not in (None, reader.get(usual)):
            raise IdentityError(f"its windows have {name} {short(other[name])} (attention_other_setting); kvtile knows equal KV heads")
    return windows(None, rope=_step_rope)(reader)


def latent(reader: Reader) -> Layers:
    """Multi-head latent attention in all layers."""
    kept = KeptLayer("full", "full", reader.latent(), rope=rope_for(reader, "full_attention"))
    return [[kept] for _ in range(reader.layers())]


def indexer_planes(reader: Reader) -> tuple[Plane, ...]:
    """Keys of an indexer with their scales."""
    size = reader.number("index_head_dim", 128)
    if size % SCALED_VALUES:
        raise IdentityError(f"the config's index_head_dim is {size}, not a multiple of {SCALED_VALUES}, the values of a scale")
    return (Plane("i", "fp8_e4m3", C=size), Plane("s", "float32", C=size // SCALED_VALUES))


def indexed_latent(reader: Reader) -> Layers:
    """Latents, and an indexer on all layers or on some, whose choice the layers after them share."""
    count = reader.layers()
    kinds = reader.get("indexer_types")
    if kinds is None:
        each, offset = reader.number("index_topk_freq", 1), reader.get("index_skip_topk_offset", 2)
        if reader.get("index_topk_pattern") is not None or isinstance(offset, bool) or not isinstance(offset, int):
            raise IdentityError("the config has an index_topk_pattern and no indexer_types; add them")
        kinds = ["full" if max(layer - offset + 1, 0) % each == 0 else "shared" for layer in range(count)]
    if not isinstance(kinds, (list, tuple)) or len(kinds) < count or not set(kinds) <= {"full", "shared"}:
        raise IdentityError(f"the config's indexer_types are {short(kinds)}, not full or shared for each of {count} layers")
    rope = rope_for(reader, "full_attention")
    index = indexer_planes(reader)
    if "shared" not in kinds[:count]:
        return [[KeptLayer("full", "full", (*reader.latent(), *index), rope=rope)] for _ in range(count)]
    of_all = KeptLayer("full", "full", reader.latent(), rope=rope)
    of_some = KeptLayer("index", "full", index, rope=rope)
    return [[of_all, of_some] if kind == "full" else [of_all] for kind in kinds[:count]]


def minimax_m3(reader: Reader) -> Layers:
    """MiniMax M3: an index key for each token of layers with sparse attention."""
    sparse = reader.get("sparse_attention_config", {})
    sparse = sparse if isinstance(sparse, Mapping) else {}
    count = reader.layers()
    marks: Any = sparse.get("sparse_attention_freq")
    if marks is None:
        marks = [kind not in ("full_attention",) for kind in reader.list_of("layer_types")]
    if not isinstance(marks, (list, tuple)) or len(marks) < count:
        raise IdentityError(f"the config's sparse_attention_freq is {short(marks)}, not a list with a number for each of {count} layers")
    size = reader.config.positive("sparse_index_dim", sparse.get("sparse_index_dim", reader.get("index_head_dim")))
    rope = rope_for(reader, "full_attention")
    planes = reader.key_value(reader.kv_heads(), reader.head_size())
    of_all = KeptLayer("full", "full", planes, rope=rope)
    of_some = KeptLayer("index", "full", (Plane("i", reader.dtype, C=size),), rope=rope)
    return [[of_all, of_some] if mark else [of_all] for mark in marks[:count]]


_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}


def deepseek_v4(reader: Reader) -> Layers:
    """DeepSeek V4: a window on all layers, one compressed key for 4 or 128 tokens, and the compressors' last inputs."""
    count = reader.layers()
    ratios = reader.get("compress_ratios")
    if ratios is None:
        ratios = [one_of(kind, _RATIOS) for kind in reader.list_of("layer_types")]
    if not isinstance(ratios, (list, tuple)) or len(ratios) < count or not set(ratios) <= {0, 4, 128}:
        raise IdentityError(f"the config's compress_ratios are {short(ratios)}, not 0, 4 or 128 for each of {count} layers")
    rates = reader.get("compress_rates", {})
    if not isinstance(rates, Mapping) or any(rate != _RATIOS.get(kind) for kind, rate in rates.items()):
        raise IdentityError(f"the config's compress_rates are {short(rates)}; kvtile knows 4 and 128")
    size, index = reader.number("head_dim", 512), reader.number("index_head_dim", 128)
    if (size, index) != (512, 128):
        raise IdentityError(f"its keys have {size} elements and its indexer's {index}; kvtile knows the records of 512 and 128")
    near_rope = rope_for(reader, "main", scaled=False)
    far_rope = rope_for(reader, "compress", theta=reader.get("compress_rope_theta", 160_000.0))
    near = KeptLayer("window", "window", (Plane("c", "dsv4_record", unit_bytes=RECORD_BYTES),), _window(reader), near_rope)
    record = {ratio: Plane("c", "dsv4_record", unit_bytes=RECORD_BYTES, every=ratio) for ratio in (4, 128)}
    keys = (Plane("i", "fp8_e4m3", every=4, C=index), Plane("s", "float32", every=4))
    # Keys and scores of the tokens that the next compressed key still reads: 8 with overlap, else 128.
    inputs = {4: (Plane("x", "float32", C=4 * size), Plane("y", "float32", C=4 * index)), 128: (Plane("x", "float32", C=2 * size),)}
    kept = {0: [near]}
    for ratio, planes, tokens in ((4, (record[4], *keys), 8), (128, (record[128],), 128)):
        far = KeptLayer(f"compressed-{ratio}", "full", planes, rope=far_rope)
        kept[ratio] = [near, far, KeptLayer(f"compressor-{ratio}", "window", inputs[ratio], tokens, far_rope)]
    return [kept[ratio] for ratio in ratios[:count]]


ATTENTION: dict[str, Callable[[Reader], Layers]] = {
    "cohere2": windows(every(4), rope=only_windows),
    "deepseek_v3": latent,
    "deepseek_v32": indexed_latent,
    "deepseek_v4": deepseek_v4,
    "exaone4": windows(every(4), rope=only_windows),
    "gemma3_text": gemma3,
    "gemma3n_text": gemma3,
    "gemma4_text": gemma4,
    "glm_moe_dsa": indexed_latent,
    "gpt_oss": windows(every(2)),
    "kimi_k2": latent,
    "llama4_text": llama4,
    "mimo_v2_flash": mimo,
    "minimax_m3": minimax_m3,
    "minimax_m3_vl_text": minimax_m3,
    "mistral4": latent,
    "muse_glimmer_text": windows(_last_is_full, rope=_muse_rope),
    "muse_spark_text": windows(_last_is_full, rope=_muse_rope),
    "olmo3": windows(every(4)),
    "step3p5": step,
    "step3p7": step,
}
"""What each layer keeps, by model type."""
