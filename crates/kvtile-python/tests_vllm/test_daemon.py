"""Two engines over one daemon: each block is in host memory once, and hits cross engines."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import run, told
from test_hybrid_models import ROUNDS, counted
from test_hybrid_models import run as run_hybrid
from test_shared import BLOCK, model, prompts

__all__ = ["model"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with served(tmp_path, 200 * BLOCK) as started:
        yield started


@contextlib.contextmanager
def served(folder: Path, host_bytes: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon process with its socket."""
    socket = folder / "kv.sock"
    arguments = ["serve", "--socket", str(socket), "--host", str(host_bytes)]
    with subprocess.Popen([sys.executable, "-m", "kvtile", *arguments], text=True) as process:
        deadline = time.monotonic() + 120
        while not socket.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert socket.exists() and process.poll() is None
        yield process, str(socket)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def blocks(socket: str) -> int:
    """The blocks in host memory of a daemon without clients."""
    command = [sys.executable, "-m", "kvtile", "serve", "status", "--socket", socket, "--json"]
    status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report = json.loads(status.stdout)
    assert not report["sessions"], report
    [cache] = report["caches"]
    return cache["stats"]["present"]["host"]


def test_the_second_engine_hits_what_the_first_one_stored(
    daemon: tuple[subprocess.Popen[str], str], model: Path
) -> None:
    process, socket = daemon
    turn = {"prompts": prompts()}
    kvtile = {"connect": socket, "model": "a-model", "revision": "a-revision"}
    first = run(told([turn], kvtile=kvtile, model=str(model)))
    tokens = first["rounds"][0]["tokens"]
    assert first["rounds"][0]["kvtile"]["vllm:kvtile_from_host_blocks"] == 0
    stored = blocks(socket)
    second = run(told([turn], kvtile=kvtile, model=str(model)))
    assert second["rounds"][0]["tokens"] == tokens
    counts = second["rounds"][0]["kvtile"]
    assert counts["vllm:kvtile_from_host_blocks"] >= 20 + 12 and counts["vllm:kvtile_failed_blocks"] == 0, counts
    # The blocks of both engines, once.
    assert stored >= 20 + 12 and blocks(socket) == stored
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    refused = run(told([turn], kvtile=kvtile, model=str(model)))["refused"]
    assert socket in refused["message"], refused


def test_engines_of_a_model_with_windows_share_the_stops_of_a_daemon(tmp_path: Path) -> None:
    rounds = {name: ROUNDS[name] for name in ("first", "aligned", "longer")}
    with served(tmp_path, 64 << 20) as (_, socket):
        of_daemon = {"kvtile": {"connect": socket}, "rounds": rounds}
        (expected, first, second), _ = run_hybrid([{"rounds": rounds}, of_daemon, of_daemon], "gemma3", tmp_path / "model")
    for answers in (first, second):
        assert [answers[name]["tokens"] for name in rounds] == [expected[name]["tokens"] for name in rounds]
    assert first["first"]["cached"] == [0] and second["first"]["cached"] == [288]
    assert second["aligned"]["cached"] == [224]
    counts = counted(second["first"])
    assert counts["from_host_blocks"] > 0 and counts["failed_blocks"] == 0, counts
