"""Another process that has a folder open."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PROGRAM = """
import sys, kvtile
group = kvtile.StoreGroup.opaque("kv", 4096, model="m", revision="r")
store = kvtile.BlockStore(groups=group, disk=sys.argv[1], disk_bytes=1 << 20)
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """The number of a process that holds the folder's lock until the end of the block."""
    command = [sys.executable, "-c", _PROGRAM, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline().strip() == "open"
        yield process.pid
        process.stdin.close()
