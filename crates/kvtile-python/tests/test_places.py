"""Everything public may be called from anywhere: callbacks, deletions, threads, the end of the interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calls import public
from places import PLACES

# They close a cache, which joins the threads of the cache that they are called from.
CLOSING = {"Cache.close", "Cache.__exit__"}


def run(place: str, folder: Path, *left_out: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parent / "places.py"
    command = [sys.executable, str(script), place, str(folder), *left_out]
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
    # While the interpreter ends, threads may be stopped before their first call.
    left_out = {"StoreReport.__repr__", "LoadReport.__repr__", "Event.__repr__"} if place == "callbacks_of_steps" else set()
    if place != "threads_at_exit":
        assert public() - set(outcomes) - left_out == set()
    assert "panicked" not in done.stderr and "Fatal Python error" not in done.stderr, done.stderr[-4000:]
