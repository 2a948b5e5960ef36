"""A page that was stored from one order of SGLang's host memory loads into every other one, with equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile
from sglang.srt.mem_cache.memory_pool_host import DeepSeekV4PagedHostPool

import sglang_pools as pools
from kvtile import IdentityError, SettingsError
from sglang_pools import MHA_LAYOUTS, MLA_LAYOUTS, PAGE, created, indices, keys, same, values

PAIRS = [
    *[(False, one, other) for one in MHA_LAYOUTS for other in MHA_LAYOUTS],
    *[(True, one, other) for one in MLA_LAYOUTS for other in MLA_LAYOUTS],
]
# page_unified with groups of one head, of two, and of all.
GROUPS = [1, 2, pools.HEADS]


def pool_of(is_mla: bool, layout: str, **options: Any) -> Any:
    return pools.mla(layout) if is_mla else pools.mha(layout, **options)


@pytest.mark.parametrize(("is_mla", "written", "read"), PAIRS)
def test_a_folder_serves_every_layout(tmp_path: Path, is_mla: bool, written: str, read: str) -> None:
    source = pool_of(is_mla, written)
    pools.fill(source, 1)
    names = keys(5)
    backend = created(tmp_path, source, is_mla=is_mla)
    assert backend.batch_set_v1(names, indices([3, 0, 7, 15, 4])) == [True] * 5
    expected = [values(source, page) for page in (3, 0, 7, 15, 4)]
    backend.close()
    target = pool_of(is_mla, read)
    pools.fill(target, 2)
    untouched = values(target, 5)
    backend = created(tmp_path, target, is_mla=is_mla)
    assert backend.batch_exists(names) == 5
    assert backend.batch_get_v1(names, indices([9, 8, 1, 2, 0])) == [True] * 5
    for page, wanted in zip((9, 8, 1, 2, 0), expected, strict=True):
        assert same(values(target, page), wanted)
    assert same(values(target, 5), untouched)
    backend.close()


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_of_heads_are_the_same_pages(tmp_path: Path, groups: int) -> None:
    source, target = pools.mha("page_unified", groups=groups), pools.mha("layer_first")
    pools.fill(source, 1)
    backend = created(tmp_path, source)
    assert all(backend.batch_set_v1(keys(2), indices([1, 2])))
    backend.close()
    backend = created(tmp_path, target)
    assert all(backend.batch_get_v1(keys(2), indices([5, 6])))
    assert same(values(target, 5), values(source, 1)) and same(values(target, 6), values(source, 2))
    backend.close()


@pytest.mark.parametrize("written", ["page_first", "page_first_direct"])
@pytest.mark.parametrize("read", ["page_first", "page_first_direct"])
def test_keys_and_values_of_unequal_width(tmp_path: Path, written: str, read: str) -> None:
    source, target = pools.mha(written, value=8), pools.mha(read, value=8)
    pools.fill(source, 1)
    backend = created(tmp_path, source)
    assert all(backend.batch_set_v1(keys(2), indices([1, 2])))
    backend.close()
    backend = created(tmp_path, target)
    assert all(backend.batch_get_v1(keys(2), indices([5, 6])))
    assert same(values(target, 5), values(source, 1))
    backend.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn, torch.uint8])
def test_other_data_types_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    pool = pools.mha("page_first", dtype)
    pools.fill(pool, 1)
    wanted = values(pool, 2)
    backend = created(tmp_path, pool, kv_cache_dtype="fp8_e4m3")
    assert all(backend.batch_set_v1(keys(1), indices([2])))
    pools.fill(pool, 2)
    assert all(backend.batch_get_v1(keys(1), indices([9])))
    assert same(values(pool, 9), wanted)
    backend.close()


def test_bytes_without_a_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="kv_cache_dtype"):
        created(tmp_path, pools.mha("page_first", torch.uint8))


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (dict(dtype=torch.float16), "dtype"),
        (dict(heads=2), "heads|planes"),
        (dict(layers=2), "layers"),
        (dict(page=8), "page"),
    ],
)
def test_a_folder_of_other_pages_is_refused_by_field(tmp_path: Path, other: dict[str, Any], field: str) -> None:
    created(tmp_path, pools.mha("layer_first")).close()
    with pytest.raises(IdentityError, match=field):
        created(tmp_path, pools.mha("layer_first", **other))


def test_fp8_variants_differ_although_both_are_bytes(tmp_path: Path) -> None:
    created(tmp_path, pools.mha("layer_first", torch.uint8), kv_cache_dtype="fp8_e4m3").close()
    with pytest.raises(IdentityError, match="dtype"):
        created(tmp_path, pools.mha("layer_first", torch.uint8), kv_cache_dtype="fp8_e5m2")


def test_other_weights_are_refused_by_field(tmp_path: Path) -> None:
    created(tmp_path, pools.mha("layer_first")).close()
    with pytest.raises(IdentityError, match="revision"):
        created(tmp_path, pools.mha("layer_first"), revision="other weights")


def test_a_pool_without_a_word_is_refused_by_name(tmp_path: Path) -> None:
    pool = pools.mha("layer_first")
    pool.layout = "page_of_tomorrow"
    with pytest.raises(SettingsError, match="page_of_tomorrow"):
        created(tmp_path, pool)

    class PoolOfTomorrow(type(pool)):  # type: ignore[misc]
        pass

    pool = pools.mha("layer_first")
    pool.__class__ = PoolOfTomorrow
    with pytest.raises(SettingsError, match="PoolOfTomorrow"):
        created(tmp_path, pool)


def test_sglangs_file_backend_serves_another_layout_with_other_bytes(tmp_path: Path) -> None:
    """The contrast: SGLang's own backend has no layout in its names and no checksum."""
    source, target = pools.mha("layer_first"), pools.mha("page_first")
    pools.fill(source, 1)
    backend = HiCacheFile(pools.config({"file_storage_path": str(tmp_path)}), str(tmp_path))
    assert backend.set("a", source.get_data_page(PAGE))
    page = backend.get("a", target.get_dummy_flat_data_page())
    assert page is not None
    target.set_from_flat_data_page(2 * PAGE, page)
    assert not same(values(target, 2), values(source, 1))


def rows_pool(layout: str, layers: int, name: str = "deepseek_v4_c4") -> Any:
    """A pool of DeepSeek V4's compressed rows."""
    device = [torch.zeros(8, 24, dtype=torch.uint8) for _ in range(layers)]
    return DeepSeekV4PagedHostPool(name, device, 24, 8, PAGE, layout, pin_memory=False)


def row_of(pool: Any, page: int) -> torch.Tensor:
    """(layer, byte) of a page, by SGLang's own function."""
    return pool.get_data_page(page * PAGE).reshape(pool.layer_num, 24).clone()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("written", ["layer_first", "page_first", "page_first_direct"])
@pytest.mark.parametrize("read", ["layer_first", "page_first", "page_first_direct"])
def test_rows_of_compressed_kv_serve_every_layout(tmp_path: Path, layers: int, written: str, read: str) -> None:
    source, target = rows_pool(written, layers), rows_pool(read, layers)
    pools.fill(source, 1)
    backend = created(tmp_path, source)
    assert backend.batch_set_v1(keys(2), indices([1, 2])) == [True, True]
    backend.close()
    backend = created(tmp_path, target)
    assert backend.batch_get_v1(keys(2), indices([5, 6])) == [True, True]
    assert torch.equal(row_of(target, 5), row_of(source, 1)) and torch.equal(row_of(target, 6), row_of(source, 2))
    backend.close()


def test_rows_of_another_pool_are_refused(tmp_path: Path) -> None:
    created(tmp_path, rows_pool("page_first", 3)).close()
    with pytest.raises(IdentityError):
        created(tmp_path, rows_pool("page_first", 3, "deepseek_v4_c128"))
