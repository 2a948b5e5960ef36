"""Damages what two disk tiers of vLLM keep for the same prompts, in the same way, and shows what an engine answers.

vLLM's own tier (`fs`) and kvtile's stand below the same primary tier of vLLM's offloading, in a real engine on the CPU.
Each engine answers three prompts and ends. Then one exponent bit of a float32 is flipped in every 64 KiB of the blocks
on disk, and a new engine answers the same prompts again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests_vllm"
sys.path.insert(0, str(TESTS))

from helpers import MODEL, run  # noqa: E402
from test_tier_engine import PRIMARY_ROWS, TOKENS, flip_exponents, row_bytes  # noqa: E402


def main() -> None:
    """Runs the demonstration."""
    arguments = parse()
    numbers = random.Random(1)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(TOKENS)] for _ in range(3)]
    rounds = [{"prompts": [prompt], "max_tokens": 8} for prompt in prompts]
    print("computing the answers without any tier …", flush=True)
    expected = answers(run({"model": str(MODEL), "rounds": rounds}))
    results = []
    with tempfile.TemporaryDirectory(prefix="kvtile-damage-") as folder:
        tiers: dict[str, dict[str, Any]] = {
            "vLLM fs": {"type": "fs", "root_dir": f"{folder}/fs"},
            "kvtile": {"type": "kvtile", "path": f"{folder}/kvtile", "capacity": "1GiB"},
        }
        for name, tier in tiers.items():
            print(f"{name}: filling, restarting, damaging, restarting …", flush=True)
            engine(tier, rounds)
            before = engine(tier, rounds)
            flipped = flip_exponents(Path(folder) / tier.get("root_dir", tier.get("path", "")).rsplit("/", 1)[-1])
            after = engine(tier, rounds)
            results.append(
                {
                    "tier": name,
                    "bits_flipped": flipped,
                    "undamaged": {"cached_tokens": cached(before), "equal": answers(before) == expected},
                    "damaged": {"cached_tokens": cached(after), "equal": answers(after) == expected, "answers": answers(after)},
                    "counted": {key: value for key, value in (after["rounds"][-1].get("tier") or {}).items() if "load" in key},
                }
            )
    show(expected, results)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"expected": expected, "results": results}, indent=1) + "\n")
    if not (results[1]["damaged"]["equal"] and results[1]["counted"].get("blocks load damaged")):
        raise SystemExit("kvtile served damaged blocks, or did not count them")


def engine(tier: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What an engine with this tier answers."""
    tiers = {"cpu_bytes_to_use": PRIMARY_ROWS * row_bytes(), "secondary_tiers": [tier]}
    said = run({"model": str(MODEL), "tiers": tiers, "rounds": rounds})
    if "refused" in said:
        raise SystemExit(f"vLLM did not start: {said['refused']['message']}")
    return said


def answers(said: dict[str, Any]) -> list[list[int]]:
    """The generated tokens of each prompt."""
    return [turn["tokens"][0] for turn in said["rounds"]]


def cached(said: dict[str, Any]) -> list[int]:
    """Tokens of each prompt that were not computed."""
    return [turn["cached"][0] for turn in said["rounds"]]


def show(expected: list[list[int]], results: list[dict[str, Any]]) -> None:
    """Prints the results."""
    print(f"\nthe answers, computed: {expected}")
    for result in results:
        print(f"\n{result['tier']}")
        before, after = result["undamaged"], result["damaged"]
        print(f"  restarted:                  {before['cached_tokens']} tokens from disk, answers equal: {before['equal']}")
        print(f"  restarted after {result['bits_flipped']} flips: {after['cached_tokens']} tokens from disk, answers equal: {after['equal']}")
        if not after["equal"]:
            print(f"    answers: {after['answers']}")
        print(f"    counted: {result['counted'] or 'nothing'}")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="cargo x demo-damage", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
