"""The options of the adapter, in ``adapter_params``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtile._engine_options import Policy, bytes_of, refuse_unknown, value_of
from kvtile._errors import SettingsError

_WHERE = "adapter_params of kvtile"
_SIZES = ("capacity", "staging", "piece")
_PAGE = 4096
_PIECE_MAX = 1 << 30
_NOT_SHARED = (
    "an adapter reports to LMCache the bytes of every object that it gains and loses, and an object of several pieces is there whole or "
    "not at all; a shared store gains and loses values without a word. Share between servers with an adapter of LMCache that is "
    "remote, as a second --l2-adapter"
)
_NEEDED = {
    "path": 'for example "path": "/var/cache/kv"',
    "capacity": 'for example "capacity": "100GiB"',
    "revision": "a text that you change when weights change under the same name: LMCache's keys have a name only",
}


@dataclass(frozen=True)
class AdapterOptions:
    """The options of an adapter.

    Attributes:
        path: a folder on a local file system, for one adapter at a time.
        capacity: limit for the size of the folder, as bytes or text such as ``"100GiB"``.
        revision: identifies the weights of the models. LMCache's keys name a model, not its weights.
        staging: memory for objects that are on their way to the disk. A store ends when its objects are there.
        piece: size of the pieces in which objects are kept. The last piece of each object is partly empty.
        policy: eviction policy of the disk; default: that of ``BlockStore``.
        workers: threads that load pieces; default: that of ``BlockStore``.
        answer_within: seconds after which a disk that does not answer is not used for a while.
        stage_within: seconds that a store waits for staging memory; then the rest of its objects is not kept.
        close_within: seconds that the end of LMCache may take to write what is in staging memory.
    """

    path: Path
    capacity: int
    revision: str
    staging: int = 256 << 20
    piece: int = 256 << 10
    policy: Policy | None = None
    workers: int | None = None
    answer_within: float = 10.0
    stage_within: float = 10.0
    close_within: float = 30.0

    @classmethod
    def read(cls, given: Mapping[str, object]) -> AdapterOptions:
        """Parses ``adapter_params``. Raises SettingsError for unknown names, and for values of the wrong type."""
        hints = typing.get_type_hints(cls)
        shared = [name for name in given if str(name).partition("_")[0] == "shared"]
        if shared:
            raise SettingsError(f"{_WHERE} have {', '.join(shared)}, which the adapter refuses: {_NOT_SHARED}")
        refuse_unknown(given, hints, _WHERE)
        for name, example in _NEEDED.items():
            if name not in given:
                raise SettingsError(f"{_WHERE} need {name!r}, {example}")
        values = {name: _value(name, value, hints[name]) for name, value in given.items()}
        options = cls(**values)  # type: ignore[arg-type]
        if options.piece % _PAGE or options.piece > _PIECE_MAX:
            takes = f"a multiple of {_PAGE}, {_PIECE_MAX} at most"
            raise SettingsError(f"{_WHERE}: piece is {options.piece} bytes; it takes {takes}")
        return options

    @classmethod
    def help(cls) -> str:
        """The options and their defaults, a line each."""
        lines = [
            f"- {field.name} ({_default_of(field)}): {described}"
            for field, described in zip(dataclasses.fields(cls), _descriptions(), strict=True)
        ]
        return "\n".join([f"{_WHERE}:", *lines])


def _default_of(field: dataclasses.Field[object]) -> str:
    return "required" if field.default is dataclasses.MISSING else f"default {field.default!r}"


def _descriptions() -> list[str]:
    listed = (AdapterOptions.__doc__ or "").partition("Attributes:")[2]
    return [line.partition(": ")[2] for line in map(str.strip, listed.splitlines()) if line]


def _value(name: str, value: object, hint: object) -> object:
    if name in _SIZES:
        return bytes_of(f"{_WHERE}: {name}", value)
    return value_of(_WHERE, name, value, hint)
