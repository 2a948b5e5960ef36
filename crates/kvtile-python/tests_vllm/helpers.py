"""Starts processes with an engine, and makes their orders."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine

MODEL = Path(os.environ["KVTILE_TEST_MODEL"])
# Engines are forked from a process that has imported vLLM, because the import takes longer than most engines' work.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "vllm.v1.engine.llm_engine", "vllm.model_executor.models.llama"]
)
SECONDS = 600
REVISION = "a-revision"
PAGE = 32
# kvtile's host memory holds only a part of the prompts' blocks, so that the disk is used as well.
HOST_BLOCKS = 60


class Process:
    """A process with an engine, and its output."""

    def __init__(self, told: dict[str, Any], orders: Callable[[dict[str, Any]], None] = engine.main) -> None:
        output, its_output = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=engine.serve, args=(told, its_output, orders))
        self.process.start()
        its_output.close()
        self.output = os.fdopen(os.dup(output.fileno()), encoding="utf-8", errors="replace")
        output.close()
        self.log: list[str] = []
        # Reading ends when the process ends, so this timer also ends reading.
        self.limit = threading.Timer(SECONDS, self.process.kill)
        self.limit.start()

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self.output:
            if line.startswith("@"):
                yield json.loads(line[1:])
            else:
                self.log.append(line)

    def kill(self) -> None:
        """Ends the process and those that it started. It must have printed an event before."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code."""
        self.process.join(SECONDS)
        self.limit.cancel()
        self.limit.join()
        self.output.close()
        assert self.process.exitcode is not None, "the process does not end"
        return self.process.exitcode


def run(told: dict[str, Any]) -> dict[str, Any]:
    """The whole output of a process: its rounds, and its last line."""
    process = Process(told)
    said: dict[str, Any] = {"rounds": []}
    for event in process.events():
        if event["event"] == "round":
            said["rounds"].append(event)
        else:
            said[event["event"]] = event
    code = process.wait()
    said["log"] = "".join(process.log)
    assert code == 0, said["log"][-5000:]
    return said


def host_gib() -> float:
    config = json.loads((MODEL / "config.json").read_text())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = config["num_hidden_layers"] * config["num_key_value_heads"] * head_size * 2 * 4
    return HOST_BLOCKS * PAGE * token / (1 << 30)


def told(rounds: list[dict[str, Any]], disk: Path | None = None, **changes: Any) -> dict[str, Any]:
    kvtile = {"host_gib": host_gib(), "model": "a-model", "revision": REVISION}
    if disk is not None:
        kvtile |= {"disk_path": str(disk), "disk_gib": 1}
    return {"model": str(MODEL), "kvtile": kvtile, "rounds": rounds} | changes


def flip_bytes(file: Path, every: int) -> None:
    """Flips one bit in every ``every`` bytes of a file."""
    numbers = random.Random(5)
    with file.open("r+b") as stream:
        for at in range(0, file.stat().st_size, every):
            place = at + numbers.randrange(every)
            stream.seek(place)
            byte = stream.read(1)
            if byte:
                stream.seek(place)
                stream.write(bytes([byte[0] ^ 0x10]))
