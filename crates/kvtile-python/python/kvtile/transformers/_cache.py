"""The prefix cache: loads the KV of known prefixes and stores new KV.

An object of this class holds no request state. The state of a request is in the ``DynamicCache`` that ``prefill``
returns and ``save`` takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvtile._errors import ClosedError, ForkError, IdentityError, KvtileError, RequestError, SettingsError
from kvtile._kvtile import (
    Cache,
    Completion,
    Identity,
    Layout,
    LoadReport,
    Match,
    Shape,
    StoreReport,
    TokenHasher,
    TraceRecorder,
)
from kvtile.transformers._first_layer import TOLERANCES, check_first_layer, first_layer
from kvtile.transformers._loaded import Loaded
from kvtile.transformers._model import bare, check_kind, state_of, weights_digest
from kvtile.transformers._options import ends_of, padding_of, read_request
from kvtile.transformers._prompts import Prompt, end_of_answer, prompts_of, token_lists
from kvtile.transformers._watch import ModelWatch

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvtile._shared import SharedTier

__all__ = ["PrefixCache"]

_GIB = 1 << 30
# The caller waits for its own operations, so a large batch must not exceed the queue.
_QUEUE = 1 << 16
_WORD = "LK|HBNC"  # DynamicCache: for each layer keys and values of one sequence, [heads, tokens, head size]

_log = logging.getLogger("kvtile.transformers")


class PrefixCache:
    """Keeps the KV of one model's prompts and reuses it. Several threads may use it at once.

    Args:
        model: a causal language model of transformers on the CPU, whose layers all have full attention.
        connect: the socket of a node daemon (``kvtile serve``), which then has host memory, disk and shared store, of its
            own sizes; default: none. With ``shared_within`` prompts wait for the daemon's shared store.
        disk: folder that keeps blocks for later processes; default: none.
        host_gib: host memory for blocks, in GiB; default: 1.
        disk_gib: limit for the size of the folder, in GiB; default: 8.
        close_within: seconds that closing may take to write blocks that are only in host memory; default: 30.
        shared: a store that other caches use too: a URL (``s3://bucket/prefix``, ``redis://host``), the path of a folder,
            or a ``kvtile.SharedTier``; default: none.
        shared_within: seconds that a prompt waits for the answer of the shared store; default: 1.
        shared_bundle_blocks: blocks of one value of the store, the same for all its caches; default: as many as the
            store reads well.
        page_size: tokens per block; prefixes are reused in whole blocks.
        revision: a name for the weights, such as a commit; the caller vouches for it. Default: a digest of all
            weights in memory. Adapters and other changes of the model are detected in both cases; weights that were
            changed in place beforehand only with the digest.
        salt: isolates tenants: a request finds only prefixes of the same salt.
        record: a file to which the requests are appended as a trace for ``kvtile replay``.
        extra: everything else that the KV depends on. An entry ``hooks`` describes what the caller's hooks in the
            model do.

    Raises:
        IdentityError: a model without plain causal attention, or a folder of another model.
        TensorError: a model that is not on the CPU.
        DiskError: a folder that cannot be used.
        SharedTierError: a shared store that cannot be opened.
        SettingsError: ``shared_within`` or ``shared_bundle_blocks`` without ``shared``; a setting of host memory, disk or
            shared store with ``connect``.
        DaemonError: no daemon answers at the socket.
    """

    def __init__(
        self,
        model: Any,
        *,
        connect: str | os.PathLike[str] | None = None,
        disk: str | os.PathLike[str] | None = None,
        host_gib: float | None = None,
        disk_gib: float | None = None,
        close_within: float | None = None,
        shared: str | os.PathLike[str] | SharedTier | None = None,
        shared_within: float | None = None,
        shared_bundle_blocks: int | None = None,
        page_size: int = 16,
        revision: str | None = None,
        salt: str = "",
        record: str | os.PathLike[str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        extra = dict(extra or {})

        def identity_of(model: Any) -> Identity:
            check_kind(model, hooks="hooks" in extra)
            return Identity.from_hf_config(
                model.config,
                page_size=page_size,
                dtype=model.dtype,
                model=model.config._name_or_path or type(bare(model)).__name__,
                revision=revision or weights_digest(model),
                extra={**extra, **state_of(model)},
            )

        self._watch = ModelWatch(model, identity_of)
        self.identity = self._watch.identity
        self._shape = Shape.from_hf_config(model.config, page_size=page_size, dtype=model.dtype)
        self._dtype = model.dtype
        self._page_size = page_size
        of_daemon = {
            "disk": disk,
            "host_gib": host_gib,
            "disk_gib": disk_gib,
            "close_within": close_within,
            "shared": shared,
            "shared_bundle_blocks": shared_bundle_blocks,
        }
        given = [name for name, value in of_daemon.items() if value is not None]
        if connect is not None and given:
            raise SettingsError(f"{', '.join(given)} has no effect with connect; give it to kvtile serve")
        if connect is None and shared is None and shared_within is not None:
            raise SettingsError("shared_within has no effect without shared, the store")
        # Seconds that a lookup waits for the shared store; None without one.
        self._seek_within = shared_within if shared is None else 1.0 if shared_within is None else shared_within
        self._hasher = TokenHasher(self.identity, salt=salt)
        self._recorder = None if record is None else TraceRecorder(record, page_size)
        self._warned: set[str] = set()
        self._warned_lock = threading.Lock()
        self._check_layers(model)
        # Blocks are copied from and to each request's own tensors; the cache's engine layout is one dummy block.
        engine = torch.zeros(self._sizes(1, page_size), dtype=self._dtype)[0]
        if connect is not None:
            self.cache = Cache(self.identity, self._layout(list(engine), 1), connect=connect, queue_capacity=_QUEUE)
            return
        self.cache = Cache(
            self.identity,
            self._layout(list(engine), 1),
            host_bytes=int((1.0 if host_gib is None else host_gib) * _GIB),
            disk=disk,
            disk_bytes=None if disk is None else int((8.0 if disk_gib is None else disk_gib) * _GIB),
            disk_writes=None if disk is None else "at_once",
            close_within=close_within,
            shared=shared,
            shared_bundle_blocks=shared_bundle_blocks,
            queue_capacity=_QUEUE,
        )

    def prefill(self, inputs: Any) -> DynamicCache:
        """Loads the known prefix of a prompt, or of a batch, as the ``past_key_values`` of a ``generate`` or
        ``forward``.

        Args:
            inputs: the output of the tokenizer, or token ids, ``[prompts, tokens]`` or ``[tokens]``. Shorter prompts of
                a batch are padded on the left, with an attention mask.

        Returns:
            A ``DynamicCache`` of the longest stored prefix, in whole blocks and without the last token; an empty one
            without a hit. All rows of a batch continue from the same column: that of the row with the shortest hit.

        Raises:
            IdentityError: the model has changed since the cache was opened.
            RequestError: inputs that are not a batch of tokens with padding on the left; a model with active dropout;
                autocast.
        """
        model = self._watch.check()
        return self._prefill(model, self._prompts(model, inputs))

    def save(self, inputs: Any, outputs: Any, past_key_values: Any = None) -> list[StoreReport]:
        """Stores the KV of prompts and their answers, in whole blocks; known blocks are not copied again.

        Args:
            inputs: as for prefill.
            outputs: what ``generate`` returned: a tensor of token ids, or an output with ``sequences``.
            past_key_values: the cache that ``generate`` used; default: the cache of the outputs.

        Returns:
            A report for each prompt.

        Raises:
            IdentityError: the model has changed since the cache was opened.
            RequestError: outputs that do not continue the inputs, or a cache that does not belong to them: kvtile
                recomputes and compares the first layer of the new tokens.
        """
        model = self._watch.check()
        past = getattr(outputs, "past_key_values", None)
        if past is None:
            past = past_key_values
        elif past_key_values is not None and past_key_values is not past:
            raise RequestError("the outputs have another cache than the past_key_values; give the outputs alone")
        if past is None:
            raise RequestError("give past_key_values, the cache that generate worked on")
        return self._save(model, self._prompts(model, inputs), outputs, past, ends_of(model, {}))

    def generate(self, model: Any, inputs: Any, **options: Any) -> Any:
        """Calls ``model.generate`` on top of the prompt's known prefix, and stores the new KV.

        For a request that cannot be cached, ``model.generate`` runs without the cache; the first request of each kind
        logs a warning. A failed store never fails a request.

        Args:
            model: the model that the cache was made for.
            inputs: as for prefill.
            options: options of ``model.generate``.

        Returns:
            What ``model.generate`` returns.

        Raises:
            IdentityError: another model, or one that has changed since the cache was opened.
            ClosedError: the cache is closed.
        """
        if model is not self._watch.model():
            raise IdentityError("this cache was made for another model; make one for this model")
        if self.cache.closed:
            raise ClosedError("the cache is closed; use model.generate, or make a new PrefixCache")
        named = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": torch.as_tensor(token_lists(inputs))}
        twice = sorted(set(named) & set(options))
        if twice:
            raise RequestError(f"{', '.join(twice)}: among the inputs and among the options")
        asked = {**named, **options}
        prompts, past = self._begin(model, asked)
        if past is None:
            return model.generate(**asked)
        arrived = time.time()
        outputs = model.generate(**asked, past_key_values=past)
        try:
            self._watch.check()
            self._save(model, prompts, outputs, past, ends_of(model, asked), arrived)
        except KvtileError as error:
            self._warn(f"an answer was not kept: {error}", type(error).__name__)
        return outputs

    def stats(self) -> dict[str, Any]:
        """The counters of the cache, as Cache.stats."""
        return self.cache.stats()

    def close(self) -> None:
        """Writes all blocks to the disk, if there is one, and frees all resources, as Cache.close."""
        self.cache.close()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvtile.transformers.PrefixCache for {self.identity!r}>"

    def _begin(self, model: Any, asked: Mapping[str, Any]) -> tuple[list[Prompt], DynamicCache | None]:
        """The prompts of a request and their known prefix; None instead of a cache if the request runs without it."""
        read = read_request(model, asked)
        if isinstance(read, tuple):
            kind, why = read
            self._warn(f"computed without the cache: {why}", kind)
            return [], None
        try:
            self._watch.check()
            return read, self._prefill(model, read)
        except (IdentityError, ClosedError, ForkError):
            raise
        except KvtileError as error:
            self._warn(f"computed without the cache: {error}", type(error).__name__)
            return [], None

    def _prompts(self, model: Any, inputs: Any) -> list[Prompt]:
        return prompts_of(inputs, padding_of(model, {}))

    def _prefill(self, model: Any, rows: list[Prompt]) -> DynamicCache:
        past = DynamicCache(config=model.config)
        # The last token is always computed, because it gives the first logits.
        keys = [self._hasher.keys(row.tokens)[: (len(row.tokens) - 1) // self._page_size] for row in rows]
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(match) for match in self._lookup(keys)]
            length = min(row.start + match.blocks * self._page_size for row, match in zip(rows, found, strict=True))
            blocks = [max(0, -(-(length - row.start) // self._page_size)) for row in rows]
            width = max(row.start + count * self._page_size for row, count in zip(rows, blocks, strict=True))
            if any(blocks):
                pool = torch.zeros(self._sizes(len(rows), width), dtype=self._dtype)
                loads = [
                    (row, self._load(match, count, pool[at, :, :, row.start :]))
                    for at, (row, match, count) in enumerate(zip(rows, found, blocks, strict=True))
                    if count
                ]
                came = [row.start + load.wait().blocks * self._page_size for row, load in loads]
                # Columns before the first loaded token are padding, which attention ignores.
                length = min(length, *came)
                if any(length > row.start for row in rows):
                    # The pool is laid out by row for loading; each layer needs a view of all rows.
                    layers = pool[..., :length, :].unflatten(1, (-1, 2)).permute(1, 2, 0, 3, 4, 5)
                    for layer, pair in zip(past.layers, layers, strict=True):
                        layer.lazy_initialization(*pair)
                        layer.keys, layer.values = pair
                    Loaded.of(self.identity, rows, length).mark(past)
        _log.debug("%d of %d tokens of %d prompts were known", past.get_seq_length(), rows[0].end, len(rows))
        return past

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
        return self.cache.load(found, range(blocks), layout=self._layout(halves, blocks))

    def _save(
        self, model: Any, prompts: list[Prompt], outputs: Any, past: Any, ends: set[int], arrived: float | None = None
    ) -> list[StoreReport]:
        answered = token_lists(getattr(outputs, "sequences", outputs))
        if len(answered) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts have {len(answered)} outputs; there must be one of each")
        if any(tokens[row.start : row.end] != row.tokens for row, tokens in zip(prompts, answered, strict=True)):
            raise RequestError("the outputs do not begin with the inputs")
        length = self._length(past, len(prompts))
        if not prompts[0].end <= length <= len(answered[0]):
            raise RequestError(
                f"the cache holds {length} tokens, which is not what {prompts[0].end} tokens of inputs and "
                f"{len(answered[0])} of outputs leave; give past_key_values, the cache that generate worked on"
            )
        kept = [
            tokens[row.start : end_of_answer(tokens, row.end, length, ends)]
            for row, tokens in zip(prompts, answered, strict=True)
        ]
        keys = [self._hasher.keys(tokens) for tokens in kept]
        self._check_content(model, prompts, kept, keys, past)
        self._record(prompts, kept, arrived)
        halves = [half for layer in past.layers for half in (layer.keys, layer.values)]
        stores = []
        for at, (row, keys_) in enumerate(zip(prompts, keys, strict=True)):
            stop = row.start + len(keys_) * self._page_size
            layout = self._layout([half[at, :, row.start : stop] for half in halves], len(keys_)) if keys_ else None
            stores.append(self.cache.store(keys_, range(len(keys_)), layout=layout))
        return [store.wait() for store in stores]

    def _record(self, prompts: list[Prompt], kept: list[list[int]], arrived: float | None) -> None:
        """Adds a request, a line for each prompt, to the trace."""
        if self._recorder is None:
            return
        for row, tokens in zip(prompts, kept, strict=True):
            new = max(0, len(tokens) - len(row.tokens))
            self._recorder.record(self._hasher.keys(row.tokens), len(row.tokens), new, arrived=arrived)

    def _length(self, past: Any, rows: int) -> int:
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
                if tuple(half.shape) != sizes or half.dtype != self._dtype or half.device.type != "cpu":
                    raise RequestError(
                        f"{name} of layer {at} are {tuple(half.shape)} of {half.dtype} on {half.device}, and "
                        f"{rows} prompts with {length} tokens of this model are {sizes} of {self._dtype} on the CPU"
                    )
        return length

    def _check_content(
        self, model: Any, prompts: list[Prompt], kept: list[list[int]], keys: list[Any], past: Any
    ) -> None:
        """Checks that the new KV in a cache was computed from these tokens."""
        tokens: list[int] = []
        positions: list[int] = []
        halves: list[tuple[Any, Any]] = []
        layer, loaded = past.layers[0], Loaded.in_cache(past, self.identity)
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
            check_first_layer(model, tokens, positions, *first)

    def _check_layers(self, model: Any) -> None:
        """Checks that the model's own cache has the layers and sizes that this cache reads and writes."""
        others = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {"DynamicLayer"}
        if others:
            raise IdentityError(f"its cache has layers of other kinds than full attention ({', '.join(sorted(others))})")
        _, halves, heads, _, head_size = self._sizes(1, 1)
        if self._dtype not in TOLERANCES:
            raise IdentityError(f"the model computes in {self._dtype}; load it in one of {', '.join(map(str, TOLERANCES))}")
        for name, half in zip(("keys", "values"), first_layer(model, [0, 1], [0, 1]), strict=True):
            if tuple(half.shape) != (2, heads, head_size) or half.dtype != self._dtype:
                raise IdentityError(
                    f"the config gives {heads} KV heads of {head_size} in {self._dtype}, and {name} of the first layer are "
                    f"{half.shape[1]} of {half.shape[2]} in {half.dtype}"
                )

    def _warn(self, message: str, kind: str) -> None:
        """Logs the first message of each kind."""
        with self._warned_lock:
            known = kind in self._warned
            self._warned.add(kind)
        if not known:
            _log.warning("%s (further ones of this kind are not logged)", message)

    def _layout(self, halves: list[Any], blocks: int) -> Layout:
        return Layout(_WORD, shape=self._shape.with_num_blocks(blocks), tensors=halves)

    def _sizes(self, rows: int, tokens: int) -> tuple[int, int, int, int, int]:
        """Dimensions of the KV of all layers for ``tokens`` tokens of each row: rows, halves, heads, tokens, head
        size."""
        halves, heads = 2 * self._shape.num_layers, self._shape.num_heads
        head_bytes = self._shape.block_bytes // (halves * heads * self._page_size)
        return rows, halves, heads, tokens, head_bytes // self._dtype.itemsize
