"""A process with several vLLM engines one after the other: runs orders, and prints the results."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import hybrid_models
from engine import comes_in_step, connected, engine, patch, play, say
from helpers import flip_bytes


def main(told: dict[str, Any]) -> None:
    """Runs the orders."""
    for name, value in told.get("patches", {}).items():
        patch(name, value)
    getattr(hybrid_models, told["kind"])(Path(told["model"]))
    for number, turn in enumerate(told["engines"]):
        damage(turn)
        try:
            llm = engine({**told, **turn})
        except Exception as error:
            say("refused", engine=number, kind=type(error).__name__, message=str(error))
            os._exit(0)
        played: dict[str, Any] = {}
        for name, round_ in turn["rounds"].items():
            settle(llm)
            damage(round_)
            if "after" in round_:
                # The next turn of conversations: prompts, answers and more.
                before, said = turn["rounds"][round_["after"]]["prompts"], played[round_["after"]]["tokens"]
                round_["prompts"] = [[*prompt, *answer, *round_["more"]] for prompt, answer in zip(before, said, strict=True)]
            played[name] = play(llm, round_)
            say("round", engine=number, name=name, **played[name])
        settle(llm)
        say("ended", engine=number, **left(llm))
        llm.llm_engine.engine_core.shutdown()
    say("closed")


def damage(told: dict[str, Any]) -> None:
    """Flips bits in the blocks of the folders that an engine or a round names: of the groups that it names, or of all.

    The same flips again mend blocks that were not written since.
    """
    for path in told.get("damage", ()):
        for group in told.get("damage_groups", [None]):
            files = sorted(Path(path).rglob("slots*" if group is None else f"slots-{group}" if group else "slots"))
            if not files:
                raise ValueError(f"{path} has no blocks of group {group}")
            for file in files:
                flip_bytes(file, every=told["damage_every"])


def settle(llm: Any) -> None:
    """Steps until the stores of ended requests have completed; an engine in a process of its own does so by itself."""
    if connected(llm) is None:
        return
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler.connector.scheduler
    end = time.monotonic() + 120
    while scheduler.finishing and time.monotonic() < end:
        llm.llm_engine.step()


def left(llm: Any) -> dict[str, Any]:
    """The requests that the connector's two sides still track, and whether the scheduler knows the worker's pages."""
    worker = connected(llm)
    if worker is None:
        return {}
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler.connector.scheduler
    open_ones = (
        worker.loads, worker.stores, worker.held, scheduler.tracked, scheduler.announced, scheduler.finishing, scheduler.loading,
    )
    numbers = {name: facts["number"] for name, facts in worker.cache.groups.items()}
    in_step = comes_in_step(
        worker, scheduler,
        lambda: {(group, tier, key) for tier, group, key, _ in worker.cache.snapshot().blocks},
        lambda: {
            (numbers[name], tier, key)
            for name, directory in scheduler.group_directories[0].items()
            for tier in ("host", "disk")
            for key in directory.blocks(tier)
        },
    )
    return {"stats": worker.cache.stats(), "open": [len(things) for things in open_ones], "directory": in_step}
