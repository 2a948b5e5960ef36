"""Host memory and disk for a model with several groups: one cache for each kind of page, and one for the records.

All have the keys of one chain. A lookup finds the longest stop of which every page and the record are there, and a load
brings all of it or nothing. What another process, a crash or an eviction left incomplete is never a stop.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from kvtile._kvtile import Cache, Identity, Layout, Plane, Shape, StoreReport
from kvtile.transformers._content import Contents, Pages

if TYPE_CHECKING:
    from typing_extensions import Self

# Host memory and disk are divided as one typical request divides: pages of so many tokens, and so many stops. Nothing
# gets less than one of so many parts.
_TOKENS, _STOPS = 8192, 2
_MOST_PARTS = 16
_QUEUE = 1 << 16


class Stop:
    """A stop that a lookup found. Its blocks are not evicted until it is closed.

    Attributes:
        pages: of each full group; 0 if nothing was found.
        branch: how many pages the full groups have, where that is more.
    """

    def __init__(self, pages: int, branch: int, matches: list[Any], stack: contextlib.ExitStack) -> None:
        self.pages, self.branch = pages, branch
        self.matches = matches
        self._stack = stack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


class GroupTiers:
    """The caches of a model's groups.

    Args:
        identity_of: the identity of a part of the KV, by its name and shape.
        options: of each ``Cache``.
    """

    def __init__(
        self,
        contents: Contents,
        page_size: int,
        identity_of: Callable[[str, Shape], Identity],
        *,
        host_bytes: int,
        disk: Path | None,
        disk_bytes: int | None,
        **options: Any,
    ) -> None:
        self._contents, self._page_size = contents, page_size
        self._counts = {"lookups": 0, "found": 0, "found_tokens": 0, "lost": 0}
        self._lock = threading.Lock()
        self._shapes = shapes_of(contents, page_size)
        weights = [
            shape.block_bytes * (_STOPS if name == "stops" else max(1, _TOKENS // page_size))
            for name, shape in self._shapes.items()
        ]
        weights = [max(weight, sum(weights) // _MOST_PARTS) for weight in weights]
        self._caches: dict[str, Cache] = {}
        with contextlib.ExitStack() as opened:
            for (name, shape), weight in zip(self._shapes.items(), weights, strict=True):
                share = weight / sum(weights)
                cache = Cache(
                    identity_of(name, shape),
                    _unused(name, shape, contents),
                    host_bytes=int(host_bytes * share),
                    disk=None if disk is None else disk / name,
                    disk_bytes=None if disk_bytes is None else int(disk_bytes * share),
                    disk_writes=None if disk is None else "at_once",
                    queue_capacity=_QUEUE,
                    **options,
                )
                self._caches[name] = opened.enter_context(cache)
            opened.pop_all()

    def lookup(self, keys: list[bytes]) -> Stop:
        """The longest stop among the ends of these pages."""
        with contextlib.ExitStack() as stack:
            matches = [stack.enter_context(cache.lookup(keys)) for _, cache in self._of_pages()]
            branch = min((match.blocks for match in matches), default=len(keys))
            stop = branch
            records = self._caches.get("stops")
            while records is not None and stop:
                match = records.lookup(keys[stop - 1 : stop])
                if match.blocks:
                    matches.append(stack.enter_context(match))
                    break
                match.release()
                stop -= 1
            return Stop(stop, branch, matches, stack.pop_all())

    def load(self, keys: list[bytes], past: Any) -> tuple[int, int]:
        """Makes an unused cache object continue at the longest stop that can be read.

        Returns:
            The number of tokens, 0 if there is none; and how far the pages alone go.
        """
        most, branch = len(keys), 0
        while True:
            with self.lookup(keys[:most]) as found:
                branch = max(branch, found.branch)
                tokens = found.pages * self._page_size
                came = bool(found.pages) and self._bring(found, past)
            with self._lock:
                self._counts["lookups"] += most == len(keys)
                self._counts["found"] += came
                self._counts["found_tokens"] += tokens if came else 0
                self._counts["lost"] += bool(found.pages) and not came
            if came or not found.pages:
                return tokens if came else 0, branch * self._page_size
            most = found.pages - 1

    def store(self, keys: list[bytes], past: Any, record: Any) -> StoreReport:
        """Stores the stop at the end of these pages: the record first, so that pages without it are rare.

        Args:
            past: a cache object with these tokens, or more.
            record: that of the stop; None if no group needs one.

        Returns:
            The report for the pages, or for the record of a model without pages.
        """
        stop, pages = len(keys) * self._page_size, len(keys)
        reports = []
        if record is not None:
            layout = Layout(_RECORD, shape=self._shapes["stops"], tensors=[record[None]])
            # A record is the only block of its chain: those of other stops may be absent.
            reports.append(self._caches["stops"].store(keys[-1:], [0], layout=layout).wait())
        stores = [
            cache.store(keys, range(pages), layout=self._layout(name, kind.of(past, stop), pages))
            for kind, (name, cache) in zip(self._contents.pages, self._of_pages(), strict=True)
        ]
        reports += [store.wait() for store in stores]
        return reports[-1]

    def stats(self) -> dict[str, Any]:
        """Counters of stops, and those of each cache."""
        with self._lock:
            counts = dict(self._counts)
        return {**counts, "groups": {name: cache.stats() for name, cache in self._caches.items()}}

    def evict(self, name: str, tier: Any, blocks: int) -> int:
        """Evicts blocks of one of the caches, as Cache.evict."""
        return self._caches[name].evict(tier, blocks)

    @property
    def closed(self) -> bool:
        return any(cache.closed for cache in self._caches.values())

    def close(self) -> None:
        """Closes all caches, as Cache.close."""
        with contextlib.ExitStack() as stack:
            for cache in self._caches.values():
                stack.callback(cache.close)

    def _of_pages(self) -> Iterator[tuple[str, Cache]]:
        return ((name, cache) for name, cache in self._caches.items() if name != "stops")

    def _layout(self, name: str, tensors: list[Any], pages: int) -> Layout:
        return Layout(_PAGES, shape=self._shapes[name].with_num_blocks(pages), tensors=tensors)

    def _bring(self, found: Stop, past: Any) -> bool:
        """Loads a stop; False if a part of it could not be read."""
        stop = found.pages * self._page_size
        tensors = [kind.empty(stop) for kind in self._contents.pages]
        record = torch.zeros(self._contents.record_bytes, dtype=torch.uint8)
        loads = []
        for (name, cache), match in zip(self._caches.items(), found.matches, strict=True):
            if name == "stops":
                layout = Layout(_RECORD, shape=self._shapes[name], tensors=[record[None]])
                loads.append((cache.load(match, [0], layout=layout), 1))
            else:
                layout = self._layout(name, tensors[len(loads)], found.pages)
                loads.append((cache.load(match, range(found.pages), layout=layout), found.pages))
        # All are waited for, because the tensors are written until then.
        came = [load.wait().blocks == wanted for load, wanted in loads]
        if all(came):
            self._contents.put(past, tensors, record, stop)
        return all(came)


_PAGES = "L|HBNC"  # for each tensor of a full group: [heads, entries, width]
_RECORD = "L|BC"


def shapes_of(contents: Contents, page_size: int) -> dict[str, Shape]:
    """The shapes of a model's pages, one for each kind, and of its records, by name."""
    shapes = {f"pages{at or ''}": _page_shape(pages, page_size) for at, pages in enumerate(contents.pages)}
    if contents.record_bytes:
        shapes["stops"] = _record_shape(contents.record_bytes, page_size)
    return shapes


def _page_shape(pages: Pages, page_size: int) -> Shape:
    every = None if pages.every == 1 else pages.every
    plane = Plane("entries", pages.dtype, every=every, H=pages.heads, C=pages.width)
    return Shape(num_blocks=1, num_layers=len(pages.parts), page_size=page_size, planes=[plane])


def _record_shape(record_bytes: int, page_size: int) -> Shape:
    plane = Plane("record", torch.uint8, per_page=True, C=record_bytes)
    return Shape(num_blocks=1, num_layers=1, page_size=page_size, planes=[plane])


def _unused(name: str, shape: Shape, contents: Contents) -> Layout:
    """The engine layout of a cache, one block that nothing uses: blocks are copied from and to each request's own
    tensors."""
    if name == "stops":
        return Layout(_RECORD, shape=shape, tensors=[torch.zeros(1, contents.record_bytes, dtype=torch.uint8)])
    kind = contents.pages[int(name.removeprefix("pages") or 0)]
    return Layout(_PAGES, shape=shape, tensors=kind.empty(shape.page_size))
