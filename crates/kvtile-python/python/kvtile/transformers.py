"""A prefix cache for ``generate`` of Hugging Face transformers.

The KV of prompts and answers is kept in host memory and, where a folder is given, on disk. A prompt that begins as
an earlier one did continues from there, in this process or a later one; the tokens are those that the
model would have given without the cache.

    cache = kvtile.transformers.PrefixCache(model, disk="kv-cache", host_gib=2)
    outputs = cache.generate(model, inputs, max_new_tokens=64)

or, with a ``generate`` of your own:

    outputs = model.generate(**inputs, past_key_values=cache.prefill(inputs))
    cache.save(inputs, outputs)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvtile._errors import IdentityError, RequestError, TensorError
from kvtile._kvtile import Cache, Completion, Identity, Layout, LoadReport, Match, Shape, StoreReport, TokenHasher

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PrefixCache"]

_GIB = 1 << 30
# Who asks waits for what was asked, so that a large batch is no reason to be refused.
_QUEUE = 1 << 16
_WORD = "LK|HBNC"  # DynamicCache: for each layer keys and values of one sequence, [heads, tokens, head size]

_log = logging.getLogger(__name__)


class PrefixCache:
    """Keeps the KV of one model's prompts, and continues from it.

    Args:
        model: a causal language model of transformers on the CPU, whose layers all have full attention.
        disk: folder that keeps blocks for later processes; none unless said.
        host_gib: host memory for blocks, in GiB.
        disk_gib: what the folder takes at most, in GiB.
        page_size: tokens a block: prefixes are found in steps of it.
        revision: which weights; the commit that the model was loaded from unless said, and where there is
            none, a digest of all parameters, which reads them once.
        salt: keeps tenants apart: prefixes are found only by those who have the same one.
        extra: whatever else the KV depends on, such as the name of an adapter.

    Raises:
        IdentityError: a model with other layers than full attention, or a folder of another model.
        TensorError: a model that is not on the CPU.
        DiskError: a folder that cannot be used.
    """

    def __init__(
        self,
        model: Any,
        *,
        disk: str | os.PathLike[str] | None = None,
        host_gib: float = 1.0,
        disk_gib: float = 8.0,
        page_size: int = 16,
        revision: str | None = None,
        salt: str = "",
        extra: Mapping[str, str] | None = None,
    ) -> None:
        import torch

        if model.device.type != "cpu":
            raise TensorError(f"the model is on {model.device}, and kvtile reads and writes memory of the CPU only")
        name = model.config._name_or_path or type(model).__name__
        commit = revision or getattr(model.config, "_commit_hash", None) or _digest(model)
        self.identity = Identity.from_hf_config(
            model.config, page_size=page_size, dtype=model.dtype, model=name, revision=commit, extra=extra
        )
        self._shape = Shape.from_hf_config(model.config, page_size=page_size, dtype=model.dtype)
        self._dtype = model.dtype
        self._model = weakref.ref(model)
        self._page_size = page_size
        self._hasher = TokenHasher(self.identity, salt=salt)
        self._last: Any = None
        # Blocks come from and go to each request's own tensors; the engine of the cache is one block.
        engine = torch.zeros(self._sizes(1, page_size), dtype=self._dtype)[0]
        self.cache = Cache(
            self.identity,
            self._layout(list(engine), 1),
            host_bytes=int(host_gib * _GIB),
            disk=disk,
            disk_bytes=None if disk is None else int(disk_gib * _GIB),
            disk_writes=None if disk is None else "at_once",
            queue_capacity=_QUEUE,
        )

    def prefill(self, inputs: Any) -> Any:
        """What is known of the KV of a prompt, or of a batch, as the ``past_key_values`` of a ``generate`` or ``forward``.

        Args:
            inputs: what the tokenizer gives, or token ids, ``[prompts, tokens]`` or ``[tokens]``. Shorter prompts of a
                batch are padded on the left, and the attention mask says so.

        Returns:
            A ``DynamicCache`` of the longest prefix that is stored, in whole blocks, the last token never among
            them; an empty one where nothing is. In a batch the rows go on together: from where the one goes on
            that is known least far.
        """
        import torch
        from transformers import DynamicCache

        rows = _rows(inputs)
        past = DynamicCache(config=self._live_model().config)
        # One token is left to be computed: it gives the first logits.
        keys = [self._hasher.keys(row.tokens)[: (len(row.tokens) - 1) // self._page_size] for row in rows]
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(self.cache.lookup(keys_)) for keys_ in keys]
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
                # What lies before the first of them is padding, which nothing attends to.
                length = min(length, *came)
                if any(length > row.start for row in rows):
                    # Rows are apart in memory while they come; here each layer gets all of its rows.
                    layers = pool[..., :length, :].unflatten(1, (-1, 2)).permute(1, 2, 0, 3, 4, 5)
                    for layer, pair in zip(past.layers, layers, strict=True):
                        layer.lazy_initialization(*pair)
                        layer.keys, layer.values = pair
        self._last = past
        _log.debug("%d of %d tokens of %d prompts were known", past.get_seq_length(), rows[0].end, len(rows))
        return past

    def _load(self, found: Match, blocks: int, halves: Any) -> Completion[LoadReport]:
        """Begins to load so many blocks to the first tokens of a row."""
        halves = list(halves[:, :, : blocks * self._page_size])
        return self.cache.load(found, range(blocks), layout=self._layout(halves, blocks))

    def save(self, inputs: Any, outputs: Any, past_key_values: Any = None) -> list[StoreReport]:
        """Keeps the KV of prompts and their answers, in whole blocks; what is there already is not copied.

        Args:
            inputs: as for prefill.
            outputs: what ``generate`` returned: a tensor of token ids, or an output with ``sequences``.
            past_key_values: the cache that was given to ``generate``; the one of the last ``prefill``, or that
                of the outputs, unless said.

        Returns:
            What was stored, of each prompt.

        Raises:
            RequestError: outputs that do not continue the inputs, or a cache that is not theirs.
        """
        prompts = _rows(inputs)
        answered = _lists(getattr(outputs, "sequences", outputs))
        if len(answered) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts have {len(answered)} outputs; there must be one of each")
        if any(tokens[row.start : row.end] != row.tokens for row, tokens in zip(prompts, answered, strict=True)):
            raise RequestError("the outputs do not begin with the inputs")
        past = past_key_values or getattr(outputs, "past_key_values", None) or self._last
        if past is None:
            raise RequestError("nothing was prefilled; give past_key_values, the cache that generate worked on")
        length, end = past.get_seq_length(), prompts[0].end
        if not end <= length <= len(answered[0]):
            raise RequestError(
                f"the cache holds {length} tokens, which is not what {end} tokens of inputs and "
                f"{len(answered[0])} of outputs leave; give past_key_values, the cache that generate worked on"
            )
        self._last = None
        halves = [half for layer in past.layers for half in (layer.keys, layer.values)]
        if halves[0].shape[0] != len(prompts):
            raise RequestError(f"the cache holds {halves[0].shape[0]} sequences, and there are {len(prompts)} prompts")
        stores = []
        for at, (row, tokens) in enumerate(zip(prompts, answered, strict=True)):
            keys = self._hasher.keys(tokens[row.start : self._answer_end(tokens, row.end, length)])
            stop = row.start + len(keys) * self._page_size
            layout = self._layout([half[at, :, row.start : stop] for half in halves], len(keys)) if keys else None
            stores.append(self.cache.store(keys, range(len(keys)), layout=layout))
        return [store.wait() for store in stores]

    def _answer_end(self, tokens: list[int], start: int, stop: int) -> int:
        """Where an answer ends: those that are shorter than others of their batch are filled up."""
        ends = getattr(self._live_model().generation_config, "eos_token_id", None)
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        return next((at + 1 for at in range(start, stop) if tokens[at] in ends), stop)

    def generate(self, model: Any, inputs: Any, **options: Any) -> Any:
        """``model.generate`` that continues from what is known of the prompt, and keeps what it computed.

        Args:
            model: the model that the cache was made for.
            inputs: as for prefill.
            options: those of ``model.generate``.

        Returns:
            What ``model.generate`` returns.

        Raises:
            RequestError: options by which a prompt has several sequences, such as ``num_beams``.
        """
        if model is not self._live_model():
            raise IdentityError("this cache was made for another model; make one for this model")
        usual = options.get("generation_config") or model.generation_config
        for name in ("num_beams", "num_return_sequences"):
            count = options.get(name, getattr(usual, name, None))
            if count not in (None, 1):
                raise RequestError(f"{name} is {count}: this cache continues one sequence for each prompt")
        past = self.prefill(inputs)
        named = inputs if isinstance(inputs, Mapping) else {"input_ids": _batched(inputs)}
        outputs = model.generate(**named, past_key_values=past, **options)
        self.save(inputs, outputs, past)
        return outputs

    def stats(self) -> dict[str, Any]:
        """What the cache counted, as Cache.stats."""
        return self.cache.stats()

    def close(self) -> None:
        """Brings everything to the disk, where there is one, and ends the cache's threads."""
        if not self.cache.closed:
            self.cache.flush()
            self.cache.close()

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

    def _live_model(self) -> Any:
        model = self._model()
        if model is None:
            raise IdentityError("the model of this cache is gone")
        return model

    def _layout(self, halves: list[Any], blocks: int) -> Layout:
        return Layout(_WORD, shape=self._shape.with_num_blocks(blocks), tensors=halves)

    def _sizes(self, rows: int, tokens: int) -> tuple[int, int, int, int, int]:
        """Keys and values of all layers for so many tokens of each row: rows, halves, heads, tokens, head size."""
        halves, heads = 2 * self._shape.num_layers, self._shape.num_heads
        head_bytes = self._shape.block_bytes // (halves * heads * self._page_size)
        return rows, halves, heads, tokens, head_bytes // self._dtype.itemsize


@dataclass(frozen=True)
class _Row:
    """A prompt of a batch: its tokens, which end with the batch, and where they start."""

    tokens: list[int]
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def _rows(inputs: Any) -> list[_Row]:
    """The prompts of a batch."""
    mask = None
    if isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
        inputs = inputs["input_ids"]
    sequences = _lists(inputs)
    masks = [[1] * len(tokens) for tokens in sequences] if mask is None else _lists(mask)
    if [len(row) for row in masks] != [len(tokens) for tokens in sequences]:
        raise RequestError("the attention mask is not of the size of the inputs")
    rows = []
    for tokens, seen in zip(sequences, masks, strict=True):
        start = next((at for at, value in enumerate(seen) if value), len(seen))
        if not all(seen[start:]):
            raise RequestError("the inputs are padded after their tokens; pad on the left (padding_side), as generate wants")
        rows.append(_Row(tokens[start:], start))
    if not rows or not all(row.tokens for row in rows):
        raise RequestError("the inputs have no tokens")
    return rows


def _lists(tokens: Any) -> list[list[int]]:
    """Token ids, one list a sequence, all of a length."""
    rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if rows and not isinstance(rows[0], (list, tuple)):
        rows = [rows]
    if len({len(row) for row in rows}) > 1:
        raise RequestError("the inputs are of several lengths; pad them on the left, with an attention mask")
    return [[int(token) for token in row] for row in rows]


def _batched(inputs: Any) -> Any:
    """Token ids as generate takes them."""
    import torch

    return torch.as_tensor(_lists(inputs))


def _digest(model: Any) -> str:
    """What tells a model's weights from all others: 128 bits over all of its parameters and their names."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
