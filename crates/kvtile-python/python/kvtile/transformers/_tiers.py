"""The stops of a model in host memory, on disk and in a shared store: a ``GroupCache`` with a group for each kind of page,
and one for the records.

The tensors of each request are the blocks: every load and store brings its layouts. The cache's own layouts, of one block
each, show it the device of the model.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch

from kvtile._errors import DiskError
from kvtile._kvtile import GroupCache, GroupMatch, GroupStoreReport, Layout, ModelGroup, ModelIdentity, Plane, Shape
from kvtile._streams import compute_stream
from kvtile.transformers._content import Contents, Pages
from kvtile.transformers._settings import QUEUE, Settings

# Host memory and disk are divided as one typical request divides: pages of so many tokens, and so many stops. Nothing
# gets less than one of so many parts.
_TOKENS, _STOPS = 8192, 2
_MOST_PARTS = 16

# Memory for values of the shared store that are being written: the default, and at least so many records.
_STAGING_BYTES, _STAGED_RECORDS = 256 << 20, 2

_PAGES = "L|HBNC"  # for each tensor of a full group: [heads, entries, width]
_RECORD = "L|BC"
RECORDS = "stops"


class StopTiers:
    """Loads stops into cache objects of transformers, and stores them.

    Args:
        model: with the groups of ``groups_of``.

    Attributes:
        cache: host memory, disk and shared store of all groups.
    """

    def __init__(self, model: ModelIdentity, contents: Contents, settings: Settings) -> None:
        self._contents, self._page_size = contents, settings.page_size
        self._seek_within = settings.seek_within
        self._shapes = {name: group.shape for name, group in model.groups.items()}
        self._counts = {"loaded_tokens": 0, "lost": 0}
        self._lock = threading.Lock()
        if settings.disk is not None:
            _refuse_old_folders(Path(settings.disk))
        shares = _shares(self._shapes, settings.page_size)
        if settings.connect is not None:
            self.cache = GroupCache(model, shares=shares, connect=settings.connect, queue_capacity=QUEUE)
            return
        self.cache = GroupCache(
            model,
            self._layouts(1, [kind.empty(settings.page_size) for kind in contents.pages], contents.empty_record()),
            host_bytes=settings.host_bytes,
            shares=shares,
            disk=settings.disk,
            disk_bytes=settings.disk_bytes,
            disk_writes=None if settings.disk is None else "at_once",
            close_within=settings.close_within,
            shared=settings.shared,
            shared_bundle_blocks=settings.shared_bundle_blocks,
            shared_staging_bytes=None if settings.shared is None else _staging_bytes(contents.record_bytes),
            queue_capacity=QUEUE,
        )

    def load(self, keys: list[bytes], past: Any) -> tuple[int, int]:
        """Makes an unused cache object continue at the longest stop that can be read.

        Returns:
            The number of tokens, 0 if there is none; and how far the pages alone go, where there are pages.
        """
        branch, most = 0, len(keys) * self._page_size
        until = time.monotonic() + (self._seek_within or 0)
        while True:
            found = self._find(keys, most, until)
            stop = found.stop
            if self._contents.pages:
                branch = max(branch, stop, found.branch or 0)
            if not stop:
                return 0, branch
            if self._bring(found, stop, past):
                with self._lock:
                    self._counts["loaded_tokens"] += stop
                return stop, branch
            with self._lock:
                self._counts["lost"] += 1
            most = stop - self._page_size

    def store(self, keys: list[bytes], past: Any, record: Any, row: int = 0, start: int = 0) -> GroupStoreReport:
        """Stores the stop at the end of these pages.

        Args:
            past: a cache object with these tokens, or more.
            record: that of the stop; None if no group needs one.
            row, start: the row of the cache object, and the column of its first token.
        """
        count = len(keys)
        stop = count * self._page_size
        blocks: dict[str, tuple[Any, int]] = {}
        layouts = {}
        if count:
            for name, kind in self._of_pages():
                blocks[name] = (range(count), 0)
                layouts[name] = self._layout(name, kind.of(past, stop, row, start), count)
            if record is not None:
                blocks[RECORDS] = ([0], count - 1)
                layouts[RECORDS] = self._record_layout(record)
        self._wait_for_the_model()
        return self.cache.store(keys, blocks, stop=stop or None, layouts=layouts).wait()

    def stats(self) -> dict[str, Any]:
        """The counters of the cache, the tokens of stops that were loaded, and stops of which a part was lost."""
        with self._lock:
            return {**self.cache.stats(), **self._counts}

    def _find(self, keys: list[bytes], most: int, until: float) -> GroupMatch:
        """The longest stop of at most so many tokens; the shared store has until then to answer."""
        if self._seek_within is None or not keys:
            return self.cache.lookup(keys, at_most=most)
        return self.cache.seek(keys, max(0.0, until - time.monotonic()), at_most=most).wait()

    def _bring(self, found: GroupMatch, stop: int, past: Any) -> bool:
        """Loads a stop; False if a part of it could not be read."""
        count = stop // self._page_size
        tensors = [kind.empty(stop) for kind in self._contents.pages]
        record = self._contents.empty_record()
        layouts = self._layouts(count, tensors, record)
        blocks: dict[str, Any] = {name: [0] if name == RECORDS else range(count) for name in layouts}
        self._wait_for_the_model()
        came = self.cache.load(found, blocks, layouts=layouts).wait().tokens == stop
        if came:
            self._contents.put(past, tensors, record, stop)
        return came

    def _wait_for_the_model(self) -> None:
        """Waits for what the model has enqueued on a device."""
        stream = compute_stream(self._contents.device)
        if stream is not None:
            stream.synchronize()

    def _of_pages(self) -> list[tuple[str, Pages]]:
        return [(_name(at), kind) for at, kind in enumerate(self._contents.pages)]

    def _layouts(self, count: int, pages: list[list[Any]], record: Any) -> dict[str, Layout]:
        """The layouts of all groups over ``count`` pages, and a record where the model has one."""
        names = [name for name, _ in self._of_pages()]
        layouts = {name: self._layout(name, halves, count) for name, halves in zip(names, pages, strict=True)}
        if self._contents.record_bytes:
            layouts[RECORDS] = self._record_layout(record)
        return layouts

    def _layout(self, name: str, tensors: list[Any], pages: int) -> Layout:
        return Layout(_PAGES, shape=self._shapes[name].with_num_blocks(pages), tensors=tensors)

    def _record_layout(self, record: Any) -> Layout:
        return Layout(_RECORD, shape=self._shapes[RECORDS], tensors=[record[None]])


def groups_of(contents: Contents, page_size: int) -> list[ModelGroup]:
    """A group for each kind of pages, and one for the records."""
    groups = [ModelGroup(_name(at), _page_shape(pages, page_size)) for at, pages in enumerate(contents.pages)]
    if contents.record_bytes:
        groups.append(ModelGroup(RECORDS, _record_shape(contents.record_bytes, page_size), rule="stop"))
    return groups


def _name(at: int) -> str:
    return f"pages{at or ''}"


def _shares(shapes: dict[str, Shape], page_size: int) -> dict[str, float]:
    weights = {
        name: shape.block_bytes * (_STOPS if name == RECORDS else max(1, _TOKENS // page_size))
        for name, shape in shapes.items()
    }
    whole = sum(weights.values())
    return {name: max(weight, whole // _MOST_PARTS) / whole for name, weight in weights.items()}


def _staging_bytes(record_bytes: int) -> int:
    """Room for values of the shared store: a record is one value, whatever its size."""
    return max(_STAGING_BYTES, _STAGED_RECORDS * record_bytes)


def _page_shape(pages: Pages, page_size: int) -> Shape:
    every = None if pages.every == 1 else pages.every
    plane = Plane("entries", pages.dtype, every=every, H=pages.heads, C=pages.width)
    return Shape(num_blocks=1, num_layers=len(pages.parts), page_size=page_size, planes=[plane])


def _record_shape(record_bytes: int, page_size: int) -> Shape:
    plane = Plane("record", torch.uint8, per_page=True, C=record_bytes)
    return Shape(num_blocks=1, num_layers=1, page_size=page_size, planes=[plane])


def _refuse_old_folders(disk: Path) -> None:
    """Refuses a folder in which an earlier version kept each group in a folder of its own."""
    old = sorted(path.parent.name for path in disk.glob("*/manifest.json") if path.parent.name.startswith(("pages", RECORDS)))
    if old:
        raise DiskError(
            f"{disk} has the folders {', '.join(old)} of an earlier version of kvtile, which kept each group in a folder of "
            "its own; remove them, or give another folder"
        )
