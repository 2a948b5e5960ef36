"""Converts changes of kvtile's tiers to vLLM's events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent

    from kvtile.vllm._messages import Change

_MEDIUM = {"host": "kvtile:host", "disk": "kvtile:disk", "disk:parts": "kvtile:disk", "shared": "kvtile:shared"}


def events_of(changes: Iterable[Change], page_size: int) -> Iterator[KVCacheEvent]:
    """The events of changes. Their hashes are kvtile's keys; token ids are not available."""
    for kind, tier, key, parent in changes:
        if kind == "stored":
            yield BlockStored(
                block_hashes=[key],
                parent_block_hash=parent,
                token_ids=[],
                block_size=page_size,
                lora_id=None,
                medium=_MEDIUM[tier],
                lora_name=None,
            )
        elif kind == "removed":
            yield BlockRemoved(block_hashes=[key], medium=_MEDIUM[tier])
        else:
            yield AllBlocksCleared()
