"""Mooncake's store as the shared tier of a cache: ``Cache(shared=kvtile.mooncake.MooncakeTier(...))``.

It needs the package ``mooncake-transfer-engine``, or its variant ``mooncake-transfer-engine-non-cuda``, and a running
``mooncake_master``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kvtile._errors import SharedTierError
from kvtile._shared import SharedTier

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["MooncakeTier"]


class MooncakeTier(SharedTier):
    """The store of a Mooncake cluster.

    Values live in the memory of the clients that lend some (``segment_bytes``), and go with them: the store is not
    durable. The master evicts by itself. kvtile checks every byte, so a value whose owner has died is a miss.

    Close it after the cache, or use it in a ``with`` statement.

    Args:
        master: the address of ``mooncake_master``, ``HOST:PORT``.
        host: the address of this process for other clients, ``HOST`` or ``HOST:PORT``.
        segment_bytes: memory that this client lends to the store; 0 for none.
        buffer_bytes: memory for transfers of this client; at least the size of one value, 8 MiB, for each of 4 calls.
        protocol: Mooncake's transport, ``"tcp"`` or ``"rdma"``.
        devices: devices of the transport.
        metadata: Mooncake's metadata server; default: none, as clients ask each other.

    Raises:
        SharedTierError: the package is missing, or the client cannot reach the master.
    """

    name = "mooncake"
    durable: ClassVar[bool] = False
    value_bytes: ClassVar[int] = 8 << 20
    in_flight: ClassVar[int] = 4

    def __init__(
        self,
        master: str,
        *,
        host: str = "127.0.0.1",
        segment_bytes: int = 0,
        buffer_bytes: int = 64 << 20,
        protocol: str = "tcp",
        devices: str = "",
        metadata: str = "P2PHANDSHAKE",
    ) -> None:
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            text = "Mooncake's store needs the package mooncake-transfer-engine, and on Debian libibverbs1"
            raise SharedTierError(f"{text}: {error}") from error
        self._store: Any = MooncakeDistributedStore()
        code = self._store.setup(host, metadata, segment_bytes, buffer_bytes, protocol, devices, master)
        if code != 0:
            raise SharedTierError(f"Mooncake's client at {host} cannot use the master at {master}: error {code}")

    def has(self, names: list[str]) -> list[bool]:
        codes = self._store.batch_is_exist(names)
        if any(code < 0 for code in codes):
            raise SharedTierError(f"Mooncake cannot tell which values it has: error {min(codes)}")
        return [code == 1 for code in codes]

    def read(self, name: str) -> bytes | None:
        # Mooncake returns nothing for an absent value, and for one whose owner has died.
        value: bytes = self._store.get(name)
        return value or None

    def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
        code = self._store.put_parts(name, *parts)
        if code != 0:
            raise SharedTierError(f"Mooncake does not take a value of {sum(map(len, parts))} bytes: error {code}")
        return True

    def remove(self, names: list[str]) -> int:
        # A value that is being read or was read lately cannot be removed. It goes with the next eviction.
        return sum(self._store.remove(name) == 0 for name in names)

    def close(self) -> None:
        """Closes the client. Mooncake drops its memory segment, with the values in it."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
