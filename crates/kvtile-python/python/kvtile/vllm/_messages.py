"""What the two sides of a connector tell each other. They may be in different processes, and there is one worker
a rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kvtile._errors import InternalError

# The keys of blocks by rank: each rank keeps its own heads of a block, under a key that says so.
Keys = dict[int, list[bytes]]
# What happened ("stored", "removed", "cleared"), in which tier, to which block, and which one is before it.
Change = tuple[str, str, bytes, "bytes | None"]


@dataclass
class LoadOrder:
    """Blocks that vLLM has made room for: those of a request from its block ``first`` on.

    ``keys`` are those of the request from its first block to the last one that is loaded.
    """

    request: str
    keys: Keys
    first: int
    blocks: list[int]
    # Whether the step that loads them also computes with them, layer by layer.
    in_step: bool
    adapter: tuple[int, bytes] | None = None


@dataclass
class StoreOrder:
    """Blocks that are full after this step; ``keys`` are those of the request from its first block on."""

    request: str
    keys: Keys
    first: int
    blocks: list[int]
    adapter: tuple[int, bytes] | None = None


@dataclass
class Orders(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler tells the workers for one step."""

    loads: list[LoadOrder] = field(default_factory=list)
    stores: list[StoreOrder] = field(default_factory=list)
    # Prefixes that requests use and vLLM has itself; what is used is kept longer.
    uses: list[Keys] = field(default_factory=list)
    preempted: set[str] = field(default_factory=set)
    # Requests that have ended and whose blocks vLLM keeps until their stores have ended.
    held: set[str] = field(default_factory=set)
    # Everything is to be forgotten first.
    clear: bool = False
    # Whether nothing is computed in this step.
    idle: bool = False


@dataclass
class Hello(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """What a worker says when it has opened its cache: what its blocks mean, and which ones it has."""

    identity: str
    changes: list[Change]


@dataclass
class RankReport:
    """What happened at one worker since its last report."""

    changes: list[Change] = field(default_factory=list)
    # How many of a request's stores have ended.
    ended: dict[str, int] = field(default_factory=dict)
    # From which block on a request is to be stored again.
    store_from: dict[str, int] = field(default_factory=dict)
    # Requests of which blocks found no room.
    without_room: set[str] = field(default_factory=set)
    # Whether attention waits for its layers.
    loads_in_step: bool = True
    # Seconds that the disk takes for a block, once it has given some.
    disk_seconds: float | None = None


@dataclass
class Report(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What happened at all workers, by rank."""

    ranks: dict[int, RankReport]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """With what happened at other workers."""
        if not isinstance(other, Report):
            raise InternalError(f"kvtile.vllm: {type(other).__name__} is not the report of this connector")
        return Report(self.ranks | other.ranks)
