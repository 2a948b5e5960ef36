"""Converts changes of kvtile's tiers to vLLM's events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import BlockRemoved, BlockStored

from kvtile.vllm._directory import directory_of

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent

    from kvtile import TierDirectory
    from kvtile.vllm._groups import EngineGroup
    from kvtile.vllm._messages import Change


def medium_of(tier: str) -> str:
    """The medium of a tier. Both tiers of a folder, "disk" and "disk:parts", have one, and so have those of a store."""
    return f"kvtile:{tier.partition(':')[0]}"


class TierChanges:
    """The changes of the tiers of one worker since vLLM last took the events.

    vLLM's `AllBlocksCleared` names no medium, and routers forget the blocks of the engine's own memory with it. So the
    clearing of a tier becomes the removal of each block that was announced for it.
    """

    def __init__(self) -> None:
        # By the name of the group; models with one group have no names.
        self._announced: dict[str, TierDirectory] = {}
        self._pending: list[KVCacheEvent] = []

    def add(self, changes: Iterable[Change], page_size: int, group: EngineGroup | None = None) -> None:
        """Adds changes, in their order. Their hashes are kvtile's keys; token ids are not available."""
        of_group: dict[str, Any] = {} if group is None else {"group_idx": group.table}
        spec: dict[str, Any] = {}
        if group is not None:
            window = group.tokens if group.rule == "window" else None
            spec = {"kv_cache_spec_kind": group.kind, "kv_cache_spec_sliding_window": window}
        announced = self._announced.setdefault("" if group is None else group.name, directory_of())
        for change in changes:
            kind, tier, key, parent = change
            if kind == "stored":
                stored = BlockStored(
                    block_hashes=[key], parent_block_hash=parent, token_ids=[], block_size=page_size, lora_id=None,
                    medium=medium_of(tier), lora_name=None, **of_group, **spec,
                )
                self._pending.append(stored)
            elif kind == "removed":
                self._pending.append(BlockRemoved(block_hashes=[key], medium=medium_of(tier), **of_group))
            elif removed := announced.blocks(tier):
                self._pending.append(BlockRemoved(block_hashes=removed, medium=medium_of(tier), **of_group))
            announced.apply([change])

    def take(self) -> list[KVCacheEvent]:
        """The events since the last call."""
        taken, self._pending = self._pending, []
        return taken
