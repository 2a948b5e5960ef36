"""Every option of the adapters with every odd value: it works, or a typed error names the option and what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmcache_side as side
import pytest
import sglang_pools as pools
from lmcache_side import AdapterSide
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from kvtile import KvtileError, SettingsError
from kvtile.lmcache import AdapterOptions
from kvtile.sglang._options import HiCacheOptions
from kvtile.vllm._tier_options import TierOptions

pytestmark = side.QUIET
LONG = "é" * 3000
# Values that some option may take; the engines are started with them.
EXTREME: tuple[Any, ...] = (
    1, 1 << 31, (1 << 63) - 1, 1e-300, 1e308, True, None, " ", "x", "\0", "\ud800", LONG, "64KiB",
)
ODD: tuple[Any, ...] = (
    *EXTREME, 0, -1, 1 << 63, 1 << 200, -(1 << 200), 1 << 2000, 0.5, -0.5, float("nan"), float("inf"), -float("inf"), False,
    "", "0", "-1", "1e3", "inf", "0x10", "١GiB", "9" * 400 + "TiB", b"x", [], ["x"], {}, {"x": 1},
)
KINDS: dict[str, Any] = {"vllm": TierOptions, "sglang": HiCacheOptions, "lmcache": AdapterOptions}
GIVEN: dict[str, Any] = {"path": "kv", "capacity": "1MiB", "revision": "r"}
# What errors of the store itself call an option.
CALLED = {"capacity": "bytes of disk", "path": "cannot make|folder", "staging": "bytes of memory", "shared": "folder"}


def options_of(*engines: str) -> list[tuple[str, str]]:
    """The options of some adapters."""
    return [(engine, field.name) for engine in engines for field in dataclasses.fields(KINDS[engine])]


def with_one(engine: str, name: str, value: Any) -> dict[str, Any]:
    """Options with one odd value, and those without which this one has no effect."""
    return {**GIVEN, **({"shared": "store"} if name.startswith("shared_") else {}), name: value}


@pytest.mark.parametrize(("engine", "name"), options_of("vllm", "sglang", "lmcache"))
def test_an_odd_value_is_read_or_refused_by_name(engine: str, name: str) -> None:
    refused = 0
    for value in ODD:
        try:
            KINDS[engine].read(with_one(engine, name, value))
        except SettingsError as error:
            refused += 1
            assert name in str(error) and len(str(error)) < 1000, str(error)
    assert refused >= 10


@pytest.mark.parametrize("engine", KINDS)
@pytest.mark.parametrize("name", ["x", "", "\ud800", LONG, "Path", "capacity ", 7, None])
def test_an_unknown_name_is_refused(engine: str, name: Any) -> None:
    with pytest.raises(SettingsError, match="which kvtile does not know") as refused:
        KINDS[engine].read({**GIVEN, name: 1})
    assert len(str(refused.value)) < 1500


def start_lmcache(options: dict[str, Any]) -> Callable[[], None]:
    config = side.PluginL2AdapterConfig("kvtile.lmcache", "KvtileL2Adapter", options)
    there = AdapterSide(side.create_l2_adapter(config))
    assert there.store(side.keys_of(1), side.objects_of(1, 4096))
    return there.close


def start_sglang(options: dict[str, Any]) -> Callable[[], None]:
    given = pools.config({**pools.entry(Path("kv")), **options})
    backend = StorageBackendFactory.create_backend("dynamic", given, None)
    backend.register_mem_pool_host(pools.mha("page_first"))
    try:
        backend.on_host_pools_registered()
        assert all(backend.batch_set_v1(pools.keys(1), pools.indices([0])))
    except BaseException:
        backend.close()
        raise
    close: Callable[[], None] = backend.close
    return close


STARTS = {"lmcache": start_lmcache, "sglang": start_sglang}


@pytest.mark.parametrize(("engine", "name"), options_of("sglang", "lmcache"))
def test_an_engine_starts_with_an_extreme_value_or_names_it(
    engine: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, value in enumerate(EXTREME):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        options = with_one(engine, name, value)
        if engine == "lmcache" and name != "piece":
            options["piece"] = 4096
        try:
            STARTS[engine](options)()
        except KvtileError as error:
            text = str(error)
            assert name in text or any(called in text for called in CALLED.get(name, "").split("|") if called), text


STORES = ["kv", "./kv", "kv/store", "file://{here}/kv/store", "{here}/kv/../kv"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("store", STORES)
def test_a_shared_store_in_the_private_folder_is_refused(
    engine: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="shared is .* a folder beside it"):
        KINDS[engine].read({**GIVEN, "shared": store.format(here=tmp_path)})
    for other in ("kvs", "file:///kv", "redis://kv", "s3://kv/kv"):
        KINDS[engine].read({**GIVEN, "shared": other})


@pytest.mark.parametrize(
    ("engine", "given", "text"),
    [
        ("vllm", dict(path=None, shared="store"), "capacity has no effect without path"),
        ("vllm", dict(path=None, shared="store", policy="lru"), "capacity, policy has no effect without path"),
        ("vllm", dict(shared_within=1), "shared_within has no effect without shared"),
        ("vllm", dict(shared="store", shared_bundle_blocks=65), "shared_bundle_blocks is 65; it takes 1 to 64"),
        ("sglang", dict(shared_compress=True), "shared_compress has no effect without shared"),
        ("sglang", dict(shared="store", shared_bundle_blocks=2), "shared_bundle_blocks, which this engine cannot have"),
        ("lmcache", dict(shared="store"), "have shared, which the adapter refuses"),
        ("lmcache", dict(piece=4095), "piece is 4095 bytes; it takes a multiple of 4096"),
    ],
)
def test_options_that_contradict_each_other_are_refused(engine: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        KINDS[engine].read({**GIVEN, **given})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(piece="2MiB"), "bytes of disk are too few for blocks of 2097152 bytes"),
        (dict(staging=4096, piece=4096), "4096 bytes of staging memory .* give at least 8192"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(given: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=text):
        AdapterSide.open(tmp_path / "kv", **{"capacity": "1MiB", **given})
