"""Reads the options that users give to the adapters of engines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from kvtile._errors import SettingsError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1 << (10 * power) for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def bytes_of(name: str, value: object) -> int:
    """A size: a number of bytes, or text such as ``"100GiB"``. Raises SettingsError, with the option's name."""
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    size = units.get(found[2].lower()) if found else None
    if found and size and (count := int(float(found[1]) * size)) > 0:
        return count
    raise SettingsError(f'{name} is {value!r}; it takes a number of bytes, or text such as "100GiB" or "500 MB"')


def refuse_unknown(given: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Raises SettingsError for options that nothing reads, with the nearest known name."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{where} has {name!r}, which kvtile does not know{meant} It knows {', '.join(known)}")
