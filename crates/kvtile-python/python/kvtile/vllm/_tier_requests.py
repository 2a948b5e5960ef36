"""The tier's view of requests: which blocks a request may still have promoted, and how long it waits for room.

vLLM looks a request's blocks up again in every step until none is pending. A promotion evicts other rows of the primary
tier, also rows that the same request was promised. So without a bound a request that is longer than the primary tier,
or two requests that evict each other, would be looked up for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

PROMOTIONS_MAX = 3
"""How often one request may have one block promoted."""


class Answer(Enum):
    """The answer to a lookup, with its reason. The values are the labels of the metric."""

    HIT = "hit"
    ABSENT = "absent"
    FAILED_BEFORE = "failed before"
    WAIT = "wait for primary"
    WAITED = "waited for primary"
    LONGER_THAN_PRIMARY = "longer than primary"
    PROMOTED_BEFORE = "promoted before"
    WAIT_SHARED = "wait for shared"
    SHARED_LATE = "shared late"
    NO_STORE = "closed"


@dataclass
class RequestBounds:
    """One request: the blocks that were hits for it, and since when it waits."""

    promotions: dict[bytes, int] = field(default_factory=dict)
    waits_since: float | None = None
    # The key of the block that ends at a token, by group.
    ends: dict[tuple[bytes, int], bytes] = field(default_factory=dict)


class RequestTable:
    """All requests that vLLM has not finished."""

    def __init__(
        self, rows: int, wait_seconds: float, has_room: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rows = rows
        self._wait_seconds = wait_seconds
        self._has_room = has_room
        self._clock = clock
        self._requests: dict[str, RequestBounds] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def of(self, context: Any) -> RequestBounds:
        """The request of a context."""
        return self._requests.setdefault(context.req_id, RequestBounds())

    def finish(self, context: Any) -> None:
        """Forgets a request."""
        self._requests.pop(context.req_id, None)

    def forget_promotions(self) -> None:
        """Forgets what was promoted, because the primary tier was reset."""
        for request in self._requests.values():
            request.promotions.clear()

    def answer(self, key: bytes, context: Any) -> Answer:
        """The answer for a block that is on disk. Counts a hit as a promotion."""
        request = self.of(context)
        promoted = request.promotions.get(key, 0)
        if promoted >= PROMOTIONS_MAX:
            return Answer.PROMOTED_BEFORE
        if not promoted and len(request.promotions) >= self._rows:
            return Answer.LONGER_THAN_PRIMARY
        if not self._has_room():
            now = self._clock()
            if request.waits_since is None:
                request.waits_since = now
            return Answer.WAIT if now - request.waits_since < self._wait_seconds else Answer.WAITED
        request.promotions[key] = promoted + 1
        return Answer.HIT

    def remember(self, key: bytes, context: Any) -> int | None:
        """Remembers where a block of a request ends; None where vLLM does not say."""
        position = getattr(context, "get_offload_key_position", None)
        end = position(key) if position is not None else None
        if end is None:
            return None
        self.of(context).ends[key[-4:], end] = key
        return int(end)

    def chain(self, context: Any, key: bytes, tokens: int) -> list[bytes]:
        """The blocks of a request in the group of ``key``, from its first one on, as far as vLLM has named them. A block has
        ``tokens`` tokens."""
        self._learn(context)
        ends = self.of(context).ends
        chain: list[bytes] = []
        while (found := ends.get((key[-4:], (len(chain) + 1) * tokens))) is not None:
            chain.append(found)
        return chain

    def _learn(self, context: Any) -> None:
        """Remembers all blocks of a request whose ends vLLM has noted. It looks up only those after its own prefix cache."""
        noted = getattr(context, "_offload_key_positions", None)
        if isinstance(noted, dict):
            self.of(context).ends |= {(key[-4:], end): key for key, end in noted.items()}

    def hints(
        self, keys: Sequence[bytes], context: Any, tokens_of: Callable[[bytes], int | None]
    ) -> tuple[list[bytes | None], list[int]] | None:
        """The parents of blocks and their positions in the chain, for the eviction policy; None where an end is not
        known. A parent is known if vLLM has named it in this request."""
        self._learn(context)
        ends = [self.remember(key, context) for key in keys]
        parents: list[bytes | None] = []
        positions = []
        known = self.of(context).ends
        for key, end in zip(keys, ends, strict=True):
            tokens = tokens_of(key)
            if end is None or not tokens:
                return None
            parents.append(known.get((key[-4:], end - tokens)))
            positions.append(max(0, -(-end // tokens) - 1))
        return parents, positions


def primary_has_room(spec: Any) -> bool:
    """Whether vLLM's primary tier can take one more row: one is free, or one is not in use.

    vLLM's interface does not state it. Where this version of vLLM has the counts elsewhere, the answer is yes, and
    vLLM computes what it cannot promote.
    """
    primary = getattr(getattr(spec, "_manager", None), "primary_tier", None)
    free = getattr(primary, "_get_num_free_chunks", None)
    evictable = getattr(primary, "_num_evictable_cache_chunks", None)
    if not callable(free) or not isinstance(evictable, int):
        return True
    return bool(free() > 0 or evictable > 0)
