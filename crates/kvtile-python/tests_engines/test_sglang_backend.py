"""The backend against SGLang's base class, factory, pools and controller."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorage, HiCacheStorageExtraInfo
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

import sglang_pools as pools
from kvtile import DiskError, FolderInUseError, IdentityError, KvtileError
from kvtile.sglang import KvtileHiCache
from sglang_pools import PAGE, created, indices, keys, same, values


def damage(folder: Path, every: int = 512) -> None:
    """Flips a bit in each part of the files with pages."""
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size >= 1 << 16:
            with file.open("r+b") as stream:
                for at in range(100, file.stat().st_size, every):
                    stream.seek(at)
                    byte = stream.read(1)
                    stream.seek(at)
                    stream.write(bytes([byte[0] ^ 0x40]))


def damage_page(folder: Path, needle: bytes) -> int:
    """Flips a bit of each place that has these bytes. The number of places."""
    places = 0
    for file in folder.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        at = data.find(needle)
        while at >= 0:
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(bytes([needle[0] ^ 1]))
            places, at = places + 1, data.find(needle, at + 1)
    return places


def test_the_signatures_are_those_of_the_base_class() -> None:
    for name, own in inspect.getmembers(KvtileHiCache, inspect.isfunction):
        base = getattr(HiCacheStorage, name, None)
        if base is None or name.startswith("_"):
            continue
        theirs = list(inspect.signature(base).parameters)
        assert list(inspect.signature(own).parameters)[: len(theirs)] == theirs, name
    assert not getattr(KvtileHiCache, "__abstractmethods__", None)


def test_pages_survive_a_restart(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    pools.fill(pool, 1)
    wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(4)]
    backend = created(tmp_path, pool)
    assert backend.batch_exists(keys(4)) == 0 and not backend.exists(keys(1)[0])
    assert backend.batch_get_v1(keys(4), indices([0, 1, 2, 3])) == [False] * 4
    assert backend.batch_set_v1(keys(4), indices([0, 1, 2, 3])) == [True] * 4
    assert backend.batch_set_v1(keys(4), indices([0, 1, 2, 3])) == [True] * 4
    backend.close()
    pools.fill(pool, 2)
    backend = created(tmp_path, pool)
    assert backend.batch_exists(keys(6)) == 4
    assert backend.batch_get_v1(keys(6), indices([4, 5, 6, 7, 8, 9])) == [True] * 4 + [False] * 2
    assert all(same(values(pool, page + 4), wanted[page]) for page in range(4))
    backend.close()


def test_copied_pages_are_the_same_pages(tmp_path: Path) -> None:
    """The interface without interface_v1, over SGLang's own copies."""
    for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
        pool = pools.mha(layout)
        pools.fill(pool, 1)
        backend = created(tmp_path / layout, pool)
        data = [pool.get_data_page(page * PAGE) for page in range(20 if layout == "page_head" else 3)][:15]
        names = keys(len(data))
        assert backend.batch_set(names, data)
        wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(len(data))]
        pools.fill(pool, 2)
        assert backend.batch_get_v1(names, indices(list(range(len(data))))) == [True] * len(data)
        assert all(same(values(pool, page), wanted[page]) for page in range(len(data)))
        pools.fill(pool, 3)
        targets = [pool.get_dummy_flat_data_page() for _ in range(len(data) + 1)]
        found = backend.batch_get(keys(len(data) + 1), targets)
        assert found[-1] is None and all(page is target for page, target in zip(found[:-1], targets, strict=False))
        for page, flat in enumerate(found[:-1]):
            pool.set_from_flat_data_page(page * PAGE, flat)
        assert all(same(values(pool, page), wanted[page]) for page in range(len(data)))
        assert backend.get(names[0]) is not None and backend.get("absent") is None
        assert backend.set("one more", data[0]) and backend.exists("one more")
        assert not backend.set("none") and not backend.set("short", data[0][:3])
        assert backend.get(names[0], data[0][:3]) is None
        backend.close()


def test_copied_pages_of_compressed_kv(tmp_path: Path) -> None:
    for layout in ("layer_first", "page_first", "page_first_direct"):
        pool = pools.mla(layout)
        pools.fill(pool, 1)
        backend = created(tmp_path / layout, pool, is_mla=True)
        assert backend.batch_set(keys(2), [pool.get_data_page(PAGE), pool.get_data_page(2 * PAGE)])
        wanted = [[tensor.clone() for tensor in values(pool, page)] for page in (1, 2)]
        pools.fill(pool, 2)
        assert backend.batch_get_v1(keys(2), indices([5, 6])) == [True, True]
        assert same(values(pool, 5), wanted[0]) and same(values(pool, 6), wanted[1])
        backend.close()


def test_more_copied_pages_than_the_buffer_has(tmp_path: Path) -> None:
    pool = pools.mha("page_first")
    backend = created(tmp_path, pool)
    data = [torch.full_like(pool.get_dummy_flat_data_page(), number) for number in range(50)]
    assert backend.batch_set(keys(50), data)
    found = backend.batch_get(keys(50), [pool.get_dummy_flat_data_page() for _ in range(50)])
    assert all(torch.equal(page, wanted) for page, wanted in zip(found, data, strict=True))
    backend.close()


@pytest.mark.parametrize("zero_copy", [True, False])
def test_sglangs_controller_stores_and_loads(tmp_path: Path, zero_copy: bool) -> None:
    """The controller's own functions for a backup and for a prefetch."""
    pool = pools.mha("page_first")
    pools.fill(pool, 1)
    backend = created(tmp_path, pool)
    own = pools.controller(backend, pool)
    for name in ("_page_set_zero_copy", "_page_get_zero_copy", "_generic_page_set", "_generic_page_get"):
        setattr(own, name, getattr(HiCacheController, name).__get__(own))
    own.page_set_func = own._page_set_zero_copy if zero_copy else own._generic_page_set
    own.page_get_func = own._page_get_zero_copy if zero_copy else own._generic_page_get
    own._page_transfer_kv_batch = HiCacheController._page_transfer_kv_batch.__get__(own)
    own.prefetch_sync_queue = SimpleNamespace(put=lambda ack: None)
    backup = SimpleNamespace(hash_value=keys(6), host_indices=indices(list(range(6))), prefix_keys=None, completed_tokens=0)
    HiCacheController._page_backup(own, backup)
    assert backup.completed_tokens == 6 * PAGE
    wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(6)]
    pools.fill(pool, 2)
    load = SimpleNamespace(
        hash_value=keys(8), host_indices=indices(list(range(8))), prefix_keys=[], pool_transfers=None, request_id="r",
        is_terminated=lambda: False,
    )
    assert HiCacheController._page_transfer(own, load) == 6
    assert all(same(values(pool, page), wanted[page]) for page in range(6))
    backend.close()


def test_a_flipped_bit_is_a_miss_until_stored_again(tmp_path: Path) -> None:
    pool = pools.mha("page_head")
    pools.fill(pool, 1)
    wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(4)]
    backend = created(tmp_path, pool)
    assert all(backend.batch_set_v1(keys(4), indices([0, 1, 2, 3]))) and backend.flush()
    # A stored page has the keys of layer 0, head 0 first.
    needle = bytes(wanted[2][0][0, :, 0].flatten().tolist())
    assert damage_page(tmp_path, needle) >= 1
    assert backend.batch_exists(keys(4)) == 4
    assert backend.batch_get_v1(keys(4), indices([8, 9, 10, 11])) == [True, True, False, True]
    assert same(values(pool, 8), wanted[0]) and same(values(pool, 11), wanted[3])
    assert backend.batch_exists(keys(4)) == 2 and backend.batch_get_v1(keys(4)[2:3], indices([8])) == [False]
    assert backend.batch_set_v1(keys(4)[2:3], indices([2])) == [True]
    assert backend.batch_exists(keys(4)) == 4 and backend.batch_get_v1(keys(4)[2:3], indices([12])) == [True]
    assert same(values(pool, 12), wanted[2])
    backend.close()


def test_damage_everywhere_serves_no_other_bytes(tmp_path: Path) -> None:
    pool = pools.mla("page_first")
    pools.fill(pool, 1)
    wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(8)]
    backend = created(tmp_path, pool, is_mla=True)
    assert all(backend.batch_set_v1(keys(8), indices(list(range(8)))))
    backend.close()
    damage(tmp_path)
    pools.fill(pool, 2)
    try:
        backend = created(tmp_path, pool, is_mla=True)
    except DiskError:
        return
    came = backend.batch_get_v1(keys(8), indices(list(range(8))))
    assert not all(came)
    assert all(same(values(pool, page), wanted[page]) for page, ok in enumerate(came) if ok)
    backend.close()


def test_sglangs_file_backend_serves_a_flipped_bit(tmp_path: Path) -> None:
    pool = pools.mha("page_first")
    pools.fill(pool, 1)
    backend = HiCacheFile(pools.config({"file_storage_path": str(tmp_path)}), str(tmp_path))
    assert backend.set("a", pool.get_data_page(0))
    damage_all = [file for file in tmp_path.iterdir() if file.suffix == ".bin"]
    data = bytearray(damage_all[0].read_bytes())
    data[10] ^= 0x40
    damage_all[0].write_bytes(data)
    page = backend.get("a", pool.get_dummy_flat_data_page())
    assert page is not None and not torch.equal(page.view(torch.uint8), pool.get_data_page(0).view(torch.uint8))


def test_indices_that_are_no_pages_are_misses(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    pools.fill(pool, 1)
    before = pool.kv_buffer.clone()
    backend = created(tmp_path, pool)
    assert all(backend.batch_set_v1(keys(2), indices([0, 1])))
    between = torch.arange(2, 2 + PAGE)
    assert backend.batch_get_v1(keys(2), torch.cat([between, indices([5])])) == [False, True]
    assert backend.batch_get_v1(keys(1), indices([16])) == [False]
    assert backend.batch_get_v1(keys(1), torch.tensor([-4, -3, -2, -1])) == [False]
    assert backend.batch_get_v1(keys(1), torch.tensor([20, 22, 21, 23])) == [False]
    assert backend.batch_get_v1(keys(2), indices([1])) == [False, False]
    assert backend.batch_set_v1(["x", "y"], torch.cat([between, indices([3])])) == [False, True]
    assert not backend.exists("x") and backend.exists("y")
    before[:, :, 5 * PAGE : 6 * PAGE] = before[:, :, PAGE : 2 * PAGE]
    assert torch.equal(pool.kv_buffer.view(torch.uint8), before.view(torch.uint8))
    backend.close()


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    pool = pools.mha("page_first_direct")
    backend = created(tmp_path, pool, capacity="1MiB")
    for start in range(0, 4096, 16):
        pools.fill(pool, start)
        backend.batch_set_v1(keys(16, start), indices(list(range(16))))
    backend.flush()
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file()) <= 1 << 20
    assert backend.batch_exists(keys(4096)) < 4096
    assert backend.batch_get_v1(keys(16, 4080), indices(list(range(16)))) == [True] * 16
    backend.close()


def test_prefix_keys_are_only_a_hint(tmp_path: Path) -> None:
    pool = pools.mha("page_first")
    backend = created(tmp_path, pool)
    info = HiCacheStorageExtraInfo(prefix_keys=keys(3))
    assert backend.batch_set_v1(keys(2, 3), indices([0, 1]), info) == [True, True]
    assert backend.batch_exists(keys(2, 3), info) == 2
    backend.close()


def test_a_killed_process_leaves_a_usable_folder(tmp_path: Path) -> None:
    script = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sglang_pools as pools
pool = pools.mha("page_first")
backend = pools.created(pathlib.Path({str(tmp_path)!r}), pool)
for start in range(0, 1 << 30, 8):
    pools.fill(pool, start // 8)
    backend.batch_set_v1(pools.keys(8, start), pools.indices(list(range(8))))
    if start == 800:
        backend.flush()
        print("flushed", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None and "flushed" in process.stdout.readline()
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    pool = pools.mha("page_first")
    backend = created(tmp_path, pool)
    assert backend.batch_exists(keys(800)) == 800
    for start in range(0, 800, 80):
        pools.fill(pool, start // 8)
        wanted = [[tensor.clone() for tensor in values(pool, page)] for page in range(8)]
        pools.fill(pool, 10**6)
        assert backend.batch_get_v1(keys(8, start), indices(list(range(8)))) == [True] * 8
        assert all(same(values(pool, page), wanted[page]) for page in range(8))
    backend.close()


def test_threads_at_once(tmp_path: Path) -> None:
    """SGLang's backup, prefetch and query threads, each with pages of its own."""
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    wrong: list[str] = []

    def work(number: int) -> None:
        mine = [number * 4 + page for page in range(4)]
        for round_ in range(40):
            for page in mine:
                pool.kv_buffer[:, :, page * PAGE : (page + 1) * PAGE] = number + 10 * (round_ % 20)
            names = [f"{number} {round_} {page}" for page in mine]
            if not all(backend.batch_set_v1(names, indices(mine))):
                wrong.append("not stored")
            pool.kv_buffer[:, :, mine[0] * PAGE : (mine[-1] + 1) * PAGE] = -1
            if backend.batch_exists(names) != 4 or not all(backend.batch_get_v1(names, indices(mine))):
                wrong.append("not loaded")
            if not bool((pool.kv_buffer[:, :, mine[0] * PAGE : (mine[-1] + 1) * PAGE] == number + 10 * (round_ % 20)).all()):
                wrong.append("other values")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    backend.close()


def test_closing_with_work_under_way(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    stop, problems = threading.Event(), []

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                backend.batch_set_v1(keys(8, number * 8), indices(list(range(8))))
                backend.batch_get_v1(keys(8, number * 8), indices(list(range(8))))
                backend.batch_exists(keys(8, number * 8))
            except BaseException as problem:
                problems.append(problem)
                return

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    backend.close()
    backend.close()
    time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert backend.batch_get_v1(keys(1), indices([0])) == [False] and backend.batch_exists(keys(1)) == 0
    assert not backend.clear() and not backend.set("a", pool.get_dummy_flat_data_page())
    created(tmp_path, pool).close()


def test_sglangs_memory_is_free_after_closing(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    assert all(backend.batch_set_v1(keys(2), indices([0, 1])))
    assert backend.batch_set(keys(1, 9), [pool.get_dummy_flat_data_page()])
    references = sys.getrefcount(pool.kv_buffer)
    backend.close()
    assert sys.getrefcount(pool.kv_buffer) <= references


def test_a_folder_is_for_one_engine(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    with pytest.raises(FolderInUseError):
        created(tmp_path, pool)
    backend.close()


def test_clear_removes_all_pages(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    assert all(backend.batch_set_v1(keys(4), indices([0, 1, 2, 3])))
    assert backend.clear()
    assert backend.batch_exists(keys(4)) == 0
    assert all(backend.batch_set_v1(keys(4), indices([0, 1, 2, 3]))) and backend.batch_exists(keys(4)) == 4
    backend.close()


def test_metrics_are_sglangs(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    backend = created(tmp_path, pool)
    backend.batch_set_v1(keys(4), indices([0, 1, 2, 3]))
    backend.batch_get_v1(keys(4), indices([0, 1, 2, 3]))
    metrics = backend.get_stats()
    assert metrics.backup_pgs == [4] and metrics.prefetch_pgs == [4]
    assert metrics.backup_bandwidth[0] > 0 and metrics.prefetch_bandwidth[0] > 0
    assert backend.get_stats().prefetch_pgs == []
    assert list(backend.store_stats()) == ["kv"]
    backend.close()


def test_ranks_have_folders_of_their_own(tmp_path: Path) -> None:
    sides = [(pools.mha("layer_first"), rank) for rank in range(2)]
    backends = [created(tmp_path, pool, rank=rank, size=2) for pool, rank in sides]
    for (pool, rank), backend in zip(sides, backends, strict=True):
        pools.fill(pool, rank)
        assert all(backend.batch_set_v1(keys(2), indices([0, 1])))
    for (pool, _), backend in zip(sides, backends, strict=True):
        wanted = [tensor.clone() for tensor in values(pool, 0)]
        assert backend.batch_get_v1(keys(1), indices([5])) == [True] and same(values(pool, 5), wanted)
        backend.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["tp0-of-2", "tp1-of-2"]
    alone = created(tmp_path, sides[0][0])
    assert alone.batch_exists(keys(2)) == 0
    alone.close()


@pytest.mark.parametrize("folder", ["a file", "/proc/kvtile"])
def test_a_folder_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").write_text("x")
    with pytest.raises(DiskError, match=folder):
        created(tmp_path / folder, pools.mha("layer_first"))


def test_a_full_disk_loses_pages_and_nothing_else(tmp_path: Path) -> None:
    script = f"""
import sys, pathlib, resource
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sglang_pools as pools
pool = pools.mha("page_first")
backend = pools.created(pathlib.Path({str(tmp_path)!r}), pool, stage_within=1, staging=1 << 20)
# Files cannot grow beyond this: a write fails as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
stored = []
for start in range(0, 800, 8):
    pool.kv_buffer.view(pools.torch.uint8)[:, : 8 * pools.PAGE] = start % 251
    stored += backend.batch_set_v1(pools.keys(8, start), pools.indices(list(range(8))))
backend.flush()
came = 0
for start in range(0, 800, 8):
    for page, ok in enumerate(backend.batch_get_v1(pools.keys(8, start), pools.indices(list(range(8, 16))))):
        came += ok
        if ok:
            assert all(bool((plane == start % 251).all()) for plane in pools.values(pool, page + 8))
assert 0 < came < 800, came
backend.close()
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.strip().endswith("closed"), done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(capcity="1GiB"), "capcity.*did you mean 'capacity'"),
        (dict(capacity="many"), "capacity"),
        (dict(capacity=True), "capacity"),
        (dict(capacity=None), "needs 'capacity'"),
        (dict(path=""), "path"),
        (dict(path=7), "path"),
        (dict(workers=0), "workers"),
        (dict(workers="2"), "workers"),
        (dict(stage_within=-1), "stage_within"),
        (dict(answer_within=float("inf")), "answer_within"),
        (dict(trust_adapter_paths="yes"), "trust_adapter_paths"),
        (dict(policy="oldest"), "policy"),
        (dict(capacity=1000), "capacity|bytes"),
    ],
)
def test_odd_options_are_refused_by_name(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    extra = pools.entry(tmp_path, **options)
    with pytest.raises(KvtileError, match=text):
        made = StorageBackendFactory.create_backend("dynamic", pools.config(extra), None)
        made.register_mem_pool_host(pools.mha("layer_first"))
        made.on_host_pools_registered()


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="revision"):
        created(tmp_path, pools.mha("layer_first"), revision=None)


def test_the_weights_of_a_folder_are_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(b"weights")

    def start() -> KvtileHiCache:
        extra = pools.entry(tmp_path / "kv", revision=None)
        made = StorageBackendFactory.create_backend("dynamic", pools.config(extra, model_name=str(model)), None)
        made.register_mem_pool_host(pools.mha("layer_first"))
        made.on_host_pools_registered()
        return made

    start().close()
    start().close()
    (model / "a.safetensors").write_bytes(b"Weights")
    with pytest.raises(IdentityError, match="revision"):
        start()


def test_calls_before_the_pools_are_registered_are_misses(tmp_path: Path) -> None:
    made = StorageBackendFactory.create_backend("dynamic", pools.config(pools.entry(tmp_path)), None)
    assert made.batch_exists(keys(1)) == 0 and made.batch_get_v1(keys(1), indices([0])) == [False]
    assert made.get("a") is None and not made.set("a", torch.zeros(3))
    made.close()


def test_it_opens_by_itself_if_sglang_does_not_report_the_pools(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    made = StorageBackendFactory.create_backend("dynamic", pools.config(pools.entry(tmp_path)), None)
    made.register_mem_pool_host(pool)
    assert all(made.batch_set_v1(keys(2), indices([0, 1]))) and made.batch_exists(keys(2)) == 2
    made.close()


def test_sglangs_failure_injector_wraps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.5")
    pool = pools.mha("layer_first")
    made = StorageBackendFactory.create_backend("dynamic", pools.config(pools.entry(tmp_path)), None)
    made.register_mem_pool_host(pool)
    made.on_host_pools_registered()
    stored = [all(made.batch_set_v1(keys(2, 2 * at), indices([0, 1]))) for at in range(60)]
    assert any(stored) and not all(stored)
    made.close()
