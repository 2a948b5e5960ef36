"""Pages that SGLang copies out of its pool: the interface without ``interface_v1``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvtile import Layout
from kvtile._errors import SettingsError
from kvtile.sglang._pools import PoolPages
from kvtile.sglang._store import ChainHints, PageStore

if TYPE_CHECKING:
    from kvtile import StoreRows

# Pages that are copied in one job.
_PAGES = 16


class FlatPages:
    """Copies pages between SGLang's flat tensors and a store, by way of a small buffer. The pages are the same as those
    that the store reads from the pool's memory."""

    def __init__(self, name: str, pages: PoolPages, store: PageStore):
        if pages.flat_word is None:
            raise SettingsError(
                f'SGLang cannot copy pages out of its pool {name!r} in the order {pages.word}: set "interface_v1": 1'
            )
        self._name, self._store = name, store
        self._lock = threading.Lock()
        shape = pages.shape.with_num_blocks(_PAGES)
        self._buffer = torch.zeros((_PAGES, shape.block_bytes // pages.tensors[0].element_size()), dtype=pages.tensors[0].dtype)
        self._layout = Layout(pages.flat_word, shape=shape, tensors=self._buffer)
        self._rows: StoreRows | None = None

    def load(self, keys: Sequence[str], targets: Sequence[torch.Tensor]) -> list[bool]:
        """Loads each page into its tensor. Whether it came; the tensor of a page that did not come keeps its contents."""
        came: list[bool] = []
        with self._lock:
            for start in range(0, len(keys), _PAGES):
                some = keys[start : start + _PAGES]
                rows = self._registered()
                here = [False] * len(some) if rows is None else self._store.load(self._name, some, range(len(some)), rows)
                for row, (ok, target) in enumerate(zip(here, targets[start : start + _PAGES], strict=True)):
                    if ok:
                        target.view(self._buffer.dtype).copy_(self._buffer[row].view(target.shape))
                came += here
        return came

    def store(self, keys: Sequence[str], values: Sequence[torch.Tensor], hints: ChainHints) -> list[bool]:
        """Stores each tensor. Whether it is stored."""
        done: list[bool] = []
        with self._lock:
            for start in range(0, len(keys), _PAGES):
                some = keys[start : start + _PAGES]
                for row, value in enumerate(values[start : start + _PAGES]):
                    self._buffer[row].copy_(value.reshape(-1).view(self._buffer.dtype))
                rows = self._registered()
                if rows is None:
                    done += [False] * len(some)
                    continue
                places = ChainHints(hints.parents[start : start + _PAGES], hints.positions[start : start + _PAGES])
                done += self._store.store(self._name, some, range(len(some)), places, rows)
        return done

    def fits(self, tensor: object) -> bool:
        """Whether a tensor is one page."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_contiguous():
            return False
        return bool(tensor.numel() * tensor.element_size() == self._buffer[0].numel() * self._buffer.element_size())

    def close(self) -> None:
        """Releases the buffer, after the store was closed."""
        with self._lock:
            if self._rows is not None:
                self._rows.release()
                self._rows = None

    def _registered(self) -> StoreRows | None:
        if self._rows is None:
            self._rows = self._store.register(self._name, self._layout)
        return self._rows
