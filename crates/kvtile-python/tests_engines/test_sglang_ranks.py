"""Ranks of compressed KV: rank 0 writes one folder, and the others follow it in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

import sglang_pools as pools
from sglang_pools import created, indices, keys, same, values

# Seconds within which a follower must see what the writer has made durable.
SOON = 20.0


def until(found: Any, wanted: int) -> bool:
    """Whether a count reaches a value soon."""
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        if found() == wanted:
            return True
        time.sleep(0.05)
    return False


def test_other_ranks_find_what_rank_0_stores(tmp_path: Path) -> None:
    sides = [pools.mla("page_first"), pools.mla("layer_first"), pools.mla("page_first_direct")]
    reader = created(tmp_path, sides[1], is_mla=True, rank=1, size=3)
    assert reader.batch_exists(keys(4)) == 0 and reader.batch_get_v1(keys(1), indices([0])) == [False]
    pools.fill(sides[0], 1)
    writer = created(tmp_path, sides[0], is_mla=True, rank=0, size=3)
    assert writer.batch_set_v1(keys(4), indices([0, 1, 2, 3])) == [True] * 4 and writer.flush()
    late = created(tmp_path, sides[2], is_mla=True, rank=2, size=3)
    for backend, pool in ((reader, sides[1]), (late, sides[2])):
        assert until(lambda backend=backend: backend.batch_exists(keys(6)), 4)
        assert backend.batch_get_v1(keys(4), indices([5, 6, 7, 8])) == [True] * 4
        assert all(same(values(pool, page + 5), values(sides[0], page)) for page in range(4))
        assert not backend.clear() and backend.batch_set_v1(keys(1, 50), indices([0])) == [False]
    assert writer.batch_set_v1(keys(4, 4), indices([4, 5, 6, 7])) == [True] * 4 and writer.flush()
    assert until(lambda: reader.batch_exists(keys(8)), 8) and until(lambda: late.batch_exists(keys(8)), 8)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["shared"]
    for backend in (late, reader, writer):
        backend.close()


def test_another_number_of_ranks_finds_compressed_kv(tmp_path: Path) -> None:
    pool = pools.mla("page_first")
    pools.fill(pool, 1)
    backend = created(tmp_path, pool, is_mla=True)
    assert backend.batch_set_v1(keys(2), indices([0, 1])) == [True, True]
    backend.close()
    backend = created(tmp_path, pool, is_mla=True, rank=0, size=8)
    assert backend.batch_get_v1(keys(2), indices([5, 6])) == [True, True] and same(values(pool, 6), values(pool, 1))
    backend.close()


def test_states_of_each_rank_are_beside_the_shared_pages(tmp_path: Path) -> None:
    """The KV is replicated and rank 0 writes it; each rank writes its own recurrent states."""
    backends = []
    for rank in range(2):
        kv, state = pools.mla("page_first"), pools.mamba()
        pools.fill(state, rank)
        given = pools.config(pools.entry(tmp_path), rank=rank, size=2, is_mla=True)
        made = StorageBackendFactory.create_backend("dynamic", given, kv)
        made.register_mem_pool_host(kv)
        made.register_mem_host_pool_v2(state, PoolName.MAMBA)
        made.on_host_pools_registered()
        backends.append((made, state))
    for made, _ in backends:
        asked = PoolTransfer(
            name=PoolName.MAMBA, keys=keys(1), host_indices=torch.tensor([3]), hit_policy=PoolHitPolicy.TRAILING_PAGES
        )
        assert made.batch_set_v2([asked]) == {PoolName.MAMBA: [True]}
    for made, state in backends:
        asked = PoolTransfer(
            name=PoolName.MAMBA, keys=keys(1), host_indices=torch.tensor([5]), hit_policy=PoolHitPolicy.TRAILING_PAGES
        )
        assert made.batch_get_v2([asked]) == {PoolName.MAMBA: [True]} and same(values(state, 5), values(state, 3))
        made.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["shared", "tp0-of-2", "tp1-of-2"]


def test_a_reader_in_another_process_sees_no_other_bytes_while_the_writer_evicts(tmp_path: Path) -> None:
    script = f"""
import sys, pathlib, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sglang_pools as pools
pool = pools.mla("layer_first")
backend = pools.created(pathlib.Path({str(tmp_path)!r}), pool, is_mla=True, rank=1, size=2, capacity="1MiB")
came = 0
end = time.monotonic() + 8
while time.monotonic() < end:
    for start in range(0, 4000, 8):
        names = pools.keys(8, start)
        if not backend.batch_exists(names):
            continue
        for page, ok in enumerate(backend.batch_get_v1(names, pools.indices(list(range(8))))):
            if ok:
                came += 1
                wanted = (start + page) % 251
                assert all(bool((plane == wanted).all()) for plane in pools.values(pool, page)), (start, page)
print(came)
backend.close()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pool = pools.mla("page_first")
    backend = created(tmp_path, pool, is_mla=True, rank=0, size=2, capacity="1MiB")
    start = 0
    while process.poll() is None:
        for page in range(8):
            pool.kv_buffer.view(torch.uint8)[page * pools.PAGE : (page + 1) * pools.PAGE] = (start + page) % 251
        backend.batch_set_v1(keys(8, start), indices(list(range(8))))
        start = (start + 8) % 4000
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert int(out) > 0
    backend.close()
