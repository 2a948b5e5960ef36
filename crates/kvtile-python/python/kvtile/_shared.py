"""A store of a shared tier that Python implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    # A listed value: its name, its size in bytes, and the seconds since it was written or touched (None if unknown).
    ListedValue: TypeAlias = tuple[str, int, float | None]


class SharedTier(ABC):
    """A store of named, immutable values, for ``Cache(shared=...)``. Subclass it for a store that kvtile does not have.

    A store needs no more than a dictionary does: kvtile names the values, checks every byte that comes back, and treats
    each error as a miss. A value may disappear at any time. Equal names have equal content, so a second write of a name
    may keep or replace the first. No reader may see a part of a value: it would be a miss, and its write was in vain.

    kvtile calls the methods from threads of its own, up to ``in_flight`` at a time, while the cache is open. They may
    block; a call that takes longer than ``shared_within`` is a miss. What they raise is logged and counted, and the
    store is left alone for a while.

    Example::

        class DictionaryTier(kvtile.SharedTier):
            def __init__(self):
                self.values = {}

            def has(self, names):
                return [name in self.values for name in names]

            def read(self, name):
                return self.values.get(name)

            def write(self, name, parts, lifetime):
                self.values[name] = b"".join(parts)
                return True

            def remove(self, names):
                return sum(self.values.pop(name, None) is not None for name in names)
    """

    name: str = "python"
    """What logs and errors call the store, without secrets."""
    durable: ClassVar[bool] = False
    """Whether values outlive the processes and machines that use the store."""
    expires: ClassVar[bool] = False
    """Whether the store drops values after their ``lifetime``."""
    value_bytes: ClassVar[int] = 8 << 20
    """The largest size at which the store is efficient: kvtile makes values of at most this size, and at least one
    block."""
    batch: ClassVar[int] = 256
    """The most names in one call."""
    in_flight: ClassVar[int] = 4
    """The most calls at a time."""

    @abstractmethod
    def has(self, names: list[str]) -> list[bool]:
        """Whether the store has each value, in the order of ``names``."""

    @abstractmethod
    def read(self, name: str) -> bytes | bytearray | memoryview | None:
        """A value; None if the store does not have it."""

    @abstractmethod
    def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
        """Stores a value: the parts, one after the other.

        ``lifetime`` is the number of seconds after which the store may drop it, None for never. Returns False if the
        store had the value already, else True.
        """

    @abstractmethod
    def remove(self, names: list[str]) -> int:
        """Removes values. Returns how many of them there were, as far as the store knows."""

    def touch(self, names: list[str], lifetime: float | None) -> None:
        """Begins the lifetimes of values anew. A store whose values never expire need not implement it."""

    def list(self, under: str, after: str | None) -> tuple[Sequence[ListedValue], str | None]:
        """A page of the values whose names begin with ``under``: (name, bytes, seconds since it was written or touched
        or None), and where the next page begins, None after the last one. ``after`` is that of the page before.

        Only ``kvtile cache stat`` and ``sweep`` list. A store that cannot list need not implement it.
        """
        raise NotImplementedError(f"{self.name} does not list its values")
