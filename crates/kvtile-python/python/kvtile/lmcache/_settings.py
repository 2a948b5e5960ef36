"""The settings in ``adapter_params``."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvtile._errors import SettingsError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_PAGE = 4096


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter, by their names in ``adapter_params``. Sizes are bytes, or texts such as ``"100GiB"``.

    Attributes:
        folder: a folder on a local file system; one adapter uses it at a time.
        capacity: limit for the size of the folder.
        staging: host memory for objects that are not written yet. A store ends when it has copied its objects there.
        piece: objects are kept in pieces of this size. The last piece of each object is partly empty.
        workers: threads that copy and verify pieces.
        policy: eviction policy, as ``disk_policy`` of ``kvtile.BlockStore``; default: the store's default.
        revision: a name for the weights. Change it when the weights change under the same model name.
        close_within: seconds that closing may take to write objects that are only in staging memory.
    """

    folder: str
    capacity: int
    staging: int = 256 << 20
    piece: int = 256 << 10
    workers: int = 2
    policy: str | None = None
    revision: str = ""
    close_within: float = 30.0

    @classmethod
    def read(cls, given: Mapping[str, object]) -> AdapterSettings:
        """Parses ``adapter_params``. Raises SettingsError for unknown names, and for values of the wrong type."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in names:
                raise SettingsError(_unknown(name, names))
        for name in ("folder", "capacity"):
            if name not in given:
                raise SettingsError(f"adapter_params: {name} is missing; folder and capacity are required")
        values: dict[str, Any] = {name: _READERS[name](name, value) for name, value in given.items()}
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.folder:
            raise SettingsError("adapter_params: folder is empty; it takes a path")
        if self.piece < _PAGE or self.piece % _PAGE:
            raise SettingsError(f"adapter_params: piece is {self.piece} bytes; it takes a multiple of {_PAGE}")
        if self.workers < 1:
            raise SettingsError(f"adapter_params: workers is {self.workers}; it takes 1 or more")
        if self.close_within < 0:
            raise SettingsError(f"adapter_params: close_within is {self.close_within}; it takes 0 or more seconds")


def help_text() -> str:
    """One line for each setting, with its default."""
    lines = ['kvtile\'s adapter_params (sizes are bytes, or texts such as "100GiB"):']
    described = _descriptions()
    for field in dataclasses.fields(AdapterSettings):
        required = field.default is dataclasses.MISSING
        default = "required" if required else f"default {field.default!r}"
        lines.append(f"- {field.name} ({default}): {described[field.name]}")
    return "\n".join(lines)


def _descriptions() -> dict[str, str]:
    text = (AdapterSettings.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^\s+(\w+): (.+?)$", text, flags=re.MULTILINE)
    return {name: described for name, described in found}


def _unknown(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"adapter_params: unknown setting {name!r}{meant} kvtile knows {', '.join(names)}"


def _size(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    matched = _SIZE.fullmatch(value) if isinstance(value, str) else None
    unit = _UNITS.get(matched[2]) if matched else None
    size = int(float(matched[1]) * unit) if matched and unit is not None else 0
    if size < 1:
        raise SettingsError(
            f'adapter_params: {name} is {value!r}; it takes a number of bytes, or a text such as "100GiB" '
            f"with one of {', '.join(unit for unit in _UNITS if unit)}"
        )
    return size


def _whole(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise SettingsError(f"adapter_params: {name} is {value!r}; it takes a whole number")


def _seconds(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise SettingsError(f"adapter_params: {name} is {value!r}; it takes a number of seconds")


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise SettingsError(f"adapter_params: {name} is {value!r}; it takes a text")


_READERS: dict[str, Callable[[str, object], object]] = {
    "folder": _text,
    "capacity": _size,
    "staging": _size,
    "piece": _size,
    "workers": _whole,
    "policy": _text,
    "revision": _text,
    "close_within": _seconds,
}
