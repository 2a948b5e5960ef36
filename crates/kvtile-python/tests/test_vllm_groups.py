"""The sides of the vLLM connector for models with several groups, step by step, without vLLM."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_engine import Request, nothing, settle, sides
from vllm_group_engine import (
    FullAttentionSpec,
    HybridEngine,
    MLAAttentionSpec,
    chunks,
    config_of,
    spec,
    state,
    window,
)

__all__ = ["sides"]  # The fixture of the tests below.

MODELS = {
    "windows": lambda: config_of(window(), spec(FullAttentionSpec, 4), window()),
    "states": lambda: config_of(state(), spec(FullAttentionSpec, 8), state()),
    "all": lambda: config_of(spec(FullAttentionSpec, 4), window(4), state(8)),
    "chunks": lambda: config_of(spec(FullAttentionSpec, 4), chunks()),
    "windows alone": lambda: config_of(window(), window()),
    "latents": lambda: config_of(spec(MLAAttentionSpec, 4)),
}


@pytest.mark.parametrize(("model", "ranks", "on_disk"), [
    ("windows", 1, False), ("windows", 2, True), ("states", 1, True), ("states", 2, False), ("all", 1, True), ("all", 2, False),
    ("chunks", 1, False), ("windows alone", 1, False), ("latents", 1, True),
])
def test_every_token_that_a_step_reads_is_right(
    sides: Any, model: str, ranks: int, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks evict independently, requests are preempted, and freed blocks are overwritten at once."""
    engine = HybridEngine(sides, 7, ranks, MODELS[model](), tmp_path / "disk" if on_disk else None, monkeypatch)
    try:
        for _ in range(400):
            engine.step()
        end = time.monotonic() + 120
        while (engine.requests or engine.scheduler.finishing) and time.monotonic() < end:
            for request in [one for one in engine.requests.values() if one.state != "loading"]:
                engine.end(request)
            engine.run(engine.scheduler.orders(nothing()), {})
        settle(engine)
        scheduler = engine.scheduler
        assert engine.loads > 5, (engine.loads, engine.failures)
        left = [engine.requests, engine.held, scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading]
        for rank, worker in enumerate(engine.workers):
            left += [worker.loads, worker.stores, worker.held]
            names = {facts["number"]: name for name, facts in worker.cache.groups.items()}
            stored = {(names[group], tier, key) for tier, group, key, _ in worker.cache.snapshot().blocks}
            known = scheduler.group_directories[rank]
            tiers = sides.directory.TIERS
            assert stored == {(name, tier, key) for name, one in known.items() for tier in tiers for key in one.blocks(tier)}
        assert not any(left)
        assert len(set(engine.free)) == len(engine.free) == 159
    finally:
        engine.close()


def model_with(sides: Any, groups: list[Any]) -> str:
    members = []
    for group in groups:
        plane = kvtile.Plane("p", "bytes", unit_bytes=64, opaque=True, per_page=True)
        shape = kvtile.Shape(num_blocks=4, num_layers=1, page_size=group.page_size, planes=[plane])
        members.append(sides.group_layout.member_of(group, shape, "here"))
    return kvtile.ModelIdentity("a-model", "main", members).to_json()


def a_scheduler(sides: Any, *specs: Any) -> tuple[Any, list[Any]]:
    """A scheduler of one worker without pages, and its groups."""
    groups = sides.groups.groups_of(config_of(*specs))
    scheduler = sides.group_scheduler.GroupScheduler(sides.settings.Settings(), groups, 1)
    scheduler.greet({0: sides.messages.Hello(model_with(sides, groups))})
    return scheduler, groups


def a_request(tokens: int, name: str = "one") -> Request:
    return Request(name, list(range(tokens)), tokens + 8)


def step_of(request: Request, scheduled: int, tables: Any, **state: Any) -> Any:
    name = request.request_id
    return SimpleNamespace(
        total_num_scheduled_tokens=scheduled, preempted_req_ids=set(), num_scheduled_tokens={name: scheduled},
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=request.computed)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda _: tables, **state),
    )


def have(scheduler: Any, groups: list[Any], keys: list[bytes], pages: dict[int, Any]) -> Any:
    """The report of a worker that has these pages, by table."""
    changes = {}
    for group in groups:
        units = group.page_size // scheduler.page_size
        of_group = [keys[(page + 1) * units - 1] for page in pages.get(group.table, ())]
        changes[group.name] = [("stored", "host", key, None) for key in of_group]
    return changes


def test_both_boundaries_of_an_aligned_prompt_are_stored_without_null_blocks(sides: Any) -> None:
    """The one before its last token for the same prompt again, and its end for longer prompts."""
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window())
    request = a_request(32)
    assert scheduler.matched(request, 0) == (0, False)
    tables = (list(range(1, 9)), list(range(11, 19)))
    first, second = scheduler.orders(step_of(request, 32, tables)).group_stores
    full, windows = (group.name for group in groups)
    # A window of 10 tokens needs those from 19 on to resume at 28, and those from 23 on at 32.
    assert (first.stop, first.blocks) == (28, {full: (list(range(1, 9)), 0), windows: ([15, 16, 17], 4)})
    assert (second.stop, second.blocks) == (32, {windows: ([16, 17, 18], 5)})
    # Where vLLM has freed a page of the window, there is no stop.
    other = a_request(32, "two")
    scheduler.matched(other, 0)
    (store,) = scheduler.orders(step_of(other, 32, (list(range(1, 9)), [0] * 5 + [16, 17, 18]))).group_stores
    assert store.stop == 32


def test_ranks_resume_at_a_stop_that_all_have(sides: Any) -> None:
    """The smallest of the longest stops is none here."""
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window())
    scheduler.greet({1: sides.messages.Hello(model_with(sides, groups))})
    request = a_request(41)
    scheduler.matched(request, 0)
    keys = scheduler.tracked["one"].keys.of(10)[0]
    ranks = {0: {0: range(10), 1: [1, 2, 3, 7, 8, 9]}, 1: {0: range(10), 1: [1, 2, 3, 4, 5, 6]}}
    reports = {
        rank: sides.messages.RankReport(group_changes=have(scheduler, groups, keys, pages)) for rank, pages in ranks.items()
    }
    scheduler.take(sides.messages.Report(reports))
    assert scheduler.matched(request, 0) == (16, True)
    assert scheduler.tracked["one"].branch == 40
    # vLLM has this much itself.
    assert scheduler.matched(request, 16) == (0, False)


def with_image(name: str, pixel: float) -> Request:
    """A request with an image of 6 tokens from token 18 on. Tokens and names of the images are equal, their contents not."""
    position = SimpleNamespace(offset=18, length=6, is_embed=None)
    data = {"pixels": SimpleNamespace(data=np.full((2, 3), pixel, np.float32))}
    request = a_request(41, name)
    request.mm_features = [SimpleNamespace(data=data, identifier="an-image", modality="image", mm_position=position)]
    return request


def test_a_stop_behind_an_image_is_found_with_the_same_image_only(sides: Any) -> None:
    """With another image, the stop before it is found, and nothing behind it."""
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window(), state(4))
    first = with_image("first", 1.0)
    scheduler.matched(first, 0)
    keys = scheduler.tracked["first"].keys.of(10)[0]
    # Windows and states for the stops at 16, before the image, and at 40.
    changes = have(scheduler, groups, keys, {0: range(10), 1: [1, 2, 3, 7, 8, 9], 2: [3, 9]})
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(group_changes=changes)}))
    assert scheduler.matched(with_image("the same", 1.0), 0) == (40, True)
    assert scheduler.matched(with_image("another", 2.0), 0) == (16, True)
    assert scheduler.matched(a_request(41, "without"), 0) == (16, True)
    # An image whose content is not in this process ends the keys before it.
    unknown = with_image("unknown", 1.0)
    unknown.mm_features[0].data = None
    assert scheduler.matched(unknown, 0) == (16, True)


def test_a_load_brings_what_vllm_does_not_have(sides: Any) -> None:
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window(), state(4))
    request = a_request(41)
    scheduler.matched(request, 0)
    keys = scheduler.tracked["one"].keys.of(10)[0]
    changes = have(scheduler, groups, keys, {0: range(10), 1: [7, 8, 9], 2: [9]})
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(group_changes=changes)}))
    assert scheduler.matched(request, 32) == (8, True)
    tables = (list(range(1, 11)), [0] * 7 + [21, 22, 23], [0] * 9 + [31])
    scheduler.allocated(request, SimpleNamespace(get_block_ids=lambda: tables), 8)
    (load,) = scheduler.orders(nothing()).group_loads
    full, windows, states = (group.name for group in groups)
    assert (load.stop, load.have[states]) == (40, 0)
    assert load.blocks == {full: [9, 10], windows: [22, 23], states: [31]}
    # A request whose load failed computes: vLLM asks again.
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(failed={"one"})}))
    assert scheduler.matched(request, 0) == (0, False)


def test_events_have_the_table_and_the_kind_of_their_group(sides: Any) -> None:
    """Keys of two groups are equal: a router tells them apart by the table."""
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window())
    scheduler.changes = sides.events.TierChanges()
    keys = scheduler._hashers[0].keys(list(range(16)))
    changes = have(scheduler, groups, keys, {0: [0], 1: [0]})
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(group_changes=changes)}))
    events = list(scheduler.changes.take())
    assert [(one.block_hashes, one.group_idx, one.kv_cache_spec_kind, one.kv_cache_spec_sliding_window) for one in events] == [
        ([keys[0]], 0, "full_attention", None), ([keys[0]], 1, "sliding_window", 10),
    ]
    cleared = {groups[1].name: [("cleared", "host", b"", None)]}
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(group_changes=cleared)}))
    (removed,) = scheduler.changes.take()
    assert (removed.block_hashes, removed.group_idx, removed.medium) == ([keys[0]], 1, "kvtile:host")


def test_states_are_stored_where_vllm_has_them(sides: Any) -> None:
    """vLLM 0.33 offers the states of a step with their blocks; the last state of a step is in the table."""
    scheduler, groups = a_scheduler(sides, state(8), spec(FullAttentionSpec, 8))
    request = a_request(33)
    scheduler.matched(request, 0)
    tables = ([0, 0, 0, 4, 5], list(range(11, 16)))
    request.computed = 0
    # The step passes the boundary before the last token, and vLLM has no state of it.
    (store,) = scheduler.orders(step_of(request, 33, tables, boundary_state_offloads={})).group_stores
    assert store.stop is None
    for name, scheduled, offers, block in (("two", 33, [(0, 32, 9)], None), ("three", 33, [(0, 9, 32)], 9), ("four", 32, [], 4)):
        other = a_request(33, name)
        scheduler.matched(other, 0)
        made = scheduler.orders(step_of(other, scheduled, tables, boundary_state_offloads={name: offers})).group_stores
        assert [order.blocks.get(groups[0].name) for order in made] == [None if block is None else ([block], 3)]
        assert [order.stop for order in made] == [None if block is None else 32]


def test_the_end_of_an_answer_is_stored_and_a_waiting_request_is_not(sides: Any) -> None:
    scheduler, groups = a_scheduler(sides, spec(FullAttentionSpec, 4), window())
    request = a_request(10)
    scheduler.matched(request, 0)
    tables = (list(range(1, 9)), list(range(11, 19)))
    scheduler.orders(step_of(request, 10, tables))
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(ended={"one": 1})}))
    request.all_token_ids += range(100, 112)
    request.num_output_tokens, request.num_computed_tokens = 12, 21  # type: ignore[attr-defined]
    assert scheduler.finished(request, tables)
    orders = scheduler.orders(nothing())
    (store,) = orders.group_stores
    assert (store.stop, store.blocks) == (20, {groups[1].name: ([13, 14, 15], 2)}) and orders.held == {"one"}
    other = a_request(10, "two")
    other.num_computed_tokens = 8  # type: ignore[attr-defined]
    scheduler.matched(other, 0)
    scheduler.loading.add("two")
    assert not scheduler.finished(other, tables)
    # The end of an answer that waits for a step is of weights that vLLM has replaced since.
    third = a_request(10, "three")
    scheduler.matched(third, 0)
    scheduler.orders(step_of(third, 10, tables))
    scheduler.take(sides.messages.Report({0: sides.messages.RankReport(ended={"three": 1})}))
    third.all_token_ids += range(200, 212)
    third.num_output_tokens, third.num_computed_tokens = 12, 21  # type: ignore[attr-defined]
    assert scheduler.finished(third, tables)
    scheduler.clear()
    orders = scheduler.orders(nothing())
    assert orders.clear and not orders.group_stores and orders.held == {"three"}
    assert "three" not in scheduler.announced


def test_stops_of_another_adapter_than_the_loaded_one_are_neither_stored_nor_loaded(
    sides: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HybridEngine(sides, 0, 1, MODELS["windows"](), None, monkeypatch)
    (worker,) = engine.workers
    monkeypatch.setattr(sides.group_worker, "LOADED", type(sides.group_worker.LOADED)())
    manager = type("Manager", (), {})()
    keys = {0: engine.scheduler._hashers[0].keys(list(range(12)))}
    blocks = {group.name: ([1, 2, 3], 0) for group in engine.groups}

    def store(digest: bytes) -> None:
        worker._start_store(sides.messages.GroupStoreOrder("one", keys, blocks, 12, (1, digest)))

    try:
        store(b"monday")
        assert not worker.stores and worker.take_report().without_room == {"one"}, "no adapter is loaded yet"
        sides.group_worker.LOADED.note(manager, 1, b"monday")
        store(b"tuesday")
        assert not worker.stores and worker.take_report().ended == {"one": 1}
        store(b"monday")
        worker.wait_for_stores({"one"})
        assert worker.cache.lookup(keys[0]).stop == 12
        into = {group.name: [5, 6, 7] for group in engine.groups}
        for digest, failed in ((b"tuesday", {"two"}), (b"monday", set())):
            worker._start_load(sides.messages.GroupLoadOrder("two", keys, 12, into, dict.fromkeys(into, 0), (1, digest)))
            while not worker.take_finished_loads(idle=True):
                pass
            assert worker.take_failed_requests() == failed
    finally:
        engine.close()


def test_models_and_settings_that_cannot_be_kept_are_refused(sides: Any) -> None:
    groups_of = sides.groups.groups_of
    ring = type("CircularBufferSpec", (SimpleNamespace,), {})
    refused = {
        "working memory": ring(block_size=4, prefix_cacheable=False),
        "CircularBufferSpec, which is not supported yet": spec(ring, 4),
        "enable prefix caching": spec(type("MambaSpec", (SimpleNamespace,), {}), 4, mamba_cache_mode="none", num_speculative_blocks=0),
        "speculative": spec(type("MambaSpec", (SimpleNamespace,), {}), 4, mamba_cache_mode="align", num_speculative_blocks=2),
    }
    for text, one in refused.items():
        with pytest.raises(kvtile.SettingsError, match=text):
            groups_of(config_of(spec(FullAttentionSpec, 4), one))
    # The CPU's reference backend for latents resumes with wrong answers, and vLLM switches prefix caching off for it.
    latents = groups_of(config_of(spec(MLAAttentionSpec, 4)))
    with pytest.raises(kvtile.SettingsError, match="MLA.*wrong answers after a cached prefix"):
        sides.layout.refuse_latents_that_do_not_resume(latents, False)
    sides.layout.refuse_latents_that_do_not_resume(latents, True)
    sides.layout.refuse_latents_that_do_not_resume(groups_of(config_of(spec(FullAttentionSpec, 4), window())), False)
    given = {"shared": "/mnt/kv", "shared_within": 1.0, "recompute_tokens_per_second": 1e4, "record": "trace", "http": 9090}
    for name, value in given.items():
        with pytest.raises(kvtile.SettingsError, match=name):
            sides.settings.Settings(**{name: value}).refuse_with_groups()
    sides.settings.Settings(host_gib=2, policy="lru", workers=1, salt="a", model="m", revision="r").refuse_with_groups()
    sides.settings.Settings(connect="/run/kv", workers=1).refuse_with_groups()


def test_one_table_that_keeps_all_tokens_is_one_group(sides: Any) -> None:
    """With vLLM's hybrid manager off, windows are in the table of full attention."""
    is_one = sides.groups.is_one_full_group
    assert is_one(config_of(spec(FullAttentionSpec, 4))) and is_one(config_of(spec(FullAttentionSpec, 4, sliding_window=10)))
    assert not is_one(config_of(window())) and not is_one(config_of(spec(FullAttentionSpec, 4), window()))
    assert not is_one(config_of(spec(MLAAttentionSpec, 4)))


def test_names_of_groups_do_not_depend_on_the_order_of_tables(sides: Any) -> None:
    one = config_of(window(), spec(FullAttentionSpec, 4))
    other = config_of(spec(FullAttentionSpec, 4), window())
    for kv, layers in ((one, ("model.layers.0.attn", "model.layers.1.attn")), (other, ("model.layers.1.attn", "model.layers.0.attn"))):
        for group, layer in zip(kv.kv_cache_groups, layers, strict=True):
            group.layer_names = [layer]
    names = [{group.name for group in sides.groups.groups_of(kv)} for kv in (one, other)]
    assert names[0] == names[1] and len(names[0]) == 2
