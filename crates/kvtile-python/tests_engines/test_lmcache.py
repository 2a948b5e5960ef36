"""kvtile as an L2 adapter of LMCache: what LMCache's own classes see."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import lmcache_side as side
import pytest
from lmcache_side import PIECE, SIZE, AdapterSide, RecordingListener

import kvtile
from kvtile.lmcache import AdapterOptions, KvtileL2Adapter, KvtileL2AdapterConfig

pytestmark = side.QUIET
there = side.there


@pytest.mark.parametrize("elements", [1, 700, 1024, 2048, 2041, 5000])
@pytest.mark.parametrize("again", [False, True])
def test_lmcaches_own_check_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], elements: int, again: bool
) -> None:
    params = {"path": str(tmp_path / "kv"), "capacity": "4MiB", "revision": "one", "piece": PIECE}
    spec = {"type": "plugin", "module_path": "kvtile.lmcache", "class_name": "KvtileL2Adapter"}
    adapters = [json.dumps(spec | {"adapter_params": params})]
    for _ in range(1 + again):
        asyncio.run(side.run_test_mode("a/model", l2_adapter=adapters, obj_size=elements, num_keys=5))
        shown = capsys.readouterr().out
        assert "5/5 correctly absent" in shown or again
        for line in ("Batch store OK", "5/5 found", "(loaded): 5/5", "(content): 5/5"):
            assert line in shown, shown


def test_the_adapter_is_a_plugin_with_three_descriptors(there: AdapterSide) -> None:
    adapter = there.adapter
    assert isinstance(adapter, KvtileL2Adapter)
    descriptors = {
        adapter.get_store_event_fd(),
        adapter.get_lookup_and_lock_event_fd(),
        adapter.get_load_event_fd(),
    }
    assert len(descriptors) == 3
    assert adapter.supports_global_eviction
    assert adapter.report_status()["is_healthy"] is True


def test_objects_of_many_sizes_come_back(there: AdapterSide) -> None:
    sizes = [1, 47, PIECE - 48, PIECE - 47, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + PIECE - 10, 100_003]
    keys, objects = side.keys_of(len(sizes)), [side.object_of(size) for size in sizes]
    assert there.store(keys, objects)
    into = [side.object_of(size, content=0xA5) for size in sizes]
    assert there.fetch(keys, into) == [True] * len(sizes)
    assert all(map(side.same, objects, into))


def test_two_groups_of_two_sizes_in_one_task(there: AdapterSide) -> None:
    keys = [side.key_of(7, group=0), side.key_of(7, group=1), side.key_of(8, group=0)]
    objects = [side.object_of(SIZE), side.object_of(2 * SIZE), side.object_of(SIZE)]
    assert there.store(keys, objects)
    into = [side.object_of(SIZE, content=0), side.object_of(2 * SIZE, content=0), side.object_of(SIZE, content=0)]
    assert there.fetch(keys, into) == [True, True, True]
    assert all(map(side.same, objects, into))


def test_model_rank_group_hash_and_salt_are_the_key(there: AdapterSide) -> None:
    keys = [
        side.key_of(1),
        side.key_of(2),
        side.key_of(1, model="another/model"),
        side.key_of(1, group=1),
        side.key_of(1, salt="tenant"),
    ]
    assert there.store(keys[:1], [side.object_of()])
    assert there.find(keys) == [True, False, False, False, False]


def test_absent_objects_are_not_loaded(there: AdapterSide) -> None:
    key, into = side.key_of(1), side.object_of(content=0xA5)
    assert there.load([key], [into]) == [False]
    assert there.status("load_failed_absent") == 1


def test_the_same_bytes_as_another_dtype_are_a_miss(there: AdapterSide) -> None:
    torch = side.torch
    key = side.key_of(1)
    assert there.store([key], [side.object_of(dtype=torch.bfloat16)])
    assert there.fetch([key], [side.object_of(dtype=torch.float16, content=0)]) == [False]
    assert there.status("load_failed_other_form") == 1
    assert there.find([key]) == [False], "LMCache would find and fail to load it for ever"
    stored = side.object_of(dtype=torch.float16)
    assert there.store([key], [stored])
    into = side.object_of(dtype=torch.float16, content=0)
    assert there.fetch([key], [into]) == [True]
    assert side.same(stored, into)


def test_a_larger_object_is_no_hit_for_a_smaller_one(there: AdapterSide) -> None:
    key = side.key_of(1)
    assert there.store([key], [side.object_of(SIZE)])
    assert there.fetch([key], [side.object_of(SIZE - 512, content=0)]) == [False]


def test_storing_again_with_another_form_replaces(there: AdapterSide) -> None:
    key, smaller = side.key_of(1), side.object_of(SIZE - 512)
    assert there.store([key], [side.object_of(SIZE)])
    assert there.store([key], [smaller])
    into = side.object_of(SIZE - 512, content=0)
    assert there.fetch([key], [into]) == [True]
    assert side.same(smaller, into)


def test_narrowed_objects_keep_their_used_bytes(there: AdapterSide) -> None:
    key, stored, into = side.key_of(1), side.object_of(), side.object_of(content=0xA5)
    stored.set_used_size(SIZE - 700)
    assert there.store([key], [stored])
    assert there.fetch([key], [into]) == [True]
    assert side.torch.equal(into.raw_data[: SIZE - 700], stored.raw_data[: SIZE - 700])
    assert set(into.raw_data[SIZE - 700 :].tolist()) == {0xA5}


def test_storing_twice_counts_once(there: AdapterSide) -> None:
    listener = RecordingListener()
    there.adapter.register_listener(listener)
    key, stored = side.key_of(1), side.object_of()
    assert there.store([key, key], [stored, stored])
    assert there.store([key], [stored])
    assert there.used() == 4 * PIECE
    assert listener.sizes == {key: 4 * PIECE}
    assert there.status("present") == 1


def test_two_tasks_at_once(there: AdapterSide) -> None:
    keys, objects = side.keys_of(20), side.objects_of(20)
    assert there.store(keys[:10], objects[:10])
    into = side.empties_of(10)
    loading = there.adapter.submit_load_task(keys[:10], into)
    again = side.empties_of(10)
    loading_again = there.adapter.submit_load_task(keys[:10], again)
    assert there.store(keys[10:], objects[10:])
    assert there.loaded(loading, 10) == [True] * 10
    assert there.loaded(loading_again, 10) == [True] * 10
    assert all(map(side.same, objects[:10], into))
    assert all(map(side.same, objects[:10], again))


def test_each_task_ends_once(there: AdapterSide) -> None:
    adapter = there.adapter
    task = adapter.submit_lookup_and_lock_task(side.keys_of(3), {})
    query = adapter.query_lookup_and_lock_result
    there.bitmap(adapter.get_lookup_and_lock_event_fd(), lambda: query(task), 3)
    assert query(task) is None
    assert there.load([], []) == []
    assert there.lookup([]) == []
    assert there.store([], [])


def test_more_objects_than_the_buffer_holds(tmp_path: Path) -> None:
    piece = 16 << 20
    there = AdapterSide.open(tmp_path / "kv", capacity="400MiB", piece=piece, staging="128MiB")
    keys, objects = side.keys_of(9), side.objects_of(9, 5000)
    assert there.store(keys, objects)
    into = side.empties_of(9, 5000)
    assert there.fetch(keys, into) == [True] * 9
    assert all(map(side.same, objects, into))
    there.close()


def test_deleting(there: AdapterSide) -> None:
    listener = RecordingListener()
    there.adapter.register_listener(listener)
    keys = side.keys_of(3)
    assert there.store(keys, side.objects_of(3))
    there.adapter.delete([*keys[:2], side.key_of(99)])
    assert there.find(keys) == [False, False, True]
    assert listener.deleted == keys[:2]
    assert there.used() == 4 * PIECE


def test_deleting_a_locked_object_waits_for_its_last_unlock(there: AdapterSide) -> None:
    key, stored, into = side.key_of(1), side.object_of(), side.object_of(content=0)
    assert there.store([key], [stored])
    assert there.lookup([key]) == [True]
    assert there.lookup([key]) == [True]
    there.adapter.delete([key])
    assert there.find([key]) == [False], "a deleted object is not found again"
    there.adapter.submit_unlock([key])
    assert there.load([key], [into]) == [True]
    assert side.same(stored, into)
    there.adapter.submit_unlock([key])
    side.wait_until(lambda: there.used() == 0, "the object is deleted")
    assert there.status("locked") == 0


def test_unlocking_what_is_not_locked_does_nothing(there: AdapterSide) -> None:
    there.adapter.submit_unlock(side.keys_of(3))
    assert there.find(side.keys_of(1)) == [False]
    assert there.status("locked") == 0
    assert there.status("errors") == 0


def test_usage_by_salt_and_listing(there: AdapterSide) -> None:
    keys = [side.key_of(1), side.key_of(2, salt="tenant"), side.key_of(3, model="b/model", salt="tenant")]
    assert there.store(keys, side.objects_of(3))
    usage = there.adapter.get_usage()
    assert dict(usage.bytes_by_cache_salt) == {"": 4 * PIECE, "tenant": 8 * PIECE}
    assert 2 << 20 < usage.total_capacity_bytes < 4 << 20
    first = there.adapter.list_l2_keys(page_size=2)
    assert [entry.size_bytes for entry in first.entries] == [SIZE, SIZE]
    second = there.adapter.list_l2_keys(page_size=2, cursor=first.next_page_token)
    listed = [entry.key.to_object_key() for entry in (*first.entries, *second.entries)]
    assert set(listed) == set(keys)
    assert second.next_page_token is None
    alone = there.adapter.list_l2_keys(model_name="b/model")
    assert [entry.key.to_object_key() for entry in alone.entries] == keys[2:]


def test_a_failing_listener_does_not_fail_the_task(there: AdapterSide) -> None:
    class Failing(RecordingListener):
        def on_l2_keys_stored(self, keys: list[side.ObjectKey], sizes: list[int]) -> None:
            raise RuntimeError("listener")

    there.adapter.register_listener(Failing())
    assert there.store(side.keys_of(1), side.objects_of(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capcity": "1GiB"}, "did you mean 'capacity'"),
        ({"capacity": "1 gibibyte"}, "capacity is '1 gibibyte'"),
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": True}, "capacity is True"),
        ({"piece": 5000}, "multiple of 4096"),
        ({"workers": "two"}, "workers is 'two'; it takes int"),
        ({"workers": True}, "workers is True"),
        ({"workers": 0}, "above 0"),
        ({"close_within": float("inf")}, "above 0"),
        ({"path": 7}, "path is 7"),
        ({"path": ""}, "it takes the path of a folder"),
        ({"revision": ""}, "revision is empty"),
        ({"policy": "fifo"}, "fifo"),
        ({"capacity": "20kB"}, "too few for blocks of 4096 bytes"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        AdapterSide.open(tmp_path / "kv", **settings)
    assert isinstance(refused.value, kvtile.SettingsError)


@pytest.mark.parametrize("name", ["path", "capacity", "revision"])
def test_required_options(name: str) -> None:
    params = {"path": "anywhere", "capacity": "1GiB", "revision": "one"}
    del params[name]
    with pytest.raises(kvtile.SettingsError, match=f"need '{name}'"):
        side.create_l2_adapter(side.PluginL2AdapterConfig("kvtile.lmcache", "KvtileL2Adapter", params))


def test_help_lists_every_option() -> None:
    shown = KvtileL2AdapterConfig.help().splitlines()
    names = [line.split()[1] for line in shown[1:]]
    assert names == [field.name for field in dataclasses.fields(AdapterOptions)]
    assert all(line.rstrip().endswith(".") for line in shown[1:])


def test_a_folder_has_one_piece_size_and_revision(tmp_path: Path) -> None:
    AdapterSide.open(tmp_path / "kv", revision="one").close()
    with pytest.raises(kvtile.KvtileError):
        AdapterSide.open(tmp_path / "kv", revision="two")
    with pytest.raises(kvtile.KvtileError):
        AdapterSide.open(tmp_path / "kv", revision="one", piece=2 * PIECE)
    AdapterSide.open(tmp_path / "kv", revision="one").close()


def test_a_folder_in_use_is_refused(tmp_path: Path, there: AdapterSide) -> None:
    with pytest.raises(kvtile.FolderInUseError):
        AdapterSide.open(tmp_path / "kv")


@pytest.mark.parametrize("name", ["shared", "shared_within"])
def test_a_shared_store_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(kvtile.SettingsError, match=f"{name}, which the adapter refuses: .*gains and loses"):
        AdapterOptions.read({"path": "/kv", "capacity": 1, "revision": "1", name: "/mnt/kv"})
