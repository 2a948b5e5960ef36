"""A small engine around the two sides of the vLLM connector, without vLLM.

The engine's KV encodes the tokens that it belongs to, so the engine detects every wrong block. Freed blocks are
poisoned. Messages between the sides are pickled, as between processes.
"""

from __future__ import annotations

import functools
import pickle
import random
import sys
import time
import types
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile

PAGE = 4
LAYERS = 2
BLOCKS = 40
# Some whole chains of blocks fit kvtile's host memory.
HOST_BLOCKS = 24
POISON = -1.0
# Without full CUDA graphs, which loads within a step exclude.
_GRAPHS = SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: False))
CONFIG = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64), lora_config=None, compilation_config=_GRAPHS)


@pytest.fixture(scope="module")
def sides() -> Iterator[Any]:
    """The modules of the connector, with stubs for the parts of vLLM that they import."""
    base = {
        "base": ("KVConnectorBase_V1", "KVConnectorHandshakeMetadata", "KVConnectorMetadata", "KVConnectorRole",
                 "KVConnectorWorkerMetadata"),
        "metrics": ("KVConnectorPromMetrics",),
    }
    root = "vllm.distributed.kv_transfer.kv_connector.v1"
    names = ["vllm", "vllm.distributed", "vllm.distributed.kv_transfer", "vllm.distributed.kv_transfer.kv_connector"]
    modules = {name: types.ModuleType(name) for name in [*names, root, "vllm.logger", "vllm.distributed.kv_events"]}
    for module, classes in base.items():
        made = modules[f"{root}.{module}"] = types.ModuleType(f"{root}.{module}")
        for name in classes:
            setattr(made, name, type(name, (), {}))
    modules[f"{root}.metrics"].KVConnectorStats = Stats
    for name in ("AllBlocksCleared", "BlockRemoved", "BlockStored"):
        setattr(modules["vllm.distributed.kv_events"], name, type(name, (SimpleNamespace,), {}))
    modules["vllm.logger"].init_logger = lambda _: SimpleNamespace(info=ignore, warning=ignore, debug=ignore)
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        from kvtile.vllm import (
            _directory,
            _events,
            _group_layout,
            _group_scheduler,
            _group_worker,
            _groups,
            _layout,
            _messages,
            _rank,
            _scheduler,
            _settings,
            _worker,
        )

        yield SimpleNamespace(
            directory=_directory, events=_events, messages=_messages, rank=_rank, scheduler=_scheduler, settings=_settings,
            worker=_worker, layout=_layout, groups=_groups, group_layout=_group_layout, group_scheduler=_group_scheduler, group_worker=_group_worker,
        )
    finally:
        for name in [name for name in sys.modules if name.startswith("kvtile.vllm")]:
            del sys.modules[name]
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Stats:
    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data


def ignore(*_: Any) -> None:
    """A logger method that does nothing."""


class Tensor:
    """The parts of a tensor that the worker reads."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __getitem__(self, index: int) -> Tensor:
        return Tensor(self.array[index])

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize


@dataclass
class Request:
    request_id: str
    all_token_ids: list[int]
    end: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    state: str = "waiting"
    # True until the request is in a step's ``scheduled_new_reqs`` with these blocks.
    is_new: bool = True
    pooling_params: Any = None
    lora_request: Any = None
    cache_salt: str | None = None
    mm_features: Any = None
    prompt_embeds: Any = None
    prompt_is_token_ids: Any = None
    resumable: bool = False
    skip_reading_prefix_cache: bool = False
    arrival_time: float = 1_700_000_000.25
    num_output_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.all_token_ids) - self.num_output_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.all_token_ids


class Engine:
    """A small scheduler and model, with one head per rank."""

    def __init__(
        self, sides: Any, seed: int, ranks: int, disk: Path | None, monkeypatch: pytest.MonkeyPatch, http: str | None = None
    ) -> None:
        self.numbers = random.Random(seed)
        self.names = [f"model.layers.{layer}.attn" for layer in range(LAYERS)]
        settings = sides.settings.Settings(
            host_gib=ranks * HOST_BLOCKS * 4096 / (1 << 30), prefault=False, disk_writes="on_eviction",
            disk_path=disk and str(disk), disk_gib=disk and ranks / 1024, http=http,
        )
        self.sides = sides
        monkeypatch.setattr(sides.worker, "layout_and_identity", self.layout_and_identity)
        # By rank and layer.
        self.kv = [self.memory() for _ in range(ranks)]
        self.workers = []
        for number, kv in enumerate(self.kv):
            caches = {name: self.tensor(memory) for name, memory in zip(self.names, kv, strict=True)}
            rank = sides.rank.Rank(number, ranks)
            self.workers.append(sides.worker.Worker(CONFIG, caches, settings, rank))
        self.scheduler = sides.scheduler.Scheduler(settings, PAGE)
        self.scheduler.greet(
            {rank: pickle.loads(pickle.dumps(worker.hello())) for rank, worker in enumerate(self.workers)}
        )
        # How many ranks have reported the end of a request's loads, or of its stores.
        self.said: dict[str, Counter[str]] = {"loaded": Counter(), "sent": Counter()}
        self.free = list(range(BLOCKS))
        self.requests: dict[str, Request] = {}
        self.held: dict[str, list[int]] = {}
        self.count = 0
        self.loaded_blocks = {"in step": 0, "before": 0}
        self.failed_blocks = 0
        self.failed: set[int] = set()
        # Keys of the ordered stores, by rank.
        self.keys: list[set[bytes]] = [set() for _ in range(ranks)]
        self.texts = [[self.numbers.randrange(1000) for _ in range(24)] for _ in range(3)]

    # The memory.

    def memory(self) -> list[Any]:
        """The KV of a rank, by layer, with poison in all blocks."""
        return [np.full((BLOCKS, 2, PAGE, 1, 4), POISON, np.float32) for _ in range(LAYERS)]

    def tensor(self, memory: Any) -> Any:
        return Tensor(memory)

    def layout_and_identity(self, *arguments: Any) -> tuple[kvtile.Layout, kvtile.Identity]:
        return layout_and_identity(*arguments)

    # The model.

    def content(self, request: Request, rank: int, layer: int, position: int) -> float:
        prefix = np.array(request.all_token_ids[: position + 1], np.uint32).tobytes()
        return float(zlib.crc32(prefix) % (1 << 20)) + layer / 4 + rank / 16

    def compute(self, request: Request, layer: int, count: int) -> bool:
        """Computes one layer. A wrong prefix gives wrong values in all heads. Returns whether the prefix was right."""
        right = self.is_right(request, layer)
        for rank, kv in enumerate(self.kv):
            for position in range(request.computed, request.computed + count):
                content = self.content(request, rank, layer, position) if right else POISON
                kv[layer][request.blocks[position // PAGE], :, position % PAGE] = content
        return right

    def computed(self) -> set[str]:
        """Requests that turn out after all layers to have computed with a wrong prefix."""
        return set()

    def is_right(self, request: Request, layer: int) -> bool:
        """Whether every token that counts as computed has the KV that the model computes for it."""
        positions = range(request.computed)
        return all(
            (kv[layer][request.blocks[at // PAGE], :, at % PAGE] == self.content(request, rank, layer, at)).all()
            for rank, kv in enumerate(self.kv)
            for at in positions
        )

    # The scheduler.

    def release(self, blocks: list[int]) -> None:
        for kv in self.kv:
            for array in kv:
                array[blocks] = POISON
        self.free += blocks

    def end(self, request: Request) -> None:
        del self.requests[request.request_id]
        if self.scheduler.finished(request):
            self.held[request.request_id] = request.blocks
        else:
            self.release(request.blocks)

    def admit(self) -> None:
        """Admits waiting requests as far as there are free blocks."""
        for request in [r for r in self.requests.values() if r.state == "waiting"]:
            external, later = self.scheduler.matched(request, 0)
            assert external % PAGE == 0 and external < request.num_tokens
            needed = -(-request.end // PAGE)
            if needed > len(self.free):
                continue
            request.blocks, self.free = self.free[:needed], self.free[needed:]
            blocks = SimpleNamespace(get_block_ids=lambda ids=request.blocks: (ids,))
            self.scheduler.allocated(request, blocks, external)
            request.computed = external
            request.state = "loading" if later else "running"
            request.is_new = True

    def step(self) -> None:
        numbers = self.numbers
        if len(self.requests) < 5 and numbers.random() < 0.5:
            self.arrive()
        preempted = {}
        running = [r for r in self.requests.values() if r.state == "running"]
        if running and numbers.random() < 0.1:
            victim = numbers.choice(running)
            preempted[victim.request_id] = victim.blocks
            victim.blocks, victim.computed, victim.state = [], 0, "waiting"
        self.admit()
        scheduled = {}
        for request in [r for r in self.requests.values() if r.state == "running"]:
            missing = request.num_tokens - request.computed
            scheduled[request.request_id] = numbers.randint(1, missing) if missing > 1 else 1
        tables = {name: self.requests[name].blocks for name in scheduled}
        new = [self.requests[name] for name in scheduled if self.requests[name].is_new]
        old = [self.requests[name] for name in scheduled if not self.requests[name].is_new]
        output = SimpleNamespace(
            total_num_scheduled_tokens=sum(scheduled.values()),
            preempted_req_ids=set(preempted),
            num_scheduled_tokens=scheduled,
            scheduled_new_reqs=[SimpleNamespace(req_id=r.request_id, num_computed_tokens=r.computed) for r in new],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[r.request_id for r in old], num_computed_tokens=[r.computed for r in old]
            ),
            kv_connector_block_state=SimpleNamespace(get_block_ids=lambda name: (tables[name],)),
        )
        orders = pickle.loads(pickle.dumps(self.scheduler.orders(output)))
        for store in orders.stores:
            request = self.requests[store.request]
            full = (request.computed + scheduled[store.request]) // PAGE
            counts = {store.first + len(store.blocks), *map(len, store.keys.values())}
            assert counts == {full}, "full blocks alone are stored"
            for rank, keys in store.keys.items():
                self.keys[rank].update(keys)
        for request in new:
            request.is_new = False
        for worker in self.workers:
            if numbers.random() < 0.3:
                # A block that the scheduler has found may be evicted, on one rank but not on another.
                worker.cache.evict("host", numbers.randrange(12))
            worker.wait_for_stores(orders.preempted)
        for blocks in preempted.values():
            self.release(blocks)
        self.run(orders, scheduled)

    def run(self, orders: Any, scheduled: dict[str, int]) -> None:
        for worker in self.workers:
            worker.begin_step(orders)
        in_step = {load.request: load for load in orders.loads if load.in_step}
        wrong = set()
        for layer, name in enumerate(self.names if scheduled else []):
            for worker in self.workers:
                worker.wait_for_layer(name)
            for request in [self.requests[name] for name in scheduled]:
                if not self.compute(request, layer, scheduled[request.request_id]):
                    wrong.add(request.request_id)
        wrong |= self.computed()
        for worker in self.workers:
            worker.end_step(orders)
        loaded = self.said_by_all("loaded", [worker.take_finished_loads(idle=not scheduled) for worker in self.workers])
        sent = self.said_by_all("sent", [worker.take_finished_stores() for worker in self.workers])
        failed = set().union(*(worker.take_failed_blocks() for worker in self.workers))
        self.failed_blocks += len(failed)
        # A load may fail on one rank before it completes on all of them.
        self.failed |= failed
        report = self.report()
        for name, count in scheduled.items():
            request = self.requests[name]
            bad = [at for at, block in enumerate(request.blocks) if block in failed]
            assert name not in wrong or bad, f"{name} computed with missing blocks, and no rank reported it"
            if bad:
                request.computed = min(bad) * PAGE
                continue
            if name in in_step:
                self.loaded_blocks["in step"] += len(in_step[name].blocks)
            request.computed += count
            if request.computed == request.num_tokens:
                request.all_token_ids.append(self.numbers.randrange(1000))
        for request in list(self.requests.values()):
            if request.num_tokens >= request.end or self.numbers.random() < 0.02 and request.state == "running":
                self.end(request)
        for name in loaded:
            request = self.requests[name]
            bad = [at for at, block in enumerate(request.blocks) if block in self.failed]
            self.failed -= set(request.blocks)
            request.computed = min(bad) * PAGE if bad else request.computed
            self.loaded_blocks["before"] += request.computed // PAGE
            request.state = "running"
        if report is not None:
            self.scheduler.take(report)
        assert sent <= self.held.keys(), "blocks that vLLM does not hold are freed"
        self.scheduler.finishing -= sent
        self.scheduler.loading -= loaded
        for name in sent:
            self.release(self.held.pop(name))
        self.check()

    def check(self) -> None:
        """Checks the KV of all running requests."""
        for request in self.requests.values():
            if request.state == "running":
                for layer in range(LAYERS):
                    assert self.is_right(request, layer), f"{request.request_id}, layer {layer}"

    def said_by_all(self, what: str, said: list[set[str]]) -> set[str]:
        """Requests that all ranks have reported by now."""
        counts = self.said[what]
        counts.update(name for names in said for name in names)
        ended = {name for name, count in counts.items() if count == len(self.workers)}
        for name in ended:
            del counts[name]
        return ended

    def report(self) -> Any:
        """The ranks' reports, merged as vLLM does; None if there are none."""
        reports = [worker.take_report() for worker in self.workers]
        made = [
            pickle.loads(pickle.dumps(self.sides.messages.Report({rank: report})))
            for rank, report in enumerate(reports)
            if report is not None
        ]
        return functools.reduce(lambda one, other: one.aggregate(other), made) if made else None

    def arrive(self) -> None:
        self.count += 1
        text = self.numbers.choice(self.texts)[: self.numbers.choice([3, 4, 8, 9, 17, 24])]
        tokens = text + [self.numbers.randrange(1000) for _ in range(self.numbers.randrange(1, 6))]
        name = f"request-{self.count}"
        self.requests[name] = Request(name, tokens, len(tokens) + self.numbers.randrange(1, 8))


def layout_and_identity(_: Any, caches: dict[str, Tensor], __: Any, rank: Any) -> tuple[kvtile.Layout, kvtile.Identity]:
    shape = kvtile.Shape(
        num_blocks=BLOCKS, num_layers=LAYERS, page_size=PAGE, num_heads=1, head_size=4, dtype="float32",
        first_head=rank.number, total_heads=rank.size,
    )
    layout = kvtile.Layout("L|BKNHC", shape=shape, tensors=[tensor.array for tensor in caches.values()])
    return layout, kvtile.Identity("a-model", "main", shape)


def settle(engine: Any) -> None:
    """Ends what the workers' caches write in the background, and gives the scheduler the changes."""
    for worker in engine.workers:
        worker.cache.flush()
    engine.run(pickle.loads(pickle.dumps(engine.scheduler.orders(nothing()))), {})


def run_to_the_end(engine: Any, on_disk: bool, steps: int) -> None:
    """Runs steps with random requests, ends the requests and the engine, and checks what is left."""
    ranks = len(engine.workers)
    try:
        for _ in range(steps):
            engine.step()
        # Stores and loads end on threads, which may be slow on a busy machine.
        end = time.monotonic() + 120
        while (engine.requests or engine.scheduler.finishing) and time.monotonic() < end:
            time.sleep(0.001)
            for request in list(engine.requests.values()):
                if request.state != "loading":
                    engine.end(request)
            engine.run(pickle.loads(pickle.dumps(engine.scheduler.orders(nothing()))), {})
        settle(engine)
        scheduler = engine.scheduler
        assert not engine.requests and not engine.held and not any(engine.said.values())
        left = [scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading]
        for worker in engine.workers:
            left += [worker.loads, worker.stores, worker.held]
        assert not any(left)
        assert sorted(engine.free) == list(range(BLOCKS))
        # With several ranks, one may miss blocks that another one has, so no step computes before all have reported.
        assert (engine.loaded_blocks["in step"] > steps // 20) == (ranks == 1)
        assert engine.loaded_blocks["before"] > steps // 20 if on_disk or ranks > 1 else engine.failed_blocks > 0
        for rank, worker in enumerate(engine.workers):
            stored = {(tier, key) for tier, _, key, _ in worker.cache.snapshot().blocks}
            known = scheduler.directories[rank]
            assert stored == {(tier, key) for tier in engine.sides.directory.TIERS for key in known.blocks(tier)}
        assert all(keys == engine.keys[0] for keys in engine.keys) and engine.keys[0], "all ranks have the same keys"
    finally:
        for worker in engine.workers:
            worker.close()


def nothing() -> Any:
    """A step that schedules nothing."""
    return SimpleNamespace(
        total_num_scheduled_tokens=0, preempted_req_ids=set(), num_scheduled_tokens={}, scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda _: None),
    )
