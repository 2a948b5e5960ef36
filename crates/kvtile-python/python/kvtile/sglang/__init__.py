"""kvtile as a storage backend of SGLang's HiCache.

SGLang loads it by ``--hicache-storage-backend dynamic`` and names it in ``--hicache-storage-backend-extra-config``.
"""

from __future__ import annotations

from kvtile.sglang._backend import KvtileHiCache

__all__ = ["KvtileHiCache"]
