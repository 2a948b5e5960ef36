"""The messages between the two sides of a connector. The sides may be in different processes, and there is one worker
per rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kvtile._errors import InternalError

# Block keys by rank. All ranks have the same keys, unless the order inside their blocks is unknown; then a key depends on
# the rank.
Keys = dict[int, list[bytes]]
# A change: its kind ("stored", "removed", "cleared"), the tier, the block's key, and its parent's key.
Change = tuple[str, str, bytes, "bytes | None"]


@dataclass
class LoadOrder:
    """Loads blocks that vLLM has allocated: those of a request from its block ``first`` on.

    ``keys`` are the request's keys from its first block to the last block to load.
    """

    request: str
    keys: Keys
    first: int
    blocks: list[int]
    # Whether the step that loads the blocks also computes with them, layer by layer.
    in_step: bool
    adapter: tuple[int, bytes] | None = None


@dataclass
class StoreOrder:
    """Stores blocks that are full after this step; ``keys`` are the request's keys from its first block on."""

    request: str
    keys: Keys
    first: int
    blocks: list[int]
    adapter: tuple[int, bytes] | None = None


@dataclass
class GroupLoadOrder:
    """Loads all that a request needs to resume after ``stop`` tokens; ``keys`` are its keys up to there.

    Of each group, ``blocks`` has a block for each page that is needed beyond the first ``have`` tokens, which vLLM has.
    """

    request: str
    keys: Keys
    stop: int
    blocks: dict[str, list[int]]
    have: dict[str, int]
    adapter: tuple[int, bytes] | None = None


@dataclass
class GroupStoreOrder:
    """Stores pages of groups that are whole after this step: ids, and the page of the first one, by group.

    ``stop`` is the position whose windows and states are among them; None for pages of full attention alone.
    """

    request: str
    keys: Keys
    blocks: dict[str, tuple[list[int], int]]
    stop: int | None
    adapter: tuple[int, bytes] | None = None


@dataclass
class SeekOrder:
    """Queries the shared store for the blocks of a request."""

    request: str
    keys: Keys


@dataclass
class Orders(KVConnectorMetadata):  # type: ignore[misc]
    """The scheduler's orders to the workers for one step."""

    loads: list[LoadOrder] = field(default_factory=list)
    stores: list[StoreOrder] = field(default_factory=list)
    seeks: list[SeekOrder] = field(default_factory=list)
    # The same for models with several groups.
    group_loads: list[GroupLoadOrder] = field(default_factory=list)
    group_stores: list[GroupStoreOrder] = field(default_factory=list)
    # Prefixes in use that vLLM has itself; a use makes kvtile keep them longer.
    uses: list[Keys] = field(default_factory=list)
    preempted: set[str] = field(default_factory=set)
    # Ended requests whose blocks vLLM keeps until their stores complete.
    held: set[str] = field(default_factory=set)
    # Whether to remove all blocks first.
    clear: bool = False
    # Whether the step computes nothing.
    idle: bool = False


@dataclass
class Hello(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """A worker's message after opening its cache: the identity of its blocks, and the blocks that it has."""

    identity: str
    changes: list[Change] = field(default_factory=list)
    # For models with several groups, whose identity is that of the model: the blocks by group.
    group_changes: dict[str, list[Change]] = field(default_factory=dict)


@dataclass
class RankReport:
    """The events at one worker since its last report."""

    changes: list[Change] = field(default_factory=list)
    # The same by group, for models with several groups.
    group_changes: dict[str, list[Change]] = field(default_factory=dict)
    # Requests whose loads of a stop have failed.
    failed: set[str] = field(default_factory=set)
    # The number of completed stores by request.
    ended: dict[str, int] = field(default_factory=dict)
    # By request, the first block to store again.
    store_from: dict[str, int] = field(default_factory=dict)
    # Requests with blocks that were dropped for lack of room.
    without_room: set[str] = field(default_factory=set)
    # Whether attention waits for its layers.
    loads_in_step: bool = True
    # Requests for which the shared store has answered, or has taken too long. The changes contain the answer.
    sought: set[str] = field(default_factory=set)
    # By tier below host memory: seconds of a read, and further ones for each of its blocks. Tiers without a read have none.
    tier_seconds: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Report(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """The reports of all workers, by rank."""

    ranks: dict[int, RankReport]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Merges the reports of other workers."""
        if not isinstance(other, Report):
            raise InternalError(f"kvtile.vllm: {type(other).__name__} is not the report of this connector")
        return Report(self.ranks | other.ranks)
