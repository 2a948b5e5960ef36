"""Measures how long transformers takes to the first token of a prompt, by the source of its prefix's KV.

Each round computes a prompt. Then its first token is generated again from a cache that is still in memory, from
kvtile's host memory, and from kvtile's disk with an empty host tier, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from kvtile.transformers import PrefixCache

PAGE_SIZE = 16
WAYS = {
    "computed": "computed",
    "memory": "cache still in memory",
    "host": "kvtile, host memory",
    "disk": "kvtile, disk",
}
# The limit for a way's time, as a multiple of that of the cache in memory.
GOAL = 1.3


def main() -> int:
    """Runs the demonstration."""
    arguments = parse()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        seconds = measure(model, Path(folder), arguments.rounds, arguments.prompt_tokens)
    results = summary(seconds) | {"rounds": arguments.rounds, "prompt_tokens": arguments.prompt_tokens}
    show(results)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results | {"seconds": seconds}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cargo x demo-transformers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="prompts (default 5)")
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="tokens of a prompt (default 1500)")
    parser.add_argument("--model", default=os.environ.get("KVTILE_TEST_MODEL"), help="a folder with a model")
    parser.add_argument("--folder", help="where to create kvtile's temporary disk tier")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.prompt_tokens <= PAGE_SIZE or arguments.model is None:
        parser.error(f"at least 1 round, more than {PAGE_SIZE} tokens, and a model")
    return arguments


def measure(model: Any, folder: Path, rounds: int, prompt_tokens: int) -> dict[str, list[float]]:
    """Seconds of each way, by round."""
    numbers = random.Random(1)
    # The first round does not count: libraries initialise and memory is allocated.
    prompts = [
        torch.tensor([[numbers.randrange(1000, 40000) for _ in range(prompt_tokens)]]) for _ in range(rounds + 1)
    ]
    settings = {"host_gib": 1, "disk": folder, "disk_gib": 4, "page_size": PAGE_SIZE}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number, prompt in enumerate(prompts):
        # Each round opens the folder anew, so that blocks of earlier rounds are on disk only.
        with PrefixCache(model, **settings) as cache:
            known = (prompt_tokens - 1) // PAGE_SIZE * PAGE_SIZE
            took, token, past = first_token(model, prompt, lambda: cache.prefill(prompt))
            times = {"computed": took}
            cache.save(prompt, prompt, past)
            past.crop(known - past.get_seq_length())
            turns: list[tuple[str, Callable[[], Any]]] = [
                ("memory", lambda: past),
                ("host", lambda: cache.prefill(prompt)),
            ]
            for way, prefill in turns if number % 2 else reversed(turns):
                times[way] = again(model, prompt, prefill, token)
            cache.cache.flush()
            cache.cache.evict("host", sys.maxsize)
            times["disk"] = again(model, prompt, lambda: cache.prefill(prompt), token)
            hits, wanted = cache.stats()["hits"], known // PAGE_SIZE
            if hits != {"host": wanted, "disk": wanted}:
                raise SystemExit(f"{wanted} blocks were to come from each tier, and {hits} came")
        if number:
            for way, took in times.items():
                seconds[way].append(took)
    return seconds


def first_token(model: Any, prompt: Any, prefill: Callable[[], Any]) -> tuple[float, int, Any]:
    """Measures the seconds to the first token; returns the token and the resulting cache too."""
    start = time.perf_counter()
    past = prefill()
    outputs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=past, max_new_tokens=1, do_sample=False
    )
    took = time.perf_counter() - start
    return took, int(outputs[0, -1]), past


def again(model: Any, prompt: Any, prefill: Callable[[], Any], expected: int) -> float:
    """Measures the seconds; the token must be the same."""
    took, token, _ = first_token(model, prompt, prefill)
    if token != expected:
        raise SystemExit(f"the first token was {expected}, and is {token} with the prefix from somewhere else")
    return took


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and medians of the ratios to the cache in memory in the same round."""
    ratios = {
        way: statistics.median(a / b for a, b in zip(times, seconds["memory"], strict=True))
        for way, times in seconds.items()
    }
    return {"median_seconds": {way: statistics.median(times) for way, times in seconds.items()}, "ratios": ratios}


def show(results: dict[str, Any]) -> None:
    """Prints the table."""
    console = Console()
    console.print(
        f"Time to the first token of {results['prompt_tokens']} tokens with transformers, medians of "
        f"{results['rounds']} rounds; ratios are to the cache in memory."
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("KV of the prompt")
    for name in ("first token", "ratio", "goal"):
        table.add_column(name, justify="right")
    for way, name in WAYS.items():
        seconds, ratio = results["median_seconds"][way], results["ratios"][way]
        goal = f"{GOAL}" if way in ("host", "disk") else ""
        table.add_row(name, f"{seconds * 1e3:.0f} ms", f"{ratio:.2f}", goal)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
