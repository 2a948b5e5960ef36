"""Measures how long vLLM takes to the first token, by the source of the prompt prefix's KV.

Engines without a connector, with kvtile and with vLLM's ExampleConnector answer the same prompts in turns in one
process. Then a second process opens kvtile's disk tier of the first one.

With ``--tiers`` the engines have vLLM's offloading instead, with kvtile or vLLM's own files as the tier below host memory.
The second process has an engine without any, and both tiers over what the first one left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import page
from results import NotLoadedError, Results, WrongTokensError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from table import show

PROCESS = Path(__file__).with_name("engines.py")
REPOSITORY = Path(__file__).parents[3]
TEXTS = ("README.md", "ARCHITECTURE.md", "docs/python.md", "docs/vllm.md", "docs/eviction.md", "CHANGELOG.md")
# The time limit of one process.
SECONDS = 1200
# Settings that make glibc keep freed memory. By default it returns large blocks to the kernel, and allocates them again
# in the next layer: then the number of page faults varies by prompt, and prompts differ by more than connectors do.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

BEFORE = {"engines": ["none", "kvtile", "example"], "states": ["cold", "again", "forgotten"]}
AFTER = {"engines": ["kvtile"], "states": ["restarted", "again"]}
TIERS = ["none", "fs tier", "kvtile tier"]
BEFORE_TIERS = {"engines": TIERS, "states": ["cold"]}
AFTER_TIERS = {"engines": TIERS, "states": ["restarted"]}


def main() -> int:
    """Runs the demonstration."""
    arguments = parse()
    if arguments.results is not None:
        results = Results(**json.loads(arguments.results.read_text()))
    else:
        results = measure(arguments)
    results.check()
    console = Console(stderr=arguments.json == "-")
    show(console, results)
    if arguments.json == "-":
        print(json.dumps(results.as_json(), indent=1))
    elif arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(results.as_json(), indent=1) + "\n")
    if arguments.html is not None:
        arguments.html.write_text(page(results))
        console.print(f"The page is {arguments.html}.")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cargo x demo-vllm", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=3, help="prompts that every engine answers (default 3)")
    parser.add_argument("--prompt-tokens", type=positive, default=1500, help="tokens of a prompt (default 1500)")
    parser.add_argument("--answer-tokens", type=positive, default=16, help="tokens of an answer (default 16)")
    parser.add_argument("--tiers", action="store_true", help="vLLM's offloading with tiers below it, after a restart")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the table and the chart")
    parser.add_argument("--json", metavar="FILE", help="write all results as JSON; - for standard output")
    parser.add_argument("--from", dest="results", type=Path, metavar="FILE", help="show results that --json has written")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def measure(arguments: argparse.Namespace) -> Results:
    """Runs both processes."""
    model = os.environ["KVTILE_TEST_MODEL"]
    told = {
        "model": model,
        "texts": [str(REPOSITORY / text) for text in TEXTS],
        "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt_tokens,
        "answer_tokens": arguments.answer_tokens,
    }
    sizes = {name: told[name] for name in ("rounds", "prompt_tokens", "answer_tokens")}
    results = Results(machine=machine(), versions={}, told=sizes, answers=[])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="kvtile-demo-", dir="/var/tmp") as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        parts = (BEFORE_TIERS, AFTER_TIERS) if arguments.tiers else (BEFORE, AFTER)
        for title, part in zip(("before the restart", "after it"), parts, strict=True):
            turns = len(part["engines"]) * len(part["states"]) * arguments.rounds
            task = progress.add_task(f"{title}: vLLM starts", total=turns)
            for event in events(told | part | {"folder": folder}):
                if event["event"] == "engine":
                    progress.update(task, description=f"{title}: {event['name']} is ready")
                elif event["event"] == "versions":
                    results.versions |= event["versions"]
                elif event["event"] == "answer":
                    results.answers.append(event)
                    progress.update(task, advance=1, description=f"{title}: {event['engine']}, {event['state']}")
    return results


def events(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events that a process prints. The process ends with this one, or at its time limit."""
    process = subprocess.Popen(
        [sys.executable, str(PROCESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ALLOCATOR | os.environ,
    )
    assert process.stdin is not None and process.stdout is not None
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    log = []
    try:
        process.stdin.write(json.dumps(told))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("@"):
                yield json.loads(line[1:])
            else:
                log.append(line)
        if process.wait() != 0:
            sys.stderr.writelines(log[-60:])
            raise RuntimeError(f"the process with vLLM ended with {process.returncode}; its last lines are above")
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def machine() -> str:
    """The processor's name, and the number of its threads."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} threads"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotLoadedError, WrongTokensError) as error:
        sys.exit(f"cargo x demo-vllm: {error}")
