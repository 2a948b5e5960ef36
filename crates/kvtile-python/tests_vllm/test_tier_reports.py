"""What the tier reports to vLLM and to the store: metrics, KV events, parents of blocks, and vLLM's backpressure."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tiers import ROW, SECONDS, FailingLoads, content, context, entry, key, keys, result_of, tiers


def test_every_metric_is_defined_with_its_labels(tmp_path: Path) -> None:
    from kvtile.vllm.tier import KvtileTier

    defined = KvtileTier.build_metric_definitions({})
    with tiers(entry(tmp_path / "kv")) as made:
        made.store(keys(range(3)))
        made.forget_primary()
        made.lookup(keys(range(4)))
        made.tier._count_error("test")
        # Blocks are written behind their jobs.
        made.tier._store.flush()
        stats = made.tier.get_stats()
        for name, values in stats.data["data"].items():
            for labels in values:
                assert len(labels) == len(defined[name].labelnames)
        assert stats.data["data"]["vllm:kvtile_tier_disk_blocks"] == {("KvtileTier",): 3}
        assert stats.data["data"]["vllm:kvtile_tier_bytes"][("KvtileTier", "load")] == 3 * ROW
        assert json.loads(json.dumps(stats.reduce()))
        lacking = set(defined) - set(stats.data["data"])
        assert lacking == {"vllm:kvtile_tier_unwritten_blocks", "vllm:kvtile_tier_shared"}, "every other metric has a value"
        assert made.tier.get_stats() is None
        assert tuple(made.tier.config_info()) == KvtileTier.config_info_keys({})


def test_kv_events_name_what_came_and_what_went(tmp_path: Path) -> None:
    described = entry(tmp_path / "kv", capacity=32 * ROW, enable_kv_events=True)
    with tiers(described, enable_kv_cache_events=True) as made:
        stored, removed = set(), set()
        for first in range(0, 128, 8):
            made.store(keys(range(first, first + 8)))
        end = time.monotonic() + SECONDS
        wanted: set[bytes] = set()
        while time.monotonic() < end:
            for event in made.tier.take_events():
                assert event.medium is made.tier.medium
                (removed if event.removed else stored).update(event.keys)
            there = made.tier._store.contains(keys(range(128)), group="kv")
            wanted = {name for name, here in zip(keys(range(128)), there, strict=True) if here}
            if stored - removed == wanted:
                break
            time.sleep(0.01)
        assert removed and stored - removed == wanted


def test_kv_events_are_off_where_vllm_has_none(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv", enable_kv_events=True)) as made:
        made.store(keys(range(3)))
        assert list(made.tier.take_events()) == []


def test_parents_and_positions_reach_the_store(tmp_path: Path) -> None:
    chain = keys(range(4))
    with tiers(entry(tmp_path / "kv")) as made:
        seen: list[Any] = []
        real = made.tier._store

        class Recording(FailingLoads):
            def submit_store(self, number: int, names: list[bytes], rows: Any, ids: list[int], **hints: Any) -> None:
                seen.append((names, hints))
                self._store.submit_store(number, names, rows, ids, **hints)

        made.tier._store = Recording(real, b"")
        request = context("a request", chain)
        made.manager.on_new_request(request)
        made.store(chain[:2], request)
        made.store(chain[2:], request)
        assert [hints["positions"] for _, hints in seen] == [[0, 1], [2, 3]]
        assert [hints["parents"] for _, hints in seen] == [[None, chain[0]], [chain[1], chain[2]]]
        made.manager.on_request_finished(request)
        without = context("without places")
        made.manager.on_new_request(without)
        made.store(keys([50]), without)
        assert seen[2][1] == {"parents": None, "positions": None}
        made.tier._store = real


def test_vllms_backpressure_works_for_the_tier(tmp_path: Path) -> None:
    pressure = {"backpressure_cls": "EMABackpressureDetector", "policy_cls": "DropStorePolicy"}
    with tiers(entry(tmp_path / "kv", backpressure=pressure)) as made:
        assert made.tier.bp_detector is not None
        made.store(keys(range(3)))
        made.forget_primary()
        assert made.lookup(keys(range(3))) == 3


def test_rows_of_an_older_name(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        made.rows[3] = content(key(1))
        old = SimpleNamespace(job_id=5, keys=[key(1)], block_ids=np.array([3], np.int32), req_context=context())
        made.tier.submit_store(old)
        assert result_of(made.tier, 5).success
        assert made.lookup([key(1)]) == 1
