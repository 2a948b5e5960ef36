"""A small engine with windows, states and full attention around the two sides of the vLLM connector, without vLLM.

It frees blocks as vLLM's hybrid manager does: those behind a window and old states with the next schedule. Freed blocks are
poisoned, and each step checks every token and state that it reads.
"""

from __future__ import annotations

import functools
import pickle
import random
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_engine import POISON, Request

BLOCKS = 160
WINDOW, CHUNK = 10, 12


class FullAttentionSpec(SimpleNamespace):
    """vLLM's spec of full attention, as far as the connector reads it."""


class MLAAttentionSpec(SimpleNamespace):
    """The same of latent attention."""


class SlidingWindowSpec(SimpleNamespace):
    """The same of a sliding window."""


class ChunkedLocalAttentionSpec(SimpleNamespace):
    """The same of attention within chunks."""


class MambaSpec(SimpleNamespace):
    """The same of a recurrent state."""


def spec(kind: type, page_size: int, **fields: Any) -> Any:
    common = {"block_size": page_size, "page_size_bytes": 64, "prefix_cacheable": True, "head_size": 4}
    return kind(**common, **fields)


def window(page_size: int = 4) -> Any:
    return spec(SlidingWindowSpec, page_size, sliding_window=WINDOW, extra_retained_tokens=0)


def chunks(page_size: int = 4) -> Any:
    return spec(ChunkedLocalAttentionSpec, page_size, attention_chunk_size=CHUNK)


def state(page_size: int = 8) -> Any:
    return spec(MambaSpec, page_size, mamba_cache_mode="align", num_speculative_blocks=0)


def config_of(*specs: Any) -> Any:
    """vLLM's config of a cache with a table for each spec."""
    groups = [
        SimpleNamespace(layer_names=[f"model.layers.{table}.attn"], kv_cache_spec=spec, enable_kv_transfer=True)
        for table, spec in enumerate(specs)
    ]
    return SimpleNamespace(kv_cache_groups=groups, num_blocks=BLOCKS)


class HybridRequest(Request):
    """A request with a table of blocks for each group."""

    tables: list[list[int]]
    num_computed_tokens: int = 0
    shared_prefix_boundary: int = 0


class HybridEngine:
    """A small scheduler and model with groups, of one or more ranks."""

    def __init__(self, sides: Any, seed: int, ranks: int, kv: Any, disk: Path | None, patch: pytest.MonkeyPatch) -> None:
        self.numbers, self.sides, self.kv_config = random.Random(seed), sides, kv
        self.groups = sides.groups.groups_of(kv)
        # By rank and table.
        self.kv = [[self.memory(group) for group in self.groups] for _ in range(ranks)]
        settings = sides.settings.Settings(
            host_gib=ranks * 131072 / (1 << 30), prefault=False, policy="lru",
            disk_path=disk and str(disk), disk_gib=disk and ranks / 32,
        )
        patch.setattr(sides.group_worker, "group_layouts", self.layouts)
        patch.setattr(sides.group_worker, "model_of", self.model)
        config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=32))
        self.workers = []
        for number in range(ranks):
            rank = sides.rank.Rank(number, ranks)
            self.workers.append(sides.group_worker.GroupWorker(config, {"rank": number}, settings, rank, kv))
        self.scheduler = sides.group_scheduler.GroupScheduler(settings, self.groups, 1)
        self.scheduler.greet({rank: pickle.loads(pickle.dumps(worker.hello())) for rank, worker in enumerate(self.workers)})
        self.free = list(range(1, BLOCKS))
        self.requests: dict[str, HybridRequest] = {}
        self.held: dict[str, HybridRequest] = {}
        self.said: dict[str, Counter[str]] = {"loaded": Counter(), "sent": Counter()}
        self.texts = [[self.numbers.randrange(1000) for _ in range(40)] for _ in range(3)]
        self.count = self.loads = self.failures = 0

    def memory(self, group: Any) -> np.ndarray:
        return np.full((BLOCKS, 1 if group.is_state else group.page_size), POISON, np.float32)

    def layouts(self, caches: Any, groups: Any, num_blocks: int) -> Any:
        arrays = self.kv[caches["rank"]]
        made = {}
        for group, array in zip(groups, arrays, strict=True):
            plane = kvtile.Plane("p", "bytes", unit_bytes=array.shape[1] * 4, opaque=True, per_page=True)
            shape = kvtile.Shape(num_blocks=num_blocks, num_layers=1, page_size=group.page_size, planes=[plane])
            made[group] = kvtile.Layout("L|Bp", shape=shape, tensors=[array.view(np.uint8)])
        return made

    def model(self, _: Any, __: Any, layouts: Any, rank: Any) -> kvtile.ModelIdentity:
        extra = {"rank": str(rank)} if rank.size > 1 else {}
        members = [self.sides.group_layout.member_of(group, layout.shape, "here") for group, layout in layouts.items()]
        return kvtile.ModelIdentity("a-model", "main", members, extra=extra)

    # The model.

    def content(self, request: Request, rank: int, group: Any, tokens: int) -> float:
        prefix = np.array(request.all_token_ids[:tokens], np.uint32).tobytes()
        return float(zlib.crc32(prefix) % (1 << 20)) + group.table / 4 + rank / 16

    def check(self, request: HybridRequest) -> None:
        """Everything that the next token reads is right."""
        at = request.computed
        for rank, arrays in enumerate(self.kv):
            for group, array in zip(self.groups, arrays, strict=True):
                table = request.tables[group.table]
                if group.is_state:
                    block = table[(at - 1) // group.page_size] if at else 0
                    right = not at or array[block, 0] == self.content(request, rank, group, at)
                    assert right, f"{request.request_id}: state at {at}"
                    continue
                for token in range(self.first_read(group, at), at):
                    value = array[table[token // group.page_size], token % group.page_size]
                    right = value == self.content(request, rank, group, token + 1)
                    assert right, f"{request.request_id}: {group.rule}, token {token} of {at}"

    def first_read(self, group: Any, at: int) -> int:
        """The first token that the token ``at`` attends to."""
        firsts = {"full": 0, "window": max(0, at - WINDOW + 1), "chunk": at // CHUNK * CHUNK}
        return firsts[group.rule]

    def compute(self, request: HybridRequest, count: int) -> None:
        self.check(request)
        for rank, arrays in enumerate(self.kv):
            for group, array in zip(self.groups, arrays, strict=True):
                table, end = request.tables[group.table], request.computed + count
                if group.is_state:
                    array[table[(end - 1) // group.page_size], 0] = self.content(request, rank, group, end)
                    continue
                for token in range(request.computed, end):
                    block, slot = table[token // group.page_size], token % group.page_size
                    array[block, slot] = self.content(request, rank, group, token + 1)

    # The scheduler.

    def release(self, blocks: list[int]) -> None:
        for block in filter(None, blocks):
            for arrays in self.kv:
                for array in arrays:
                    array[block] = POISON
            self.free.append(block)

    def skipped(self, group: Any, computed: int) -> int:
        """The first page that vLLM keeps for a request with ``computed`` tokens."""
        behind = max(0, computed - 1) if group.is_state else self.first_read(group, computed)
        return behind // group.page_size

    def drop_behind(self, request: HybridRequest) -> None:
        for group in self.groups:
            table = request.tables[group.table]
            for page in range(min(len(table), self.skipped(group, request.computed))):
                self.release([table[page]])
                table[page] = 0

    def extend(self, request: HybridRequest, end: int, skip: int = 0) -> None:
        """Allocates blocks up to ``end`` tokens, without those before what a hit of ``skip`` tokens needs."""
        for group in self.groups:
            table, pages = request.tables[group.table], -(-end // group.page_size)
            for page in range(len(table), pages):
                is_null = page < self.skipped(group, skip) or (group.is_state and not skip and page < pages - 1)
                table.append(0 if is_null else self.free.pop())

    def end(self, request: HybridRequest) -> None:
        del self.requests[request.request_id]
        self.drop_behind(request)
        request.num_computed_tokens = request.computed
        if self.scheduler.finished(request, [list(table) for table in request.tables]):
            self.held[request.request_id] = request
        else:
            self.give_up(request)

    def give_up(self, request: HybridRequest) -> None:
        for table in request.tables:
            self.release(table)
        request.tables = [[] for _ in self.groups]

    def arrive(self) -> None:
        self.count += 1
        text = self.numbers.choice(self.texts)[: self.numbers.choice([3, 8, 15, 16, 17, 24, 31, 40])]
        tokens = text + [self.numbers.randrange(1000) for _ in range(self.numbers.randrange(0, 6))]
        request = HybridRequest(f"request-{self.count}", tokens, len(tokens) + self.numbers.randrange(1, 14))
        request.tables = [[] for _ in self.groups]
        request.prompt = len(tokens)  # type: ignore[attr-defined]
        self.requests[request.request_id] = request

    def admit(self) -> None:
        for request in [one for one in self.requests.values() if one.state == "waiting"]:
            if len(self.free) < 50:
                return
            request.num_output_tokens = request.num_tokens - request.prompt  # type: ignore[attr-defined]
            external, later = self.scheduler.matched(request, 0)
            assert external < request.num_tokens and later == bool(external)
            if external:
                self.extend(request, external, skip=external)
            tables = tuple(request.tables)
            self.scheduler.allocated(request, SimpleNamespace(get_block_ids=lambda tables=tables: tables), external)
            request.computed, request.state, request.is_new = external, "loading" if later else "running", True

    def chunk(self, request: HybridRequest) -> int:
        """A part of the missing tokens. It ends at the boundaries of states, as vLLM's do."""
        missing = request.num_tokens - request.computed
        end = request.computed + (self.numbers.randint(1, missing) if self.numbers.random() < 0.5 else missing)
        for group in self.groups:
            if group.is_state:
                boundary = (request.computed // group.page_size + 1) * group.page_size
                last = request.num_tokens // group.page_size * group.page_size
                end = min(end, boundary if boundary <= last else end)
        return end - request.computed

    def step(self) -> None:
        if len(self.requests) < 5 and self.numbers.random() < 0.5:
            self.arrive()
        running = [one for one in self.requests.values() if one.state == "running"]
        preempted = [self.numbers.choice(running)] if running and self.numbers.random() < 0.08 else []
        waiting = [(one, [list(table) for table in one.tables]) for one in preempted]
        for victim in preempted:
            victim.tables, victim.computed, victim.state = [[] for _ in self.groups], 0, "waiting"
        self.admit()
        scheduled = {}
        for request in [one for one in self.requests.values() if one.state == "running"]:
            self.drop_behind(request)
            scheduled[request.request_id] = count = self.chunk(request)
            self.extend(request, request.computed + count)
        orders = pickle.loads(pickle.dumps(self.scheduler.orders(self.output(scheduled, preempted))))
        for worker in self.workers:
            if self.numbers.random() < 0.2:
                # A page that the scheduler has found may be evicted, on one rank but not on another.
                worker.cache.evict("host", 2, group=self.numbers.choice(self.groups).name)
            worker.wait_for_stores(orders.preempted)
        for _, tables in waiting:
            for table in tables:
                self.release(table)
        self.run(orders, scheduled)

    def output(self, scheduled: dict[str, int], preempted: list[HybridRequest]) -> Any:
        new = [self.requests[name] for name in scheduled if self.requests[name].is_new]
        old = [self.requests[name] for name in scheduled if not self.requests[name].is_new]
        tables = {name: tuple(list(table) for table in self.requests[name].tables) for name in scheduled}
        made = SimpleNamespace(
            total_num_scheduled_tokens=sum(scheduled.values()), preempted_req_ids={one.request_id for one in preempted},
            num_scheduled_tokens=scheduled,
            scheduled_new_reqs=[SimpleNamespace(req_id=one.request_id, num_computed_tokens=one.computed) for one in new],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[one.request_id for one in old], num_computed_tokens=[one.computed for one in old]
            ),
            kv_connector_block_state=SimpleNamespace(get_block_ids=tables.get, boundary_state_offloads={}),
        )
        for one in new:
            one.is_new = False
        return made

    def run(self, orders: Any, scheduled: dict[str, int]) -> None:
        for worker in self.workers:
            worker.begin_step(orders)
        for name, count in scheduled.items():
            self.compute(self.requests[name], count)
        for worker in self.workers:
            worker.end_step(orders)
        loaded = self.by_all("loaded", [worker.take_finished_loads(idle=not scheduled) for worker in self.workers])
        failed = self.failed = getattr(self, "failed", set()).union(*(worker.take_failed_requests() for worker in self.workers))
        sent = self.by_all("sent", [worker.take_finished_stores() for worker in self.workers])
        assert not any(worker.take_failed_blocks() for worker in self.workers), "failures are by request"
        report = self.report()
        if report is not None:
            self.scheduler.take(report)
        for name, count in scheduled.items():
            request = self.requests[name]
            request.computed += count
            if request.computed == request.num_tokens:
                request.all_token_ids.append(self.numbers.randrange(1000))
        self.scheduler.finishing -= sent
        self.scheduler.loading -= loaded
        for name in loaded:
            request = self.requests[name]
            if name in failed:
                self.failures += 1
                self.give_up(request)
                request.computed, request.state = 0, "waiting"
            else:
                self.loads += 1
                request.state = "running"
                self.check(request)
        self.failed -= loaded
        for request in [one for one in self.requests.values() if one.state == "running"]:
            if request.num_tokens >= request.end or self.numbers.random() < 0.02:
                self.end(request)
        for name in sent:
            self.give_up(self.held.pop(name))

    def by_all(self, what: str, said: list[set[str]]) -> set[str]:
        """Requests that all ranks have reported by now."""
        counts = self.said[what]
        counts.update(name for names in said for name in names)
        ended = {name for name, count in counts.items() if count == len(self.workers)}
        for name in ended:
            del counts[name]
        return ended

    def report(self) -> Any:
        """The ranks' reports, merged as vLLM does; None if there are none."""
        reports = [(worker.rank, worker.take_report()) for worker in self.workers]
        made = [
            pickle.loads(pickle.dumps(self.sides.messages.Report({rank: report}))) for rank, report in reports if report is not None
        ]
        return functools.reduce(lambda one, other: one.aggregate(other), made) if made else None

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
