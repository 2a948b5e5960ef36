"""Mooncake's store as a shared tier, with its master and the owner of its memory on the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvtile
import kvtile.mooncake

# What runs without Mooncake is the refusal; the rest needs the package and its master.
MASTER = Path(sys.executable).parent / "mooncake_master"
# `cargo x test-mooncake` installs both, and then nothing is skipped.
needs_mooncake = pytest.mark.skipif(
    "KVTILE_TEST_MOONCAKE" not in os.environ
    and (importlib.util.find_spec("mooncake") is None or not (MASTER.exists() or shutil.which("mooncake_master"))),
    reason="mooncake-transfer-engine-non-cuda is not installed: run `cargo x test-mooncake`",
)
WITHIN = 3.0
OWNER = """
import sys, time
import kvtile.mooncake
tier = kvtile.mooncake.MooncakeTier(sys.argv[1], host=sys.argv[2], segment_bytes=64 << 20, buffer_bytes=16 << 20)
print("ready", flush=True)
time.sleep(600)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(30)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def master() -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    program = str(MASTER) if MASTER.exists() else "mooncake_master"
    command = [program, "--rpc_address=127.0.0.1", f"--rpc_port={address.split(':')[1]}"]
    command += ["--metrics_host=127.0.0.1", f"--metrics_port={free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield address
    finally:
        ended(process)


@pytest.fixture
def owner(master: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, master, f"127.0.0.1:{free_port()}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line.strip() == "ready" for line in lines)
        yield process
    finally:
        ended(process)


class Engine:
    """An engine of 16 blocks with a cache over the store."""

    def __init__(self, master: str) -> None:
        self.tier = kvtile.mooncake.MooncakeTier(master, host=f"127.0.0.1:{free_port()}")
        shape = kvtile.Shape(num_blocks=16, num_layers=1, page_size=4, num_heads=1, head_size=64, dtype="float32")
        self.tensor = np.zeros((16, shape.block_bytes // 4), "float32")
        layout = kvtile.Layout("BLKNHC", shape=shape, tensors=self.tensor.reshape(-1))
        identity = kvtile.Identity("a/model", "1", shape)
        self.keys = kvtile.TokenHasher(identity).keys(range(16))
        self.cache = kvtile.Cache(
            identity, layout, host_bytes=1 << 20, shared=self.tier, shared_bundle_blocks=2, shared_within=WITHIN
        )

    def load(self) -> int:
        found = self.cache.seek(self.keys, WITHIN).wait()
        blocks = len(found)
        report = self.cache.load(found, list(range(8, 8 + blocks))).wait(60)
        return report.blocks

    def close(self) -> None:
        self.cache.close()
        self.tier.close()


@needs_mooncake
def test_a_second_cache_loads_what_the_first_stored(master: str, owner: subprocess.Popen[str]) -> None:
    first, second = Engine(master), Engine(master)
    first.tensor[:4] = np.arange(4 * first.tensor.shape[1], dtype="float32").reshape(4, -1)
    assert first.cache.store(first.keys, [0, 1, 2, 3]).wait().stored == 4
    first.cache.flush()
    deadline = time.monotonic() + 120
    while first.cache.stats()["shared"]["written"] < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.cache.stats()["shared"]["written"] == 2
    assert second.load() == 4
    np.testing.assert_array_equal(second.tensor[8:12], first.tensor[:4])
    assert second.tier.remove(["kvt1/absent"]) == 0
    # The owner of the memory dies. Mooncake still lists its values; they are misses, within the deadline.
    third = Engine(master)
    ended(owner)
    start = time.monotonic()
    assert third.load() == 0
    assert time.monotonic() - start < 4 * WITHIN
    for engine in (first, second, third):
        engine.close()


@needs_mooncake
def test_a_master_that_is_not_there_is_refused() -> None:
    with pytest.raises(kvtile.SharedTierError, match="127.0.0.1:1: error"):
        kvtile.mooncake.MooncakeTier("127.0.0.1:1", host=f"127.0.0.1:{free_port()}")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.store", None)
    with pytest.raises(kvtile.SharedTierError, match="mooncake-transfer-engine"):
        kvtile.mooncake.MooncakeTier("127.0.0.1:1")
