"""The files of ``examples/python`` run, each in an empty folder, and print what they state at their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "examples"
FILES = sorted(path.name for path in (FOLDER / "python").glob("*.py"))
# The model of the example of vLLM; `cargo x test-vllm` sets it.
MODEL = os.environ.get("KVTILE_TEST_MODEL")
PRINTS = re.compile(r"^# prints(, among .*)?:\n((?:^# .*\n)+)\Z", re.MULTILINE)


def expected(name: str) -> tuple[bool, list[str]]:
    """Whether a file prints other lines too, and the lines that it states."""
    found = PRINTS.search((FOLDER / "python" / name).read_text())
    assert found, f"{name} does not end with what it prints"
    return found[1] is not None, [line.removeprefix("# ") for line in found[2].splitlines()]


@pytest.mark.parametrize("name", FILES)
def test_an_example_prints_what_it_states(name: str, tmp_path: Path) -> None:
    among, stated = expected(name)
    # Warnings of other packages are theirs.
    strict = [] if among or name.startswith("transformers") else ["-W", "error"]
    arguments = [MODEL] if name.startswith("vllm") and MODEL else []
    command = [sys.executable, *strict, str(FOLDER / "python" / name), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if run.returncode == 1 and run.stderr.startswith("skipped: "):
        pytest.skip(run.stderr.removeprefix("skipped: ").strip())
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert [line for line in lines if line in stated or not among] == stated


def test_the_readme_lists_every_example() -> None:
    text = (FOLDER / "README.md").read_text()
    listed = re.findall(r"`python (\w+\.py)", text)
    assert sorted(listed) == FILES
    rust = FOLDER.parent / "crates" / "kvtile" / "examples"
    listed = re.findall(r"--example (\w+)`", text)
    assert sorted(listed) == sorted(path.stem for path in rust.glob("*.rs"))
