"""``python -m kvtile`` is the program kvtile, without the demonstration and the benchmark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvtile


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvtile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_is_the_program() -> None:
    assert program("--version").stdout == f"kvtile {kvtile.__version__}\n"
    told = program("layout", "L|BH(kCN,vNC)", "--json")
    assert told.returncode == 0 and json.loads(told.stdout)
    assert program("plan", "L|KBNHC", "BHLKNC").returncode == 0


def test_exit_codes_are_those_of_the_program() -> None:
    refused = program("layout", "BLX")
    assert refused.returncode == 2 and refused.stderr.startswith("error:")
    assert program("no-such-command").returncode == 2
    assert program().returncode == 2
    assert program("--help").returncode == 0


def test_the_script_of_that_name_is_the_same() -> None:
    script = shutil.which("kvtile", path=Path(sys.executable).parent)
    assert script is not None
    told = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=300, check=False)
    assert told.stdout == f"kvtile {kvtile.__version__}\n"


def test_the_help_lists_the_commands_that_are_there() -> None:
    told = program("--help").stdout
    commands = told.split("Commands:")[1].split("Options:")[0]
    # Continuation lines of descriptions are indented further.
    names = re.findall(r"^  (\w+)", commands, re.MULTILINE)
    own = ["layout", "plan", "inspect", "replay", "events", "cache", "serve", "top", "doctor", "completions", "man"]
    assert names == [*own, "help"]


@pytest.mark.parametrize("command", ["demo", "bench"])
@pytest.mark.parametrize("arguments", [(), ("--help",), ("--tiny", "--json"), ("blocks", "--rounds", "1")])
def test_commands_of_the_rust_program_refer_to_it(command: str, arguments: tuple[str, ...]) -> None:
    refused = program(command, *arguments)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith(f"error: `{command}` is a command of the Rust program")
    assert f"cargo run --release -- {command}" in refused.stderr
