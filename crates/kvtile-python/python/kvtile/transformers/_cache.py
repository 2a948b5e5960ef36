"""The prefix cache: loads the KV of known prefixes and stores new KV.

An object of this class holds no request state. The state of a request is in the ``DynamicCache`` that ``prefill``
returns and ``save`` takes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from kvtile._errors import ClosedError, ForkError, IdentityError, KvtileError, RequestError
from kvtile._kvtile import GroupStoreReport, StoreReport, TraceRecorder
from kvtile.transformers._kinds import cache_name, several_groups
from kvtile.transformers._one import OneGroup
from kvtile.transformers._options import ends_of, padding_of, read_request
from kvtile.transformers._prompts import Prompt, end_of_answer, prompts_of, token_lists
from kvtile.transformers._several import SeveralGroups
from kvtile.transformers._settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvtile._shared import SharedTier

__all__ = ["PrefixCache"]


_log = logging.getLogger("kvtile.transformers")


class PrefixCache:
    """Keeps the KV of one model's prompts and reuses it. Several threads may use it at once.

    Args:
        model: a causal language model of transformers on the CPU, or on one CUDA device (not run on hardware). A model on
            a device needs the driver.
        connect: the socket of a node daemon (``kvtile serve``), which then has host memory, disk and shared store, of its
            own sizes; default: none. With ``shared_within`` prompts wait for the daemon's shared store.
        disk: folder that keeps blocks for later processes; default: none.
        host_gib: host memory for blocks, in GiB; default: 1.
        disk_gib: limit for the size of the folder, in GiB; default: 8.
        close_within: seconds that closing may take to write blocks that are only in host memory; default: 30.
        shared: a store that other caches use too: a URL (``s3://bucket/prefix``, ``redis://host``), the path of a folder,
            or a ``kvtile.SharedTier``; default: none.
        shared_within: seconds that a prompt waits for the answers of the shared store; default: 1.
        shared_bundle_blocks: blocks of one value of the store, the same for all its caches; default: as many as the
            store reads well, and 1 for a model with windows, chunks or states.
        page_size: tokens per block; prefixes are reused in whole blocks.
        stops: for a model with windows, chunks or states, which of the positions are kept from which a later prompt can
            continue: ``prompt``, the last multiple of page_size before the last token of a prompt; ``answer``, the last
            one in an answer; ``branch``, where a prompt leaves those known. Default: all three.
        every: for such a model, also each multiple of so many tokens.
        revision: a name for the weights, such as a commit; the caller vouches for it. Default: a digest of all
            weights in memory. Adapters and other changes of the model are detected in both cases; weights that were
            changed in place beforehand only with the digest.
        salt: isolates tenants: a request finds only prefixes of the same salt.
        record: a file to which the requests are appended as a trace for ``kvtile replay``.
        extra: everything else that the KV depends on. An entry ``hooks`` describes what the caller's hooks in the
            model do.

    Raises:
        IdentityError: a model whose KV is not kept (docs/transformers.md names them), or a folder of another model.
        TensorError: a model on several devices, or on one that kvtile does not use.
        DeviceError: a model on a device, and no driver or one that failed.
        DiskError: a folder that cannot be used.
        SharedTierError: a shared store that cannot be opened.
        SettingsError: ``shared_within`` or ``shared_bundle_blocks`` without ``shared``; a setting of host memory, disk or
            shared store with ``connect``; ``stops`` or ``every`` for a model with full attention alone.
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
        stops: Collection[str] | None = None,
        every: int | None = None,
        revision: str | None = None,
        salt: str = "",
        record: str | os.PathLike[str] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        settings = Settings(
            connect=connect,
            disk=disk,
            host_gib=host_gib,
            disk_gib=disk_gib,
            close_within=close_within,
            shared=shared,
            shared_within=shared_within,
            shared_bundle_blocks=shared_bundle_blocks,
            page_size=page_size,
            stops=stops,
            every=every,
            revision=revision,
            salt=salt,
            extra=dict(extra or {}),
        )
        self._warned: set[str] = set()
        self._warned_lock = threading.Lock()
        self._cache_name = cache_name(model)
        self._recorder = None if record is None else TraceRecorder(record, page_size)
        self._kept = (SeveralGroups if several_groups(model.config) else OneGroup)(model, settings)
        self._watch, self.cache = self._kept.watch, self._kept.cache
        self.identity = self._watch.identity

    def prefill(self, inputs: Any) -> DynamicCache:
        """Loads the known prefix of a prompt, or of a batch, as the ``past_key_values`` of a ``generate`` or
        ``forward``.

        Args:
            inputs: the output of the tokenizer, or token ids, ``[prompts, tokens]`` or ``[tokens]``. Shorter prompts of
                a batch are padded on the left, with an attention mask.

        Returns:
            A ``DynamicCache`` of the longest stored prefix, in whole blocks and without the last token; an empty one
            without a hit. All rows of a batch continue from the same column: that of the row with the shortest hit.
            For a model with windows, chunks or states, one of the prompt up to its last stop, computed and stored where
            it was not known; of a batch up to the last tokens.

        Raises:
            IdentityError: the model has changed since the cache was opened.
            RequestError: inputs that are not a batch of tokens with padding on the left; a model that has states alone;
                several prompts for one that keeps entries of several tokens; a model with active dropout; autocast.
        """
        model = self._watch.check()
        return self._kept.prefill(model, self._prompts(model, inputs))

    def save(self, inputs: Any, outputs: Any, past_key_values: Any = None) -> list[StoreReport] | list[GroupStoreReport]:
        """Stores the KV of prompts and their answers, in whole blocks; known blocks are not copied again.

        Args:
            inputs: as for prefill.
            outputs: what ``generate`` returned: a tensor of token ids, or an output with ``sequences``.
            past_key_values: the cache that ``generate`` used; default: the cache of the outputs.

        Returns:
            A report for each prompt; for a model with windows, chunks or states that of its last stop.

        Raises:
            IdentityError: the model has changed since the cache was opened.
            RequestError: outputs that do not continue the inputs, or a cache that does not belong to them: kvtile
                recomputes and compares the first layer of the new tokens.
        """
        model = self._watch.check()
        past = getattr(outputs, self._cache_name, None)
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
        named = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": torch.as_tensor(token_lists(inputs), device=self._watch.device)}
        twice = sorted(set(named) & set(options))
        if twice:
            raise RequestError(f"{', '.join(twice)}: among the inputs and among the options")
        asked = {**named, **options}
        prompts, past = self._begin(model, asked)
        if past is None:
            return model.generate(**asked)
        arrived, ends = time.time(), ends_of(model, asked)
        outputs = self._kept.generate(model, past, asked, ends)
        try:
            self._watch.check()
            self._save(model, prompts, outputs, past, ends, arrived)
        except KvtileError as error:
            self._warn(f"an answer was not kept: {error}", type(error).__name__)
        return outputs

    def stats(self) -> dict[str, Any]:
        """The counters of the cache: as Cache.stats; for a model with windows, chunks or states as GroupCache.stats, with
        ``loaded_tokens`` of the stops that were loaded, and ``lost``, stops of which a part could not be read."""
        return self._kept.stats()

    def close(self) -> None:
        """Writes all blocks to the disk, if there is one, and frees all resources."""
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
            return read, self._kept.begin(model, read)
        except (IdentityError, ClosedError, ForkError):
            raise
        except KvtileError as error:
            self._warn(f"computed without the cache: {error}", type(error).__name__)
            return [], None

    def _prompts(self, model: Any, inputs: Any) -> list[Prompt]:
        return prompts_of(inputs, padding_of(model, {}))

    def _save(
        self, model: Any, prompts: list[Prompt], outputs: Any, past: Any, ends: set[int], arrived: float | None = None
    ) -> list[StoreReport] | list[GroupStoreReport]:
        answered = token_lists(getattr(outputs, "sequences", outputs))
        if len(answered) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts have {len(answered)} outputs; there must be one of each")
        if any(tokens[row.start : row.end] != row.tokens for row, tokens in zip(prompts, answered, strict=True)):
            raise RequestError("the outputs do not begin with the inputs")
        length = self._kept.length(past, len(prompts))
        if not prompts[0].end <= length <= len(answered[0]):
            raise RequestError(
                f"the cache holds {length} tokens, which is not what {prompts[0].end} tokens of inputs and "
                f"{len(answered[0])} of outputs leave; give past_key_values, the cache that generate worked on"
            )
        kept = [
            tokens[row.start : end_of_answer(tokens, row.end, length, ends)]
            for row, tokens in zip(prompts, answered, strict=True)
        ]
        reports = self._kept.store(model, prompts, kept, past)
        self._record(prompts, kept, arrived)
        return reports

    def _record(self, prompts: list[Prompt], kept: list[list[int]], arrived: float | None) -> None:
        """Adds a request, a line for each prompt, to the trace."""
        if self._recorder is None:
            return
        for row, tokens in zip(prompts, kept, strict=True):
            new = max(0, len(tokens) - len(row.tokens))
            self._recorder.record(self._kept.hasher.keys(row.tokens), len(row.tokens), new, arrived=arrived)

    def _warn(self, message: str, kind: str) -> None:
        """Logs the first message of each kind."""
        with self._warned_lock:
            known = kind in self._warned
            self._warned.add(kind)
        if not known:
            _log.warning("%s (further ones of this kind are not logged)", message)
