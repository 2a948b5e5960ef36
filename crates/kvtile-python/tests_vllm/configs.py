"""vLLM's own configs, without an engine."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

from helpers import MODEL


@functools.cache
def _made(**changes: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    given = {"model": str(MODEL), "dtype": "float32", "block_size": 32, "max_model_len": 1024} | changes
    return EngineArgs(**given).create_engine_config()


def engine_config(**changes: Any) -> Any:
    """The config of an engine with these arguments; the caller may change it."""
    made = copy.copy(_made(**changes))
    for field in dataclasses.fields(made):
        part = getattr(made, field.name, None)
        if dataclasses.is_dataclass(part):
            setattr(made, field.name, copy.copy(part))
    return made


def blank(kind: type) -> Any:
    """A config with all defaults, without validation."""
    from kvtile.vllm._extras import default_of

    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        default = default_of(field)
        object.__setattr__(made, field.name, None if default is dataclasses.MISSING else default)
    return made


def another(value: Any) -> Any:
    """Another value of a similar kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 7
    if isinstance(value, str):
        return f"{value}-another"
    if isinstance(value, dict):
        return {**value, f"another-{len(value)}": 1}
    if isinstance(value, (list, tuple)):
        return [*value, "another"]
    return "another"
