"""The scheduler's side of vLLM's tiers without an engine: its spec, region, primary tier and manager are the real ones."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from configs import engine_config
from vllm.config import KVTransferConfig
from vllm.v1.kv_offload.base import ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

# A whole number of pages, so that rows have no padding.
ROW = 2 * 4096
ROWS = 8
TOKENS = 16
LAYERS = ("model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn")
SECONDS = 60


def key(number: int, group: int = 0) -> bytes:
    """vLLM's key of a block: 32 bytes of a hash and the number of its group."""
    return make_offload_key(random.Random(number).randbytes(32), group)


def keys(numbers: Iterable[int], group: int = 0) -> list[bytes]:
    """The keys of some blocks."""
    return [key(number, group) for number in numbers]


def content(name: bytes) -> np.ndarray:
    """The bytes of a block, made from its key."""
    return np.random.default_rng(list(name)).integers(-128, 127, ROW, np.int8)


def context(name: str = "a request", chain: list[bytes] | None = None) -> ReqContext:
    """A request, with the places of its blocks where a chain is given."""
    made = ReqContext(req_id=name)
    for at, block in enumerate(chain or ()):
        made.set_offload_key_position(block, (at + 1) * TOKENS)
    return made


def offloading_config(entry: dict[str, Any], **changes: Any) -> OffloadingConfig:
    """vLLM's description of an engine to its tiers; ``changes`` are fields of it or of its parts."""
    parts: dict[type, dict[str, Any]] = {
        OffloadingModelConfig: {"name": "a-model", "dtype": "bfloat16"},
        OffloadingCacheConfig: {"tokens_per_hash": TOKENS, "blocks_per_chunk": 1},
        OffloadingParallelConfig: {
            "rank": 0, "world_size": 1, "tp_size": 1, "pp_size": 1, "pcp_size": 1, "dcp_size": 1, "data_parallel_index": 0,
            "data_parallel_size": 1, "data_parallel_rank_local": None, "is_parallelism_agnostic": False,
        },
        OffloadingConfig: {
            "groups": (OffloadingGroupConfig(tokens_per_block=TOKENS, layer_names=LAYERS, group_id=0),),
            "worker_kv_bytes_per_block": ROW, "enable_kv_cache_events": False, "engine_id": uuid.uuid4().hex,
            "kv_cache_layout": "LBHNC",
            "extra_config": {"cpu_bytes_to_use": ROWS * ROW, "secondary_tiers": [entry]},
        },
    }
    for name, value in changes.items():
        owner = next(kind for kind, fields in parts.items() if name in fields or name in kind.__dataclass_fields__)
        parts[owner][name] = value
    model, cache, parallel = (kind(**fields) for kind, fields in list(parts.items())[:3])
    return OffloadingConfig(model=model, cache=cache, parallel=parallel, **parts[OffloadingConfig])


def entry(folder: Path, **options: Any) -> dict[str, Any]:
    """The tier's entry in ``secondary_tiers``."""
    found = {"type": "KvtileTier", "module_path": "kvtile.vllm.tier", "path": str(folder), "capacity": "1MiB", "revision": "r1"}
    return found | options


@dataclass
class Tiers:
    """vLLM's manager over one tier."""

    spec: TieringOffloadingSpec
    manager: TieringOffloadingManager

    @property
    def tier(self) -> Any:
        return self.manager.secondary_tiers[0]

    @property
    def view(self) -> memoryview:
        return self.manager.primary_tier.get_kv_memoryview()

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.view)

    def step(self) -> None:
        """The end of a step of the scheduler."""
        self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))

    def settle(self) -> None:
        """Steps until no job is under way."""
        end = time.monotonic() + SECONDS
        self.step()
        while self.manager.has_pending_work():
            assert time.monotonic() < end, "a job does not end"
            time.sleep(0.001)
            self.step()

    def store(self, names: list[bytes], request: ReqContext | None = None) -> bool:
        """What an engine does with computed blocks; whether the primary tier had room. A given request goes on."""
        stores = request or context("stores", names)
        if request is None:
            self.manager.on_new_request(stores)
        prepared = self.manager.prepare_store(names, stores)
        if prepared is not None and prepared.keys_to_store:
            for name, row in zip(prepared.keys_to_store, prepared.store_spec.chunk_ids, strict=True):
                self.rows[row] = content(name)
            self.manager.complete_store(prepared.keys_to_store, stores)
        if request is None:
            self.manager.on_request_finished(stores)
        self.settle()
        return prepared is not None

    def lookup(self, names: list[bytes], request: ReqContext | None = None, steps: int = 2000) -> int:
        """What an engine does with a request: the number of leading blocks that it gets; every byte is compared."""
        from vllm.v1.kv_offload.base import LookupResult

        given = request is not None
        request = request or context("looks up", names)
        if not given:
            self.manager.on_new_request(request)
        for _ in range(steps):
            results = []
            for name in names:
                results.append(self.manager.lookup(name, request))
                if results[-1] is LookupResult.MISS:
                    break
            if not {LookupResult.RETRY, LookupResult.HIT_PENDING}.intersection(results):
                break
            self.step()
            time.sleep(0.001)
        else:
            raise AssertionError(f"the request is looked up for ever: {results}")
        found = names[: results.count(LookupResult.HIT)]
        loaded = self.manager.prepare_load(found, request)
        for name, row in zip(found, loaded.chunk_ids, strict=True):
            assert np.array_equal(self.rows[row], content(name)), "a block with other bytes"
        self.manager.complete_load(found, request)
        if not given:
            self.manager.on_request_finished(request)
        self.step()
        return len(found)

    def forget_primary(self) -> None:
        """Empties the primary tier."""
        self.manager.reset_cache()
        if hasattr(self.manager, "on_reset_flushed"):
            self.manager.on_reset_flushed()


@contextlib.contextmanager
def tiers(described: dict[str, Any], vllm_config: Any = None, **changes: Any) -> Iterator[Tiers]:
    """The manager over a tier. Like vLLM's, the caller has the engine's config in ``vllm_config``."""
    config = offloading_config(described, **changes)
    if vllm_config is not None:
        vllm_config.kv_transfer_config = KVTransferConfig(
            kv_connector="OffloadingConnector", kv_role="kv_both", engine_id=config.engine_id
        )
    spec = TieringOffloadingSpec(config)
    manager = spec.get_manager()
    mapped = manager.primary_tier._mmap_region.mmap_obj
    try:
        yield Tiers(spec, manager)
    finally:
        manager.shutdown()
    assert mapped.closed, "the tier still exports vLLM's memory"


def count(tiers: Tiers, *labels: str) -> int:
    """A counter of the tier."""
    return int(tiers.tier._stats.totals[labels])


def job(number: int, names: Any, rows: list[int], *, is_load: bool, request: Any = None) -> TransferJob:
    """A job as vLLM makes it."""
    return TransferJob(
        job_id=number, keys=names, chunk_ids=np.array(rows, np.int32), is_promotion=is_load,
        req_context=request or context("a job"),
    )


def result_of(tier: Any, number: int) -> Any:
    """The result of a job."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for result in tier.get_finished_jobs():
            assert result.job_id == number
            return result
        time.sleep(0.001)
    raise AssertionError("the job does not end")


def submit(tiers: Tiers, job: TransferJob) -> Any:
    """Runs a job without the manager."""
    (tiers.tier.submit_load if job.is_promotion else tiers.tier.submit_store)(job)
    return result_of(tiers.tier, job.job_id)


class FailingLoads:
    """A store that cannot read one block."""

    def __init__(self, store: Any, bad: bytes) -> None:
        self._store, self._bad, self._loads = store, bad, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def submit_load(self, number: int, names: list[bytes], rows: Any, ids: list[int]) -> None:
        self._loads[number] = names
        self._store.submit_load(number, names, rows, ids)

    def take_finished(self) -> list[tuple[int, Any]]:
        taken = []
        for number, outcomes in self._store.take_finished():
            names = self._loads.pop(number, None)
            if names is not None and self._bad in names:
                each = ["failed" if name == self._bad else found for name, found in zip(names, outcomes.outcomes, strict=True)]
                outcomes = SimpleNamespace(
                    outcomes=each, ok=[found == "ok" for found in each], bytes=outcomes.bytes, seconds=outcomes.seconds
                )
            taken.append((number, outcomes))
        return taken


__all__ = ["LAYERS", "ROW", "ROWS", "TOKENS", "FailingLoads", "Tiers", "content", "context", "count", "engine_config", "entry", "job", "key", "keys", "result_of", "submit", "tiers"]
