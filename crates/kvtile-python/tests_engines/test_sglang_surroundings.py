"""What surrounds SGLang's backend: other processes, a folder that is removed, large batches, an upgrade of SGLang."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import sglang_pools as pools
from folder_holder import held
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang_pools import created, indices, keys, same, values

import kvtile


def test_a_folder_of_another_process_is_refused_by_its_number(tmp_path: Path) -> None:
    with held(tmp_path / "tp0-of-1") as pid, pytest.raises(kvtile.FolderInUseError, match=f"by process {pid}"):
        created(tmp_path, pools.mha("layer_first"))


def test_a_removed_folder_loses_pages_and_serves_no_other_bytes(tmp_path: Path) -> None:
    pool = pools.mha("page_first")
    pools.fill(pool, 1)
    wanted = [values(pool, page) for page in range(4)]
    wanted = [[tensor.clone() for tensor in page] for page in wanted]
    backend = created(tmp_path / "kv", pool)
    assert all(backend.batch_set_v1(keys(4), indices([0, 1, 2, 3])))
    assert backend.flush()
    shutil.rmtree(tmp_path / "kv")
    backend.batch_set_v1(keys(4, 10), indices([0, 1, 2, 3]))
    assert not backend.flush()
    came = backend.batch_get_v1(keys(4), indices([8, 9, 10, 11]))
    assert all(same(values(pool, 8 + at), wanted[at]) for at, ok in enumerate(came) if ok)
    assert backend.counts()["errors"] == 0
    backend.close()
    again = created(tmp_path / "kv", pool)
    assert again.batch_exists(keys(4)) == 0
    assert all(again.batch_set_v1(keys(4), indices([0, 1, 2, 3])))
    assert all(again.batch_get_v1(keys(4), indices([8, 9, 10, 11])))
    again.close()


def test_thousands_of_keys_in_one_batch(tmp_path: Path) -> None:
    """SGLang's batches have 128 pages at most; lookups may have more keys than the pool has pages."""
    pool = pools.mha("page_first")
    backend = created(tmp_path, pool)
    pages = pools.TOKENS // pools.PAGE
    assert all(backend.batch_set_v1(keys(pages), indices(list(range(pages)))))
    assert backend.batch_exists(keys(5000)) == pages
    found = backend.batch_exists_v2(keys(5000))
    assert found.kv_hit_pages == pages and found.restorable_prefix_pages == list(range(1, pages + 1))
    assert sum(backend.batch_get_v1(keys(5000), indices([0] * 5000))) <= 1
    assert backend.counts()["errors"] == 0
    backend.close()


@pytest.mark.parametrize("seconds", [0, 2**33], ids=["1970", "2242"])
def test_ranks_follow_a_writer_whose_clock_jumps(tmp_path: Path, seconds: int) -> None:
    writer_pool, reader_pool = pools.mla("page_first"), pools.mla("page_first")
    pools.fill(writer_pool, 1)
    writer = created(tmp_path, writer_pool, rank=0, size=2, is_mla=True)
    reader = created(tmp_path, reader_pool, rank=1, size=2, is_mla=True)
    for first in (0, 4, 8):
        assert all(writer.batch_set_v1(keys(2, first), indices([first, first + 1]))) and writer.flush()
        for file in (tmp_path / "shared").iterdir():
            os.utime(file, (seconds + first, seconds + first))
        end = time.monotonic() + 60
        while reader.batch_exists(keys(2, first)) < 2:
            assert time.monotonic() < end, "the reader does not see the writer's pages"
            time.sleep(0.02)
        assert reader.batch_get_v1(keys(2, first), indices([first, first + 1])) == [True, True]
        assert same(values(reader_pool, first), values(writer_pool, first))
        time.sleep(0.05)
    reader.close()
    writer.close()


def test_an_upgrade_of_sglang_keeps_heads_and_refuses_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of heads is known, so those of another version are served; states are bytes of one version."""
    import sglang

    def with_states(folder: Path) -> Any:
        made = StorageBackendFactory.create_backend("dynamic", pools.config(pools.entry(folder)), None)
        made.register_mem_pool_host(pools.mha("page_first"))
        made.register_mem_host_pool_v2(pools.mamba(), PoolName.MAMBA)
        made.on_host_pools_registered()
        return made

    pool = pools.mha("page_first")
    backend = created(tmp_path / "heads", pool)
    assert backend.batch_set_v1(keys(1), indices([0])) == [True]
    backend.close()
    with_states(tmp_path / "states").close()
    monkeypatch.setattr(sglang, "__version__", "99.0")
    backend = created(tmp_path / "heads", pool)
    assert backend.batch_get_v1(keys(1), indices([1])) == [True]
    backend.close()
    with pytest.raises(kvtile.IdentityError, match=r"(?s)sglang\.version.*99\.0|99\.0.*sglang\.version"):
        with_states(tmp_path / "states")
