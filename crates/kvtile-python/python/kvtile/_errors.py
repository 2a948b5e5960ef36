"""The exceptions of kvtile. Each is a `KvtileError`; most also derive from a built-in exception."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BusyError",
    "ClosedError",
    "DeviceError",
    "DiskError",
    "FolderInUseError",
    "ForkError",
    "HttpServerError",
    "IdentityError",
    "InternalError",
    "KvtileError",
    "LaggedError",
    "LayoutError",
    "PublishError",
    "RequestError",
    "SettingsError",
    "DaemonError",
    "SharedTierError",
    "TensorError",
    "TransferError",
    "WaitTimeoutError",
]


class KvtileError(Exception):
    """Base class of all exceptions of kvtile."""


class ArgumentError(KvtileError, TypeError):
    """An argument of the wrong type; the message names the argument."""


class LayoutError(KvtileError, ValueError):
    """An invalid word, shape, preset or selection; the message contains the values.""" """A tensor whose dtype, device,
    shape or strides do not fit the layout; the message names the tensor."""


class TensorError(LayoutError):
    """A tensor of another dtype, device, shape or stride than the layout needs; the message names it."""


class IdentityError(KvtileError, ValueError):
    """Stored blocks have another identity than the engine's: another model, RoPE base, dtype, block size."""

    field: str | None = None
    """The first field that differs, such as ``"rope.base"``; None if only fingerprints are known."""
    ours: str | None = None
    """Its value on this side."""
    theirs: str | None = None
    """Its value on the other side."""


class SettingsError(KvtileError, ValueError):
    """Invalid settings, or host memory or disk space too small for one block."""


class RequestError(KvtileError, ValueError):
    """Block ids, keys or tiers that the cache does not have, or a call that is not allowed at this point."""


class PublishError(KvtileError, OSError):
    """The sockets of an event publisher cannot be opened: an address of another form, or a port that is taken."""


class TransferError(KvtileError, RuntimeError):
    """A copy was refused or failed: blocks in use, read-only tensors, no memory."""


class DeviceError(TransferError):
    """The driver of a device is missing, too old or failed; the message contains what was tried, or the driver's error."""


class BusyError(KvtileError, RuntimeError):
    """The queue of the cache is full, so the operation was not started: continue without it, or try again later."""


class ClosedError(KvtileError, RuntimeError):
    """The cache is closed, or the match was loaded or released."""


class DiskError(KvtileError, OSError):
    """The folder of the disk tier cannot be used: disk full, not readable, not a disk tier."""


class DaemonError(KvtileError, ConnectionError):
    """No node daemon answers at the socket, or it refuses the request."""


class SharedTierError(KvtileError, OSError):
    """The store of a shared tier cannot be opened: no connection, wrong credentials, a missing bucket, a URL with unknown
    options."""


class HttpServerError(KvtileError, OSError):
    """The address of an HTTP server is in use, or this process may not listen on it."""


class FolderInUseError(DiskError):
    """Another cache, in this process or another one, uses the folder of the disk tier."""


class LaggedError(KvtileError, RuntimeError):
    """A subscriber polled too rarely and missed events: take a snapshot."""

    missed: int = 0
    """How many events were missed."""
    resume_at: int = 0
    """The sequence number that the next poll starts with."""


class WaitTimeoutError(KvtileError, TimeoutError):
    """The timeout expired before the completion. The operation continues."""


class ForkError(KvtileError, RuntimeError):
    """kvtile was used in a forked child, which lacks its threads: start children with the method spawn."""


class InternalError(KvtileError, RuntimeError):
    """A defect of kvtile. Please report it with its message."""
