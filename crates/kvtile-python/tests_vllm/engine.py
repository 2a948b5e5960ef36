"""A process with one vLLM engine: runs orders, and prints the results.

The tests start it repeatedly, because they check what survives a process.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any


def serve(told: dict[str, Any], output: Connection, orders: Callable[[dict[str, Any]], None]) -> None:
    """Runs orders in a process that was forked for them, which writes everything to ``output``."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.environ.update(told.get("environment", {}))
    orders(told)
    # Such a process ends without the functions that others run at their end.
    atexit._run_exitfuncs()
    sys.stdout.flush()


def main(told: dict[str, Any]) -> None:
    """Runs the orders."""
    for name, value in told.get("patches", {}).items():
        patch(name, value)
    say("starting")
    events = listen(told["events"]) if "events" in told else None
    try:
        llm = engine(told)
    except Exception as error:
        say("refused", kind=type(error).__name__, message=str(error))
        os._exit(0)
    say("ready", blocks_on_disk=blocks_on_disk(llm))
    for number, turn in enumerate(told["rounds"]):
        say("round", number=number, **play(llm, turn))
    say("ended", **counts(llm), events=dict(events or {}))
    llm.llm_engine.engine_core.shutdown()
    say("closed")


def say(event: str, **facts: Any) -> None:
    """Prints one line of JSON with a mark, because vLLM writes to the output as well."""
    sys.stdout.write(f"\n@{json.dumps({'event': event, **facts})}\n")
    sys.stdout.flush()


def patch(name: str, value: Any) -> None:
    """Simulates another machine, or starts ranks in less time."""
    if name == "amx":
        import torch

        torch.cpu._is_amx_tile_supported = lambda: value
    elif name == "instruction_set":
        from kvtile.vllm import _layout

        _layout.instruction_set = lambda *_: value
    elif name == "start_method":
        # vLLM starts a rank as a new interpreter, which imports vLLM again. This forks ranks from a process that has it.
        import helpers
        from vllm.utils import system_utils

        system_utils.multiprocessing = SimpleNamespace(get_context=lambda _: helpers.PROCESSES)
    else:
        raise ValueError(f"no patch {name}")


def listen(endpoint: str) -> Counter[str]:
    """Counts vLLM's published events by kind and medium, until the process ends."""
    import msgspec
    import zmq
    from vllm.distributed.kv_events import KVEventBatch

    counts: Counter[str] = Counter()
    socket = zmq.Context.instance().socket(zmq.SUB)
    socket.connect(endpoint)
    socket.subscribe(b"")
    decoder = msgspec.msgpack.Decoder(type=KVEventBatch)

    def receive() -> None:
        while True:
            _, _, payload = socket.recv_multipart()
            for event in decoder.decode(payload).events:
                counts[f"{type(event).__name__} {getattr(event, 'medium', None)}"] += 1

    threading.Thread(target=receive, daemon=True).start()
    return counts


def engine(told: dict[str, Any]) -> Any:
    """A vLLM engine, with the connector if there are settings for one."""
    from vllm import LLM
    from vllm.config import KVEventsConfig, KVTransferConfig

    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "block_size": 32,
        "num_gpu_blocks_override": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "disable_log_stats": False,
        **told.get("engine", {}),
    }
    if told.get("kvtile") is not None:
        settings["kv_transfer_config"] = KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config=told["kvtile"],
        )
    if "tiers" in told:
        settings["kv_transfer_config"] = KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            kv_connector_extra_config={"spec_name": "CpuTieringSpec", "spec_module_path": "cpu_spec", **told["tiers"]},
        )
    if "events" in told:
        settings["kv_events_config"] = KVEventsConfig(enable_kv_cache_events=True, endpoint=told["events"])
    return LLM(told["model"], **settings)


def play(llm: Any, turn: dict[str, Any]) -> dict[str, Any]:
    """Runs one batch of prompts, all in flight concurrently."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    for source, destination in turn.get("copies", ()):
        shutil.copytree(source, destination, dirs_exist_ok=True)
    for process, number in turn.get("signals", ()):
        os.kill(process, number)
    lora = LoRARequest(**turn["lora"]) if "lora" in turn else None
    if turn.get("forget", True):
        llm.reset_prefix_cache(reset_connector=turn.get("forget_all", False))
    sampling = SamplingParams(
        temperature=0, max_tokens=turn.get("max_tokens", 16), ignore_eos=True, detokenize=False,
        # Whether to ignore the prefix caches of vLLM and kvtile.
        skip_reading_prefix_cache=turn.get("alone", False),
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in turn["prompts"]]
    if turn.get("abort"):
        return abort(llm, prompts, sampling)
    start = time.monotonic()
    outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cached": [output.num_cached_tokens for output in outputs],
        "seconds": time.monotonic() - start,
        "preemptions": getattr(metrics.get("vllm:num_preemptions"), "value", None),
        "kvtile": {name: metric.value for name, metric in metrics.items() if name.startswith("vllm:kvtile_")},
        "tier": tier_counts(llm),
    }


def tier_counts(llm: Any) -> dict[str, float]:
    """The counters of kvtile's tier, by their names and labels."""
    prefix, labels = "vllm:kvtile_tier_", ("operation", "outcome", "answer", "method", "event")
    return {
        " ".join([metric.name.removeprefix(prefix), *(metric.labels[label] for label in labels if label in metric.labels)]): metric.value
        for metric in llm.get_metrics()
        if metric.name.startswith(prefix)
    }


def abort(llm: Any, prompts: list[Any], sampling: Any) -> dict[str, Any]:
    """Aborts requests after each number of steps, from 0."""
    core = llm.llm_engine
    for steps in range(5):
        names = [
            core.add_request(f"aborted-{steps}-{number}", prompt, sampling) or f"aborted-{steps}-{number}"
            for number, prompt in enumerate(prompts)
        ]
        for _ in range(steps):
            core.step()
        # vLLM's own request names end with a random part.
        core.abort_request(names, internal=True)
        for _ in range(50):
            outputs = core.step()
            if any(output.finished for output in outputs):
                raise RuntimeError(f"requests that were given up went on to their end: {outputs}")
        if core.has_unfinished_requests():
            raise RuntimeError("requests that were given up are still there")
        llm.reset_prefix_cache()
    return {}


def connected(llm: Any) -> Any:
    """The worker of the connector, if there is one in this process."""
    if "kvtile.vllm._worker" not in sys.modules:
        return None
    from kvtile.vllm._worker import find_worker

    return find_worker(llm.llm_engine.vllm_config)


def blocks_on_disk(llm: Any) -> int:
    """The number of blocks that the connector found in its folder."""
    worker = connected(llm)
    return worker.cache.pool_stats("disk")["cached"] if worker is not None and worker.has_disk else 0


def counts(llm: Any) -> dict[str, Any]:
    """The connector's counters, and the requests that its two sides still track."""
    worker = connected(llm)
    if worker is None:
        return {}
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler.connector.scheduler
    end = time.monotonic() + 120
    while scheduler.finishing and time.monotonic() < end:
        llm.llm_engine.step()
    open_ones = (
        worker.loads, worker.step_loads, worker.stores, worker.held,
        scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading,
    )
    return {
        "stats": worker.cache.stats(),
        "open": [len(things) for things in open_ones],
        "directory": in_step_with(worker, scheduler),
    }


def in_step_with(worker: Any, scheduler: Any) -> bool:
    """Whether the scheduler's directory equals the worker's tiers."""
    from kvtile.vllm._directory import TIERS

    known = scheduler.directories[0]
    return comes_in_step(
        worker, scheduler,
        lambda: {(tier, key) for tier, _, key, _ in worker.cache.snapshot().blocks},
        lambda: {(tier, key) for tier in TIERS for key in known.blocks(tier)},
    )


def comes_in_step(
    worker: Any, scheduler: Any, stored: Callable[[], set[tuple[Any, ...]]], known: Callable[[], set[tuple[Any, ...]]]
) -> bool:
    """Whether the scheduler's view equals the worker's tiers, once the cache has written what it writes in the background."""
    from kvtile.vllm._messages import Report

    end = time.monotonic() + 120
    while True:
        now = stored()
        report = worker.take_report()
        if report is not None:
            scheduler.take(Report({0: report}))
        if now == known() or time.monotonic() > end:
            return now == known()
        time.sleep(0.01)
