"""vLLM's tiered offloading on a machine without a GPU.

`CPUOffloadingSpec.get_worker` refuses CPUs. This spec replaces its worker by one that copies in the CPU's memory; the
scheduler's side, the primary tier, the shared region and the secondary tiers are vLLM's own.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Copies blocks between an engine's KV in the CPU's memory and the rows of the primary tier, at once."""

    def __init__(self, caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        self.blocks_per_chunk = blocks_per_chunk
        self.region = region
        self.engine: list[torch.Tensor] = []
        self.rows: list[torch.Tensor] = []
        for cache in caches.tensors:
            page = cache.page_size_bytes
            self.engine.append(cache.tensor.view(torch.int8).view(-1, page))
            row = region.create_next_worker_view(page * blocks_per_chunk)
            self.rows.append(row.view(row.shape[0], blocks_per_chunk, page))
        self.groups = caches.group_data_refs
        self.finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Copies an engine's blocks to rows."""
        assert isinstance(dst_spec, BlockIDsLoadStoreSpec)
        return self._copy(job_id, src_spec, dst_spec.block_ids, to_rows=True)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False) -> bool:
        """Copies rows to an engine's blocks."""
        assert isinstance(src_spec, BlockIDsLoadStoreSpec)
        return self._copy(job_id, dst_spec, src_spec.block_ids, to_rows=False)

    def _copy(self, job_id: int, blocks: GPULoadStoreSpec, chunks: np.ndarray, *, to_rows: bool) -> bool:
        start, copied, first_block, first_chunk = time.monotonic(), 0, 0, 0
        for refs, size, index in zip(self.groups, blocks.group_sizes, blocks.block_indices, strict=True):
            if not size:
                continue
            places = index % self.blocks_per_chunk + np.arange(size)
            ids = torch.from_numpy(blocks.block_ids[first_block : first_block + size].astype(np.int64))
            rows = torch.from_numpy(chunks[first_chunk + places // self.blocks_per_chunk].astype(np.int64))
            parts = torch.from_numpy(places % self.blocks_per_chunk)
            for ref in refs:
                page = slice(0, ref.page_size_bytes)
                engine, memory = self.engine[ref.tensor_idx], self.rows[ref.tensor_idx]
                if to_rows:
                    memory[rows, parts, page] = engine[ids, page]
                else:
                    engine[ids, page] = memory[rows, parts, page]
                copied += size * ref.page_size_bytes
            first_block += size
            first_chunk += int(places[-1]) // self.blocks_per_chunk + 1
        assert first_block == len(blocks.block_ids) and first_chunk == len(chunks)
        self.finished.append(TransferResult(job_id, True, copied, time.monotonic() - start))
        return True

    def get_finished(self) -> list[TransferResult]:
        """The copies since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Copies have ended when they are submitted."""

    def shutdown(self) -> None:
        """Releases the memory."""
        self.rows.clear()
        self.engine.clear()
        self.region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):
    """vLLM's tiers over an engine in the CPU's memory."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker of this rank."""
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyingWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker
