"""The engines' own classes are importable without a GPU, so the other tests here run against them and not stand-ins."""

from __future__ import annotations

import importlib

import pytest

MODULES = [
    "sglang.srt.mem_cache.hicache_storage",
    "sglang.srt.mem_cache.storage.backend_factory",
    "sglang.srt.mem_cache.pool_host.mha",
    "sglang.srt.mem_cache.pool_host.mla",
    "sglang.srt.mem_cache.pool_host.mamba",
    "sglang.srt.managers.cache_controller",
    "lmcache.v1.distributed.l2_adapters.base",
    "lmcache.v1.distributed.l2_adapters.factory",
    "lmcache.v1.distributed.l2_adapters.native_plugin_l2_adapter",
    "lmcache.v1.distributed.l2_adapters.plugin_l2_adapter",
]


@pytest.mark.parametrize("name", MODULES)
def test_an_engine_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__name__ == name
