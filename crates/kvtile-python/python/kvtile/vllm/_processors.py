"""The CPU affinity of the threads of a worker's cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# One folder per NUMA node, which lists the processors of that node.
NODES = Path("/sys/devices/system/node")


@contextmanager
def processors_of_engine(executor: object) -> Iterator[None]:
    """Threads that start inside may run on all of the engine's processors that share a NUMA node with this thread's.

    vLLM binds a worker's first thread to the processors that compute, or to one of them, and reserves others for the
    remaining work. A new thread inherits the affinity of its parent, so the cache would interrupt the model while
    reserved processors idle. vLLM binds workers if ``executor`` is "mp"; then they are children of the process that has
    all processors. With other executors nothing changes, so limits of the process hold.
    """
    if executor != "mp" or sys.platform != "linux":
        yield
        return
    own = os.sched_getaffinity(0)
    wider = own | _near(own, _engine())
    os.sched_setaffinity(0, wider)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _engine() -> set[int]:
    """The processors of the parent process; empty if it has ended."""
    try:
        return os.sched_getaffinity(os.getppid())
    except OSError:
        return set()


def _near(own: set[int], others: set[int]) -> set[int]:
    """Those of ``others`` that share a NUMA node with ``own``; all of them if the machine lists no nodes."""
    nodes = [_numbers(node.read_text()) for node in sorted(NODES.glob("node[0-9]*/cpulist"))]
    return others.intersection(set().union(*(node for node in nodes if node & own))) if nodes else others


def _numbers(text: str) -> set[int]:
    """Parses a CPU list of the kernel, such as 0-3,8."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
