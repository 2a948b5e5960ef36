"""kvtile's learned policy as the policy of vLLM's primary tier, in vLLM's own manager."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiers import context, keys
from vllm.v1.kv_offload.base import LookupResult
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus

import kvtile
from kvtile.vllm.policy import KvtilePolicy

TRACE = Path(__file__).parents[3] / "docs/traces/generated.jsonl"
POLICIES = {
    "kvtile": {"cache_policy": "KvtilePolicy", "cache_policy_module_path": "kvtile.vllm.policy"},
    "lru": {"cache_policy": "lru"},
    "arc": {"cache_policy": "arc"},
}


def manager(chunks: int, policy: str = "kvtile") -> CPUOffloadingManager:
    return CPUOffloadingManager(num_chunks=chunks, **POLICIES[policy])  # type: ignore[arg-type]


def serve(cache: CPUOffloadingManager, chain: list[bytes], name: str) -> int:
    """Serves a request as vLLM does; returns the leading chunks that it found."""
    request = context(name, chain)
    cache.on_new_request(request)
    found = 0
    while found < len(chain) and cache.lookup(chain[found], request) == LookupResult.HIT:
        found += 1
    if found:
        cache.prepare_load(chain[:found], request)
        cache.complete_load(chain[:found], request)
    stored = cache.prepare_store(chain, request)
    if stored is not None:
        cache.complete_store(stored.keys_to_store, request)
    cache.on_request_finished(request)
    return found


def test_a_chain_loses_its_end_first() -> None:
    cache = manager(12)
    chain = keys(range(8))
    assert serve(cache, chain, "first") == 0
    for number in range(100, 108):
        serve(cache, keys([number]), f"single {number}")
        there = [cache.lookup(key, context()) == LookupResult.HIT for key in chain]
        assert there == sorted(there, reverse=True), "a hole in the chain"


def test_chunks_in_use_and_protected_ones_stay_and_a_store_that_does_not_fit_changes_nothing() -> None:
    cache = manager(4)
    assert serve(cache, keys(range(4)), "first") == 0
    request = context("second", keys(range(2)))
    cache.on_new_request(request)
    cache.prepare_load(keys(range(2)), request)
    assert cache.prepare_store(keys(range(10, 13)), context("third", keys(range(10, 13)))) is None
    assert all(cache.lookup(key, request) == LookupResult.HIT for key in keys(range(4)))
    stored = cache.prepare_store(keys(range(10, 12)), context("fourth", keys(range(10, 12))))
    assert stored is not None
    assert sorted(stored.evicted_keys) == sorted(keys([2, 3]))
    cache.complete_store(stored.keys_to_store, context("fourth"), success=False)
    assert cache.lookup(keys([10])[0], request) == LookupResult.MISS
    cache.complete_load(keys(range(2)), request)
    cache.reset_cache()
    assert cache.lookup(keys([0])[0], request) == LookupResult.MISS
    assert serve(cache, keys(range(4)), "fifth") == 0
    assert serve(cache, keys(range(4)), "sixth") == 4


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_keep_the_managers_books(seed: int) -> None:
    """vLLM's manager asserts its own counts in every call."""
    numbers = random.Random(seed)
    cache = manager(numbers.randrange(1, 40))
    loads: list[tuple[list[bytes], object]] = []
    for turn in range(300):
        first = numbers.randrange(60)
        chain = keys(range(first, first + numbers.randrange(1, 12)))
        request = context(f"{turn}", chain)
        cache.on_new_request(request)
        found = [key for key in chain if cache.lookup(key, request) == LookupResult.HIT]
        if found and numbers.random() < 0.5:
            cache.prepare_load(found, request)
            loads.append((found, request))
        stored = cache.prepare_store(chain, request)
        if stored is not None:
            cache.complete_store(stored.keys_to_store, request, success=numbers.random() < 0.8)
        while loads and numbers.random() < 0.6:
            ended, of = loads.pop(numbers.randrange(len(loads)))
            cache.complete_load(ended, of)  # type: ignore[arg-type]
        if numbers.random() < 0.5:
            cache.on_request_finished(request)
        if numbers.random() < 0.01 and not loads:
            cache.reset_cache()


def test_it_finds_more_of_a_trace_than_vllms_policies() -> None:
    """Of the trace that is part of the repository, at a capacity where policies matter."""
    requests = [json.loads(line)["hash_ids"] for line in TRACE.read_text().splitlines()]
    found = {}
    for policy in POLICIES:
        cache = manager(2000, policy)
        found[policy] = sum(serve(cache, keys(chain), f"{number}") for number, chain in enumerate(requests))
    assert found["kvtile"] >= max(found["lru"], found["arc"]), found


def test_an_order_evicts_exactly_as_many_as_asked_or_none() -> None:
    order = kvtile.EvictionOrder(4, "lru")
    for number, parent in ((1, None), (2, b"1"), (3, b"2"), (4, None)):
        order.insert(str(number).encode(), parent)
    with pytest.raises(kvtile.KvtileError):
        order.insert(b"5")
    assert order.evict(1) is None, "all are held"
    order.release([b"1", b"2", b"4"])
    assert order.evict(3, [b"4"]) is None
    # 3 is in use, so 2 and 1 have a block behind them; they go all the same.
    assert sorted(order.evict(2, [b"4"]) or []) == sorted(kvtile.block_key(key) for key in (b"1", b"2"))
    assert (len(order), order.remove([b"3", b"9"])) == (2, 1)
    assert order.evict(1) == [kvtile.block_key(b"4")]
    assert len(order) == 0


@pytest.mark.parametrize("arguments", [(), (context(),)], ids=["0.32", "0.33"])
def test_a_chunk_is_inserted_with_or_without_its_request(arguments: tuple[object, ...]) -> None:
    """vLLM passes the request from 0.33 on."""
    policy, chunk = KvtilePolicy(2), ChunkStatus(0)
    policy.insert(keys([1])[0], chunk, *arguments)
    assert policy.get(keys([1])[0]) is chunk
