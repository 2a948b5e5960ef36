"""On which processors the threads of a worker's cache run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A folder for each memory node of the machine, with the processors next to it.
NODES = Path("/sys/devices/system/node")


@contextmanager
def processors_of_engine(executor: object) -> Iterator[None]:
    """Threads that start meanwhile may run on all processors of the engine that are next to this thread's memory.

    vLLM binds a worker's first thread to processors that compute, or to one of them, and reserves others for everything
    else. A thread starts with the processors of the one that starts it: the cache would interrupt the model while reserved
    processors do nothing. vLLM binds workers where ``executor`` is "mp"; they are then children of the process that has
    all of its processors. Anywhere else nothing changes, so limits that were set for the process hold.
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
    """The processors of the process that has started this one; none where it has ended."""
    try:
        return os.sched_getaffinity(os.getppid())
    except OSError:
        return set()


def _near(own: set[int], others: set[int]) -> set[int]:
    """Those of the others that share a memory node with some of our own; all of them where the machine names no nodes."""
    nodes = [_numbers(node.read_text()) for node in sorted(NODES.glob("node[0-9]*/cpulist"))]
    return others.intersection(set().union(*(node for node in nodes if node & own))) if nodes else others


def _numbers(text: str) -> set[int]:
    """A list of the kernel's, such as 0-3,8."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
