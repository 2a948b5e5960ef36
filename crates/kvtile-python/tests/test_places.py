"""Every public callable works from any place: callbacks, destructors, threads, interpreter shutdown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calls import public
from places import PLACES, UNSTEPPED

def run(place: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parent / "places.py"
    command = [sys.executable, str(script), place, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("place", [*PLACES, "after_exit"])
def test_everything_may_be_called_from(place: str, tmp_path: Path) -> None:
    done = run(place, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line != "the end")
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome.startswith(("WRONG", "InternalError"))}
    assert not wrong, wrong
    if "exit" not in place:
        assert "the end" in done.stdout
    # During shutdown, Python may stop a thread before its first call.
    left_out = UNSTEPPED if place == "callbacks_of_steps" else set()
    if place != "threads_at_exit":
        assert public() - set(outcomes) - left_out == set()
    assert "panicked" not in done.stderr and "Fatal Python error" not in done.stderr, done.stderr[-4000:]


CLOSING = """
import faulthandler, os, sys, threading
faulthandler.dump_traceback_later(20, exit=True)
sys.path.insert(0, {tests!r})
from pathlib import Path
from places import busy, open_world

world = open_world(Path({folder!r}))
with busy(world) as later:
    over = later(lambda _: {close})
assert over.wait(15)
world.caches.clear()
{after}
print("the end", flush=True)
"""


@pytest.mark.parametrize(
    ("close", "after"),
    [
        ("world.cache.close()", "assert world.cache.closed"),
        ("world.cache.__exit__(None, None, None)", "assert world.cache.closed"),
        ("(world.caches.clear(), vars(world).pop('cache'))", ""),
    ],
    ids=["close", "exit", "del"],
)
def test_a_cache_may_be_closed_from_its_own_callback(close: str, after: str, tmp_path: Path) -> None:
    script = CLOSING.format(tests=str(Path(__file__).parent), folder=str(tmp_path), close=close, after=after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "the end" in done.stdout, done.stderr[-3000:]
    # An exception in a callback would be printed, and a thread that joins itself would panic.
    assert done.stderr == ""
