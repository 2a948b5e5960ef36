"""Rotary embeddings by kind of layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvtile._errors import IdentityError
from kvtile._hf.config import short
from kvtile._hf.groups.kept import Reader

# Kinds whose angles follow from the config alone; ``proportional`` is Gemma 4's, of a part of a head.
_STATIC = ("default", "linear", "llama3", "yarn", "proportional")
# No part of the angles of text: sections of positions of images.
_MEDIA = ("mrope_section", "mrope_interleaved")


def rope_for(reader: Reader, kind: str, *, theta: float | None = None, scaled: bool = True) -> dict[str, Any]:
    """The rotary embedding of layers of one kind.

    Args:
        kind: the name of the layers in ``rope_parameters``, where these differ by it.
        theta: the base of this kind, where the config has it in a field of its own.
        scaled: whether ``rope_scaling`` is of this kind too.
    """
    given = reader.get("rope_parameters") or reader.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise IdentityError(f"the config's rotary embedding is {short(given)}, not a dict")
    if any(isinstance(value, Mapping) for value in given.values()):
        own = given.get(kind)
        if not isinstance(own, Mapping):
            raise IdentityError(f"the config's rope_parameters have no {kind}; add it")
        given, theta = own, None
    elif not scaled:
        given = {}
    rope = {str(name): value for name, value in given.items() if value is not None and name not in _MEDIA}
    named = rope.pop("type", None)
    rope["rope_type"] = "default" if rope.get("rope_type", named) in (None, "mrope") else rope.get("rope_type", named)
    if rope["rope_type"] not in _STATIC:
        raise IdentityError(
            f"the config's rotary embedding is of the kind {short(rope['rope_type'])}; kvtile knows {', '.join(_STATIC)} for models "
            "with groups: the angles of others depend on the length of the whole sequence"
        )
    base = theta if theta is not None else rope.get("rope_theta", reader.get("rope_theta"))
    if base is None or isinstance(base, (list, tuple)):
        raise IdentityError("the config has no rope_theta, the base of its rotary embedding; add it")
    rope["rope_theta"] = base
    part = reader.get("partial_rotary_factor")
    if part is not None and part != 1:
        rope.setdefault("partial_rotary_factor", part)
    return {name: _checked(name, value) for name, value in sorted(rope.items())}


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_checked(name, each) for each in value]
    raise IdentityError(f"the config's rotary embedding has {short(value)} as {name}, not a number or text")
