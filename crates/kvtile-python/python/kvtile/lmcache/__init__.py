"""kvtile as an L2 adapter of LMCache: its objects in a folder with checksums and a limit, also after a restart.

LMCache loads it by its module path::

    --l2-adapter '{"type": "plugin", "module_path": "kvtile.lmcache", "class_name": "KvtileL2Adapter",
                   "adapter_params": {"path": "/var/cache/kv", "capacity": "100GiB", "revision": "1"}}'
"""

from __future__ import annotations

from kvtile.lmcache._adapter import KvtileL2Adapter, KvtileL2AdapterConfig
from kvtile.lmcache._options import AdapterOptions

__all__ = ["AdapterOptions", "KvtileL2Adapter", "KvtileL2AdapterConfig"]
