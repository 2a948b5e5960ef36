"""The tier's queries to a shared store: one for the blocks of each step; and how long a request waits.

vLLM looks up one block after the other, and all of them again in the next step. So a lookup only notes its block, and the
end of the step sends one query for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtile.vllm._tier_requests import Answer

if TYPE_CHECKING:
    from kvtile import StoreQuery


@dataclass
class _Questions:
    """The blocks of one request: None until their query is sent."""

    queries: dict[bytes, StoreQuery | None] = field(default_factory=dict)
    since: float | None = None


class SharedQuestions:
    """The queries of the requests in flight."""

    def __init__(
        self,
        ask: Callable[[Sequence[bytes]], StoreQuery],
        within: float,
        chain: Callable[[Any, bytes], list[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``chain`` is given if a value of the store has several blocks: the blocks of a request from its first one on, up
        to the block in question; a query has all of them."""
        self._ask = ask
        self._within = within
        self._chain = chain
        self._clock = clock
        self._requests: dict[str, _Questions] = {}
        self._unsent: dict[str, tuple[Any, list[bytes]]] = {}

    def answer(self, key: bytes, context: Any) -> Answer:
        """The answer for a block that the tier does not know."""
        request = self._requests.setdefault(context.req_id, _Questions())
        query = request.queries.get(key)
        if query is not None and query.ready:
            return Answer.ABSENT
        now = self._clock()
        if request.since is None:
            request.since = now
        if now - request.since >= self._within:
            return Answer.SHARED_LATE
        if key not in request.queries:
            request.queries[key] = None
            self._unsent.setdefault(context.req_id, (context, []))[1].append(key)
        return Answer.WAIT_SHARED

    def send(self) -> None:
        """Sends the queries for the blocks that were looked up since the last call."""
        unsent, self._unsent = self._unsent, {}
        if self._chain is None:
            keys = list(dict.fromkeys(key for _, keys in unsent.values() for key in keys))
            query = self._ask(keys) if keys else None
            for name, (_, asked) in unsent.items():
                self._requests[name].queries |= dict.fromkeys(asked, query)
            return
        for name, (context, asked) in unsent.items():
            # The last block of each of vLLM's groups has the longest chain.
            last = {key[-4:]: key for key in asked}
            queries = {group: self._ask(self._chain(context, key)) for group, key in last.items()}
            self._requests[name].queries |= {key: queries[key[-4:]] for key in asked}

    def finish(self, context: Any) -> None:
        """Forgets a request."""
        self._requests.pop(context.req_id, None)
        self._unsent.pop(context.req_id, None)
