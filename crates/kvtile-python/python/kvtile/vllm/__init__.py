"""kvtile in vLLM: a connector that keeps KV in host memory and on disk, and a tier below vLLM's own offloading.

vLLM itself loads ``KvtileConnector``, for engines on machines without a GPU::

    from vllm import LLM
    from vllm.config import KVTransferConfig

    llm = LLM(
        "meta-llama/Llama-3.2-1B",
        kv_transfer_config=KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config={"host_gib": 4, "disk_path": "/var/cache/kv", "disk_gib": 100},
        ),
    )

:class:`kvtile.vllm.Settings` documents the settings. :mod:`kvtile.vllm.tier` is the tier, for engines with a GPU. Using
a name of this module imports vLLM; importing the module does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtile.vllm._connector import KvtileConnector
    from kvtile.vllm._settings import Settings
    from kvtile.vllm._stats import KvtileStats

__all__ = ["KvtileConnector", "KvtileStats", "Settings"]

_MODULES = {"KvtileConnector": "_connector", "KvtileStats": "_stats", "Settings": "_settings"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
