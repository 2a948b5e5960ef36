"""The two sides of the vLLM connector against a small engine, without vLLM.

The engine computes KV that says which tokens it belongs to, so that any block that is not what its request needs is
seen. Blocks are poisoned when they are freed. What the sides say to each other is pickled, as between processes.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import random
import sys
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
# Whole chains of blocks of kvtile's host memory.
HOST_BLOCKS = 24
POISON = -1.0
CONFIG = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64), lora_config=None)


@pytest.fixture(scope="module")
def sides() -> Iterator[Any]:
    """The modules of the connector, with as much of vLLM as they import."""
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
        setattr(modules["vllm.distributed.kv_events"], name, type(name, (), {}))
    modules["vllm.logger"].init_logger = lambda _: SimpleNamespace(info=ignore, warning=ignore, debug=ignore)
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        from kvtile.vllm import _directory, _messages, _rank, _scheduler, _settings, _worker

        yield SimpleNamespace(
            directory=_directory, messages=_messages, rank=_rank, scheduler=_scheduler, settings=_settings,
            worker=_worker,
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
    """Nothing is logged."""


class Tensor:
    """As much of a tensor as the worker asks for its size."""

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
    # Until vLLM's workers have seen it with these blocks.
    is_new: bool = True
    pooling_params: Any = None
    lora_request: Any = None
    cache_salt: str | None = None
    mm_features: Any = None
    prompt_embeds: Any = None
    prompt_is_token_ids: Any = None
    resumable: bool = False
    skip_reading_prefix_cache: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.all_token_ids


class Engine:
    """A scheduler and a model in little, which has a head for each rank."""

    def __init__(self, sides: Any, seed: int, ranks: int, disk: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers = random.Random(seed)
        self.names = [f"model.layers.{layer}.attn" for layer in range(LAYERS)]
        settings = sides.settings.Settings(
            host_gib=ranks * HOST_BLOCKS * 4096 / (1 << 30), prefault=False, disk_writes="on_eviction",
            disk_path=disk and str(disk), disk_gib=disk and ranks / 1024,
        )
        monkeypatch.setattr(sides.worker, "layout_and_identity", layout_and_identity)
        # By rank and layer.
        self.kv = [[np.full((BLOCKS, 2, PAGE, 1, 4), POISON, np.float32) for _ in range(LAYERS)] for _ in range(ranks)]
        self.workers = []
        for number, kv in enumerate(self.kv):
            caches = {name: Tensor(array) for name, array in zip(self.names, kv, strict=True)}
            rank = sides.rank.Rank(number, ranks)
            self.workers.append(sides.worker.Worker(CONFIG, caches, settings, rank))
        self.scheduler = sides.scheduler.Scheduler(settings, PAGE)
        self.scheduler.greet(
            {rank: pickle.loads(pickle.dumps(worker.hello())) for rank, worker in enumerate(self.workers)}
        )
        # How many ranks have said that a request's loads, or its stores, have ended.
        self.said: dict[str, Counter[str]] = {"loaded": Counter(), "sent": Counter()}
        self.sides = sides
        self.free = list(range(BLOCKS))
        self.requests: dict[str, Request] = {}
        self.held: dict[str, list[int]] = {}
        self.count = 0
        self.loaded_blocks = {"in step": 0, "before": 0}
        self.failed_blocks = 0
        self.failed: set[int] = set()
        # Those that were to be stored, by rank.
        self.keys: list[set[bytes]] = [set() for _ in range(ranks)]
        self.texts = [[self.numbers.randrange(1000) for _ in range(24)] for _ in range(3)]

    # What the model computes.

    def content(self, request: Request, rank: int, layer: int, position: int) -> float:
        prefix = np.array(request.all_token_ids[: position + 1], np.uint32).tobytes()
        return float(zlib.crc32(prefix) % (1 << 20)) + layer / 4 + rank / 16

    def compute(self, request: Request, layer: int, count: int) -> bool:
        """One layer; what is computed from a wrong prefix is wrong, with all heads. Whether it was right."""
        right = self.is_right(request, layer)
        for rank, kv in enumerate(self.kv):
            for position in range(request.computed, request.computed + count):
                content = self.content(request, rank, layer, position) if right else POISON
                kv[layer][request.blocks[position // PAGE], :, position % PAGE] = content
        return right

    def is_right(self, request: Request, layer: int) -> bool:
        """Whether every token that counts as computed has the KV that the model would have computed."""
        positions = range(request.computed)
        return all(
            (kv[layer][request.blocks[at // PAGE], :, at % PAGE] == self.content(request, rank, layer, at)).all()
            for rank, kv in enumerate(self.kv)
            for at in positions
        )

    # What the scheduler does.

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
        """Waiting requests get room, as far as there is some."""
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
                # What the scheduler has counted on may be gone, at one rank and not at another.
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
        for worker in self.workers:
            worker.end_step(orders)
        loaded = self.said_by_all("loaded", [worker.take_finished_loads(idle=not scheduled) for worker in self.workers])
        sent = self.said_by_all("sent", [worker.take_finished_stores() for worker in self.workers])
        failed = set().union(*(worker.take_failed_blocks() for worker in self.workers))
        self.failed_blocks += len(failed)
        # A load fails at one rank before it has ended at all of them.
        self.failed |= failed
        report = self.report()
        for name, count in scheduled.items():
            request = self.requests[name]
            bad = [at for at, block in enumerate(request.blocks) if block in failed]
            assert name not in wrong or bad, f"{name} computed with what is not there, and nobody said so"
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
        assert sent <= self.held.keys(), "blocks that vLLM does not keep are given back"
        self.scheduler.finishing -= sent
        self.scheduler.loading -= loaded
        for name in sent:
            self.release(self.held.pop(name))
        for request in self.requests.values():
            if request.state == "running":
                for layer in range(LAYERS):
                    assert self.is_right(request, layer), f"{request.request_id}, layer {layer}"

    def said_by_all(self, what: str, said: list[set[str]]) -> set[str]:
        """Requests of which now all ranks have said so."""
        counts = self.said[what]
        counts.update(name for names in said for name in names)
        ended = {name for name, count in counts.items() if count == len(self.workers)}
        for name in ended:
            del counts[name]
        return ended

    def report(self) -> Any:
        """What all ranks have to say, put together by vLLM; None for nothing."""
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


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_block_is_what_its_request_needs_and_everything_ends(
    sides: Any, seed: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 38, with several ranks: ranks that evict on their own and disagree about the length of a hit."""
    on_disk = seed % 2 == 1
    engine = Engine(sides, seed, ranks, tmp_path / "disk" if on_disk else None, monkeypatch)
    try:
        for _ in range(400):
            engine.step()
        for _ in range(400):
            if not engine.requests and not engine.scheduler.finishing:
                break
            for request in list(engine.requests.values()):
                if request.state != "loading":
                    engine.end(request)
            engine.run(pickle.loads(pickle.dumps(engine.scheduler.orders(nothing()))), {})
        scheduler = engine.scheduler
        assert not engine.requests and not engine.held and not any(engine.said.values())
        left = [scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading]
        for worker in engine.workers:
            left += [worker.loads, worker.stores, worker.held]
        assert not any(left)
        assert sorted(engine.free) == list(range(BLOCKS))
        # Where one rank may miss what the others have, nothing is computed before all have said what they have.
        assert (engine.loaded_blocks["in step"] > 20) == (ranks == 1)
        assert engine.loaded_blocks["before"] > 20 if on_disk or ranks > 1 else engine.failed_blocks > 0
        for rank, worker in enumerate(engine.workers):
            stored = {(tier, key) for tier, key, _ in worker.cache.snapshot().blocks}
            known = scheduler.directories[rank]._tiers
            assert stored == {(tier, key) for tier, keys in known.items() for key in keys}
        assert all(engine.keys) and len(set().union(*engine.keys)) == sum(map(len, engine.keys)), "ranks have keys of their own"
    finally:
        for worker in engine.workers:
            worker.close()


def nothing() -> Any:
    """A step in which nothing is scheduled."""
    return SimpleNamespace(
        total_num_scheduled_tokens=0, preempted_req_ids=set(), num_scheduled_tokens={}, scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda _: None),
    )


def test_a_block_counts_when_all_workers_have_it(sides: Any) -> None:
    directory = sides.directory
    one = directory.Directory([("stored", "host", b"a", None), ("stored", "disk", b"b", b"a")])
    two = directory.Directory([("stored", "disk", b"A", None), ("stored", "host", b"B", b"A"), ("stored", "host", b"C", b"B")])
    keys = {0: [b"a", b"b", b"c"], 1: [b"A", b"B", b"C"]}
    both = {0: one, 1: two}
    assert directory.leading_tiers({0: one}, keys) == ["host", "disk"]
    assert directory.leading_tiers(both, keys) == ["disk", "disk"]
    one.apply([("removed", "host", b"a", None)])
    assert directory.leading_tiers(both, keys) == []
    two.apply([("cleared", "host", b"", None)])
    assert directory.leading_tiers({1: two}, keys) == ["disk"]
    assert directory.leading_tiers({}, keys) == []


def cache_in(folder: Path) -> kvtile.Cache:
    """A cache with a disk tier, as an engine with one worker has it."""
    kv = {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}
    layout, identity = layout_and_identity(None, kv, None, SimpleNamespace(number=0, size=1))
    return kvtile.Cache(identity, layout, host_bytes=1 << 20, disk=str(folder), disk_bytes=1 << 20)


def test_a_folder_has_the_blocks_of_one_number_of_workers(sides: Any, tmp_path: Path) -> None:
    rank = sides.rank.Rank
    assert rank().folder(tmp_path / "none") == tmp_path / "none"
    assert rank(1, 2).folder(tmp_path / "none") == tmp_path / "none" / "rank-1-of-2"
    cache_in(tmp_path / "one").close()
    (tmp_path / "two" / "rank-0-of-2").mkdir(parents=True)
    assert rank().folder(tmp_path / "one") == tmp_path / "one"
    assert rank(1, 2).folder(tmp_path / "two") == tmp_path / "two" / "rank-1-of-2"
    for folder, number, found in (("one", rank(0, 2), 1), ("two", rank(0, 3), 2), ("two", rank(), 2)):
        with pytest.raises(kvtile.IdentityError, match=f"tensor_parallel_size differs: .* of {found}, .* {number.size};"):
            number.folder(tmp_path / folder)


# The scheduler alone, step by step.


def scheduler_of(sides: Any, changes: list[Any] | None = None) -> Any:
    """One with one worker, whose tiers have these blocks."""
    kv = {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}
    _, identity = layout_and_identity(None, kv, None, SimpleNamespace(number=0, size=1))
    scheduler = sides.scheduler.Scheduler(sides.settings.Settings(), PAGE)
    scheduler.greet({0: sides.messages.Hello(identity.to_json(), changes or [])})
    return scheduler


def a_request(name: str = "one", blocks: int = 4, **given: Any) -> Request:
    tokens = given.pop("tokens", list(range(PAGE * blocks + 1)))
    return Request(name, tokens, len(tokens) + 8, list(range(len(tokens) // PAGE + 4)), **given)


def step_of(request: Request, scheduled: int, *, new: bool = True) -> Any:
    """A step that computes so many tokens of a request, whose first ``computed`` ones vLLM has."""
    name = request.request_id
    cached = SimpleNamespace(req_ids=[] if new else [name], num_computed_tokens=[] if new else [request.computed])
    return SimpleNamespace(
        total_num_scheduled_tokens=scheduled, preempted_req_ids=set(), num_scheduled_tokens={name: scheduled},
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=request.computed)] if new else [],
        scheduled_cached_reqs=cached, kv_connector_block_state=SimpleNamespace(get_block_ids=lambda _: (request.blocks,)),
    )


def report(sides: Any, **said: Any) -> Any:
    return sides.messages.Report({0: sides.messages.RankReport(**said)})


def stored(keys: list[bytes], tier: str = "host") -> list[Any]:
    return [("stored", tier, key, parent) for key, parent in zip(keys, [None, *keys], strict=False)]


def test_what_vllm_has_and_kvtile_has_lost_is_stored_from_the_first_block_on(sides: Any) -> None:
    """vLLM has the head of the prompt in its own cache: only what follows is computed, and all of it is stored."""
    scheduler, request = scheduler_of(sides), a_request()
    assert scheduler.matched(request, 3 * PAGE) == (0, False)
    request.computed = 3 * PAGE
    (store,) = scheduler.orders(step_of(request, PAGE + 1)).stores
    assert (store.first, store.blocks) == (0, [0, 1, 2, 3])
    assert len(store.keys[0]) == 4


def test_of_what_is_there_nothing_is_stored_again(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    assert scheduler.matched(request, 0) == (0, False)
    keys = scheduler.tracked["one"].keys.of(4)[0]
    scheduler.directories[0].apply(stored(keys[:2], "disk"))
    assert scheduler.matched(request, 3 * PAGE) == (0, False)
    request.computed = 3 * PAGE
    (store,) = scheduler.orders(step_of(request, PAGE + 1)).stores
    assert (store.first, store.blocks) == (2, [2, 3])


def test_blocks_whose_ancestors_have_left_the_tiers_are_stored_with_them(sides: Any) -> None:
    """A long answer: what was stored of its prompt is evicted meanwhile, and its next blocks would be worth nothing."""
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, len(request.all_token_ids))).stores
    keys = store.keys[0]
    request.computed, request.all_token_ids = 17, [*request.all_token_ids, *range(100, 104)]
    # Before its end is known the next store follows on.
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert store.first == 4
    scheduler.take(report(sides, ended={"one": 2}, changes=[*stored(keys), *stored([*keys, store.keys[0][4]])[4:]]))
    request.computed, request.all_token_ids = 21, [*request.all_token_ids, *range(200, 204)]
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert store.first == 5, "everything is there"
    scheduler.take(report(sides, ended={"one": 1}, changes=[("removed", "host", key, None) for key in [*keys[2:], *store.keys[0][4:]]]))
    request.computed, request.all_token_ids = 25, [*request.all_token_ids, *range(300, 304)]
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert (store.first, len(store.blocks)) == (2, 5)


def test_what_found_no_room_is_not_offered_for_ever(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    scheduler.take(report(sides, ended={"one": 1}, without_room={"one"}, changes=stored(store.keys[0][:1])))
    for end in range(17, 60):
        request.computed, request.all_token_ids = end, [*request.all_token_ids, end]
        assert scheduler.orders(step_of(request, 1, new=False)).stores == []
    # A later request tries again.
    again = a_request("two")
    scheduler.matched(again, 0)
    (store,) = scheduler.orders(step_of(again, 13)).stores
    assert store.first == 1


def test_pooling_requests_and_unknown_adapters_are_not_kept(sides: Any, tmp_path: Path) -> None:
    scheduler = scheduler_of(sides)
    lora = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path=str(tmp_path / "none"))
    for given in ({"pooling_params": object()}, {"lora_request": lora}):
        request = a_request(**given)
        assert scheduler.matched(request, 0) == (0, False)
        assert scheduler.orders(step_of(request, 17)).stores == []
        assert scheduler.finished(request) is False and not scheduler.tracked


def adapter_in(folder: Path, content: bytes, number: int = 1) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(content)
    return SimpleNamespace(lora_name="a", lora_int_id=number, lora_path=str(folder), is_3d_lora_weight=False)


def test_an_adapter_that_is_trained_again_at_its_path_finds_nothing(sides: Any, tmp_path: Path) -> None:
    """In a process and after a restart, under the same name, number and path."""
    lora = adapter_in(tmp_path / "lora", b"monday")
    scheduler, request = scheduler_of(sides), a_request(lora_request=lora)
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    assert store.adapter is not None and store.adapter[0] == 1
    there = stored(store.keys[0])
    for folder, number, found in (("lora", 1, 4), ("elsewhere", 2, 4)):
        other = a_request("two", lora_request=adapter_in(tmp_path / folder, b"monday", number))
        assert scheduler_of(sides, there).matched(other, 0) == (found * PAGE, False)
    lora = adapter_in(tmp_path / "lora", b"tuesday")
    for again in (scheduler, scheduler_of(sides, there)):
        again.directories[0].apply(there)
        assert again.matched(a_request("three", lora_request=lora), 0) == (0, False)
    assert scheduler.matched(a_request("four"), 0) == (0, False)


def test_blocks_of_another_adapter_than_the_one_that_is_loaded_are_neither_stored_nor_loaded(
    sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(sides, 0, 1, None, monkeypatch)
    (worker,) = engine.workers
    loaded = sides.worker.LOADED
    monkeypatch.setattr(sides.worker, "LOADED", type(loaded)())
    manager = type("Manager", (), {})()
    keys = engine.scheduler._hashers[0].keys(list(range(8)))
    order = functools.partial(sides.messages.StoreOrder, "one", {0: keys}, 0, [0, 1])
    try:
        worker._start_store(order((1, b"monday")))
        assert not worker.stores and worker.take_report().without_room == {"one"}, "nothing is loaded that it could be of"
        sides.worker.LOADED.note(manager, 1, b"monday")
        worker._start_store(order((1, b"tuesday")))
        assert not worker.stores and worker.take_report().ended == {"one": 1}
        worker._start_store(order((1, b"monday")))
        worker.wait_for_stores({"one"})
        assert worker.cache.lookup(keys).blocks == 2
        for digest, failed in ((b"tuesday", {5, 6}), (b"monday", set())):
            worker._start_load(sides.messages.LoadOrder("two", {0: keys}, 0, [5, 6], False, (1, digest)))
            assert worker.take_failed_blocks() == failed
            while not worker.take_finished_loads(idle=True):
                pass
    finally:
        worker.close()


def test_what_is_stored_after_everything_was_forgotten_is_for_this_process_alone(sides: Any) -> None:
    """vLLM forgets when its weights have become other ones, and the identity is that of the weights it began with."""
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    before = store.keys[0]
    scheduler.clear()
    # A request that was on its way has blocks of both.
    assert scheduler.orders(step_of(request, 1, new=False)).clear
    request.computed, request.all_token_ids = 17, [*request.all_token_ids, *range(100, 110)]
    assert scheduler.orders(step_of(request, 10, new=False)).stores == []
    assert scheduler.finished(request), "what it stores is still being read"
    # A store that was on its way arrives after all.
    scheduler.take(report(sides, ended={"one": 1}, changes=stored(before)))
    again = a_request("two")
    assert scheduler.matched(again, 0) == (0, False)
    (store,) = scheduler.orders(step_of(again, 17)).stores
    after = store.keys[0]
    assert not set(after) & set(before)
    scheduler.take(report(sides, ended={"two": 1}, changes=stored(after)))
    assert scheduler.matched(a_request("three"), 0) == (16, False)
    # A process that begins anew has the first weights again.
    assert scheduler_of(sides, stored(after)).matched(a_request("four"), 0) == (0, False)
    assert scheduler_of(sides, stored(before)).matched(a_request("five"), 0) == (16, False)


def test_forgetting_says_so_where_a_request_still_waits_for_what_is_forgotten(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    scheduler.directories[0].apply(stored(scheduler.tracked["one"].keys.of(4)[0], "disk"))
    assert scheduler.matched(request, 0) == (16, True)
    scheduler.allocated(request, SimpleNamespace(get_block_ids=lambda: (request.blocks,)), 16)
    assert scheduler.clear() is False
    scheduler.loading.clear()
    assert scheduler.clear() is True


def test_another_request_under_the_name_of_one_that_ended_has_keys_of_its_own(sides: Any) -> None:
    """Given up and sent again, before its end was seen."""
    scheduler = scheduler_of(sides)
    first = a_request(tokens=list(range(17)))
    scheduler.matched(first, 0)
    second = a_request(tokens=list(range(50, 67)))
    scheduler.matched(second, 0)
    (store,) = scheduler.orders(step_of(second, 17)).stores
    assert store.keys[0] == scheduler._hashers[0].keys(list(range(50, 66)))


def test_a_session_whose_last_tokens_are_replaced_is_stored_anew_from_there(sides: Any) -> None:
    """Streaming input: vLLM drops the last token of a turn, and all of them where the request had been preempted."""
    scheduler, request = scheduler_of(sides), a_request(resumable=True)
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    scheduler.take(report(sides, ended={"one": 1}, changes=stored(store.keys[0])))
    request.all_token_ids[6:] = range(300, 320)
    request.computed = 6
    (store,) = scheduler.orders(step_of(request, 20, new=False)).stores
    assert store.first == 1
    assert store.keys[0] == scheduler._hashers[0].keys(request.all_token_ids[:24])


def test_tokens_that_are_only_guessed_are_in_no_block(sides: Any) -> None:
    """With drafts more tokens are computed than are known; those that are refused are computed again."""
    scheduler, request = scheduler_of(sides), a_request(blocks=1)
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 5 + 12)).stores
    assert len(store.blocks) == 1
    request.computed = 5
    assert scheduler.orders(step_of(request, 12, new=False)).stores == []


def test_requests_of_one_prompt_do_not_share_their_state(sides: Any) -> None:
    """Several answers to one prompt (n > 1) go on at the same time, each with its own tokens."""
    scheduler = scheduler_of(sides)
    requests = [a_request(f"{number}_one") for number in range(3)]
    for request in requests:
        scheduler.matched(request, 0)
        scheduler.orders(step_of(request, 17))
        request.computed = 17
    for round_ in range(4):
        for number, request in enumerate(requests):
            request.all_token_ids = [*request.all_token_ids, *[1000 * (number + 1) + round_] * 4]
            (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
            request.computed += 4
            known = request.all_token_ids[: request.computed // PAGE * PAGE]
            assert store.keys[0] == scheduler._hashers[0].keys(known)


@pytest.mark.parametrize(("longest", "warned"), [(24 * PAGE, False), (24 * PAGE + 1, True), (1 << 20, True)])
def test_one_warning_says_that_a_prompt_has_no_room(
    sides: Any, monkeypatch: pytest.MonkeyPatch, longest: int, warned: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sides.worker, "logger", SimpleNamespace(info=ignore, warning=lambda text, *values: said.append(text % values)))
    monkeypatch.setattr(CONFIG.model_config, "max_model_len", longest)
    engine = Engine(sides, 0, 1, None, monkeypatch)
    engine.workers[0].close()
    assert len(said) == warned
    if warned:
        assert f"max_model_len, {longest} tokens (host 96 tokens)" in said[0] and "host_gib" in said[0]


def test_a_second_engine_in_a_process_is_refused(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has one connector a process: the second engine would get the first one's, over its own memory."""
    engine = Engine(sides, 0, 1, None, monkeypatch)
    (worker,) = engine.workers
    monkeypatch.setattr(sides.worker, "Worker", lambda *_: worker)
    monkeypatch.setattr(sides.worker, "rank_of", lambda _: sides.rank.Rank())
    config = SimpleNamespace(
        lora_config=None, kv_transfer_config=SimpleNamespace(engine_id="one"),
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
    )
    sides.worker.open_worker(config, {}, None)
    with pytest.raises(kvtile.SettingsError, match="one connector a process"):
        sides.worker.open_worker(config, {}, None)
    assert not worker.cache.closed, "the first one goes on"
    sides.worker.close_worker(config)
    assert worker.cache.closed
    sides.worker.open_worker(config, {}, None)
    sides.worker.close_worker(config)


def test_a_worker_opens_its_cache_on_the_processors_of_its_engine(
    sides: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads have the processors of the one that starts them."""
    now: list[str] = []

    @contextlib.contextmanager
    def processors_of_engine(executor: str) -> Iterator[None]:
        now.append(executor)
        yield
        now.clear()

    opened = []
    monkeypatch.setattr(sides.worker, "processors_of_engine", processors_of_engine)
    monkeypatch.setattr(sides.worker, "Worker", lambda *_: opened.append(list(now)) or SimpleNamespace(close=ignore))
    monkeypatch.setattr(sides.worker, "rank_of", lambda _: sides.rank.Rank())
    config = SimpleNamespace(
        lora_config=None, kv_transfer_config=SimpleNamespace(engine_id="one"),
        parallel_config=SimpleNamespace(distributed_executor_backend="mp"),
    )
    sides.worker.open_worker(config, {}, None)
    sides.worker.close_worker(config)
    assert opened == [["mp"]] and not now


def test_settings_that_say_nothing_are_refused_and_all_others_reach_the_cache(sides: Any, tmp_path: Path) -> None:
    read, rank = sides.settings.Settings.read, sides.rank.Rank(0, 1)
    for given in ({"close_within": 5.0}, {"disk_path": "kv"}, {"disk_gib": 1.0}, {"hostgib": 1}, {"workers": "two"}):
        with pytest.raises(kvtile.SettingsError):
            read(given)
    given = {"disk_path": str(tmp_path), "disk_gib": 1.0, "close_within": 5.0, "disk_writes": 2, "workers": 3}
    told = read(given).of_cache(rank)
    assert (told["close_within"], told["disk_writes"], told["workers"], told["disk_bytes"]) == (5.0, 2, 3, 1 << 30)
