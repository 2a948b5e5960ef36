"""Measures how long vLLM takes to the first token of a prompt that another engine has written to a shared store.

All engines are in one process and answer in turns: one without a connector, which computes everything (cold); one that
writes each prompt to the store; one that reads it from there; one whose line to the store delays each piece of bytes
(slow); and one after the server has stopped. Each has private host memory and a private folder.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "demo_vllm"), str(HERE.parent / "tests_vllm")]

TEXTS = ("README.md", "ARCHITECTURE.md", "docs/python.md", "docs/vllm.md", "docs/eviction.md", "CHANGELOG.md")
READERS = ("reader", "slow", "stopped")


def main() -> None:
    arguments = parse()
    import engines
    import servers
    from delay import DelayedLine

    if servers.SERVERS is None:
        sys.exit("KVTILE_SERVERS names no environment with servers; run `cargo x demo-sharing`")
    os.environ.update(servers.CREDENTIALS)
    started = {"bucket": servers.bucket, "valkey": servers.valkey}[arguments.server]
    # A store of the user's disk: /tmp may be memory.
    with tempfile.TemporaryDirectory(prefix="kvtile-demo-", dir="/var/tmp") as name:
        folder = Path(name)
        with started(folder / "server") as server, DelayedLine(server.port, arguments.delay) as line:
            told = orders(arguments, folder, {"writer": server.url, "reader": server.url, "stopped": server.url, "slow": server.at(line.port)})
            prompts = engines.read_prompts(told)
            # The rate of the cold engine decides what is worth reading, so it is measured first.
            engine = {"cold": engines.Engine("cold", told)}
            engines.warm_up(engine, prompts[0])
            again = play(engine["cold"], prompts[0][1:])
            rate = len(prompts[0]) / again["first_token_seconds"]
            for one in told["kvtile"].values():
                one["recompute_tokens_per_second"] = rate
            engine |= {name: engines.Engine(name, told) for name in told["kvtile"]}
            for name in told["kvtile"]:
                engines.warm_up({name: engine[name]}, prompts[0])
            answers = [measure(engine, prompt, number, server.process.pid) for number, prompt in enumerate(prompts[1:])]
            facts = {name: shared(engine[name]) for name in READERS}
            for one in engine.values():
                one.take_turn()
                one.close()
    report(arguments, answers, facts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cargo x demo-sharing", description=__doc__)
    parser.add_argument("--server", choices=("bucket", "valkey"), default="bucket", help="SeaweedFS, or Valkey (default bucket)")
    parser.add_argument("--rounds", type=int, default=5, help="prompts that every engine answers (default 5)")
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="tokens of a prompt (default 1500)")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds that the slow line adds each way (default 0.2)")
    parser.add_argument("--within", type=float, default=1.0, help="seconds that a request waits for the store (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all answers")
    return parser.parse_args()


def orders(arguments: argparse.Namespace, folder: Path, urls: dict[str, str]) -> dict[str, Any]:
    """The orders of `engines`, with the settings of each engine with kvtile."""
    kvtile = {
        name: {
            "host_gib": 1, "disk_path": str(folder / name), "disk_gib": 2, "revision": "demo", "shared": url,
            "shared_within": 20.0 if name == "reader" else arguments.within, "shared_bundle_blocks": 1,
        }
        for name, url in urls.items()
    }
    repository = HERE.parents[2]
    return {
        "model": os.environ["KVTILE_TEST_MODEL"], "folder": str(folder), "kvtile": kvtile, "rounds": arguments.rounds,
        "texts": [str(repository / text) for text in TEXTS], "prompt_tokens": arguments.prompt_tokens, "answer_tokens": 1,
    }


def play(engine: Any, prompt: list[int], settles: bool = True) -> dict[str, Any]:
    engine.take_turn()
    engine.forget()
    answer: dict[str, Any] = engine.answer(prompt, 1)
    if settles:
        engine.settle()
    return answer


def measure(engine: dict[str, Any], prompt: list[int], number: int, server: int) -> dict[str, dict[str, Any]]:
    """One prompt by every engine. The order of those that are compared changes with every prompt."""
    answers = {"writer": play(engine["writer"], prompt)}
    written(engine["writer"])
    compared = ["cold", "reader", "slow"]
    for name in compared[number % 3 :] + compared[: number % 3]:
        answers[name] = play(engine[name], prompt)
    # Cold once more beside the stopped one, because the machine may have changed.
    os.kill(server, signal.SIGSTOP)
    try:
        pair = ["cold beside stopped", "stopped"]
        for name in pair if number % 2 else pair[::-1]:
            # What the engine writes waits for the server.
            answers[name] = play(engine["cold" if name.startswith("cold") else name], prompt, settles=False)
    finally:
        os.kill(server, signal.SIGCONT)
    engine["stopped"].take_turn()
    engine["stopped"].settle()
    return answers


def shared(engine: Any) -> dict[str, Any]:
    """The counters of an engine's cache that are about its store."""
    engine.take_turn()
    stats = engine.kvtile().cache.stats()
    left_out = stats["left_out"] if isinstance(stats["left_out"], dict) else {}
    return {"left_out": left_out.get("shared", 0), **{name: count for name, count in stats["shared"].items() if count}}


def written(engine: Any) -> None:
    """Waits until the store has what the engine wrote."""
    deadline = time.monotonic() + 120
    before = -1
    while (now := engine.kvtile().cache.stats()["shared"]["written"]) != before:
        assert time.monotonic() < deadline, "the store takes blocks for ever"
        before = now
        time.sleep(0.5)


def report(arguments: argparse.Namespace, answers: list[dict[str, dict[str, Any]]], facts: dict[str, dict[str, Any]]) -> None:
    print(f"\n{arguments.server}, {len(answers)} prompts of {arguments.prompt_tokens} tokens, a delay of {arguments.delay} s each way\n")
    print(f"{'engine':<10} {'first token, s':>15} {'of cold':>9} {'least':>7} {'most':>7} {'cached tokens':>14}")
    for name, base in (("cold", "cold"), ("writer", "cold"), ("reader", "cold"), ("slow", "cold"), ("stopped", "cold beside stopped")):
        seconds = [answer[name]["first_token_seconds"] for answer in answers]
        ratios = [answer[name]["first_token_seconds"] / answer[base]["first_token_seconds"] for answer in answers]
        cached = statistics.median(answer[name]["cached_tokens"] for answer in answers)
        print(
            f"{name:<10} {statistics.median(seconds):>15.3f} {statistics.median(ratios):>9.3f} {min(ratios):>7.3f} {max(ratios):>7.3f} "
            f"{cached:>14.0f}"
        )
    for name, counts in facts.items():
        print(f"{name}: {', '.join(f'{word} {count}' for word, count in counts.items())}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"answers": answers, "shared": facts}))
    wrong = [name for answer in answers for name, one in answer.items() if one["tokens"] != answer["cold"]["tokens"]]
    if wrong:
        sys.exit(f"cargo x demo-sharing: other tokens than the cold engine's: {wrong}")


if __name__ == "__main__":
    main()
