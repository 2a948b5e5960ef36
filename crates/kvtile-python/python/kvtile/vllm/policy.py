"""kvtile's learned eviction policy as the policy of vLLM's primary tier, in host memory.

``{"eviction_policy": "KvtilePolicy", "cache_policy_module_path": "kvtile.vllm.policy"}`` in ``kv_connector_extra_config``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus

import kvtile

__all__ = ["KvtilePolicy"]

# A request's chain of one group ends here for as many requests at a time.
_REQUESTS = 4096


class KvtilePolicy(CachePolicy):  # type: ignore[misc]
    """Ranks vLLM's chunks by ``kvtile.EvictionOrder``.

    vLLM reports the chunks of a request in their order, so each chunk is evicted before the one that it follows.
    """

    POLICY: Literal["gittins", "lru", "arc", "s3-fifo"] = "gittins"

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self._order = kvtile.EvictionOrder(max(cache_capacity, 1), self.POLICY)
        self._chunks: dict[bytes, ChunkStatus] = {}
        # vLLM's keys by the keys of 16 bytes that the order returns.
        self._keys: dict[bytes, bytes] = {}
        # The chunk before each chunk that a request is about to insert, and the last one of each request and group.
        self._parents: dict[bytes, bytes] = {}
        self._last: dict[tuple[str, bytes], bytes] = {}

    def get(self, key: Any) -> ChunkStatus | None:
        """The chunk of a key."""
        return self._chunks.get(key)

    def insert(self, key: Any, chunk: ChunkStatus, req_context: Any = None) -> None:
        """Adds a chunk, which is in use until vLLM has written it. vLLM passes the request from 0.33 on."""
        self._chunks[key] = chunk
        self._keys[kvtile.block_key(key)] = key
        self._order.insert(key, self._parents.pop(key, None))
        if chunk.ref_cnt == 0:
            self._order.release([key])

    def remove(self, key: Any) -> None:
        """Removes a chunk whose store failed."""
        del self._chunks[key]
        self._keys.pop(kvtile.block_key(key), None)
        self._order.remove([key])

    def touch(self, keys: Iterable[Any], req_context: Any) -> None:
        """Counts a use of each chunk."""
        self._order.touch(list(keys))

    def on_store_miss(self, keys: Iterable[Any], req_context: Any) -> None:
        """Remembers the order of chunks that a request is about to insert. It is no use of them."""
        for key in self._in_order(keys, req_context):
            chain = (str(req_context.req_id), key[-4:])
            parent = self._last.pop(chain, None)
            if parent is not None and parent != key:
                self._parents[key] = parent
            self._last[chain] = key
        while len(self._last) > _REQUESTS:
            del self._last[next(iter(self._last))]
        while len(self._parents) > self.cache_capacity:
            del self._parents[next(iter(self._parents))]

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[Any]],
        insertion_only_keys: set[Any],
        reused_keys: set[Any],
        req_context: Any,
    ) -> None:
        """Counts one use of each chunk that the request found, in the order of the request."""
        for keys in key_groups:
            self._order.touch([key for key in keys if key in reused_keys])
            for key in keys[:1]:
                self._last.pop((str(req_context.req_id), key[-4:]), None)

    def evict(self, n: int, protected: set[Any]) -> list[tuple[Any, ChunkStatus]] | None:
        """Evicts exactly ``n`` chunks that are neither in use nor protected; None if there are fewer."""
        evicted = self._order.evict(n, list(protected))
        if evicted is None:
            return None
        keys = [self._keys.pop(short) for short in evicted]
        return [(key, self._chunks.pop(key)) for key in keys]

    def clear(self) -> None:
        """Removes all chunks, and forgets what was learned."""
        for kept in (self._chunks, self._keys, self._parents, self._last):
            kept.clear()
        self._order.clear()

    def mark_evictable(self, key: Any) -> None:
        """The chunk is not in use."""
        self._order.release([key])

    def mark_non_evictable(self, key: Any) -> None:
        """The chunk is in use."""
        self._order.hold([key])

    @staticmethod
    def _in_order(keys: Iterable[Any], req_context: Any) -> list[Any]:
        """The keys by their positions in the request, where vLLM knows them."""
        listed = list(keys)
        positions = {key: req_context.get_offload_key_position(key) for key in listed}
        if all(position is not None for position in positions.values()):
            listed.sort(key=positions.__getitem__)
        return listed
