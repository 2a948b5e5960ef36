"""LMCache's side of an L2 adapter: memory objects, keys, waiting for event descriptors. Imports LMCache quietly."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytest
    import torch
    from lmcache.lmcache_native import Bitmap
    from lmcache.v1.check.check_mode_test_l2_adapter import run_test_mode
    from lmcache.v1.distributed.api import (
        FULL_ATTENTION_WINDOW_CHUNKS,
        GroupedObjectKeys,
        MemoryLayoutDesc,
        ObjectKey,
        PrefetchTaskSpec,
    )
    from lmcache.v1.distributed.config import (
        EvictionConfig,
        L1ManagerConfig,
        L1MemoryManagerConfig,
        StorageManagerConfig,
    )
    from lmcache.v1.distributed.internal_api import L2AdapterListener
    from lmcache.v1.distributed.l2_adapters import create_l2_adapter
    from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
    from lmcache.v1.distributed.l2_adapters.config import (
        L2AdapterConfigBase,
        L2AdaptersConfig,
        parse_args_to_l2_adapters_config,
    )
    from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2AdapterConfig
    from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
    from lmcache.v1.distributed.storage_manager import StorageManager
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

QUIET = pytest.mark.filterwarnings("ignore:`LoggingHandler` in `opentelemetry-sdk`:DeprecationWarning")
"""LMCache's loggers warn, and it imports modules when it uses them."""
PIECE = 4096
SIZE = 3 * PIECE + 512
WAIT_SECONDS = 120.0
_SEEDS = itertools.count(1)


def config_of(at: Path, **settings: object) -> PluginL2AdapterConfig:
    """The config of a plugin adapter, as LMCache parses it."""
    params = {"path": str(at), "capacity": "4MiB", "revision": "one", "piece": PIECE, **settings}
    return PluginL2AdapterConfig.from_dict(
        {"module_path": "kvtile.lmcache", "class_name": "KvtileL2Adapter", "adapter_params": params}
    )


def key_of(number: int, *, model: str = "a/model", group: int = 0, salt: str = "") -> ObjectKey:
    """A key of LMCache."""
    return ObjectKey(number.to_bytes(32, "big"), model, 0x01000100, group, salt)


def keys_of(count: int, first: int = 0) -> list[ObjectKey]:
    """Keys that differ in their hashes."""
    return [key_of(first + number) for number in range(count)]


def object_of(size: int = SIZE, *, dtype: torch.dtype = torch.uint8, content: int | None = None) -> TensorMemoryObj:
    """A memory object of random bytes, or of one byte value."""
    if content is None:
        generator = torch.Generator().manual_seed(next(_SEEDS))
        raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    else:
        raw = torch.full((size,), content, dtype=torch.uint8)
    shape = torch.Size([size // dtype.itemsize])
    metadata = MemoryObjMetadata(
        shape=shape,
        dtype=dtype,
        address=raw.data_ptr(),
        phy_size=size,
        ref_count=1,
        fmt=MemoryFormat.KV_2LTD,
        shapes=[shape],
        dtypes=[dtype],
    )
    return TensorMemoryObj(raw, metadata, parent_allocator=None)


def objects_of(count: int, size: int = SIZE) -> list[TensorMemoryObj]:
    """Objects of random bytes."""
    return [object_of(size) for _ in range(count)]


def empties_of(count: int, size: int = SIZE) -> list[TensorMemoryObj]:
    """Objects to load into."""
    return [object_of(size, content=0xA5) for _ in range(count)]


def same(one: TensorMemoryObj, other: TensorMemoryObj) -> bool:
    """Whether two objects have the same bytes."""
    return torch.equal(one.raw_data, other.raw_data)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Waits for a condition."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {WAIT_SECONDS} s: {what}"
        time.sleep(0.01)


def bits(bitmap: Bitmap, count: int) -> list[bool]:
    """The bits of a bitmap."""
    return [bitmap.test(index) for index in range(count)]


class RecordingListener(L2AdapterListener):
    """Keeps what an adapter reports."""

    def __init__(self) -> None:
        self.sizes: dict[ObjectKey, int] = {}
        self.stored: list[ObjectKey] = []
        self.accessed: list[ObjectKey] = []
        self.deleted: list[ObjectKey] = []

    def on_l2_keys_stored(self, keys: list[ObjectKey], sizes: list[int]) -> None:
        self.stored += keys
        for key, size in zip(keys, sizes, strict=True):
            self.sizes[key] = self.sizes.get(key, 0) + size

    def on_l2_keys_accessed(self, keys: list[ObjectKey]) -> None:
        self.accessed += keys

    def on_l2_keys_deleted(self, keys: list[ObjectKey]) -> None:
        self.deleted += keys
        for key in keys:
            self.sizes.pop(key, None)


class AdapterSide:
    """Calls an adapter as LMCache's controllers do, and waits."""

    def __init__(self, adapter: L2AdapterInterface) -> None:
        self.adapter = adapter

    @classmethod
    def open(cls, at: Path, **settings: object) -> AdapterSide:
        """An adapter as LMCache creates it."""
        return cls(create_l2_adapter(config_of(at, **settings)))

    def store(self, keys: Sequence[ObjectKey], objects: Sequence[TensorMemoryObj]) -> bool:
        """Whether the store task succeeded."""
        task = self.adapter.submit_store_task(list(keys), list(objects))
        results = {}

        def ended() -> bool:
            results.update(self.adapter.pop_completed_store_tasks())
            return task in results

        self.wait(self.adapter.get_store_event_fd(), ended)
        return bool(results[task].is_successful())

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """Which keys were found and locked."""
        task = self.adapter.submit_lookup_and_lock_task(list(keys), {})
        query = self.adapter.query_lookup_and_lock_result
        return self.bitmap(self.adapter.get_lookup_and_lock_event_fd(), lambda: query(task), len(keys))

    def load(self, keys: Sequence[ObjectKey], objects: Sequence[TensorMemoryObj]) -> list[bool]:
        """Which keys were loaded."""
        task = self.adapter.submit_load_task(list(keys), list(objects))
        return self.loaded(task, len(keys))

    def loaded(self, task: int, count: int) -> list[bool]:
        """The result of a load task."""
        query = self.adapter.query_load_result
        return self.bitmap(self.adapter.get_load_event_fd(), lambda: query(task), count)

    def find(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """Which keys are there, without a lock."""
        found = self.lookup(keys)
        self.adapter.submit_unlock([key for key, there in zip(keys, found, strict=True) if there])
        return found

    def fetch(self, keys: Sequence[ObjectKey], objects: Sequence[TensorMemoryObj]) -> list[bool]:
        """Looks up, loads and unlocks."""
        found = self.lookup(keys)
        hits = [index for index, there in enumerate(found) if there]
        loaded = self.load([keys[index] for index in hits], [objects[index] for index in hits]) if hits else []
        self.adapter.submit_unlock([keys[index] for index in hits])
        came = dict(zip(hits, loaded, strict=True))
        return [came.get(index, False) for index in range(len(keys))]

    def bitmap(self, descriptor: int, query: Callable[[], Bitmap | None], count: int) -> list[bool]:
        """Waits for a bitmap."""
        results: list[Bitmap] = []

        def ended() -> bool:
            result = query()
            if result is not None:
                results.append(result)
            return bool(results)

        self.wait(descriptor, ended)
        return bits(results[0], count)

    def wait(self, descriptor: int, ended: Callable[[], bool]) -> None:
        """Waits at an event descriptor until the task has ended."""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        end = time.monotonic() + WAIT_SECONDS
        while not ended():
            assert time.monotonic() < end, f"the task did not end within {WAIT_SECONDS} s"
            if poller.poll(1000):
                try:
                    os.eventfd_read(descriptor)
                except BlockingIOError:
                    continue

    def status(self, name: str) -> int:
        """A counter of the adapter."""
        return int(self.adapter.report_status().get(name, 0))

    def used(self) -> int:
        """Bytes in use, as LMCache sees them."""
        return self.adapter.get_usage().total_bytes_used

    def close(self) -> None:
        """Closes the adapter."""
        self.adapter.close()


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def layout_of(size: int) -> MemoryLayoutDesc:
    """A layout of bytes."""
    return MemoryLayoutDesc([torch.Size([1, 1, size, 1])], [torch.uint8])


def fs_config_of(at: Path) -> FSL2AdapterConfig:
    """The config of LMCache's own adapter for file systems."""
    return FSL2AdapterConfig.from_dict({"base_path": str(at)})


def plugin_of(at: Path, **given: object) -> dict[str, object]:
    """The JSON object of ``--l2-adapter``. ``eviction`` and ``serde`` are LMCache's own keys."""
    outer = {name: given.pop(name) for name in ("eviction", "serde") if name in given}
    params = {"path": str(at), "revision": "one", "piece": PIECE, **given}
    plugin = {"type": "plugin", "module_path": "kvtile.lmcache", "class_name": "KvtileL2Adapter"}
    return {**plugin, **outer, "adapter_params": params}


def parsed(adapter: dict[str, object]) -> L2AdapterConfigBase:
    """The config of an adapter, as LMCache parses its command line."""
    return parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(adapter)])).adapters[0]


class ManagerSide:
    """LMCache's storage manager with a small L1, and one L2 adapter."""

    def __init__(self, adapter: dict[str, object]) -> None:
        memory = L1MemoryManagerConfig(8 << 20, use_lazy=False, shm_name="")
        adapters = L2AdaptersConfig([parsed(adapter)])
        self.manager = StorageManager(StorageManagerConfig(L1ManagerConfig(memory), EvictionConfig("LRU"), adapters))

    def write(self, keys: Sequence[ObjectKey], layout: MemoryLayoutDesc, fill: int | None = None) -> None:
        """Writes objects to L1. The bytes of the first one are 1, of the second one 2."""
        objects = self.manager.reserve_write(list(keys), layout)
        assert len(objects) == len(keys)
        for number, key in enumerate(keys, start=1):
            objects[key].raw_data.view(torch.uint8).fill_(number if fill is None else fill)
        self.manager.finish_write(list(keys))

    def read(
        self, keys: Sequence[ObjectKey], layout: MemoryLayoutDesc, *more: tuple[Sequence[ObjectKey], MemoryLayoutDesc]
    ) -> tuple[int, list[int]]:
        """Prefetches objects: how many came from L2, and the byte that each consists of."""
        rows = [(list(keys), layout), *((list(group), form) for group, form in more)]
        groups = [GroupedObjectKeys(group, number, form) for number, (group, form) in enumerate(rows)]
        handle = self.manager.submit_prefetch_task(PrefetchTaskSpec(groups))
        assert self.manager.wait_prefetch_status(handle, WAIT_SECONDS)
        result = self.manager.query_prefetch_status(handle)
        assert result is not None
        came = [
            key
            for (group, _), row in zip(rows, result.hit_cells, strict=True)
            for index, key in enumerate(group)
            if row.test(index)
        ]
        with self.manager.read_prefetched_results(came) as objects:
            assert objects is not None
            contents = [set(bytes(found.byte_array)) for found in objects]
        self.manager.finish_read_prefetched(came)
        assert all(len(content) == 1 for content in contents)
        return result.l2_hit_count, [content.pop() for content in contents]

    def hit_cells(
        self, rows: Sequence[Sequence[ObjectKey]], layouts: Sequence[MemoryLayoutDesc], windows: Sequence[int]
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Prefetches the chunks of several groups: which (group, chunk) came, and the byte that each consists of."""
        groups = [
            GroupedObjectKeys(list(row), number, layout, window)
            for number, (row, layout, window) in enumerate(zip(rows, layouts, windows, strict=False))
        ]
        handle = self.manager.submit_prefetch_task(PrefetchTaskSpec(groups))
        assert self.manager.wait_prefetch_status(handle, WAIT_SECONDS)
        result = self.manager.query_prefetch_status(handle)
        assert result is not None
        cells = [
            (group, chunk)
            for group, row in enumerate(rows)
            for chunk in range(len(row))
            if result.hit_cells[group].test(chunk)
        ]
        came = [rows[group][chunk] for group, chunk in cells]
        if not came:
            return cells, []
        with self.manager.read_prefetched_results(came) as objects:
            assert objects is not None
            contents = [set(bytes(found.byte_array)) for found in objects]
        self.manager.finish_read_prefetched(came)
        assert all(len(content) == 1 for content in contents)
        return cells, [content.pop() for content in contents]

    def delete(self, key: ObjectKey) -> None:
        """Deletes an object in L2, as LMCache's eviction of L2 does."""
        next(iter(self.manager._l2_adapters.values())).delete([key])

    def clear(self) -> None:
        """Drops all objects of L1."""
        self.manager.clear(force=True)

    def status(self, name: str) -> int:
        """A counter of the adapter."""
        return int(self.manager.report_status()["l2_adapters"][0].get(name, 0))

    def used(self) -> int:
        """Bytes in L2, as LMCache's own gauge reports them."""
        return int(sum(used for used, _ in self.manager.get_l2_usages()))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[AdapterSide]:
    """An adapter over an empty folder."""
    opened = AdapterSide.open(tmp_path / "kv")
    yield opened
    opened.close()
