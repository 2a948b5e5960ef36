"""What the two sides of a connector share: the cache, and what is on its way.

vLLM makes a connector for its scheduler and one for its worker. With one rank both live in one process, and
whatever a request has open is kept here once.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kvtile import (
    Cache,
    Completion,
    KvtileError,
    LoadReport,
    Match,
    StoreReport,
    TokenHasher,
    WaitTimeoutError,
)
from kvtile.vllm._layout import in_order, layout_and_identity
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

# Below vLLM's own, so that it is seen where that is.
logger = init_logger("vllm.kvtile")

_engines: dict[str, Engine] = {}
_engines_lock = threading.Lock()


@dataclass
class Load:
    """Blocks on their way to vLLM, those of a request from its block ``first`` on."""

    blocks: list[int]
    first: int
    # None for one that could not even begin.
    completion: Completion[LoadReport] | None = None
    # Layers that the step which computes with it has waited for.
    waited: int = 0

    def is_done(self) -> bool:
        """Whether all of them are there, or no more of them come."""
        return self.completion is None or self.completion.done()


class Engine:
    """The cache of one vLLM engine, and what its requests have open."""

    def __init__(self, config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings) -> None:
        layout, self.identity = layout_and_identity(config, caches, settings)
        self.cache = Cache(self.identity, layout, **settings.of_cache())
        self.hasher = TokenHasher(self.identity, salt=settings.salt)
        self.page_size = config.cache_config.block_size
        self.has_disk = settings.disk_path is not None
        self.layers = {name: layer for layer, name in enumerate(in_order(caches))}
        # Until an attention layer turns out not to wait.
        self.loads_in_step = True
        self.stats = KvtileStats()
        self.matches: dict[str, Match] = {}
        self.loads: dict[str, Load] = {}
        # Those of the step that is computed now, which uses them.
        self.step_loads: dict[str, Load] = {}
        # Stores that the scheduler has announced and that have not ended, by request.
        self.announced: dict[str, int] = {}
        self.stores: dict[str, list[Completion[StoreReport]]] = {}
        # Requests that have ended and whose blocks vLLM keeps until their stores end.
        self.finishing: set[str] = set()
        # Requests that have not ended.
        self.open: set[str] = set()
        # Where a request's blocks are to be stored from again.
        self.rewind: dict[str, int] = {}
        self.failed_blocks: set[int] = set()
        self._closed = False
        atexit.register(self.close)
        on_disk = self.cache.pool_stats("disk")["cached"] if self.has_disk else 0
        logger.info(
            "kvtile keeps the KV of %s (%s): %s; %d blocks on disk", self.identity.model, layout, settings, on_disk
        )

    def release_match(self, request: str) -> None:
        """Unpins what was found for a request and not loaded."""
        match = self.matches.pop(request, None)
        if match is not None:
            match.release()

    def start_load(self, request: str, first: int, blocks: list[int], *, in_step: bool) -> None:
        """Starts loading what was found for a request; what cannot be loaded has failed at once."""
        load = Load(blocks, first)
        (self.step_loads if in_step else self.loads)[request] = load
        match = self.matches.pop(request, None)
        if match is None:
            # It has ended meanwhile; vLLM waits for its load all the same.
            self._load_failed(request, first, blocks)
            return
        try:
            load.completion = self.cache.load(match, blocks)
        except KvtileError as error:
            logger.warning("request %s computes its %d blocks: %s", request, len(blocks), error)
            self._load_failed(request, first, blocks)

    def wait_for_layer(self, name: str) -> None:
        """Waits until a layer of all that the step loads is there, or does not come."""
        if not self.step_loads:
            return
        layer = self.layers[name]
        for load in self.step_loads.values():
            load.waited += 1
            if load.completion is not None:
                load.completion.wait_layer(layer)

    def end_step_loads(self) -> bool:
        """Ends the loads of a step; whether everything that it computed had what it needed."""
        sound = True
        for request, load in self.step_loads.items():
            if load.completion is None:
                sound = False
                continue
            report = load.completion.wait()
            if load.waited < len(self.layers):
                # The step has read its blocks too early: all of them count as not loaded.
                self.loads_in_step = False
                logger.warning("attention does not wait for its layers here: blocks are loaded before they are used")
                self._load_failed(request, load.first, load.blocks)
                sound = False
            else:
                self._loaded(request, load, report)
                sound &= report.blocks == len(load.blocks)
        self.step_loads.clear()
        return sound

    def skip_store(self, request: str, first: int) -> None:
        """Blocks that were to be stored are stored by a later step."""
        self.store_again_from(request, first)
        self._store_ended(request)

    def start_store(self, request: str, keys: list[bytes], first: int, blocks: list[int]) -> None:
        """Starts storing full blocks, which keep what they hold until the store ends."""
        try:
            completion = self.cache.store(keys, blocks, first=first)
        except KvtileError as error:
            logger.debug("blocks of request %s are not stored now: %s", request, error)
            self.stats.add(stores_refused=1)
            self.skip_store(request, first)
            return
        self.stores.setdefault(request, []).append(completion)

    def wait_for_stores(self, requests: set[str]) -> None:
        """Waits until nothing of these requests is read any more: their blocks are about to be overwritten."""
        for request in requests:
            for completion in self.stores.get(request, []):
                completion.wait()
        self.reap_stores()

    def reap_stores(self) -> None:
        """Takes note of the stores that have ended."""
        for request, completions in list(self.stores.items()):
            for completion in [completion for completion in completions if completion.done()]:
                completions.remove(completion)
                report = completion.wait()
                self.stats.add(
                    stored_blocks=report.stored,
                    present_blocks=report.present,
                    dropped_blocks=report.dropped,
                    stored_bytes=report.bytes,
                )
                self._store_ended(request)
            if not completions:
                del self.stores[request]

    def take_finished_stores(self) -> set[str]:
        """Requests that have ended, and now their stores too."""
        self.reap_stores()
        sent = {request for request in self.finishing if not self.announced.get(request)}
        self.finishing -= sent
        return sent

    def take_finished_loads(self, patience: float) -> set[str]:
        """Requests whose loads have ended; waits for one where there is nothing else to do."""
        pending = [load.completion for load in self.loads.values() if load.completion is not None]
        if patience and pending and not any(load.is_done() for load in self.loads.values()):
            try:
                pending[0].wait(patience)
            except WaitTimeoutError:
                return set()
        ended = {request for request, load in self.loads.items() if load.is_done()}
        for request in ended:
            load = self.loads.pop(request)
            if load.completion is not None:
                self._loaded(request, load, load.completion.wait())
        return ended

    def _loaded(self, request: str, load: Load, report: LoadReport) -> None:
        self.stats.add(
            loaded_blocks=report.blocks,
            from_host_blocks=report.from_host,
            from_disk_blocks=report.from_disk,
            loaded_bytes=report.bytes,
            load_seconds=report.seconds,
        )
        missing = load.blocks[report.blocks :]
        if missing:
            logger.warning(
                "request %s computes %d of %d blocks that were found: %s", request, len(missing), len(load.blocks),
                report.detail or report.stopped,
            )
            self._load_failed(request, load.first + report.blocks, missing)

    def _load_failed(self, request: str, first: int, blocks: list[int]) -> None:
        self.failed_blocks.update(blocks)
        self.store_again_from(request, first)
        self.stats.add(failed_blocks=len(blocks))

    def store_again_from(self, request: str, first: int) -> None:
        """What is not stored, or not what was stored, is stored by a later step, if the request has one."""
        if request in self.open:
            self.rewind[request] = min(first, self.rewind.get(request, first))

    def _store_ended(self, request: str) -> None:
        left = self.announced.get(request, 0) - 1
        if left > 0:
            self.announced[request] = left
        else:
            self.announced.pop(request, None)

    def close(self) -> None:
        """Brings everything to the disk and ends. Called more than once it does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            if self.has_disk:
                report = self.cache.flush()
                if report.failed or not report.durable:
                    logger.warning("not everything could be brought to the disk: %s", report)
        finally:
            self.cache.close()


def open_engine(config: VllmConfig, caches: Mapping[str, torch.Tensor], settings: Settings) -> Engine:
    """The worker's side opens the engine, when vLLM tells it of its tensors."""
    name = _name(config)
    with _engines_lock:
        if name in _engines:
            _engines.pop(name).close()
        engine = Engine(config, caches, settings)
        _engines[name] = engine
        return engine


def find_engine(config: VllmConfig) -> Engine:
    """The scheduler's side finds it afterwards."""
    with _engines_lock:
        engine = _engines.get(_name(config))
    if engine is None:
        raise RuntimeError(
            "kvtile.vllm: the scheduler and the worker of vLLM are in different processes, or the worker has not "
            "registered its KV cache; this connector needs both in one process (one rank, the executor 'uni')"
        )
    return engine


def forget_engine(config: VllmConfig) -> None:
    """Ends the cache of an engine, if it has one."""
    with _engines_lock:
        engine = _engines.pop(_name(config), None)
    if engine is not None:
        engine.close()


def _name(config: VllmConfig) -> str:
    transfer = config.kv_transfer_config
    if transfer is None or not transfer.engine_id:
        raise ValueError("kvtile.vllm: vLLM has given its connector no engine_id")
    return str(transfer.engine_id)
