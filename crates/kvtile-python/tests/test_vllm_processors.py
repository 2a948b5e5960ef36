"""The CPU affinity of a vLLM worker's cache threads, in processes that are bound as vLLM binds its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kvtile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds threads to processors")

MODULE = Path(kvtile.__file__).with_name("vllm") / "_processors.py"
# A worker whose first thread is bound to one processor; it reports the affinity of threads that it starts inside and
# afterwards.
WORKER = """
import importlib.util, json, os, sys, threading
spec = importlib.util.spec_from_file_location("processors", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
os.sched_setaffinity(0, {int(sys.argv[3])})
said = []
def thread():
    started = threading.Thread(target=lambda: said.append(sorted(os.sched_getaffinity(0))))
    started.start()
    started.join()
try:
    with module.processors_of_engine(sys.argv[2]):
        thread()
        raise KeyError
except KeyError:
    thread()
said.append(sorted(os.sched_getaffinity(0)))
print(json.dumps(said))
"""


@pytest.fixture
def processors() -> ModuleType:
    """The module alone, which imports nothing of vLLM."""
    spec = importlib.util.spec_from_file_location("processors", MODULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def worker(executor: str, processor: int) -> list[list[int]]:
    command = [sys.executable, "-c", WORKER, str(MODULE), executor, str(processor)]
    said: list[list[int]] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def test_threads_of_a_bound_worker_may_run_on_all_processors_of_its_engine_and_the_worker_stays_bound(
    processors: ModuleType,
) -> None:
    engine = os.sched_getaffinity(0)
    first = min(engine)
    near = sorted(processors._near({first}, engine))
    assert worker("mp", first) == [near, [first], [first]]


def test_limits_hold_where_vllm_binds_nothing() -> None:
    first = min(os.sched_getaffinity(0))
    assert worker("uni", first) == [[first]] * 3


@pytest.mark.parametrize(
    ("nodes", "own", "engine", "expected"),
    [
        # One processor of each core computes, the other one idles; the last two cores are reserved.
        ({"0": "0-3,8-11", "1": "4-7,12-15"}, {8}, set(range(16)), {0, 1, 2, 3, 8, 9, 10, 11}),
        # The process was limited before vLLM started.
        ({"0": "0-3,8-11", "1": "4-7,12-15"}, {2, 3}, {1, 2, 3, 4}, {1, 2, 3}),
        # A worker on several nodes, and a node without processors.
        ({"0": "0-1", "1": "2-3", "2": ""}, {1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3}),
        # A machine that lists no nodes.
        ({}, {0}, {0, 1}, {0, 1}),
        # The engine has ended.
        ({"0": "0-1"}, {0}, set(), {0}),
    ],
)
def test_processors_are_those_of_the_engine_next_to_the_workers_memory(
    nodes: dict[str, str], own: set[int], engine: set[int], expected: set[int],
    processors: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, processors_there in nodes.items():
        folder = tmp_path / f"node{name}"
        folder.mkdir()
        (folder / "cpulist").write_text(processors_there + "\n")
    bound: list[set[int]] = []

    def of_process(process: int) -> set[int]:
        if process != 0 and not engine:
            raise ProcessLookupError
        return own if process == 0 else engine

    def bind(_: int, to: Any) -> None:
        bound.append(set(to))

    monkeypatch.setattr(processors, "NODES", tmp_path)
    monkeypatch.setattr(processors.os, "sched_getaffinity", of_process)
    monkeypatch.setattr(processors.os, "sched_setaffinity", bind)
    with processors.processors_of_engine("mp"):
        assert bound == [expected]
    assert bound == [expected, own]
