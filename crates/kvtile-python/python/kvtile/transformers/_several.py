"""Prompts and answers of a model with several groups.

Prefill computes a prompt up to a stop, keeps the stop, and goes on. While an answer is computed, the cache object
copies the record of every page's end that it passes, and keeps the newest. One prompt at a time, without padding.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from kvtile._errors import IdentityError, RequestError, SettingsError
from kvtile._hf.fields import text
from kvtile._kvtile import Identity, StoreReport, TokenHasher
from kvtile.transformers._content import Contents
from kvtile.transformers._first_layer import TOLERANCES, check_first_tensors, first_tensors
from kvtile.transformers._kinds import config_fields, forward, groups_of_model, new_cache
from kvtile.transformers._model import bare, check_kind, state_of, weights_digest
from kvtile.transformers._prompts import Prompt
from kvtile.transformers._settings import Settings
from kvtile.transformers._tiers import GroupTiers, shapes_of
from kvtile.transformers._watch import ModelWatch

STOPS = ("prompt", "answer", "branch")

_log = logging.getLogger("kvtile.transformers")


class StopsToKeep:
    """Which stops are kept.

    Args:
        names: ``prompt``, the last page's end before the last token of a prompt; ``answer``, the last page's end of the
            answer; ``branch``, where a prompt leaves the known ones.
        every: also each multiple of so many tokens.
    """

    def __init__(self, names: Collection[str], every: int | None, page_size: int) -> None:
        unknown = sorted(set(names) - set(STOPS))
        if isinstance(names, str) or unknown:
            raise SettingsError(f"stops are some of {', '.join(STOPS)}, and not {names!r}")
        if every is not None and (every < page_size or every % page_size):
            raise SettingsError(f"every is {every}, and stops are multiples of the page_size {page_size}")
        self.page_size, self.every = page_size, every
        self.answer, self._prompt, self._branch = ("answer" in names, "prompt" in names, "branch" in names)

    def of_prompt(self, known: int, branch: int, length: int) -> list[int]:
        """The stops to keep while a prompt is computed from ``known`` tokens on, in order."""
        last = (length - 1) // self.page_size * self.page_size
        stops = {last} if self._prompt else set()
        if self._branch:
            stops.add(min(branch, last))
        if self.every is not None:
            stops.update(range(self.every, last + 1, self.every))
        return sorted(stop for stop in stops if stop > known)

    def lasting(self, stop: int, prompt: int) -> bool:
        """Whether a stop that an answer passes is kept although a later one follows."""
        return (self._prompt and stop == prompt) or (self.every is not None and stop % self.every == 0)


class PassedStops(DynamicCache):  # type: ignore[misc]
    """A ``DynamicCache`` that copies the records of the stops that it passes after the prompt."""

    kvtile_prompt: tuple[str, tuple[int, ...]] | None = None
    kvtile_records: Mapping[int, Any] = MappingProxyType({})
    kvtile_known = 0

    def follow(self, tokens: list[int], fingerprint: str, contents: Contents, stops: StopsToKeep) -> None:
        """Begins with a prompt, of which the cache already has some tokens."""
        self.kvtile_prompt = (fingerprint, tuple(tokens))
        self.kvtile_records = {}
        self.kvtile_known = int(self.get_seq_length())
        self._contents, self._stops = contents, stops

    def get_query_offset(self, layer_idx: int = 0) -> int:
        # Called for masks alone, which a model makes before its first layer computes.
        self._pass()
        return int(super().get_query_offset(layer_idx))

    def crop(self, *args: Any, **options: Any) -> None:
        super().crop(*args, **options)
        self.kvtile_records = {at: record for at, record in self.kvtile_records.items() if at <= self.get_seq_length()}

    def reset(self) -> None:
        super().reset()
        self.kvtile_prompt, self.kvtile_records = None, {}

    def _pass(self) -> None:
        """Copies the record at a page's end of the answer."""
        prompt = self.kvtile_prompt
        if prompt is None or not self._contents.record_bytes:
            return
        lengths = {layer.get_seq_length() for layer in self.layers if isinstance(layer, CacheLayerMixin)}
        stop, length = max(lengths), len(prompt[1])
        # Some layers make a mask of their own, when those before them are already further.
        if len(lengths) > 1 or stop < length or stop % self._stops.page_size or stop in self.kvtile_records:
            return
        if not self._stops.answer and not self._stops.lasting(stop, length):
            return
        # A new dict, so that a copy of this object keeps its own.
        lasting = {at: record for at, record in self.kvtile_records.items() if self._stops.lasting(at, length)}
        self.kvtile_records = {**lasting, stop: self._contents.record(self, stop)}


class SeveralGroups:
    """Continues prompts from stops, and keeps stops.

    Attributes:
        cache: host memory and disk of all groups.
        watch: the model, and the identity that it had at first.
        hasher: gives the keys of tokens.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        given = [name for name in ("connect", "shared", "shared_bundle_blocks") if getattr(settings, name) is not None]
        if given:
            raise SettingsError(
                f"{', '.join(given)}: a model with several groups keeps its KV in host memory and on disk only"
            )
        size = settings.page_size
        self._stops = StopsToKeep(STOPS if settings.stops is None else settings.stops, settings.every, size)
        check_kind(model, hooks="hooks" in settings.extra)
        self._contents = contents = Contents(groups_of_model(model))
        if size % contents.unit:
            raise SettingsError(
                f"page_size is {size}, and this model keeps entries of {contents.unit} tokens; give a multiple of that"
            )
        if model.dtype not in TOLERANCES:
            dtypes = ", ".join(map(str, TOLERANCES))
            raise IdentityError(f"the model computes in {model.dtype}; load it in one of {dtypes}")
        first_tensors(model, [0], [0])
        shapes = shapes_of(contents, size)

        def identity_of(model: Any) -> Identity:
            check_kind(model, hooks="hooks" in settings.extra)
            extra = {**config_fields(model.config), "groups": text("; ".join(map(str, contents.groups)))}
            return Identity(
                model.config._name_or_path or type(bare(model)).__name__,
                settings.revision or weights_digest(model),
                next(iter(shapes.values())),
                extra={**extra, **settings.extra, **state_of(model)},
            )

        self.watch = ModelWatch(model, identity_of)
        whole = self.watch.identity
        self.hasher = TokenHasher(whole, salt=settings.salt)
        self.cache = GroupTiers(
            contents,
            size,
            lambda name, shape: Identity(whole.model, whole.revision, shape, extra={**whole.extra, "part": name}),
            host_bytes=settings.host_bytes,
            disk=None if settings.disk is None else Path(settings.disk),
            disk_bytes=settings.disk_bytes,
            close_within=settings.close_within,
        )

    def prefill(self, model: Any, rows: list[Prompt]) -> DynamicCache:
        """A cache object with the tokens of a prompt up to its last stop, loaded as far as they are known."""
        tokens = _one(rows).tokens
        past = new_cache(model, PassedStops)
        size = self._stops.page_size
        keys = self.hasher.keys(tokens)
        known, branch = self.cache.load(keys[: (len(tokens) - 1) // size], past)
        _log.debug("%d of %d tokens of a prompt were known", known, len(tokens))
        if self._contents.record_bytes:
            at = known
            for stop in self._stops.of_prompt(known, branch, len(tokens)):
                forward(model, tokens[at:stop], past)
                self.cache.store(keys[: stop // size], past, self._contents.record(past, stop))
                at = stop
        past.follow(tokens, self.watch.identity.fingerprint, self._contents, self._stops)
        return past

    def length(self, past: Any, rows: int) -> int:
        """The number of tokens in a cache object; refuses all but one of this model for one prompt."""
        if not isinstance(past, PassedStops):
            raise RequestError(f"a {type(past).__name__} is not a cache that prefill returned; give that one")
        length = int(past.get_seq_length())
        self._contents.check(past, length)
        return length

    def store(self, model: Any, prompts: list[Prompt], kept: list[list[int]], past: Any) -> list[StoreReport]:
        """Stores the stops of an answer."""
        tokens, prompt = kept[0], _one(prompts).tokens
        if past.kvtile_prompt != (self.watch.identity.fingerprint, tuple(prompt)):
            raise RequestError("the cache is of another prompt; give the one that prefill returned for this prompt")
        size, length = self._stops.page_size, int(past.get_seq_length())
        self._check_content(model, tokens, past)
        keys = self.hasher.keys(tokens)
        if self._contents.record_bytes:
            records = dict(past.kvtile_records)
            if self._stops.answer and length % size == 0:
                records[length] = self._contents.record(past, length)
            stops = sorted(stop for stop in records if stop <= len(tokens))
        else:
            records, stops = {}, [len(keys) * size] if keys else []
        return [self.cache.store(keys[: stop // size], past, records.get(stop)) for stop in stops]

    def _check_content(self, model: Any, tokens: list[int], past: Any) -> None:
        """Checks that the last tokens in a cache object are these, by its first layer."""
        length = min(int(past.get_seq_length()), len(tokens))
        if length < past.get_seq_length():
            return  # the answer ended before: what follows is not kept
        last, found = self._contents.last_tokens(past, length, length - past.kvtile_known)
        if last:
            positions = list(range(length - last, length))
            ended = tokens[length - last : length]
            check_first_tensors(ended, positions, found, first_tensors(model, ended, positions))


def _one(rows: list[Prompt]) -> Prompt:
    """The prompt of a request."""
    if len(rows) != 1 or rows[0].start:
        padding = " with padding" if any(row.start for row in rows) else ""
        raise RequestError(
            f"{len(rows)} prompt{'s'[: len(rows) != 1]}{padding}: a model with several groups takes one prompt without "
            "padding at a time"
        )
    return rows[0]
