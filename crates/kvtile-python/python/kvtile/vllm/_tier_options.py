"""The options of the tier, in its entry of ``secondary_tiers``."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtile._engine_options import Policy, bytes_of, refuse_unknown, shown, value_of
from kvtile._engine_shared import check_shared
from kvtile._errors import SettingsError

_WHERE = "the kvtile tier in secondary_tiers"
_SIZES = ("capacity", "staging")
_LOCALITIES = ("LOCAL", "REMOTE")


@dataclass(frozen=True)
class TierOptions:
    """The options of a tier.

    Attributes:
        path: a folder on a local file system, for one engine at a time. Data-parallel replicas have a subfolder each. It
            is needed unless ``shared`` is given.
        capacity: limit for the size of the folder, as bytes or text such as ``"100GiB"``; of all replicas together. It is
            needed with ``path``, unless ``read_only`` is set.
        read_only: read the folder and the shared store and write nothing. Another engine of the machine may write the folder
            at the same time.
        shared: a store that other engines use too: a URL (``s3://bucket/prefix``, ``redis://host``), or the path of a folder;
            default: none.
        shared_within: seconds that a request waits for the answers of the shared store; default: 1. After that vLLM computes
            what the folder does not have.
        shared_lifetime: seconds for which the shared store keeps blocks, where its values expire; default: for ever.
        shared_bundle_blocks: rows of one value, 1 to 64, the same for all engines; default: 1.
        shared_compress: compress rows for the shared store, without loss. Every engine reads compressed rows.
        staging: memory for blocks that are on their way to the disk; at least four rows.
        policy: eviction policy of the disk; default: that of ``BlockStore``.
        workers: threads that move blocks; default: that of ``BlockStore``.
        stage_within: seconds that a block may wait for staging memory, in vLLM's primary tier; then it is not kept.
        wait_seconds: how long a request may wait in total, from its first block that found vLLM's primary tier full.
            After that vLLM computes what is missing. 0 is vLLM's own behaviour.
        close_within: seconds that the end of the engine may take to write what is in staging memory.
        model: the model's name in the identity of the blocks; default: the name that vLLM was given.
        revision: identifies the weights; default: a commit of the hub, or a digest of the files.
        trust_adapter_paths: keep blocks of adapters (LoRA), although vLLM's keys name an adapter by its name and path.
        enable_kv_events: emit KV events for this tier.
        locality: LOCAL or REMOTE, the tier's place in vLLM's filters and events.
    """

    path: Path | None = None
    capacity: int = 0
    read_only: bool = False
    shared: str | None = None
    shared_within: float | None = None
    shared_lifetime: float | None = None
    shared_bundle_blocks: int | None = None
    shared_compress: bool | None = None
    staging: int = 256 << 20
    policy: Policy | None = None
    workers: int | None = None
    stage_within: float = 1.0
    wait_seconds: float = 5.0
    close_within: float = 30.0
    model: str | None = None
    revision: str | None = None
    trust_adapter_paths: bool = False
    enable_kv_events: bool = False
    locality: str = "LOCAL"

    @classmethod
    def read(cls, given: Mapping[str, object]) -> TierOptions:
        """Parses an entry. Raises SettingsError for unknown names, and for values of the wrong type."""
        hints = typing.get_type_hints(cls)
        refuse_unknown(given, hints, _WHERE)
        needed = [] if given.get("shared") is not None and given.get("path") is None else ["path", "capacity"]
        for name in needed:
            if name not in given and not (name == "capacity" and given.get("read_only") is True):
                raise SettingsError(f'{_WHERE} needs {name!r}, for example "path": "/var/cache/kv", "capacity": "100GiB"')
        values = {name: _value(name, value, hints[name]) for name, value in given.items()}
        options = cls(**values)  # type: ignore[arg-type]
        check_shared(_WHERE, given, options)
        idle = [name for name in ("capacity", "policy") if options.path is None and name in given]
        if idle:
            raise SettingsError(f"{_WHERE}: {', '.join(idle)} has no effect without path, the folder")
        if options.locality not in _LOCALITIES:
            raise SettingsError(f"{_WHERE}: locality is {shown(options.locality)}; it takes {' or '.join(_LOCALITIES)}")
        return options


def _value(name: str, value: object, hint: object) -> object:
    if name == "path" and value is None:
        return None
    if name in _SIZES:
        return bytes_of(f"{_WHERE}: {name}", value)
    return value_of(_WHERE, name, value, hint, may_be_zero=True)


def configured_by_user(name: str, entries: object) -> bool:
    """Whether a keyword argument is from one of vLLM's ``secondary_tiers``, not one that a later vLLM passes itself."""
    if not isinstance(entries, Collection):
        return True
    return any(name in entry for entry in entries if isinstance(entry, Mapping))
