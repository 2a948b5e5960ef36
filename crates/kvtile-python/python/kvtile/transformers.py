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

import hashlib
import logging
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvtile._errors import IdentityError, RequestError, TensorError
from kvtile._kvtile import Cache, Identity, Layout, Shape, StoreReport, TokenHasher

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PrefixCache"]

_GIB = 1 << 30
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
        engine = torch.zeros(self._sizes(page_size), dtype=self._dtype)
        self.cache = Cache(
            self.identity,
            self._layout(list(engine), 1),
            host_bytes=int(host_gib * _GIB),
            disk=disk,
            disk_bytes=None if disk is None else int(disk_gib * _GIB),
            disk_writes=None if disk is None else "at_once",
        )

    def prefill(self, inputs: Any) -> Any:
        """What is known of a prompt's KV, as the ``past_key_values`` of a ``generate`` or ``forward``.

        Args:
            inputs: what the tokenizer gives for one prompt, or its token ids, ``[1, tokens]`` or ``[tokens]``.

        Returns:
            A ``DynamicCache`` of the longest prefix that is stored, in whole blocks, the last token never among
            them; an empty one where nothing is.
        """
        import torch
        from transformers import DynamicCache

        tokens = _one_sequence(inputs)
        model = self._live_model()
        past = DynamicCache(config=model.config)
        # One token is left to be computed: it gives the first logits.
        keys = self._hasher.keys(tokens)[: (len(tokens) - 1) // self._page_size]
        blocks = 0
        with self.cache.lookup(keys) as found:
            if found.blocks:
                length = found.blocks * self._page_size
                pool = torch.empty(self._sizes(length), dtype=self._dtype)
                layout = self._layout(list(pool), found.blocks)
                blocks = self.cache.load(found, range(found.blocks), layout=layout).wait().blocks
        if blocks:
            known = pool[:, None, :, : blocks * self._page_size]
            for layer, (keys_, values) in zip(past.layers, zip(known[::2], known[1::2], strict=True), strict=True):
                layer.lazy_initialization(keys_, values)
                layer.keys, layer.values = keys_, values
        self._last = past
        _log.debug("%d of %d prompt tokens were known", blocks * self._page_size, len(tokens))
        return past

    def save(self, inputs: Any, outputs: Any, past_key_values: Any = None) -> StoreReport:
        """Keeps the KV of a prompt and its answer, in whole blocks; what is there already is not copied.

        Args:
            inputs: as for prefill.
            outputs: what ``generate`` returned: a tensor of token ids, or an output with ``sequences``.
            past_key_values: the cache that was given to ``generate``; the one of the last ``prefill``, or that
                of the outputs, unless said.

        Returns:
            What was stored.

        Raises:
            RequestError: outputs that do not continue the inputs, or a cache that is not theirs.
        """
        prompt = _one_sequence(inputs)
        tokens = _one_sequence(getattr(outputs, "sequences", outputs))
        if tokens[: len(prompt)] != prompt:
            raise RequestError("the outputs do not begin with the inputs")
        past = past_key_values or getattr(outputs, "past_key_values", None) or self._last
        if past is None:
            raise RequestError("nothing was prefilled; give past_key_values, the cache that generate worked on")
        length = past.get_seq_length()
        if not len(prompt) <= length <= len(tokens):
            raise RequestError(
                f"the cache holds {length} tokens, which is not what {len(prompt)} tokens of inputs and "
                f"{len(tokens)} of outputs leave; give past_key_values, the cache that generate worked on"
            )
        self._last = None
        keys = self._hasher.keys(tokens[:length])
        end = len(keys) * self._page_size
        pairs = [(layer.keys, layer.values) for layer in past.layers]
        halves = [half[0, :, :end] for pair in pairs for half in pair]
        if not keys:
            return self.cache.store([], []).wait()
        return self.cache.store(keys, range(len(keys)), layout=self._layout(halves, len(keys))).wait()

    def generate(self, model: Any, inputs: Any, **options: Any) -> Any:
        """``model.generate`` that continues from what is known of the prompt, and keeps what it computed.

        Args:
            model: the model that the cache was made for.
            inputs: what the tokenizer gives for one prompt, or its token ids.
            options: those of ``model.generate``.

        Returns:
            What ``model.generate`` returns.
        """
        if model is not self._live_model():
            raise IdentityError("this cache was made for another model; make one for this model")
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

    def _sizes(self, tokens: int) -> tuple[int, int, int, int]:
        """Keys and values of all layers for so many tokens: halves, heads, tokens, head size."""
        halves, heads = 2 * self._shape.num_layers, self._shape.num_heads
        rows = halves * heads * self._page_size * self._dtype.itemsize
        return halves, heads, tokens, self._shape.block_bytes // rows


def _one_sequence(inputs: Any) -> list[int]:
    """The token ids of one sequence."""
    if isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise RequestError("the inputs are padded; give one prompt without padding")
        inputs = inputs["input_ids"]
    tokens = inputs.tolist() if hasattr(inputs, "tolist") else list(inputs)
    if tokens and isinstance(tokens[0], list):
        if len(tokens) != 1:
            raise RequestError(f"the inputs are a batch of {len(tokens)}; give one prompt at a time")
        (tokens,) = tokens
    if not tokens:
        raise RequestError("the inputs have no tokens")
    return [int(token) for token in tokens]


def _batched(inputs: Any) -> Any:
    """Token ids as generate takes them."""
    import torch

    return torch.as_tensor(_one_sequence(inputs))[None]


def _digest(model: Any) -> str:
    """What tells a model's weights from all others: 128 bits over all of its parameters and their names."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
