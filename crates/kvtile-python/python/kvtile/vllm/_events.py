"""kvtile's events in the words of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from kvtile import LaggedError

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent

    from kvtile import Cache

_MEDIUM = {"host": "kvtile:host", "disk": "kvtile:disk"}


class EventSource:
    """Events of a cache since they were last taken. Hashes are kvtile's keys; the tokens are not known any more."""

    def __init__(self, cache: Cache, page_size: int) -> None:
        self._cache = cache
        self._page_size = page_size
        self._subscriber = cache.subscribe()

    def take(self) -> Iterator[KVCacheEvent]:
        """Whoever lagged behind gets everything anew."""
        try:
            while events := self._subscriber.poll():
                for event in events:
                    if event.kind == "stored" and event.key is not None:
                        yield self._stored(event.tier, event.key, event.parent)
                    elif event.kind == "removed" and event.key is not None:
                        yield BlockRemoved(block_hashes=[event.key], medium=_MEDIUM[event.tier])
                    else:
                        yield AllBlocksCleared()
        except LaggedError:
            snapshot = self._cache.snapshot()
            self._subscriber.resynchronise(snapshot)
            yield AllBlocksCleared()
            for tier, key, parent in snapshot.blocks:
                yield self._stored(tier, key, parent)

    def _stored(self, tier: str, key: bytes, parent: bytes | None) -> BlockStored:
        return BlockStored(
            block_hashes=[key],
            parent_block_hash=parent,
            token_ids=[],
            block_size=self._page_size,
            lora_id=None,
            medium=_MEDIUM[tier],
            lora_name=None,
        )
