"""Hybrid models: several groups of layers with blocks of different sizes, looked up by vLLM's own connector scheduler."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiers import ROW, TOKENS, Tiers, content, count, entry, tiers
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.kv_offload.base import LookupResult
from vllm.v1.kv_offload.config import OffloadingGroupConfig

ROWS = 96
PROMPT = 16 * TOKENS + 5
HEADS = {"num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}


def full(blocks: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=blocks * TOKENS, **HEADS)


def window(blocks: int, tokens: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(block_size=blocks * TOKENS, sliding_window=tokens, **HEADS)


def state(blocks: int) -> MambaSpec:
    return MambaSpec(block_size=blocks * TOKENS, shapes=((4, 4),), dtypes=(torch.float32,), mamba_cache_mode="align")


# The engine's groups, and those that vLLM keeps below: their numbers in keys have gaps where a group is not kept.
MODELS = {
    "window": ([full(1), window(1, 40)], (0, 1)),
    "window of larger blocks": ([full(1), window(2, 70)], (0, 1)),
    "states": ([full(1), state(4)], (0, 1)),
    "windows alone": ([window(1, 20), window(2, 100)], (0, 1)),
    "a group that is not kept": ([full(2), full(1), window(4, 64), full(1)], (0, 2, 3)),
}


class ExactSet:
    """The reference: the blocks that are stored, each one a hit."""

    def __init__(self, keys: set[bytes]) -> None:
        self._keys = keys

    def lookup(self, key: bytes, context: Any) -> LookupResult:
        return LookupResult.HIT if key in self._keys else LookupResult.MISS

    def touch(self, keys: Any, context: Any) -> None:
        pass


def scheduler_of(made: Tiers, specs: list[Any]) -> OffloadingConnectorScheduler:
    """vLLM's scheduler over the tiers."""
    config = SimpleNamespace(
        cache_config=SimpleNamespace(prefix_cache_retention_interval=None, enable_prefix_caching=True),
        parallel_config=SimpleNamespace(world_size=1, decode_context_parallel_size=1), speculative_config=None,
    )
    groups = [KVCacheGroupSpec([f"layers.{number}"], spec) for number, spec in enumerate(specs)]
    made.spec.get_manager = lambda: made.manager
    cache = SimpleNamespace(kv_cache_groups=groups, cache_hit_alignment_tokens=None)
    return OffloadingConnectorScheduler(made.spec, config, cache)


def request_of(name: str, seed: int) -> Any:
    generator = random.Random(seed)
    hashes = [generator.randbytes(32) for _ in range(PROMPT // TOKENS)]
    return SimpleNamespace(
        request_id=name, block_hashes=hashes, num_prompt_tokens=PROMPT, num_tokens=PROMPT, kv_transfer_params=None, kv_hints=None,
        skip_reading_prefix_cache=False, is_finished=lambda: False,
    )


def keys_of(scheduler: OffloadingConnectorScheduler, request: Any) -> list[list[bytes]]:
    """The keys of a request's blocks by group, as vLLM makes them."""
    scheduler.on_new_request(request)
    status = scheduler._req_status[request.request_id]
    status.update_offload_keys()
    return [list(group.offload_keys) for group in status.group_states]


def matched(made: Tiers, scheduler: OffloadingConnectorScheduler, request: Any) -> int:
    """The tokens that vLLM would load, after as many steps as it takes."""
    for _ in range(2000):
        found, _ = scheduler.get_num_new_matched_tokens(request, 0)
        if found is not None:
            return int(found)
        made.step()
        time.sleep(0.001)
    raise AssertionError("the request is looked up for ever")


def ended(made: Tiers, scheduler: OffloadingConnectorScheduler, request: Any) -> None:
    status = scheduler._req_status.pop(request.request_id)
    made.manager.on_request_finished(status.req_context)
    made.settle()


@pytest.mark.parametrize("model", MODELS)
def test_hits_are_those_of_vllms_rules_over_what_is_stored(model: str, tmp_path: Path) -> None:
    specs, kept = MODELS[model]
    groups = tuple(
        OffloadingGroupConfig(tokens_per_block=specs[number].block_size, layer_names=(f"layers.{number}",), group_id=number)
        for number in kept
    )
    given = entry(tmp_path / "kv", capacity="16MiB")
    extra = {"cpu_bytes_to_use": ROWS * ROW, "secondary_tiers": [given]}
    with tiers(given, groups=groups, extra_config=extra) as made:
        scheduler = scheduler_of(made, specs)
        generator = random.Random(model)
        hits = set()
        for case in range(10):
            share = generator.choice([0.6, 0.9, 0.97, 1.0])
            writer = request_of(f"writes {case}", case)
            by_group = keys_of(scheduler, writer)
            there = [[key for key in keys if generator.random() < share] for keys in by_group]
            for keys in there:
                made.store(keys, scheduler._req_status[writer.request_id].req_context)
            ended(made, scheduler, writer)
            made.forget_primary()
            reader = request_of(f"reads {case}", case)
            assert keys_of(scheduler, reader) == by_group
            found = matched(made, scheduler, reader)
            stored = {key for keys in there for key in keys}
            real, scheduler.manager = scheduler.manager, ExactSet(stored)
            expected, _ = scheduler.get_num_new_matched_tokens(reader, 0)
            scheduler.manager = real
            assert found == expected, (case, share)
            context = scheduler._req_status[reader.request_id].req_context
            promoted = [key for key in stored if made.manager.primary_tier.lookup(key, context) is LookupResult.HIT]
            rows = made.manager.prepare_load(promoted, context).chunk_ids
            assert all(np.array_equal(made.rows[row], content(key)) for key, row in zip(promoted, rows, strict=True))
            made.manager.complete_load(promoted, context)
            ended(made, scheduler, reader)
            hits.add(found)
        assert len(hits) > 1 and max(hits) > 0
        assert not [labels for labels in made.tier._stats.totals if labels[0] == "errors"]
        assert count(made, "blocks", "load", "ok") > 0 and not len(made.tier._requests)


def test_places_in_the_chain_are_those_of_each_group(tmp_path: Path) -> None:
    specs, kept = MODELS["a group that is not kept"]
    groups = tuple(
        OffloadingGroupConfig(tokens_per_block=specs[number].block_size, layer_names=(f"layers.{number}",), group_id=number)
        for number in kept
    )
    with tiers(entry(tmp_path / "kv"), groups=groups) as made:
        scheduler, request = scheduler_of(made, specs), request_of("a request", 1)
        by_group = keys_of(scheduler, request)
        context = scheduler._req_status["a request"].req_context
        for keys in by_group:
            parents, positions = made.tier._requests.hints(keys, context, made.tier._tokens_of)
            assert positions == list(range(len(keys))) and parents == [None, *keys[:-1]]
        assert [len(keys) for keys in by_group] == [8, 4, 16]
        ended(made, scheduler, request)
