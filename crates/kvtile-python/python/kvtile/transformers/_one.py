"""Prompts and answers of a model whose layers all have full attention: one group, whose every page's end is a stop.

Blocks are loaded into the tensors that the model continues with, and stored from those that it leaves.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvtile._errors import IdentityError, RequestError, SettingsError
from kvtile._kvtile import Cache, Completion, Identity, Layout, LoadReport, Match, Shape, StoreReport, TokenHasher
from kvtile._streams import compute_stream
from kvtile.transformers._first_layer import TOLERANCES, check_first_tensors, first_tensors
from kvtile.transformers._kinds import cache_name
from kvtile.transformers._loaded import Loaded
from kvtile.transformers._model import bare, check_kind, state_of, weights_digest
from kvtile.transformers._prompts import Prompt
from kvtile.transformers._settings import QUEUE, Settings
from kvtile.transformers._watch import ModelWatch

_WORD = "LK|HBNC"  # DynamicCache: for each layer keys and values of one sequence, [heads, tokens, head size]

_log = logging.getLogger("kvtile.transformers")


class OneGroup:
    """Loads the KV of known prefixes and stores new KV.

    Attributes:
        cache: the ``kvtile.Cache`` of the blocks.
        watch: the model, and the identity that it had at first.
        hasher: gives the keys of tokens.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        def identity_of(model: Any) -> Identity:
            check_kind(model, hooks="hooks" in settings.extra)
            return Identity.from_hf_config(
                model.config,
                page_size=settings.page_size,
                dtype=model.dtype,
                model=model.config._name_or_path or type(bare(model)).__name__,
                revision=settings.revision or weights_digest(model),
                extra={**settings.extra, **state_of(model)},
            )

        self.watch = ModelWatch(model, identity_of)
        self._identity = self.watch.identity
        if settings.stops is not None or settings.every is not None:
            raise SettingsError(
                "stops and every have no effect: all layers of this model have full attention, and it continues from every "
                "page's end"
            )
        # Loads that may not have ended.
        self._loads: list[Completion[LoadReport]] = []
        self._lock = threading.Lock()
        self._page_size = settings.page_size
        self._shape = Shape.from_hf_config(model.config, page_size=self._page_size, dtype=model.dtype)
        self._dtype = model.dtype
        connect, disk, shared = settings.connect, settings.disk, settings.shared
        settings.check_tiers()
        self._seek_within = settings.seek_within
        self.hasher = TokenHasher(self._identity, salt=settings.salt)
        self._check_layers(model)
        # Blocks are copied from and to each request's own tensors; the cache's engine layout is one dummy block.
        engine = torch.zeros(self._sizes(1, self._page_size), dtype=self._dtype, device=self.watch.device)[0]
        if connect is not None:
            self.cache = Cache(self._identity, self._layout(list(engine), 1), connect=connect, queue_capacity=QUEUE)
            return
        self.cache = Cache(
            self._identity,
            self._layout(list(engine), 1),
            host_bytes=settings.host_bytes,
            disk=disk,
            disk_bytes=settings.disk_bytes,
            disk_writes=None if disk is None else "at_once",
            close_within=settings.close_within,
            shared=shared,
            shared_bundle_blocks=settings.shared_bundle_blocks,
            queue_capacity=QUEUE,
        )

    def prefill(self, model: Any, rows: list[Prompt]) -> DynamicCache:
        """A cache object with the longest known prefix of all rows, without the last token."""
        past = DynamicCache(config=model.config)
        # The last token is always computed, because it gives the first logits.
        keys = [self.hasher.keys(row.tokens)[: (len(row.tokens) - 1) // self._page_size] for row in rows]
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(match) for match in self._lookup(keys)]
            length = min(row.start + match.blocks * self._page_size for row, match in zip(rows, found, strict=True))
            blocks = [max(0, -(-(length - row.start) // self._page_size)) for row in rows]
            width = max(row.start + count * self._page_size for row, count in zip(rows, blocks, strict=True))
            if any(blocks):
                pool = torch.zeros(self._sizes(len(rows), width), dtype=self._dtype, device=self.watch.device)
                loads = [
                    (row, self._load(match, count, pool[at, :, :, row.start :]), count)
                    for at, (row, match, count) in enumerate(zip(rows, found, blocks, strict=True))
                    if count
                ]
                came = [row.start + self._arriving(load, count) * self._page_size for row, load, count in loads]
                # Columns before the first loaded token are padding, which attention ignores.
                length = min(length, *came)
                if any(length > row.start for row in rows):
                    # The pool is laid out by row for loading; each layer needs a view of all rows.
                    layers = pool[..., :length, :].unflatten(1, (-1, 2)).permute(1, 2, 0, 3, 4, 5)
                    for layer, pair in zip(past.layers, layers, strict=True):
                        layer.lazy_initialization(*pair)
                        layer.keys, layer.values = pair
                    Loaded.of(self._identity, rows, length).mark(past)
        _log.debug("%d of %d tokens of %d prompts were known", past.get_seq_length(), rows[0].end, len(rows))
        return past

    def stats(self) -> dict[str, Any]:
        """The counters of the cache."""
        return self.cache.stats()

    def begin(self, model: Any, rows: list[Prompt]) -> DynamicCache:
        """As prefill."""
        return self.prefill(model, rows)

    def generate(self, model: Any, past: DynamicCache, asked: dict[str, Any], _: Collection[int]) -> Any:
        """Calls ``model.generate`` on top of what ``begin`` gave."""
        return model.generate(**asked, **{cache_name(model): past})

    def length(self, past: Any, rows: int) -> int:
        """The number of tokens in a cache, with padding; refuses all but a DynamicCache of this model's sizes."""
        layers = getattr(past, "layers", None)
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            raise RequestError(f"a {type(past).__name__} is not a DynamicCache with layers of full attention")
        length = int(past.get_seq_length())
        _, halves, heads, _, head_size = self._sizes(rows, length)
        sizes = (rows, heads, length, head_size)
        if len(layers) * 2 != halves:
            raise RequestError(f"the cache has {len(layers)} layers, and the model {halves // 2}")
        for at, layer in enumerate(layers if length else ()):
            for name, half in (("keys", layer.keys), ("values", layer.values)):
                if tuple(half.shape) != sizes or half.dtype != self._dtype or half.device != self.watch.device:
                    raise RequestError(
                        f"{name} of layer {at} are {tuple(half.shape)} of {half.dtype} on {half.device}, and {rows} prompts "
                        f"with {length} tokens of this model are {sizes} of {self._dtype} on {self.watch.device}"
                    )
        return length

    def store(self, model: Any, prompts: list[Prompt], kept: list[list[int]], past: Any) -> list[StoreReport]:
        """Stores the tokens of each row in whole blocks."""
        keys = [self.hasher.keys(tokens) for tokens in kept]
        self._check_content(model, prompts, kept, keys, past)
        # A load writes until it has ended, also where the stream alone waits for it.
        with self._lock:
            loads, self._loads = self._loads, []
        for load in loads:
            load.wait()
        halves = [half for layer in past.layers for half in (layer.keys, layer.values)]
        stores, stream = [], compute_stream(self.watch.device)
        for at, (row, keys_) in enumerate(zip(prompts, keys, strict=True)):
            stop = row.start + len(keys_) * self._page_size
            layout = self._layout([half[at, :, row.start : stop] for half in halves], len(keys_)) if keys_ else None
            stores.append(self.cache.store(keys_, range(len(keys_)), layout=layout, after=stream))
        return [store.wait() for store in stores]

    def _lookup(self, keys: list[list[bytes]]) -> list[Match]:
        """The stored prefix of each prompt. The queries of the shared store overlap."""
        within = self._seek_within
        if within is None:
            return [self.cache.lookup(of_row) for of_row in keys]
        seeks = [self.cache.seek(of_row, within) for of_row in keys]
        return [seek.wait() for seek in seeks]

    def _load(self, found: Match, blocks: int, halves: Any) -> Completion[LoadReport]:
        """Starts loading ``blocks`` blocks into the first tokens of a row."""
        halves = list(halves[:, :, : blocks * self._page_size])
        stream = compute_stream(self.watch.device)
        return self.cache.load(found, range(blocks), layout=self._layout(halves, blocks), after=stream)

    def _arriving(self, load: Completion[LoadReport], blocks: int) -> int:
        """Lets the stream wait for each layer of a load; without a stream, waits. Returns how many of the blocks come."""
        stream = compute_stream(self.watch.device)
        if not all(load.wait_layer_on(stream, layer) for layer in range(self._shape.num_layers)):
            return load.wait().blocks
        with self._lock:
            self._loads = [one for one in self._loads if not one.done()] + [load]
        return blocks

    def _check_content(
        self, model: Any, prompts: list[Prompt], kept: list[list[int]], keys: list[Any], past: Any
    ) -> None:
        """Checks that the new KV in a cache was computed from these tokens."""
        tokens: list[int] = []
        positions: list[int] = []
        halves: list[tuple[Any, Any]] = []
        layer, loaded = past.layers[0], Loaded.in_cache(past, self._identity)
        for at, (row, row_tokens, row_keys) in enumerate(zip(prompts, kept, keys, strict=True)):
            begin = loaded.known(at, row) if loaded is not None else 0
            end = len(row_keys) * self._page_size
            if begin < end:
                tokens += row_tokens[begin:end]
                positions += range(begin, end)
                columns = slice(row.start + begin, row.start + end)
                halves.append((layer.keys[at, :, columns], layer.values[at, :, columns]))
        if halves:
            first = [torch.cat(half, dim=1).transpose(0, 1) for half in zip(*halves, strict=True)]
            found = dict(zip(("keys", "values"), first, strict=True))
            check_first_tensors(tokens, positions, found, first_tensors(model, tokens, positions))

    def _check_layers(self, model: Any) -> None:
        """Checks that the model's own cache has the layers and sizes that this cache reads and writes."""
        others = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {"DynamicLayer"}
        if others:
            raise IdentityError(f"its cache has layers of other kinds than full attention ({', '.join(sorted(others))})")
        _, halves, heads, _, head_size = self._sizes(1, 1)
        if self._dtype not in TOLERANCES:
            raise IdentityError(f"the model computes in {self._dtype}; load it in one of {', '.join(map(str, TOLERANCES))}")
        for name, half in first_tensors(model, [0, 1], [0, 1]).items():
            if tuple(half.shape) != (2, heads, head_size) or half.dtype != self._dtype:
                raise IdentityError(
                    f"the config gives {heads} KV heads of {head_size} in {self._dtype}, and {name} of the first layer are "
                    f"{half.shape[1]} of {half.shape[2]} in {half.dtype}"
                )

    def _layout(self, halves: list[Any], blocks: int) -> Layout:
        return Layout(_WORD, shape=self._shape.with_num_blocks(blocks), tensors=halves)

    def _sizes(self, rows: int, tokens: int) -> tuple[int, int, int, int, int]:
        """Dimensions of the KV of all layers for ``tokens`` tokens of each row: rows, halves, heads, tokens, head
        size."""
        halves, heads = 2 * self._shape.num_layers, self._shape.num_heads
        head_bytes = self._shape.block_bytes // (halves * heads * self._page_size)
        return rows, halves, heads, tokens, head_bytes // self._dtype.itemsize
