"""KV cache blocks of language models, in any layout and any memory, moved at the speed of the memory.

``Layout`` describes where an engine's KV lies in its own tensors. ``copy_blocks`` moves blocks between layouts;
``plan`` computes a copy without running it. ``Cache`` keeps blocks in host memory and on disk, and serves them only to
engines of the same ``Identity``. ``BlockStore`` keeps blocks of memory that an engine owns on disk. Every exception of kvtile is a ``KvtileError``; only a call with a missing,
superfluous or unknown argument raises Python's own ``TypeError``.
"""

from __future__ import annotations

import atexit as _atexit

from kvtile import _errors, _kvtile
from kvtile._errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    DiskError,
    FolderInUseError,
    ForkError,
    HttpServerError,
    IdentityError,
    InternalError,
    KvtileError,
    LaggedError,
    LayoutError,
    PublishError,
    RequestError,
    SettingsError,
    SharedTierError,
    TensorError,
    TransferError,
    WaitTimeoutError,
)
from kvtile._kvtile import (
    STORAGE_WORD,
    BlockOutcomes,
    BlockStore,
    Cache,
    Completion,
    Event,
    EventPublisher,
    EvictionOrder,
    FlushReport,
    HttpServer,
    Identity,
    Layout,
    LoadReport,
    Match,
    Plan,
    Plane,
    Seek,
    Shape,
    Snapshot,
    StoreFlush,
    StoreGroup,
    StoreQuery,
    StoreReport,
    StoreRows,
    Subscriber,
    TierDirectory,
    TokenHasher,
    TokenSequence,
    TraceRecorder,
    TransferReport,
    __version__,
    block_key,
    copy_blocks,
    copy_blocks_async,
    plan,
    serve_http,
)
from kvtile._shared import SharedTier

__all__ = [
    "STORAGE_WORD",
    "ArgumentError",
    "BlockOutcomes",
    "BlockStore",
    "BusyError",
    "Cache",
    "ClosedError",
    "Completion",
    "DiskError",
    "Event",
    "EventPublisher",
    "EvictionOrder",
    "FlushReport",
    "FolderInUseError",
    "ForkError",
    "HttpServer",
    "HttpServerError",
    "Identity",
    "IdentityError",
    "InternalError",
    "KvtileError",
    "LaggedError",
    "Layout",
    "LayoutError",
    "LoadReport",
    "Match",
    "Plan",
    "Plane",
    "PublishError",
    "RequestError",
    "Seek",
    "SettingsError",
    "Shape",
    "SharedTier",
    "SharedTierError",
    "Snapshot",
    "StoreFlush",
    "StoreGroup",
    "StoreQuery",
    "StoreReport",
    "StoreRows",
    "Subscriber",
    "TensorError",
    "TierDirectory",
    "TokenHasher",
    "TokenSequence",
    "TraceRecorder",
    "TransferError",
    "TransferReport",
    "WaitTimeoutError",
    "__version__",
    "block_key",
    "copy_blocks",
    "copy_blocks_async",
    "plan",
    "serve_http",
]

for _name in _errors.__all__:
    getattr(_errors, _name).__module__ = "kvtile"
SharedTier.__module__ = "kvtile"

# Caches must close before the interpreter ends, because their threads log to Python.
_atexit.register(_kvtile.close_all)
