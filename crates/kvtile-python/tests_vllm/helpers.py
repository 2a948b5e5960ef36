"""Starts processes with an engine, and makes their orders."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = Path(os.environ["KVTILE_TEST_MODEL"])
SECONDS = 600
REVISION = "a-revision"
PAGE = 32
# kvtile's host memory holds only a part of the prompts' blocks, so that the disk is used as well.
HOST_BLOCKS = 60


class Process:
    """A process with an engine, and its output."""

    def __init__(self, told: dict[str, Any], driver: str = "engine.py") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(driver))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, env=os.environ | told.get("environment", {}),
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(told))
        self.process.stdin.close()
        self.log: list[str] = []
        # Reading ends when the process ends, so this timer also ends reading.
        self.limit = threading.Timer(SECONDS, self.process.kill)
        self.limit.start()

    def events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                yield json.loads(line[1:])
            else:
                self.log.append(line)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(SECONDS)
        self.limit.cancel()
        self.limit.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


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
