"""The exceptions of kvtile. Each is a `KvtileError`; most are the built-in error of their kind as well."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BusyError",
    "ClosedError",
    "DiskError",
    "FolderInUseError",
    "ForkError",
    "IdentityError",
    "InternalError",
    "KvtileError",
    "LaggedError",
    "LayoutError",
    "RequestError",
    "SettingsError",
    "TensorError",
    "TransferError",
    "WaitTimeoutError",
]


class KvtileError(Exception):
    """Everything that kvtile raises of its own."""


class ArgumentError(KvtileError, TypeError):
    """An argument of another type than the function takes; the message names the argument."""


class LayoutError(KvtileError, ValueError):
    """A word, a shape, a preset or a selection that makes no sense; the message names the values."""


class TensorError(LayoutError):
    """A tensor of another dtype, device, shape or stride than the layout needs; the message names it."""


class IdentityError(KvtileError, ValueError):
    """Stored blocks mean something else than the engine's: another model, RoPE base, dtype, block size."""

    field: str | None = None
    """The first field that differs, such as ``"rope.base"``; None where only fingerprints are known."""
    ours: str | None = None
    """Its value on this side."""
    theirs: str | None = None
    """Its value on the other side."""


class SettingsError(KvtileError, ValueError):
    """Settings that mean nothing, or memory and disk space in which not even one block has room."""


class RequestError(KvtileError, ValueError):
    """Block ids, keys or tiers that the cache does not have."""


class TransferError(KvtileError, RuntimeError):
    """A copy was refused or failed: blocks in use, read-only tensors, no memory."""


class BusyError(KvtileError, RuntimeError):
    """The queue of the cache is full and nothing was begun: go on without it, or try again later."""


class ClosedError(KvtileError, RuntimeError):
    """The cache, or the match, was closed or used up."""


class DiskError(KvtileError, OSError):
    """The folder of the disk tier cannot be used: no room, not readable, not a disk tier."""


class FolderInUseError(DiskError):
    """Another cache, here or in another process, has the folder of the disk tier."""


class LaggedError(KvtileError, RuntimeError):
    """A subscriber polled too rarely and missed events: take a snapshot."""

    missed: int = 0
    """How many events were missed."""
    resume_at: int = 0
    """The sequence number that the next poll starts with."""


class WaitTimeoutError(KvtileError, TimeoutError):
    """The end did not come in time. What is under way goes on."""


class ForkError(KvtileError, RuntimeError):
    """kvtile was used in the child of a fork, where its threads do not exist: start children with spawn."""


class InternalError(KvtileError, RuntimeError):
    """A defect of kvtile. Please report it with its message."""
