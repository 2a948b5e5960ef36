"""A secondary tier of vLLM's KV offloading: a bounded folder with checksums and an identity.

vLLM keeps KV in the GPU's memory and in its primary tier in host memory. This tier keeps it on disk, across restarts::

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 17179869184,
            "secondary_tiers": [{"type": "kvtile", "path": "/var/cache/kv", "capacity": "100GiB"}]}}'

``"type": "KvtileTier", "module_path": "kvtile.vllm.tier"`` is the same without the entry point. Importing this module
imports vLLM. The options are the attributes of :class:`kvtile.vllm._tier_options.TierOptions`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from vllm.logger import init_logger
from vllm.v1.kv_offload.base import Locality, LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from kvtile import BlockOutcomes, BlockStore, IdentityError, StoreGroup, StoreRows, __version__
from kvtile._engine_shared import keywords_of, within_of
from kvtile.vllm._tier_events import TierEvents
from kvtile.vllm._tier_identity import folder_of, hint_of_ranks, identity_of_rows
from kvtile.vllm._tier_options import TierOptions, configured_by_user
from kvtile.vllm._tier_requests import Answer, RequestTable, primary_has_room
from kvtile.vllm._tier_shared import SharedQuestions
from kvtile.vllm._tier_stats import TierStats, metric_definitions

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import (
        OffloadingEvent,
        OffloadingMetricMetadata,
        OffloadingSpec,
        OffloadKey,
        ReqContext,
        ScheduleEndContext,
    )
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
    from vllm.v1.kv_offload.tiering.base import TransferJob

logger = init_logger("vllm.kvtile")

_GROUP = "kv"
_STAGED_ROWS_MIN = 4
_READ_ONLY = "read only"
_POLL_SECONDS = 0.001
# How often the contents of the disk are among the metrics.
_SHOW_SECONDS = 1.0
# Keys of failed loads; the oldest are forgotten, and then a request's own bounds end its lookups.
_FAILED_MAX = 1 << 16
_RESULT_FIELDS = {found.name for found in dataclasses.fields(JobResult)}
_RESULTS = {Answer.HIT: LookupResult.HIT, Answer.WAIT: LookupResult.RETRY, Answer.WAIT_SHARED: LookupResult.RETRY}

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Method = Callable[Concatenate["KvtileTier", _Arguments], _Result]


def _never_raises(otherwise: Callable[[], _Result]) -> Callable[[_Method[_Arguments, _Result]], _Method[_Arguments, _Result]]:
    """An exception of a tier would end the engine. Counts it, logs the first of each method, and answers otherwise."""

    def decorate(method: _Method[_Arguments, _Result]) -> _Method[_Arguments, _Result]:
        @functools.wraps(method)
        def guarded(self: KvtileTier, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            try:
                return method(self, *args, **kwargs)
            except Exception:
                self._count_error(method.__name__)
                return otherwise()

        return guarded

    return decorate


@dataclass
class _TierJob:
    """A job under way."""

    keys: list[bytes]
    is_load: bool
    since: float = field(default_factory=time.monotonic)


class KvtileTier(SecondaryTierManager):  # type: ignore[misc]
    """A folder of kvtile below vLLM's primary tier. All calls come from vLLM's scheduler, under its lock."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        **config: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        entries = getattr(offloading_spec, "secondary_tier_configs", None)
        given = {name: value for name, value in config.items() if configured_by_user(name, entries)}
        self.options = TierOptions.read(given)
        self.locality = Locality(self.options.locality)
        self._count, self._row_bytes = primary_kv_view.shape  # type: ignore[misc]
        self._stats = TierStats(tier_type)
        self._requests = RequestTable(
            self._count, self.options.wait_seconds, functools.partial(primary_has_room, offloading_spec)
        )
        blocks_per_chunk = offloading_spec.config.cache.blocks_per_chunk
        # By the numbers of the groups in keys, which have gaps where vLLM does not keep a group.
        self._tokens = {
            getattr(group, "group_id", number): group.tokens_per_block * blocks_per_chunk
            for number, group in enumerate(offloading_spec.config.groups)
        }
        self._jobs: dict[int, _TierJob] = {}
        self._results: list[JobResult] = []
        self._failed: dict[bytes, None] = {}
        self._logged: set[str] = set()
        self._show_at = 0.0
        self._store: BlockStore | None = self._open(offloading_spec)
        self._shared = self._questions_of(self._store)
        self._rows: StoreRows | None = None
        self._events: TierEvents | None = None
        try:
            self._rows = self._store.register(primary_kv_view, group=_GROUP)
            self._events = self._events_of(offloading_spec, self._store)
        except BaseException:
            self.shutdown()
            raise

    def _open(self, spec: OffloadingSpec) -> BlockStore:
        options = self.options
        identity = identity_of_rows(spec.config, self._row_bytes, options)
        disk = self._disk_of(spec)
        group = StoreGroup.opaque(
            _GROUP, self._row_bytes, model=identity.model, revision=identity.revision, extra=identity.extra
        )
        try:
            store = BlockStore(
                groups=group,
                read_only=options.read_only,
                staging_bytes=max(options.staging, _STAGED_ROWS_MIN * self._row_bytes),
                stage_within=options.stage_within,
                workers=options.workers,
                **disk,
                **self._shared_keywords(),
            )
        except IdentityError as error:
            error.args = (f"{error}{hint_of_ranks(error)}; give the kvtile tier another path, or remove {self._folder}",)
            raise
        logger.info(
            "kvtile %s rows of %d bytes in %s, at most %d bytes%s; vLLM's primary tier has %d rows",
            "reads" if options.read_only else "keeps", self._row_bytes, self._folder or "no folder", self._capacity,
            ", and in a shared store" if options.shared else "", self._count,
        )
        return store

    def _disk_of(self, spec: OffloadingSpec) -> dict[str, Any]:
        """The keywords of the folder."""
        options = self.options
        self._folder: Path | None = None
        self._capacity = 0
        if options.path is None:
            return {}
        self._folder, replicas = (options.path, 1) if options.read_only else folder_of(options.path, spec.config.parallel)
        self._capacity = options.capacity // replicas
        if not options.read_only:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
        return {
            "disk": str(self._folder),
            "disk_bytes": self._capacity or None,
            "disk_policy": options.policy,
            "close_within": options.close_within,
        }

    def _shared_keywords(self) -> dict[str, Any]:
        """The keywords of the shared store. Its staging memory has room for at least four values."""
        options = self.options
        if options.shared is None:
            return {}
        value_bytes = self._row_bytes * (options.shared_bundle_blocks or 1)
        return {**keywords_of(options), "shared_staging_bytes": max(options.staging, _STAGED_ROWS_MIN * value_bytes)}

    def _questions_of(self, store: BlockStore) -> SharedQuestions | None:
        """The queries to the shared store."""
        if self.options.shared is None:
            return None
        one_by_one = (self.options.shared_bundle_blocks or 1) == 1
        ask = functools.partial(store.ask, group=_GROUP)
        return SharedQuestions(ask, within_of(self.options), None if one_by_one else self._chain)

    def _chain(self, context: ReqContext, key: bytes) -> list[bytes]:
        return self._requests.chain(context, key, self._tokens_of(key) or 1)

    def _events_of(self, spec: OffloadingSpec, store: BlockStore) -> TierEvents | None:
        if not self.options.enable_kv_events:
            return None
        if not spec.kv_events_config.enable_kv_cache_events:
            logger.warning("enable_kv_events of the tier %s has no effect: vLLM's KV events are off", self.tier_type)
            return None
        return TierEvents(store, self.medium, self.locality, self.tier_type)

    def _count_error(self, method: str) -> None:
        """Counts an exception, and logs the first of each method with its trace."""
        self._stats.add("errors", method)
        if method not in self._logged:
            self._logged.add(method)
            logger.exception("the kvtile tier failed in %s; later failures there are only counted", method)

    # Lookups

    @_never_raises(lambda: LookupResult.MISS)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """Whether a block is on disk. RETRY while vLLM's primary tier has no room, for a bounded time."""
        self._requests.remember(key, req_context)
        answer = self._answer(key, req_context)
        self._stats.add("lookups", answer.value)
        return _RESULTS.get(answer, LookupResult.MISS)

    def _answer(self, key: bytes, context: ReqContext) -> Answer:
        if self._store is None:
            return Answer.NO_STORE
        if key in self._failed:
            return Answer.FAILED_BEFORE
        if not self._store.contains([key], group=_GROUP)[0]:
            return Answer.ABSENT if self._shared is None else self._shared.answer(key, context)
        return self._requests.answer(key, context)

    @_never_raises(lambda: None)
    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Counts a use of blocks."""
        if self._store is not None and keys:
            self._store.touch(list(keys), group=_GROUP)

    @_never_raises(RequestOffloadingContext)
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """The tier takes the blocks that a request computes."""
        self._requests.of(req_context)
        return RequestOffloadingContext()

    @_never_raises(lambda: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forgets a request."""
        self._requests.finish(req_context)
        if self._shared is not None:
            self._shared.finish(req_context)

    @_never_raises(lambda: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Queries the shared store for the blocks that this step has looked up."""
        if self._shared is not None and self._store is not None:
            self._shared.send()

    # Jobs

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Stores rows. The job ends when they are in staging memory, so that rows do not wait for the disk."""
        self._submit(job_metadata, is_load=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Loads rows."""
        self._submit(job_metadata, is_load=True)

    def _submit(self, job: TransferJob, *, is_load: bool) -> None:
        """Starts a job. Every job has a result, also one that fails: vLLM pins its rows until then."""
        operation = "load" if is_load else "store"
        keys: list[bytes] = []
        try:
            keys, rows = list(job.keys), _rows_of(job)
            refusal = self._refusal(keys, rows, is_load=is_load)
            if refusal is None:
                self._jobs[job.job_id] = _TierJob(keys, is_load)
                self._start(job, keys, rows, is_load=is_load)
                return
            self._stats.add("blocks", operation, refusal, count=max(1, len(keys)))
            # A tier that is not to write has not failed.
            self._end(job.job_id, keys, is_load=is_load, success=refusal == _READ_ONLY)
        except Exception:
            self._count_error(f"submit_{operation}")
            self._stats.add("blocks", operation, "failed", count=max(1, len(keys)))
            self._jobs.pop(job.job_id, None)
            self._end(job.job_id, keys, is_load=is_load, success=False)

    def _refusal(self, keys: list[bytes], rows: list[int], *, is_load: bool) -> str | None:
        """Why a job is not started: it would overrun the rows, or mix two blocks in one."""
        if self._store is None or self._rows is None:
            return "closed"
        if len(keys) != len(rows) or any(not 0 <= row < self._count for row in rows):
            return "refused"
        if len(set(rows)) != len(rows):
            return "refused"
        return _READ_ONLY if self.options.read_only and not is_load else None

    def _start(self, job: TransferJob, keys: list[bytes], rows: list[int], *, is_load: bool) -> None:
        if self._store is None or self._rows is None:
            return
        if is_load:
            self._store.submit_load(job.job_id, keys, self._rows, rows)
            return
        if self._events is not None:
            self._events.expect(keys)
        hints = self._requests.hints(keys, job.req_context, self._tokens_of)
        parents: list[bytes | None] | None = None
        positions: list[int] | None = None
        if hints is not None:
            parents, positions = hints
        elif (self.options.shared_bundle_blocks or 1) > 1:
            # Rows whose place is not known go to the folder only: as beginnings of values that do not become whole.
            parents, positions = [None] * len(keys), [0] * len(keys)
        self._store.submit_store(job.job_id, keys, self._rows, rows, parents=parents, positions=positions)

    def _tokens_of(self, key: bytes) -> int | None:
        """The tokens of a block: the last four bytes of vLLM's key are the number of its group."""
        return self._tokens.get(int.from_bytes(key[-4:], "big"))

    def _end(self, job_id: int, keys: list[bytes], *, is_load: bool, success: bool) -> None:
        """Ends a job that was not started."""
        if is_load and not success:
            self._fail(keys)
        self._results.append(_result(job_id=job_id, success=success, transfer_bytes=0))

    def _fail(self, keys: Iterable[bytes]) -> None:
        """Makes blocks misses until they are stored again. vLLM would otherwise look them up for ever."""
        for key in keys:
            self._failed.pop(key, None)
            self._failed[key] = None
        while len(self._failed) > _FAILED_MAX:
            del self._failed[next(iter(self._failed))]

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """The jobs that have ended since the last call."""
        self._collect()
        results, self._results = self._results, []
        return results

    @_never_raises(lambda: None)
    def _collect(self) -> None:
        """Takes the finished jobs of the store."""
        if self._store is None:
            return
        for job_id, outcomes in self._store.take_finished():
            job = self._jobs.pop(job_id, None)
            if job is None:
                self._stats.add("errors", "take_finished")
                continue
            try:
                result = self._loaded(job_id, job, outcomes) if job.is_load else self._stored(job_id, job, outcomes)
            except Exception:
                self._count_error("get_finished_jobs")
                self._end(job_id, job.keys, is_load=job.is_load, success=False)
            else:
                self._results.append(result)

    def _loaded(self, job_id: int, job: _TierJob, outcomes: BlockOutcomes) -> JobResult:
        """A load's result: a block counts only if every row that it was to fill is right."""
        self._count_outcomes("load", outcomes)
        failed = {key for key, ok in zip(job.keys, outcomes.ok, strict=True) if not ok}
        self._fail(failed)
        good = tuple(dict.fromkeys(key for key in job.keys if key not in failed))
        return _result(
            job_id=job_id, success=not failed, successful_keys=good if failed and good else None,
            transfer_time=outcomes.seconds, transfer_bytes=outcomes.bytes,
        )

    def _stored(self, job_id: int, job: _TierJob, outcomes: BlockOutcomes) -> JobResult:
        self._count_outcomes("store", outcomes)
        kept = [key for key, ok in zip(job.keys, outcomes.ok, strict=True) if ok]
        for key in kept:
            self._failed.pop(key, None)
        if self._events is not None:
            self._events.ended(zip(job.keys, outcomes.outcomes, strict=True))
        return _result(
            job_id=job_id, success=len(kept) == len(job.keys), transfer_time=outcomes.seconds, transfer_bytes=outcomes.bytes,
        )

    def _count_outcomes(self, operation: str, outcomes: BlockOutcomes) -> None:
        for outcome in outcomes.outcomes:
            self._stats.add("blocks", operation, outcome)
        self._stats.add("bytes", operation, count=outcomes.bytes)

    def has_pending_work(self) -> bool:
        """Whether jobs have not been reported."""
        return bool(self._jobs or self._results)

    def drain_jobs(self) -> None:
        """Waits until no job touches a row. vLLM resets its primary tier next, so it promotes all blocks again."""
        self._requests.forget_promotions()
        drained = self._drain_store()
        self._collect()
        # A tier whose jobs do not end blocks here, as vLLM's interface requires: their I/O may still touch rows.
        while self._jobs and not drained and self._store is not None:
            time.sleep(_POLL_SECONDS)
            self._collect()
        # The store has no job left, and vLLM takes a job without a result for a defect.
        for job_id, job in list(self._jobs.items()):
            self._stats.add("errors", "drain_jobs")
            self._end(job_id, job.keys, is_load=job.is_load, success=False)
            del self._jobs[job_id]

    def _drain_store(self) -> bool:
        """Whether the store has ended all I/O on rows."""
        if self._store is None:
            return True
        try:
            self._store.drain()
        except Exception:
            self._count_error("drain")
            return False
        return True

    # What vLLM shows

    @_never_raises(list)
    def take_events(self) -> list[OffloadingEvent]:
        """The KV events since the last call."""
        return self._events.take() if self._events is not None else []

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """The metrics of this tier."""
        return metric_definitions()

    @_never_raises(lambda: None)
    def get_stats(self) -> OffloadingConnectorStats | None:
        """The metrics since the last call."""
        now = time.monotonic()
        if self._store is not None and now >= self._show_at:
            self._show_at = now + _SHOW_SECONDS
            self._stats.show(self._store.stats())
        return self._stats.take()

    @classmethod
    def config_info_keys(cls, tier_config: dict[str, Any]) -> tuple[str, ...]:
        """The labels of this tier in vLLM's info metric."""
        return (
            "kvtile_version", "kvtile_path", "kvtile_capacity_bytes", "kvtile_policy", "kvtile_read_only", "kvtile_shared",
        )

    def config_info(self) -> dict[str, str | int | float | bool]:
        """Their values."""
        return {
            "kvtile_version": __version__,
            "kvtile_path": str(self._folder or ""),
            "kvtile_capacity_bytes": self._capacity,
            "kvtile_policy": self.options.policy or "default",
            "kvtile_read_only": self.options.read_only,
            # Not its URL, which may have a password.
            "kvtile_shared": self.options.shared is not None,
        }

    # The end

    @_never_raises(lambda: None)
    def shutdown(self) -> None:
        """Writes what is staged, within ``close_within``, and releases vLLM's memory: nothing exports it afterwards."""
        store, self._store = self._store, None
        self._shared = None
        rows, self._rows = self._rows, None
        self._events = None
        try:
            if store is not None:
                store.close(within=self.options.close_within)
        finally:
            if rows is not None:
                rows.release()


def _rows_of(job: TransferJob) -> list[int]:
    """The rows of a job, by either of its names in vLLM."""
    rows = getattr(job, "chunk_ids", None)
    if rows is None:
        rows = job.block_ids
    return [int(row) for row in rows]


def _result(**fields: Any) -> JobResult:
    """A result, with the fields that this vLLM knows."""
    return JobResult(**{name: value for name, value in fields.items() if name in _RESULT_FIELDS})
