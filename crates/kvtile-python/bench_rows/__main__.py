"""Measures the rate from disk into the caller's rows, and from rows to disk: `fio`, kvtile's BlockStore, and the file
functions and threads of vLLM's `fs` tier, in turns in one run, on the same rows, with direct I/O.

A round is one pass over all rows. Jobs of a few rows, as one request makes them, are submitted all at once. The figures
are medians of the rounds. kvtile's stores are measured until the blocks are durable; vLLM's tier syncs nothing, and
`fio` syncs once at its end.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from vllm.v1.kv_offload.tiering.fs.io import batch_load_block, batch_store_block, probe_o_direct
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

import kvtile

GIB = 1 << 30


@dataclass
class Figure:
    """The rounds of one way: bytes a second, and CPU seconds a GiB of this process and its children."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, nbytes: int, seconds: float, cpu: float) -> None:
        self.rates.append(nbytes / seconds)
        self.cpu.append(cpu * GIB / nbytes)


def cpu_seconds() -> float:
    """CPU seconds of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Rows:
    """The caller's memory: rows of one size, jobs of some rows."""

    def __init__(self, rows: int, row_bytes: int, per_job: int) -> None:
        self.row_bytes, self.rows = row_bytes, rows
        self.memory = mmap.mmap(-1, rows * row_bytes)
        self.view = memoryview(self.memory).cast("B", (rows, row_bytes))
        self.array = np.frombuffer(self.memory, np.uint8).reshape(rows, row_bytes)
        self.jobs = [range(first, min(first + per_job, rows)) for first in range(0, rows, per_job)]
        self.content = np.random.default_rng(1).integers(0, 256, self.array.shape, np.uint8)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def fill(self) -> None:
        self.array[:] = self.content

    def check(self) -> None:
        if not np.array_equal(self.array, self.content):
            raise SystemExit("rows have other bytes than they were stored with")
        self.array[:] = 0


class Kvtile:
    """kvtile's block store. Each round stores new keys."""

    def __init__(self, rows: Rows, folder: Path) -> None:
        group = kvtile.StoreGroup.opaque("rows", rows.row_bytes, model="bench", revision="1")
        self.rows, self.round = rows, 0
        self.store = kvtile.BlockStore(
            group, disk=folder, disk_bytes=2 * rows.nbytes + (64 << 20), staging_bytes=max(256 << 20, 8 * rows.row_bytes)
        )
        self.registered = self.store.register(rows.memory)

    def key(self, row: int) -> bytes:
        return f"{self.round}:{row}".encode()

    def write(self) -> None:
        self.round += 1
        for number, job in enumerate(self.rows.jobs):
            self.store.submit_store(number, [self.key(row) for row in job], self.registered, list(job))
        self._end()
        if not self.store.flush().durable:
            raise SystemExit("kvtile did not store all rows")

    def read(self) -> None:
        for number, job in enumerate(self.rows.jobs):
            self.store.submit_load(number, [self.key(row) for row in job], self.registered, list(job))
        self._end()

    def _end(self) -> None:
        self.store.drain()
        finished = self.store.take_finished()
        if len(finished) != len(self.rows.jobs) or not all(all(outcomes.ok) for _, outcomes in finished):
            raise SystemExit(f"kvtile did not move all rows: {[outcomes.outcomes for _, outcomes in finished]}")

    def close(self) -> None:
        self.registered.release()
        self.store.close()


class VllmFs:
    """The file functions and the threads of vLLM's `fs` tier: a file a row, 16 and 16 threads."""

    def __init__(self, rows: Rows, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        folder.mkdir()
        self.direct = probe_o_direct(str(folder))
        self.pool = DualQueueThreadPool(16, 16, thread_name_prefix="bench_fs")
        self.round = 0

    def paths(self, job: range) -> list[str]:
        return [str(self.folder / f"{row:03x}"[:2] / f"{row}.bin") for row in job]

    def write(self) -> None:
        # The tier stores a block once, so a round begins without its files.
        for path in self.folder.glob("*/*.bin"):
            path.unlink()
        self._run(self.pool.enqueue_store, batch_store_block)

    def read(self) -> None:
        self._run(self.pool.enqueue_load, batch_load_block)

    def _run(self, enqueue: Callable[..., None], move: Callable[..., None]) -> None:
        size = self.rows.row_bytes
        for number, job in enumerate(self.rows.jobs):
            offsets = [row * size for row in job]
            flat = memoryview(self.rows.memory)
            enqueue(number, 1, [functools.partial(move, self.paths(job), flat, offsets, size, self.direct)])
        self.pool.wait_idle()
        finished = self.pool.get_finished()
        if len(finished) != len(self.rows.jobs) or not all(success for _, success, _ in finished):
            raise SystemExit("vLLM's fs tier did not move all rows")

    def close(self) -> None:
        self.pool.shutdown()


class Fio:
    """`fio` on one file of the size of all rows."""

    def __init__(self, rows: Rows, folder: Path, depth: int) -> None:
        folder.mkdir()
        self.rows, self.file, self.depth = rows, folder / "fio", depth

    def run(self, direction: str) -> tuple[float, float]:
        """Seconds and CPU seconds of a pass."""
        options = {
            "name": "rows", "filename": str(self.file), "rw": direction, "bs": str(self.rows.row_bytes),
            "size": str(self.rows.nbytes), "ioengine": "io_uring", "iodepth": str(self.depth), "direct": "1",
            "output-format": "json", "end_fsync": "1" if direction == "write" else "0",
        }
        words = ["fio", *(f"--{name}={value}" for name, value in options.items())]
        ran = subprocess.run(words, check=True, capture_output=True, text=True)
        job = json.loads(ran.stdout)["jobs"][0]
        seconds = float(job["job_runtime"]) / 1000
        return seconds, seconds * (job["usr_cpu"] + job["sys_cpu"]) / 100


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds and CPU seconds of a call."""
    cpu, start = cpu_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - start, cpu_seconds() - cpu


def measure(rows: Rows, folder: Path, rounds: int, depth: int) -> dict[str, dict[str, Figure]]:
    """The figures by direction and way, in turns."""
    ways = {"kvtile": Kvtile(rows, folder / "kvtile"), "vLLM fs": VllmFs(rows, folder / "fs")}
    fio = Fio(rows, folder / "fio", depth) if shutil.which("fio") else None
    found: dict[str, dict[str, Figure]] = {"read": {}, "write": {}}
    for turn in range(rounds + 1):
        for direction in ("write", "read"):
            figures = found[direction]
            if fio is not None:
                taken = fio.run(direction)
                if turn > 0:
                    figures.setdefault("fio", Figure()).add(rows.nbytes, *taken)
            for name, way in ways.items():
                if direction == "write":
                    rows.fill()
                else:
                    rows.array[:] = 0
                taken = measured(getattr(way, direction))
                if direction == "read":
                    rows.check()
                # The first turn warms up.
                if turn > 0:
                    figures.setdefault(name, Figure()).add(rows.nbytes, *taken)
    for way in ways.values():
        way.close()
    return found


def main() -> None:
    """Runs the benchmark."""
    arguments = parse()
    results = []
    print(f"{'row':>9} {'':5} {'way':8} {'GB/s':>6} {'of fio':>7} {'of fs':>6} {'CPU s/GiB':>9}   rounds, GB/s")
    for row_bytes in arguments.row_bytes:
        rows = Rows(arguments.bytes // row_bytes, row_bytes, arguments.rows_per_job)
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="kvtile-rows-") as folder:
            found = measure(rows, Path(folder), arguments.rounds, arguments.depth)
        for direction, figures in found.items():
            rates = {name: statistics.median(figure.rates) for name, figure in figures.items()}
            for name, figure in figures.items():
                of_fio = rates[name] / rates["fio"] if "fio" in rates else float("nan")
                print(
                    f"{row_bytes >> 10:>5} KiB {direction:5} {name:8} {rates[name] / 1e9:6.2f} {of_fio:7.2f} "
                    f"{rates[name] / rates['vLLM fs']:6.2f} {statistics.median(figure.cpu):9.3f}   "
                    + " ".join(f"{rate / 1e9:.2f}" for rate in figure.rates)
                )
                results.append(
                    {"row_bytes": row_bytes, "direction": direction, "way": name, "bytes_per_second": figure.rates,
                     "cpu_seconds_per_gib": figure.cpu}
                )
    if arguments.json is not None:
        about = {"kvtile": kvtile.__version__, "cpus": os.cpu_count(), "bytes": arguments.bytes,
                 "rows_per_job": arguments.rows_per_job, "fio_depth": arguments.depth, "results": results}
        arguments.json.write_text(json.dumps(about, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="cargo x bench-rows", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="a folder on the disk to measure (default /var/tmp)")
    parser.add_argument("--row-bytes", type=int, nargs="+", default=[64 << 10, 256 << 10, 1 << 20, 4 << 20], help="bytes of a row")
    parser.add_argument("--bytes", type=int, default=512 << 20, help="bytes of all rows (default 512 MiB)")
    parser.add_argument("--rows-per-job", type=int, default=16, help="rows of a job (default 16)")
    parser.add_argument("--depth", type=int, default=32, help="requests of fio in flight (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
