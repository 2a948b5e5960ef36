"""The settings in ``kv_connector_extra_config``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtile import Identity, ModelIdentity
from kvtile._errors import SettingsError
from kvtile.vllm._rank import Rank

_GIB = 1 << 30

# Settings of host memory, disk and shared store, which a daemon has for all of its clients.
_OF_THE_DAEMON = (
    "host_gib",
    "prefault",
    "disk_path",
    "disk_gib",
    "disk_writes",
    "close_within",
    "shared",
    "shared_lifetime",
    "shared_bundle_blocks",
    "shared_compress",
    "policy",
)


# Settings that need more than `kvtile.GroupCache` has, and what to do instead.
_NOT_WITH_GROUPS = {
    "shared": "give disk_path and disk_gib",
    "shared_within": "requests do not wait for a shared store",
    "recompute_tokens_per_second": "stops on disk are loaded whole",
    "record": "a trace has the blocks of one group",
    "http": "vLLM's metrics have the counts of kvtile",
}


@dataclass(frozen=True)
class Settings:
    """The settings of a connector, by their names in ``kv_connector_extra_config``.

    Attributes:
        connect: the socket of a node daemon (``kvtile serve``), which then has host memory, disk and shared store for
            all engines of the machine; default: none. Settings of these have no effect with it, and are refused. With
            ``shared_within`` requests wait for the daemon's shared store.
        host_gib: GiB of host memory for blocks, over all ranks.
        prefault: fault in all host memory when vLLM starts. Otherwise the first use of each page faults it in, and all
            operations are slower until then.
        disk_path: a folder for blocks that outlive the process; default: none.
        disk_gib: limit for the size of the folder in GiB, over all ranks; required with ``disk_path``.
        disk_writes: when blocks go to disk: ``"at_once"`` (a killed process loses the writes of the last 250 ms),
            ``"on_eviction"``, or after this number of uses.
        close_within: seconds that closing may take to write blocks that are only in host memory; default: 30.
        shared: a store that other engines use too: a URL (``s3://bucket/prefix``, ``redis://host``), or the path of a
            folder; default: none.
        shared_within: seconds that a request waits for the answer of the shared store; default: 1. After that it is
            computed, as far as the other tiers do not have it.
        shared_lifetime: seconds for which the shared store keeps blocks, where its values expire; default: for ever.
        shared_bundle_blocks: blocks of one value, 1 to 64, the same for all engines; default: as many as the store reads
            well, 8 MiB for a bucket. Prompts with fewer full blocks are not shared.
        shared_compress: compress blocks for the shared store, without loss. Every engine reads compressed blocks.
        policy: eviction policy: ``"gittins"``, ``"lru"``, ``"arc"`` or ``"s3-fifo"``.
        workers: worker threads that move blocks, per rank; with several groups, per rank and group.
        recompute_tokens_per_second: prompt tokens that the engine computes per second. Blocks on disk that take longer
            to load than to compute are not loaded.
        model: the model's name in the identity of its blocks; default: the name that vLLM was given.
        revision: identifies the weights; default: a commit of the hub's cache, or a digest of the files.
        salt: isolates tenants: blocks of another salt are never served.
        record: a file to which the scheduler appends the requests as a trace for ``kvtile replay``; None for none.
        http: an address for a live page and metrics of the cache, ``"127.0.0.1:9090"``, or a port of this machine. Rank
            ``i`` serves on the ``i``-th port after it; port 0 is a free port, which the log names. Default: none.
    """

    connect: str | None = None
    host_gib: float = 1.0
    prefault: bool = True
    disk_path: str | None = None
    disk_gib: float | None = None
    disk_writes: str | int = "at_once"
    close_within: float | None = None
    shared: str | None = None
    shared_within: float | None = None
    shared_lifetime: float | None = None
    shared_bundle_blocks: int | None = None
    shared_compress: bool | None = None
    policy: str | None = None
    workers: int | None = None
    recompute_tokens_per_second: float | None = None
    model: str | None = None
    revision: str | None = None
    salt: str = ""
    record: str | None = None
    http: str | int | None = None

    @property
    def seeks(self) -> bool:
        """Whether requests wait for a shared store."""
        return self.shared is not None or (self.connect is not None and self.shared_within is not None)

    @property
    def seek_seconds(self) -> float:
        """How long a request waits for the shared store."""
        return 1.0 if self.shared_within is None else self.shared_within

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """Parses a config. Raises SettingsError for unknown names, and for values of the wrong type."""
        hints = typing.get_type_hints(cls)
        unknown = sorted(set(given) - set(hints))
        if unknown:
            raise SettingsError(
                f"kv_connector_extra_config has {', '.join(unknown)}, which kvtile does not know; "
                f"it knows {', '.join(hints)}"
            )
        for name, value in given.items():
            kinds = typing.get_args(hints[name]) or (hints[name],)
            allowed = (*kinds, int) if float in kinds else kinds
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join(kind.__name__.replace("NoneType", "null") for kind in kinds)
                raise SettingsError(f"kv_connector_extra_config: {name} is {value!r}; it takes {expected}")
        settings = cls(**given)
        if (settings.disk_path is None) != (settings.disk_gib is None):
            raise SettingsError("kv_connector_extra_config: disk_path and disk_gib go together")
        if settings.disk_path is None and settings.close_within is not None:
            raise SettingsError("kv_connector_extra_config: close_within has no effect without disk_path")
        if settings.connect is not None:
            daemons = [name for name in given if name in _OF_THE_DAEMON]
            if daemons:
                raise SettingsError(
                    f"kv_connector_extra_config: {', '.join(daemons)} has no effect with connect; give it to kvtile serve"
                )
        has_store = settings.shared is not None or settings.connect is not None
        idle = [name for name in given if name.startswith("shared_") and not has_store]
        if idle:
            raise SettingsError(f"kv_connector_extra_config: {', '.join(idle)} has no effect without shared")
        if not (settings.shared_within or 0.0) >= 0.0:
            raise SettingsError(f"kv_connector_extra_config: shared_within is {settings.shared_within}; give 0 seconds or more")
        settings.http_address(0)
        return settings

    def refuse_with_groups(self) -> None:
        """Raises SettingsError for settings that a model with windows, chunks or states cannot have yet."""
        for name, instead in _NOT_WITH_GROUPS.items():
            if getattr(self, name) is not None:
                raise SettingsError(
                    f"kv_connector_extra_config: {name} is not supported yet for models with windows, chunks, states or latents; "
                    f"leave it out: {instead}"
                )

    def http_address(self, rank: int) -> str | None:
        """The address of a rank's page; None for no page. Raises SettingsError for a text without a port."""
        if self.http is None:
            return None
        host, _, port = str(self.http).rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) + rank > 65535:
            raise SettingsError(f"kv_connector_extra_config: http is {self.http!r}; give HOST:PORT or PORT, with ports up to 65535")
        number = int(port) + rank if int(port) else 0
        return f"{host or '127.0.0.1'}:{number}"

    def of_cache(self, rank: Rank, identity: Identity | ModelIdentity) -> dict[str, Any]:
        """The keyword arguments of a rank's ``kvtile.Cache`` or ``kvtile.GroupCache``, without those that were not given.

        The rate of computing is not among them: the scheduler leaves slow blocks out, and a worker that left them out too
        would fail loads that the scheduler has promised.
        """
        if self.connect is not None:
            return {"connect": self.connect} | ({} if self.workers is None else {"workers": self.workers})
        told = {
            "host_bytes": int(self.host_gib * _GIB) // rank.size,
            "prefault": self.prefault,
            "policy": self.policy,
            "workers": self.workers,
            "shared": self.shared,
            "shared_lifetime": self.shared_lifetime,
            "shared_bundle_blocks": self.shared_bundle_blocks,
            "shared_compress": self.shared_compress,
        }
        if self.disk_path is not None and self.disk_gib is not None:
            told |= {
                "disk": str(rank.folder(Path(self.disk_path), identity)),
                "disk_bytes": int(self.disk_gib * _GIB) // rank.size,
                "disk_writes": self.disk_writes,
                "close_within": self.close_within,
            }
        return {name: value for name, value in told.items() if value is not None}

    def __str__(self) -> str:
        shown = dataclasses.asdict(self) | {"salt": "…" if self.salt else ""}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if value not in (None, ""))
