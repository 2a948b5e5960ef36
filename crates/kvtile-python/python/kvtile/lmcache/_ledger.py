"""Which objects the folder has, by LMCache's keys.

Keys in the store are digests, so the store cannot name what a folder has. The ledger keeps the names, in memory and in
a journal beside the blocks. The journal only adds names: an entry counts if the store has the last piece of its object.
So a lost or torn journal makes LMCache's accounting too low until the objects are loaded, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lmcache.v1.distributed.api import ObjectKey

import kvtile
from kvtile.lmcache._pieces import GENERATION_BYTES, ObjectForm, PiecePlan, inner_keys, last_key, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOG = logging.getLogger(__name__)
_LINE_BYTES_MAX = 64 << 10
_SPARE_LINES = 4096
"""Lines without an object that a journal may have before it is written anew, beside one per object."""


@dataclass(frozen=True)
class KeptObject:
    """An object that the folder has."""

    key: ObjectKey
    plan: PiecePlan
    digest: bytes
    generation: bytes

    @property
    def form(self) -> ObjectForm:
        return ObjectForm(self.plan.size, self.digest)

    def pieces(self) -> list[bytes]:
        """The keys of all pieces."""
        return [*inner_keys(self.generation, self.plan), last_key(name_of(self.key))]


class ObjectLedger:
    """The objects of a folder, and their sums. Threads may read while one thread writes.

    Its size is bounded by the store: each entry has at least one piece there.
    """

    def __init__(self, journal: Path, piece: int, *, capacity: int) -> None:
        """``capacity`` bounds each object, and the journal: it is a file that anything may have written."""
        self._journal = journal
        self._piece = piece
        self._size_max = capacity
        self._journal_bytes_max = journal_bytes(capacity, piece)
        self._lock = threading.Lock()
        self._objects: dict[ObjectKey, KeptObject] = {}
        self._by_block: dict[bytes, ObjectKey] = {}
        self._bytes = 0
        self._bytes_by_salt: dict[str, int] = {}
        self._file: TextIO | None = None
        self._lines = 0
        self._file_bytes = 0

    def open(self, contains: Callable[[Sequence[bytes]], list[bool]]) -> list[KeptObject]:
        """Keeps what journal and store both have, and writes the journal anew. Returns objects that lack pieces."""
        broken: list[KeptObject] = []
        for kept in {kept.key: kept for kept in self._read()}.values():
            there = contains(kept.pieces())
            if all(there):
                self._insert(kept)
            elif there[-1]:
                broken.append(kept)
        self._rewrite()
        return broken

    def close(self) -> None:
        """Closes the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, kept: KeptObject) -> None:
        """Adds an object, in place of an older one with its key."""
        self.remove(kept.key)
        self._insert(kept)
        self._append(kept)

    def remove(self, key: ObjectKey) -> KeptObject | None:
        """Removes an object; None if there is none."""
        with self._lock:
            kept = self._objects.pop(key, None)
            if kept is None:
                return None
            self._by_block.pop(block_of(key), None)
            self._count(kept, -kept.plan.stored_bytes)
        return kept

    def get(self, key: ObjectKey) -> KeptObject | None:
        """The object with this key."""
        return self._objects.get(key)

    def of_block(self, block: bytes) -> ObjectKey | None:
        """The key of the object whose last piece is this block."""
        return self._by_block.get(block)

    def keys(self) -> list[ObjectKey]:
        """The keys of all objects."""
        with self._lock:
            return list(self._objects)

    def sums(self) -> tuple[int, dict[str, int]]:
        """Bytes of all objects in the store, and by LMCache's salt."""
        with self._lock:
            return self._bytes, dict(self._bytes_by_salt)

    def listed(self, model: str | None, after: str, count: int) -> list[tuple[str, KeptObject]]:
        """Objects in the order of their names, from the first after a name on."""
        with self._lock:
            objects = list(self._objects.values())
        named = [(name_of(kept.key), kept) for kept in objects if model is None or kept.key.model_name == model]
        return sorted((entry for entry in named if entry[0] > after), key=lambda entry: entry[0])[:count]

    def __len__(self) -> int:
        return len(self._objects)

    def _insert(self, kept: KeptObject) -> None:
        with self._lock:
            self._objects[kept.key] = kept
            self._by_block[block_of(kept.key)] = kept.key
            self._count(kept, kept.plan.stored_bytes)

    def _count(self, kept: KeptObject, change: int) -> None:
        salt = kept.key.cache_salt
        self._bytes += change
        salted = self._bytes_by_salt.get(salt, 0) + change
        if salted > 0:
            self._bytes_by_salt[salt] = salted
        else:
            self._bytes_by_salt.pop(salt, None)

    def _read(self) -> Iterator[KeptObject]:
        try:
            status = self._journal.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                # Opening a pipe would wait for its writer.
                _LOG.warning("%s is no plain file and is not read", self._journal)
                return
            if status.st_size > self._journal_bytes_max:
                _LOG.warning("%s is too large for a journal and is not read", self._journal)
                return
            with open(self._journal, "rb") as file:
                while line := file.readline(_LINE_BYTES_MAX):
                    kept = _parse(line, self._piece, self._size_max)
                    if kept is not None:
                        yield kept
        except FileNotFoundError:
            return
        except OSError as error:
            _LOG.warning("the journal cannot be read, so LMCache's accounting starts at zero: %s", error)

    def _append(self, kept: KeptObject) -> None:
        if self._file is None:
            return
        line = _line(kept)
        try:
            if self._lines > 2 * len(self._objects) + _SPARE_LINES or not self._has_room(line):
                self._rewrite()
                return
            self._file.write(line)
            self._file.flush()
            self._lines += 1
            self._file_bytes += len(line)
        except OSError as error:
            self._give_up(error)

    def _has_room(self, line: str) -> bool:
        return self._file_bytes + len(line) <= self._journal_bytes_max

    def _rewrite(self) -> None:
        self.close()
        lines = [_line(kept) for kept in self._objects.values()]
        size = sum(map(len, lines))
        if size > self._journal_bytes_max * 9 // 10:
            self._give_up(f"the names of {len(lines)} objects take {size} bytes, of {self._journal_bytes_max}")
            return
        fresh = self._journal.with_name(f"{self._journal.name}.partial")
        try:
            # A new file: nothing is written through a link or a pipe of this name.
            fresh.unlink(missing_ok=True)
            with open(fresh, "x", encoding="ascii") as file:
                file.writelines(lines)
            os.replace(fresh, self._journal)
            self._file = open(self._journal, "a", encoding="ascii")
        except OSError as error:
            self._give_up(error)
        self._lines, self._file_bytes = len(lines), size

    def _give_up(self, error: OSError | str) -> None:
        """A full disk must not stop the adapter: without a journal, only the accounting after a restart is too low."""
        _LOG.warning("the journal is not written any more; after a restart LMCache's accounting is too low: %s", error)
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as again:
                _LOG.debug("closing the journal failed too: %s", again)


def journal_bytes(capacity: int, piece: int) -> int:
    """The limit for a journal, of which two exist while one is written anew. A line has some 200 bytes."""
    return capacity // piece * 512


def block_of(key: ObjectKey) -> bytes:
    """The block key of the last piece of an object, as events have it."""
    return kvtile.block_key(last_key(name_of(key)))


def _line(kept: KeptObject) -> str:
    key = kept.key
    fields = [key.model_name, key.kv_rank, key.object_group_id, key.chunk_hash.hex(), key.cache_salt]
    return json.dumps([*fields, kept.plan.size, kept.digest.hex(), kept.generation.hex()]) + "\n"


def _parse(line: bytes, piece: int, size_max: int) -> KeptObject | None:
    """The object of a line; None for a line that is torn or not ours."""
    try:
        model, rank, group, chunk, salt, size, digest, generation = json.loads(line)
        key = ObjectKey(bytes.fromhex(chunk), model, rank, group, salt)
        kept = KeptObject(key, PiecePlan(size, piece), bytes.fromhex(digest), bytes.fromhex(generation))
        name_of(key)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    sound = all(isinstance(number, int) for number in (rank, group, size))
    sound = (
        sound
        and isinstance(model, str)
        and isinstance(salt, str)
        and rank >= 0
        and 0 < size <= size_max
        and len(kept.generation) == GENERATION_BYTES
    )
    return kept if sound else None


def stored_sizes(objects: Iterable[KeptObject]) -> list[int]:
    """The bytes that the store keeps for each object."""
    return [kept.plan.stored_bytes for kept in objects]
