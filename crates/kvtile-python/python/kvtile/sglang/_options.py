"""The options of the backend, in ``--hicache-storage-backend-extra-config``."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtile._engine_options import Policy, bytes_of, refuse_unknown, value_of
from kvtile._engine_shared import check_shared, refuse_bundles
from kvtile._errors import SettingsError

_WHERE = "the kvtile entry in --hicache-storage-backend-extra-config"
_SIZES = ("capacity", "staging")
_ONE_PAGE = "SGLang does not state where a page is in its prompt, so each page is a value of its own; larger ones need a larger --page-size"
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
        shared: a store that other engines use too: a URL (``s3://bucket/prefix``, ``redis://host``), or the path of a folder;
            default: none.
        shared_within: seconds that a request waits for the answers of the shared store; default: 1. After that SGLang computes
            what the folder does not have.
        shared_lifetime: seconds for which the shared store keeps pages, where its values expire; default: for ever.
        shared_compress: compress pages for the shared store, without loss. Every engine reads compressed pages.
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
    shared: str | None = None
    shared_within: float | None = None
    shared_lifetime: float | None = None
    shared_compress: bool | None = None
    model: str | None = None
    revision: str | None = None
    kv_cache_dtype: str | None = None
    trust_adapter_paths: bool = False

    @classmethod
    def read(cls, entry: Mapping[str, object] | None) -> HiCacheOptions:
        """Parses an entry. Raises SettingsError for unknown names, and for values of the wrong type."""
        given = {name: value for name, value in (entry or {}).items() if name not in _OF_SGLANG}
        hints = typing.get_type_hints(cls)
        refuse_bundles(_WHERE, given, _ONE_PAGE)
        refuse_unknown(given, hints, _WHERE)
        for name in ("path", "capacity"):
            if name not in given:
                raise SettingsError(f'{_WHERE} needs {name!r}, for example "path": "/var/cache/kv", "capacity": "100GiB"')
        values = {name: _value(name, value, hints[name]) for name, value in given.items()}
        options = cls(**values)  # type: ignore[arg-type]
        check_shared(_WHERE, given, options)
        return options


def _value(name: str, value: object, hint: object) -> object:
    if name in _SIZES:
        return bytes_of(f"{_WHERE}: {name}", value)
    return value_of(_WHERE, name, value, hint, may_be_zero=name == "shared_within")
