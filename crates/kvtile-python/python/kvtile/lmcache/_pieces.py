"""How an object of LMCache is kept: as pieces of one size, of which the last one describes the object.

```text
object   | piece 0 | piece 1 | … | tail |
stored   | piece 0 | piece 1 | … | tail, zeros, trailer |
```

The key of the last piece is the object's name, so an object is present when this piece is. The keys of the other pieces
contain a number that each store draws anew, so pieces of two stores never mix. A trailer has the object's size, a
digest of its shapes and data types, and that number.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.memory_management import MemoryObj

_MAGIC = b"kvtilobj"
_TRAILER = struct.Struct("<8sQ16s16s")
GENERATION_BYTES = 16


@dataclass(frozen=True)
class ObjectForm:
    """What an object's bytes are: how many, and a digest of their shapes and data types."""

    size: int
    digest: bytes

    @classmethod
    def of(cls, memory: MemoryObj) -> ObjectForm:
        """The form of a memory object. Its size is the number of bytes in use."""
        meta = memory.meta
        shapes = meta.shapes if meta.shapes is not None else [meta.shape]
        dtypes = meta.dtypes if meta.dtypes is not None else [meta.dtype]
        text = repr([(list(shape), str(dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)])
        return cls(memory.get_size(), hashlib.blake2b(text.encode(), digest_size=16).digest())


@dataclass(frozen=True)
class PiecePlan:
    """The pieces of an object of this size.

    Attributes:
        whole: pieces that lie in the object itself.
        tail: bytes after them.
        tail_alone: whether the tail leaves no room for the trailer, so that each has a piece.
    """

    size: int
    piece: int

    @property
    def whole(self) -> int:
        return self.size // self.piece

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole pieces."""
        return self.whole * self.piece

    @property
    def tail(self) -> int:
        return self.size - self.whole_bytes

    @property
    def tail_alone(self) -> bool:
        return self.tail > self.piece - _TRAILER.size

    @property
    def count(self) -> int:
        """All pieces."""
        return self.whole + self.tail_alone + 1

    @property
    def stored_bytes(self) -> int:
        """Bytes that the store keeps for the object."""
        return self.count * self.piece


@dataclass(frozen=True)
class Trailer:
    """The end of an object's last piece."""

    form: ObjectForm
    generation: bytes

    def write(self, piece: memoryview) -> None:
        """Writes the trailer into the end of a piece."""
        packed = _TRAILER.pack(_MAGIC, self.form.size, self.form.digest, self.generation)
        piece[len(piece) - len(packed) :] = packed

    @classmethod
    def read(cls, piece: memoryview) -> Trailer | None:
        """The trailer at the end of a piece; None if there is none."""
        magic, size, digest, generation = _TRAILER.unpack(piece[len(piece) - _TRAILER.size :])
        return cls(ObjectForm(size, digest), generation) if magic == _MAGIC else None


def name_of(key: ObjectKey) -> str:
    """The name of an object, as LMCache's own adapters write it: ``model@rank@group@hash[@salt]``."""
    name = f"{key.model_name}@{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}"
    return f"{name}@{key.cache_salt}" if key.cache_salt else name


def last_key(name: str) -> bytes:
    """The key of the last piece of an object."""
    return b"e" + name.encode("utf-8", "surrogatepass")


def inner_keys(generation: bytes, plan: PiecePlan) -> list[bytes]:
    """The keys of all other pieces, in order."""
    return [b"p" + generation + index.to_bytes(4, "big") for index in range(plan.count - 1)]
