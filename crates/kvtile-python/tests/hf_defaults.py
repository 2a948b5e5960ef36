"""Writes ``kvtile/_hf/models.json`` from the config classes of the installed transformers.

    python crates/kvtile-python/tests/hf_defaults.py
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

from kvtile import _hf
from kvtile._hf.fields import ROPE, unimportant
from kvtile._hf.models import PLAIN

TARGET = Path(_hf.__file__).with_name("models.json")
# KV does not depend on these by themselves, but the rotary embedding and windows need them.
KEPT = {"max_position_embeddings", "original_max_position_embeddings", "rotary_dim"}
SOURCE = "field names and defaults of the config classes of transformers (Apache-2.0)"


def rows() -> dict[str, Any]:
    """The table, from the installed transformers."""
    return {name: _row(name) for name in PLAIN}


def _row(name: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    shared = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind()
    aliases = {own: usual for usual, own in kind.attribute_map.items() if own != usual}
    fields = {}
    for field in dataclasses.fields(kind):
        usual = aliases.get(field.name, field.name)
        kept = usual in KEPT or not unimportant(usual) and usual not in ROPE
        if field.name in shared or not kept:
            continue
        value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        part = getattr(made, field.name)
        if isinstance(part, PreTrainedConfig):
            value = {key: each for key, each in part.to_dict().items() if not unimportant(key)}
        fields[usual] = value
    return {"aliases": aliases, "fields": fields, "rope": _rope(kind, made)}


def _rope(kind: Any, made: Any) -> dict[str, Any] | None:
    """The default base, the default rotated part of a head, and the type's own preset."""
    rope = getattr(made, "rope_parameters", None)
    if rope is None and not hasattr(made, "rotary_dim"):
        return None
    rope = rope or {}
    own = rope.get("rope_type", "default") != "default"
    return {
        "rope_theta": kind.default_theta,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
        "preset": {name: value for name, value in rope.items() if name != "type"} if own else {},
    }


def main() -> None:
    """Writes the file."""
    import transformers

    # One model per line.
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows().items())
    source = json.dumps(f"{SOURCE}, version {transformers.__version__}")
    TARGET.write_text(f'{{"source": {source}, "models": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
