"""The scheduler side of the vLLM connector alone, step by step, without vLLM."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_engine import BLOCKS, CONFIG, LAYERS, PAGE, Engine, Request, Tensor, ignore, layout_and_identity, sides

__all__ = ["sides"]  # The fixture of the tests below.


def scheduler_of(sides: Any, changes: list[Any] | None = None, **settings: Any) -> Any:
    """A scheduler with one worker, whose tiers have these blocks."""
    kv = {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}
    _, identity = layout_and_identity(None, kv, None, SimpleNamespace(number=0, size=1))
    scheduler = sides.scheduler.Scheduler(sides.settings.Settings(**settings), PAGE)
    scheduler.greet({0: sides.messages.Hello(identity.to_json(), changes or [])})
    return scheduler


def a_request(name: str = "one", blocks: int = 4, **given: Any) -> Request:
    tokens = given.pop("tokens", list(range(PAGE * blocks + 1)))
    return Request(name, tokens, len(tokens) + 8, list(range(len(tokens) // PAGE + 4)), **given)


def step_of(request: Request, scheduled: int, *, new: bool = True) -> Any:
    """A step that computes ``scheduled`` tokens of a request, after the ``computed`` ones that vLLM has."""
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


def test_evicted_blocks_are_stored_from_the_first_one(sides: Any) -> None:
    """vLLM has the head of the prompt in its own cache: it computes only the tail, and all blocks are stored."""
    scheduler, request = scheduler_of(sides), a_request()
    assert scheduler.matched(request, 3 * PAGE) == (0, False)
    request.computed = 3 * PAGE
    (store,) = scheduler.orders(step_of(request, PAGE + 1)).stores
    assert (store.first, store.blocks) == (0, [0, 1, 2, 3])
    assert len(store.keys[0]) == 4


def test_present_blocks_are_not_stored_again(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    assert scheduler.matched(request, 0) == (0, False)
    keys = scheduler.tracked["one"].keys.of(4)[0]
    scheduler.directories[0].apply(stored(keys[:2], "disk"))
    assert scheduler.matched(request, 3 * PAGE) == (0, False)
    request.computed = 3 * PAGE
    (store,) = scheduler.orders(step_of(request, PAGE + 1)).stores
    assert (store.first, store.blocks) == (2, [2, 3])


def test_disk_blocks_load_in_the_step_if_no_other_request_waits(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    keys = scheduler.tracked["one"].keys.of(4)[0]
    scheduler.directories[0].apply(stored(keys, "disk"))
    # The disk's speed is unknown until its first read.
    assert scheduler.matched(request, 0) == (4 * PAGE, True)
    scheduler.take(report(sides, tier_seconds={"disk": (0.0, 0.001)}))
    assert scheduler.matched(request, 0) == (4 * PAGE, False)
    # The step does not wait for a slow disk.
    scheduler.take(report(sides, tier_seconds={"disk": (0.0, 0.26)}))
    assert scheduler.matched(request, 0) == (4 * PAGE, True)
    scheduler.take(report(sides, tier_seconds={"disk": (0.0, 0.001)}))
    other = a_request("two", tokens=list(range(500, 500 + 2 * PAGE + 1)))
    scheduler.matched(other, 0)
    assert scheduler.matched(request, 0) == (4 * PAGE, True)
    scheduler.finished(other)
    assert scheduler.matched(request, 0) == (4 * PAGE, False)


def test_blocks_are_left_out_by_the_speed_of_their_own_tier(sides: Any) -> None:
    # The engine computes a page in a second.
    scheduler, request = scheduler_of(sides, recompute_tokens_per_second=float(PAGE)), a_request()
    scheduler.matched(request, 0)
    keys = scheduler.tracked["one"].keys.of(4)[0]
    scheduler.directories[0].apply([*stored(keys[:1]), *stored(keys, "disk")[1:2], *stored(keys, "shared")[2:]])
    # Tiers that were not read yet count as fast.
    assert scheduler.matched(request, 0)[0] == 4 * PAGE
    for seconds, pages in [
        ({"disk": (0.0, 0.1), "shared": (0.5, 0.2)}, 4),
        ({"disk": (0.0, 0.1), "shared": (2.9, 0.2)}, 1),
        ({"disk": (2.0, 0.5), "shared": (0.4, 0.2)}, 1),
        ({"disk": (2.0, 0.1), "shared": (0.4, 0.2)}, 4),
    ]:
        scheduler.take(report(sides, tier_seconds=seconds))
        assert scheduler.matched(request, 0)[0] == pages * PAGE, seconds


def test_a_request_whose_loads_fail_again_is_computed(sides: Any) -> None:
    """A worker that fails what the scheduler promises: such a request was scheduled millions of times, without an answer."""
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    scheduler.directories[0].apply(stored(scheduler.tracked["one"].keys.of(4)[0]))
    for _ in range(2):
        assert scheduler.matched(request, 0)[0] == 4 * PAGE
        scheduler.take(report(sides, failed={"one", "unknown"}))
    assert scheduler.matched(request, 0) == (0, False)
    # Another request still loads them.
    assert scheduler.matched(a_request("two"), 0)[0] == 4 * PAGE


def test_a_worker_loads_what_its_scheduler_has_promised(sides: Any) -> None:
    """A worker that weighs its reads itself fails loads of blocks that the scheduler has weighed otherwise."""
    settings = sides.settings.Settings(recompute_tokens_per_second=1e9, shared="/mnt/kv", disk_path="kv", disk_gib=1.0)
    _, identity = layout_and_identity(
        None, {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}, None,
        SimpleNamespace(number=0, size=1),
    )
    rank = sides.rank.Rank()
    assert "recompute_tokens_per_second" not in settings.of_cache(rank, identity)
    connected = sides.settings.Settings(recompute_tokens_per_second=1e9, connect="kv.sock")
    assert connected.of_cache(rank, identity) == {"connect": "kv.sock"}


def test_evicted_ancestors_are_stored_with_new_blocks(sides: Any) -> None:
    """A long answer: the stored prompt is evicted during it, so no lookup would find its next blocks."""
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, len(request.all_token_ids))).stores
    keys = store.keys[0]
    request.computed, request.all_token_ids = 17, [*request.all_token_ids, *range(100, 104)]
    # While a store is in flight, the next one continues after it.
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert store.first == 4
    scheduler.take(report(sides, ended={"one": 2}, changes=[*stored(keys), *stored([*keys, store.keys[0][4]])[4:]]))
    request.computed, request.all_token_ids = 21, [*request.all_token_ids, *range(200, 204)]
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert store.first == 5, "the earlier blocks are stored"
    scheduler.take(report(sides, ended={"one": 1}, changes=[("removed", "host", key, None) for key in [*keys[2:], *store.keys[0][4:]]]))
    request.computed, request.all_token_ids = 25, [*request.all_token_ids, *range(300, 304)]
    (store,) = scheduler.orders(step_of(request, 4, new=False)).stores
    assert (store.first, len(store.blocks)) == (2, 5)


def test_dropped_blocks_are_not_offered_again(sides: Any) -> None:
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
    """In one process and after a restart, with the same name, number and path."""
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
        assert not worker.stores and worker.take_report().without_room == {"one"}, "no adapter is loaded yet"
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


def test_blocks_stored_after_a_reset_are_for_this_process_only(sides: Any) -> None:
    """vLLM clears the cache when its weights have changed; the identity is that of the first weights."""
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    before = store.keys[0]
    scheduler.clear()
    # A request in flight has blocks of both weights.
    assert scheduler.orders(step_of(request, 1, new=False)).clear
    request.computed, request.all_token_ids = 17, [*request.all_token_ids, *range(100, 110)]
    assert scheduler.orders(step_of(request, 10, new=False)).stores == []
    assert scheduler.finished(request), "its stores are in flight"
    # A store in flight completes after the clear.
    scheduler.take(report(sides, ended={"one": 1}, changes=stored(before)))
    again = a_request("two")
    assert scheduler.matched(again, 0) == (0, False)
    (store,) = scheduler.orders(step_of(again, 17)).stores
    after = store.keys[0]
    assert not set(after) & set(before)
    scheduler.take(report(sides, ended={"two": 1}, changes=stored(after)))
    assert scheduler.matched(a_request("three"), 0) == (16, False)
    # A new process has the first weights again.
    assert scheduler_of(sides, stored(after)).matched(a_request("four"), 0) == (0, False)
    assert scheduler_of(sides, stored(before)).matched(a_request("five"), 0) == (16, False)


def test_a_reset_reports_requests_that_still_wait_for_loads(sides: Any) -> None:
    scheduler, request = scheduler_of(sides), a_request()
    scheduler.matched(request, 0)
    scheduler.directories[0].apply(stored(scheduler.tracked["one"].keys.of(4)[0], "disk"))
    assert scheduler.matched(request, 0) == (16, True)
    scheduler.allocated(request, SimpleNamespace(get_block_ids=lambda: (request.blocks,)), 16)
    assert scheduler.clear() is False
    scheduler.loading.clear()
    assert scheduler.clear() is True


def test_another_request_under_the_name_of_one_that_ended_has_keys_of_its_own(sides: Any) -> None:
    """A client aborts a request and sends it again before vLLM reports its end."""
    scheduler = scheduler_of(sides)
    first = a_request(tokens=list(range(17)))
    scheduler.matched(first, 0)
    second = a_request(tokens=list(range(50, 67)))
    scheduler.matched(second, 0)
    (store,) = scheduler.orders(step_of(second, 17)).stores
    assert store.keys[0] == scheduler._hashers[0].keys(list(range(50, 66)))


def test_a_session_whose_last_tokens_are_replaced_is_stored_anew_from_there(sides: Any) -> None:
    """Streaming input: vLLM drops the last token of a turn, and all of its tokens after a preemption."""
    scheduler, request = scheduler_of(sides), a_request(resumable=True)
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 17)).stores
    scheduler.take(report(sides, ended={"one": 1}, changes=stored(store.keys[0])))
    request.all_token_ids[6:] = range(300, 320)
    request.computed = 6
    (store,) = scheduler.orders(step_of(request, 20, new=False)).stores
    assert store.first == 1
    assert store.keys[0] == scheduler._hashers[0].keys(request.all_token_ids[:24])


def test_draft_tokens_fill_no_block(sides: Any) -> None:
    """With draft tokens, more tokens are computed than accepted; rejected ones are computed again."""
    scheduler, request = scheduler_of(sides), a_request(blocks=1)
    scheduler.matched(request, 0)
    (store,) = scheduler.orders(step_of(request, 5 + 12)).stores
    assert len(store.blocks) == 1
    request.computed = 5
    assert scheduler.orders(step_of(request, 12, new=False)).stores == []


def test_requests_of_one_prompt_do_not_share_their_state(sides: Any) -> None:
    """Several answers to one prompt (n > 1) run concurrently, each with its own tokens."""
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
def test_one_warning_reports_too_little_room(
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
    """vLLM has one connector per process: the second engine would get the first one's, over the first one's memory."""
    engine = Engine(sides, 0, 1, None, monkeypatch)
    (worker,) = engine.workers
    monkeypatch.setattr(sides.worker, "Worker", lambda *_: worker)
    monkeypatch.setattr(sides.worker, "rank_of", lambda _: sides.rank.Rank())
    kv = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=type("FullAttentionSpec", (), {})())])
    config = SimpleNamespace(
        lora_config=None, kv_transfer_config=SimpleNamespace(engine_id="one"),
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
    )
    sides.worker.open_worker(config, {}, None, kv)
    with pytest.raises(kvtile.SettingsError, match="one connector per process"):
        sides.worker.open_worker(config, {}, None, kv)
    assert not worker.cache.closed, "the first engine keeps its cache"
    sides.worker.close_worker(config)
    assert worker.cache.closed
    sides.worker.open_worker(config, {}, None, kv)
    sides.worker.close_worker(config)


def test_a_worker_opens_its_cache_on_the_processors_of_its_engine(
    sides: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread inherits the affinity of the thread that starts it."""
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
    kv = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=type("FullAttentionSpec", (), {})())])
    config = SimpleNamespace(
        lora_config=None, kv_transfer_config=SimpleNamespace(engine_id="one"),
        parallel_config=SimpleNamespace(distributed_executor_backend="mp"),
    )
    sides.worker.open_worker(config, {}, None, kv)
    sides.worker.close_worker(config)
    assert opened == [["mp"]] and not now


def test_settings_without_effect_are_refused_and_others_reach_the_cache(sides: Any, tmp_path: Path) -> None:
    read, rank = sides.settings.Settings.read, sides.rank.Rank(0, 1)
    shape = kvtile.Shape(num_blocks=1, num_layers=1, page_size=4, num_heads=1, head_size=4, dtype="float32")
    for given in ({"close_within": 5.0}, {"disk_path": "kv"}, {"disk_gib": 1.0}, {"hostgib": 1}, {"workers": "two"}):
        with pytest.raises(kvtile.SettingsError):
            read(given)
    given = {"disk_path": str(tmp_path), "disk_gib": 1.0, "close_within": 5.0, "disk_writes": 2, "workers": 3}
    told = read(given).of_cache(rank, kvtile.Identity("m", "r", shape))
    assert (told["close_within"], told["disk_writes"], told["workers"], told["disk_bytes"]) == (5.0, 2, 3, 1 << 30)


def test_each_rank_has_an_address_of_its_own_for_its_page(sides: Any) -> None:
    read = sides.settings.Settings.read
    assert read({}).http_address(0) is None
    for http, addresses in (
        ("10.0.0.1:9090", ["10.0.0.1:9090", "10.0.0.1:9091"]),
        (9090, ["127.0.0.1:9090", "127.0.0.1:9091"]),
        ("9090", ["127.0.0.1:9090", "127.0.0.1:9091"]),
        ("[::1]:9090", ["[::1]:9090", "[::1]:9091"]),
        ("127.0.0.1:0", ["127.0.0.1:0", "127.0.0.1:0"]),
    ):
        assert [read({"http": http}).http_address(rank) for rank in (0, 1)] == addresses
    for http in ("", "host", "host:", "host:x", "host:70000", 70000, -1, True, 1.5):
        with pytest.raises(kvtile.SettingsError):
            read({"http": http})


def test_requests_are_recorded_when_they_end(sides: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    scheduler = scheduler_of(sides, record=str(path))
    request = a_request("one", tokens=list(range(3 * PAGE + 2)))
    scheduler.matched(request, 0)
    request.all_token_ids = request.all_token_ids + [7] * PAGE
    request.num_output_tokens = PAGE
    scheduler.finished(request)
    same = a_request("two", tokens=list(range(3 * PAGE)))
    scheduler.matched(same, 0)
    scheduler.finished(same)
    # Requests without keys, and requests that were never scheduled, are not in the trace.
    pooling = a_request("three", pooling_params=object())
    scheduler.matched(pooling, 0)
    scheduler.finished(pooling)
    scheduler.finished(a_request("four"))
    scheduler.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lengths = [(line["input_length"], line["output_length"], len(line["hash_ids"])) for line in lines]
    assert lengths == [(3 * PAGE + 2, PAGE, 4), (3 * PAGE, 0, 3)]
    assert lines[0]["hash_ids"][:3] == lines[1]["hash_ids"]
    assert all(line["timestamp"] == 1_700_000_000_250 for line in lines)


def test_a_trace_file_that_holds_something_else_is_refused_at_the_start(sides: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(kvtile.SettingsError, match="no trace"):
        scheduler_of(sides, record=str(path))
    assert path.read_text() == "mine\n"


def test_a_request_waits_for_the_answer_of_the_shared_store(sides: Any) -> None:
    scheduler, request = scheduler_of(sides, shared="/shared"), a_request()
    assert scheduler.matched(request, 0) == (None, False)
    (seek,) = scheduler.orders(step_of(request, 0)).seeks
    assert (seek.request, len(seek.keys[0])) == ("one", 4)
    # There is one query.
    assert scheduler.matched(request, 0) == (None, False)
    assert not scheduler.orders(step_of(request, 0)).seeks
    scheduler.take(report(sides, changes=stored(seek.keys[0][:3], "shared"), sought={"one"}))
    # Shared blocks never load within a step.
    assert scheduler.matched(request, 0) == (3 * PAGE, True)
    assert scheduler.stats.data["seeks"] == 1 and "seeks_late" not in scheduler.stats.data


def test_a_request_whose_shared_store_does_not_answer_is_computed(sides: Any) -> None:
    scheduler, request = scheduler_of(sides, shared="/shared", shared_within=0.0), a_request()
    assert scheduler.matched(request, 0) == (None, False)
    assert scheduler.matched(request, 0) == (0, False)
    assert scheduler.stats.data["seeks_late"] == 1
    # A late answer of an ended request is ignored.
    scheduler.finished(request)
    scheduler.take(report(sides, sought={"one"}))


def test_a_request_that_other_tiers_have_queries_no_store(sides: Any) -> None:
    scheduler, request = scheduler_of(sides, shared="/shared"), a_request()
    scheduler.matched(request, 0)
    keys = scheduler.tracked["one"].keys.of(4)[0]
    scheduler.finished(request)
    scheduler.orders(step_of(request, 0))
    scheduler.directories[0].apply(stored(keys))
    again = a_request("two")
    assert scheduler.matched(again, 0) == (4 * PAGE, False)
    assert not scheduler.orders(step_of(again, 0)).seeks
