"""The options of the backend, in ``--hicache-storage-backend-extra-config``."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from kvtile._engine_options import bytes_of, refuse_unknown
from kvtile._errors import SettingsError

Policy: TypeAlias = Literal["gittins", "lru", "arc", "s3-fifo"]
"""The eviction policies of a disk."""

_WHERE = "the kvtile entry in --hicache-storage-backend-extra-config"
_SIZES = ("capacity", "staging")
# Keys of the same entry that SGLang reads itself.
_OF_SGLANG = (
    "backend_name", "module_path", "class_name", "interface_v1", "allocator", "file_storage_path", "prefetch_threshold",
    "prefetch_timeout_base", "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size",
)


@dataclass(frozen=True)
class HiCacheOptions:
    """The options of the backend.

    Attributes:
        path: a folder on a local file system. Each rank has a subfolder.
        capacity: limit for the size of the folder, as bytes or text such as ``"100GiB"``; of all ranks together. Each
            data-parallel replica has as much.
        staging: memory of each rank for pages that are on their way to the disk.
        policy: eviction policy of the disk; default: that of ``BlockStore``.
        workers: threads of each rank that load pages; default: that of ``BlockStore``.
        answer_within: seconds after which a disk that does not answer is not used for a while.
        stage_within: seconds that a backup waits for staging memory. After that its pages are not stored.
        close_within: seconds that the end of the engine may take to write what is in staging memory.
        model: the model's name in the identity of the pages; default: the name that SGLang gives.
        revision: identifies the weights; default: a commit of the hub, or a digest of the files.
        kv_cache_dtype: the data type of KV that SGLang keeps as bytes, if SGLang's own option is not visible.
        trust_adapter_paths: keep pages of adapters (LoRA), although SGLang's keys name an adapter by its name and path.
    """

    path: Path
    capacity: int
    staging: int = 256 << 20
    policy: Policy | None = None
    workers: int | None = None
    answer_within: float = 10.0
    stage_within: float = 5.0
    close_within: float = 30.0
    model: str | None = None
    revision: str | None = None
    kv_cache_dtype: str | None = None
    trust_adapter_paths: bool = False

    @classmethod
    def read(cls, entry: Mapping[str, object] | None) -> HiCacheOptions:
        """Parses an entry. Raises SettingsError for unknown names, and for values of the wrong type."""
        given = {name: value for name, value in (entry or {}).items() if name not in _OF_SGLANG}
        hints = typing.get_type_hints(cls)
        refuse_unknown(given, hints, _WHERE)
        for name in ("path", "capacity"):
            if name not in given:
                raise SettingsError(f'{_WHERE} needs {name!r}, for example "path": "/var/cache/kv", "capacity": "100GiB"')
        values = {name: _value(name, value, hints[name]) for name, value in given.items()}
        return cls(**values)  # type: ignore[arg-type]


def _value(name: str, value: object, hint: object) -> object:
    if name in _SIZES:
        return bytes_of(f"{_WHERE}: {name}", value)
    kinds = typing.get_args(hint) or (hint,)
    if name == "policy":
        if value is None or value in typing.get_args(Policy):
            return value
        raise SettingsError(f"{_WHERE}: policy is {value!r}; it takes {', '.join(typing.get_args(Policy))}")
    if Path in kinds:
        if isinstance(value, str) and value:
            return Path(value)
        raise SettingsError(f"{_WHERE}: {name} is {value!r}; it takes the path of a folder")
    allowed = tuple(kind for kind in (*kinds, *((int,) if float in kinds else ())) if isinstance(kind, type))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__.replace("NoneType", "null") for kind in allowed)
        raise SettingsError(f"{_WHERE}: {name} is {value!r}; it takes {expected}")
    if isinstance(value, str) and not value:
        raise SettingsError(f"{_WHERE}: {name} is empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not (value > 0 and math.isfinite(value)):
        raise SettingsError(f"{_WHERE}: {name} is {value!r}; it takes a number above 0")
    return value
