"""Reads the options that users give to the adapters of engines."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

from kvtile._errors import SettingsError

Policy: TypeAlias = Literal["gittins", "lru", "arc", "s3-fifo"]
"""The eviction policies of a disk."""

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1 << (10 * power) for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
# The largest number of an option.
_MOST = (1 << 63) - 1
_SHOWN = 200


def bytes_of(name: str, value: object) -> int:
    """A size: a number of bytes, or text such as ``"100GiB"``. Raises SettingsError, with the option's name."""
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) and len(value) < _SHOWN else None
    size = units.get(found[2].lower()) if found else None
    if found and size and 0 < (count := int(Fraction(found[1]) * size)) <= _MOST:
        return count
    raise SettingsError(f'{name} is {shown(value)}; it takes a number of bytes, or text such as "100GiB" or "500 MB"')


def shown(value: object) -> str:
    """A value for an error, not longer than a line or two."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def refuse_unknown(given: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Raises SettingsError for options that nothing reads, with the nearest known name."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.5)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{where} has {shown(name)}, which kvtile does not know{meant} It knows {', '.join(known)}")


def value_of(where: str, name: str, value: object, hint: object, *, may_be_zero: bool = False) -> object:
    """The value of an option whose type is ``hint``: a path, text, a number, a flag, one of some words, or None.

    Raises SettingsError for a value of another type, empty text, a negative number, and 0 unless it ``may_be_zero``.
    """
    kinds = typing.get_args(hint) or (hint,)
    words = [word for kind in (hint, *kinds) if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    if words:
        if value in words or (value is None and type(None) in kinds):
            return value
        raise SettingsError(f"{where}: {name} is {shown(value)}; it takes {', '.join(words)}")
    if Path in kinds:
        if isinstance(value, str) and value:
            return Path(value)
        raise SettingsError(f"{where}: {name} is {shown(value)}; it takes the path of a folder")
    allowed = tuple(kind for kind in (*kinds, *((int,) if float in kinds else ())) if isinstance(kind, type))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__.replace("NoneType", "null") for kind in allowed)
        raise SettingsError(f"{where}: {name} is {shown(value)}; it takes {expected}")
    if isinstance(value, str) and not value:
        raise SettingsError(f"{where}: {name} is empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        most = _MOST if isinstance(value, int) else float("inf")
        if not 0 <= value <= most or value == float("inf") or (value == 0 and not may_be_zero):
            expected = "a number that is not negative" if may_be_zero else "a number above 0"
            expected += f", {_MOST} at most" if isinstance(value, int) and value > _MOST else ""
            raise SettingsError(f"{where}: {name} is {shown(value)}; it takes {expected}")
    return value
