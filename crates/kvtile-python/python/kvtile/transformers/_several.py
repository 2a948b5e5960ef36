"""Prompts and answers of a model with several groups.

Prefill computes a prompt up to a stop, keeps the stop, and goes on. While an answer is computed, the cache object
copies the record of every page's end that it passes, and keeps the newest. The prompts of a batch are computed one after
the other, up to their last tokens, and their cache objects are joined.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Collection
from typing import Any

from kvtile._errors import IdentityError, RequestError, SettingsError
from kvtile._hf.fields import text
from kvtile._kvtile import GroupStoreReport, ModelIdentity, TokenHasher
from kvtile.transformers._content import Contents
from kvtile.transformers._first_layer import TOLERANCES, check_first_tensors, first_tensors
from kvtile.transformers._kinds import (
    cache_name,
    computes_by_token,
    config_fields,
    forward,
    groups_of_model,
    new_cache,
)
from kvtile.transformers._model import bare, check_kind, device_of, state_of, weights_digest
from kvtile.transformers._passed import STOPS, PassedStops, StopsToKeep
from kvtile.transformers._prompts import Prompt, end_of_answer
from kvtile.transformers._settings import Settings
from kvtile.transformers._tiers import StopTiers, groups_of
from kvtile.transformers._watch import ModelWatch

_log = logging.getLogger("kvtile.transformers")


class SeveralGroups:
    """Continues prompts from stops, and keeps stops.

    Attributes:
        cache: host memory, disk and shared store of all groups.
        watch: the model, and the identity that it had at first.
        hasher: gives the keys of tokens.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        settings.check_tiers()
        size = settings.page_size
        self._stops = StopsToKeep(STOPS if settings.stops is None else settings.stops, settings.every, size)
        check_kind(model, hooks="hooks" in settings.extra)
        self._contents = contents = Contents(groups_of_model(model), device_of(model))
        if size % contents.unit:
            raise SettingsError(
                f"page_size is {size}, and this model keeps entries of {contents.unit} tokens; give a multiple of that"
            )
        if model.dtype not in TOLERANCES:
            dtypes = ", ".join(map(str, TOLERANCES))
            raise IdentityError(f"the model computes in {model.dtype}; load it in one of {dtypes}")
        first_tensors(model, [0], [0])
        self._by_token = computes_by_token(model)
        groups = groups_of(contents, size)

        def identity_of(model: Any) -> ModelIdentity:
            check_kind(model, hooks="hooks" in settings.extra)
            extra = {**config_fields(model.config), "groups": text("; ".join(map(str, contents.groups)))}
            return ModelIdentity(
                model.config._name_or_path or type(bare(model)).__name__,
                settings.revision or weights_digest(model),
                groups,
                extra={**extra, **settings.extra, **state_of(model)},
            )

        self.watch = ModelWatch(model, identity_of)
        self._identity = self.watch.identity
        self._tiers = StopTiers(self._identity, contents, settings)
        self.cache = self._tiers.cache
        self.hasher = TokenHasher(self._identity, salt=settings.salt)

    def stats(self) -> dict[str, Any]:
        """The counters of the cache, and those of loaded stops."""
        return self._tiers.stats()

    def prefill(self, model: Any, rows: list[Prompt]) -> PassedStops:
        """A cache object with the tokens of the prompts, loaded as far as they are known: of one prompt up to its last
        stop, of a batch up to the last tokens.

        Raises:
            RequestError: a model of states alone, which continues in ``generate`` of the ``PrefixCache`` only; a batch of
                a model that keeps entries of several tokens.
        """
        if self._contents.states_alone:
            raise RequestError(
                "this model has states alone, from which generate of transformers does not continue; call generate of the "
                "PrefixCache"
            )
        return self.begin(model, rows)

    def generate(self, model: Any, past: PassedStops, asked: dict[str, Any], ends: Collection[int]) -> Any:
        """Calls ``model.generate`` on top of what ``begin`` gave."""
        options = {**asked, cache_name(model): past}
        if len(past.kvtile_rows) == 1 and not self._contents.states_alone:
            return model.generate(**options)
        outputs = _watched(model, past, ends).generate(**options)
        if past.kvtile_columns is not None:
            # The last token of the answer is not computed.
            past.kvtile_columns = getattr(outputs, "sequences", outputs).shape[1] - 1
        return outputs

    def length(self, past: Any, rows: int) -> int:
        """The number of columns in a cache object; refuses all but one of this model for these prompts."""
        if not isinstance(past, PassedStops):
            raise RequestError(f"a {type(past).__name__} is not a cache that prefill returned; give that one")
        length = int(past.get_seq_length())
        self._contents.check(past, length, rows)
        return length

    def store(self, model: Any, prompts: list[Prompt], kept: list[list[int]], past: Any) -> list[GroupStoreReport]:
        """Stores the stops of answers."""
        if not past.belongs_to(self._identity.fingerprint, prompts):
            raise RequestError("the cache is of other prompts; give the one that prefill returned for these")
        columns = int(past.get_seq_length())
        for at, tokens in enumerate(kept):
            self._check_content(model, tokens, past, at)
        return [self._store_row(tokens, past, at, columns) for at, tokens in enumerate(kept)]

    def begin(self, model: Any, rows: list[Prompt]) -> PassedStops:
        """As prefill, of any model."""
        padded = any(row.start for row in rows)
        whole = len(rows) > 1 or padded or self._by_token or self._contents.states_alone
        if (len(rows) > 1 or padded) and self._contents.unit > 1:
            raise RequestError(
                f"{len(rows)} prompts{' with padding' if padded else ''}: this model keeps entries of {self._contents.unit} "
                "tokens and takes one prompt without padding at a time"
            )
        caches = [self._prefill_row(model, row.tokens, whole) for row in rows]
        if len(rows) > 1 or padded:
            past = self._new(model)
            self._contents.join(caches, [row.start for row in rows], past)
        else:
            past = caches[0]
        past.follow(rows, self._identity.fingerprint, self._contents, self._stops)
        return past

    def _prefill_row(self, model: Any, tokens: list[int], whole: bool) -> PassedStops:
        """A cache object with the tokens of a prompt up to its last stop, or with all but the last one.

        Args:
            whole: all but the last one.
        """
        past = self._new(model)
        size = self._stops.page_size
        keys = self.hasher.keys(tokens)
        known, branch = self._tiers.load(keys[: (len(tokens) - 1) // size], past)
        if past.kvtile_columns is not None:
            past.kvtile_columns = known
        _log.debug("%d of %d tokens of a prompt were known", known, len(tokens))
        at = known
        if self._contents.record_bytes:
            for stop in self._stops.of_prompt(known, branch, len(tokens)):
                self._compute(model, tokens[at:stop], past)
                self._tiers.store(keys[: stop // size], past, self._contents.record(past, stop))
                at = stop
        if whole:
            self._compute(model, tokens[at:-1], past)
        return past

    def _compute(self, model: Any, tokens: list[int], past: PassedStops) -> None:
        """Computes more tokens into a cache object."""
        steps = [[token] for token in tokens] if self._by_token and past.get_seq_length() else [tokens]
        for step in steps:
            if step:
                forward(model, step, past)
        if past.kvtile_columns is not None:
            past.kvtile_columns += len(tokens)

    def _new(self, model: Any) -> PassedStops:
        past: PassedStops = new_cache(model, PassedStops)
        if self._contents.states_alone:
            past.kvtile_columns = 0
        return past

    def _store_row(self, tokens: list[int], past: PassedStops, at: int, columns: int) -> GroupStoreReport:
        """Stores the stops of one answer. The report is that of the last one."""
        row, size = past.kvtile_rows[at], self._stops.page_size
        keys = self.hasher.keys(tokens)
        records, length = dict(row.records), columns - row.start
        if not self._contents.record_bytes:
            return self._tiers.store(keys, past, None, at, row.start)
        if self._stops.answer and length % size == 0 and length <= len(tokens):
            records[length] = self._contents.record(past, length, at)
        stops = sorted(stop for stop in records if stop <= len(tokens))
        for stop in stops[:-1]:
            self._tiers.store(keys[: stop // size], past, records[stop], at, row.start)
        last = stops[-1] if stops else 0
        return self._tiers.store(keys[: last // size], past, records.get(last), at, row.start)

    def _check_content(self, model: Any, tokens: list[int], past: PassedStops, at: int) -> None:
        """Checks that the last tokens in a row of a cache object are these, by its first layer."""
        columns = int(past.get_seq_length())
        start = past.kvtile_rows[at].start
        length = min(columns - start, len(tokens))
        if length < columns - start:
            return  # the answer ended before: what follows is not kept
        last, found = self._contents.last_tokens(past, length, columns - past.kvtile_known, at)
        if last:
            positions = list(range(length - last, length))
            ended = tokens[length - last : length]
            check_first_tensors(ended, positions, found, first_tensors(model, ended, positions))


def _watched(model: Any, past: PassedStops, ends: Collection[int]) -> Any:
    """The model, with the steps of its ``generate`` reported to a cache object: how many columns it has, and which rows
    have ended. Modules and weights are those of the model, which does not change."""
    view = copy.copy(bare(model))
    prepare = view.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def prepare_inputs(input_ids: Any, *args: Any, **options: Any) -> Any:
        # The last token comes next.
        columns = input_ids.shape[1] - 1
        if past.kvtile_columns is not None:
            past.kvtile_columns = columns
            options["next_sequence_length"] = 1
        past.pass_stops()
        rows = zip(past.kvtile_rows, input_ids.tolist(), strict=True)
        past.end_rows(
            [
                at
                for at, (row, tokens) in enumerate(rows)
                if end_of_answer(tokens, row.start + len(row.tokens), len(tokens), ends) < len(tokens)
            ]
        )
        return prepare(input_ids, *args, **options)

    view.prepare_inputs_for_generation = prepare_inputs
    return view
