"""Models with several groups of KV in vLLM's engine: their answers equal those of an engine without the connector."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hybrid_engine
import pytest
from helpers import PAGE, Process

NUMBERS = random.Random(3)
TEXT = [NUMBERS.randrange(3, 990) for _ in range(420)]
OTHER = [NUMBERS.randrange(3, 990) for _ in range(256)]
# Prompts that leave the text at each offset in a page, from the first page to beyond the window.
BRANCHES = list(range(37, 292, 17))


def some() -> list[int]:
    return [NUMBERS.randrange(3, 990) for _ in range(5)]


ROUNDS: dict[str, dict[str, Any]] = {
    "first": {"prompts": [TEXT[:300]], "max_tokens": 40},
    "again": {"prompts": [TEXT[:300]], "max_tokens": 40},
    "next turn": {"after": "first", "more": some()},
    "branches": {"prompts": [TEXT[:branch] + some() for branch in BRANCHES], "max_tokens": 6},
    "siblings": {"prompts": [TEXT[:branch] + some() for branch in BRANCHES], "max_tokens": 6},
    "aligned": {"prompts": [OTHER]},
    "aligned again": {"prompts": [OTHER]},
    "longer": {"prompts": [OTHER + some()]},
    "aborted": {"prompts": [TEXT[:300], OTHER], "abort": True},
}
# A reset of the cache removes all, and later blocks are for the process alone.
CLEARED = {"cleared": {**ROUNDS["first"], "forget_all": True}, "after that": ROUNDS["first"]}
ENGINE = {"max_model_len": 512}
# More requests than the small engine has memory for.
CROWD = {"prompts": [TEXT[: 280 + at] + some() for at in range(0, 36, 3)], "max_tokens": 60}


def run(
    engines: list[dict[str, Any]], kind: str, model: Path, **changes: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rounds of each engine by name, and its last line."""
    process = Process({"kind": kind, "model": str(model), "engine": ENGINE, "engines": engines, **changes}, hybrid_engine.main)
    rounds: list[dict[str, Any]] = [{} for _ in engines]
    ends: list[dict[str, Any]] = []
    for event in process.events():
        assert event["event"] != "refused", event
        if event["event"] == "round":
            rounds[event["engine"]][event["name"]] = event
        elif event["event"] == "ended":
            ends.append(event)
    assert process.wait() == 0, "".join(process.log)[-5000:]
    return rounds, ends


def counted(round_: dict[str, Any]) -> dict[str, int]:
    return {name.removeprefix("vllm:kvtile_"): count for name, count in round_["kvtile"].items()}


@pytest.mark.parametrize(("kind", "small", "ends_answers"), [("gemma3", 110, False), ("gpt_oss", 60, True)])
def test_answers_are_those_without_the_connector(kind: str, small: int, ends_answers: bool, tmp_path: Path) -> None:
    disk = tmp_path / "kv"
    kvtile = {"host_gib": 0.02, "prefault": False, "disk_path": str(disk), "disk_gib": 0.05}
    first = {name: ROUNDS[name] for name in ("first", "again")}
    plain = {name: round_ for name, round_ in ROUNDS.items() if "abort" not in round_}
    (expected, warm, restarted, damaged), ended = run(
        [
            {"rounds": {**plain, **CLEARED, "crowd": CROWD}},
            {"kvtile": kvtile, "rounds": ROUNDS},
            {
                "kvtile": kvtile, "engine": {**ENGINE, "num_gpu_blocks_override": small},
                "rounds": {"first": ROUNDS["first"], "siblings": ROUNDS["siblings"], "crowd": CROWD},
            },
            {"kvtile": kvtile, "rounds": {**first, **CLEARED}, "damage": [str(disk)], "damage_every": 1 << 10},
        ],
        kind, tmp_path / "model",
    )
    for rounds in (warm, restarted, damaged):
        for name, round_ in rounds.items():
            if name != "aborted":
                assert round_["tokens"] == expected[name]["tokens"], name
    # No answer repeats one token, which would hide wrong KV.
    assert len(set(expected["first"]["tokens"][0])) > 10

    cached = {name: round_["cached"] for name, round_ in warm.items() if name != "aborted"}
    assert cached["first"] == [0] and cached["again"] == [288]
    # The answer ends after 339 tokens. vLLM may have freed the first page of the window before 320.
    assert cached["next turn"] == [320 if ends_answers else 288]
    assert cached["siblings"] == [branch // PAGE * PAGE for branch in BRANCHES]
    # All but the last token may come from the cache; a longer prompt can use the last page too.
    assert cached["aligned again"] == [224] and cached["longer"] == [256]
    assert counted(warm["longer"])["failed_blocks"] == 0

    # The folder has the stops.
    assert restarted["first"]["cached"] == [288] and counted(restarted["first"])["from_disk_blocks"] > 0
    # Each of these prompts was sent before: only its last page is computed.
    assert restarted["siblings"]["cached"] == [(branch + 4) // PAGE * PAGE for branch in BRANCHES]
    assert restarted["crowd"]["preemptions"] > 0
    assert counted(restarted["crowd"])["loaded_blocks"] > 0

    assert damaged["first"]["cached"] == [0] and counted(damaged["first"])["failed_blocks"] > 0
    assert damaged["again"]["cached"] == [288]
    assert damaged["cleared"]["cached"] == [0] and damaged["after that"]["cached"] == [288]
    for end in ended[1:]:
        assert not any(end["open"]) and end["directory"], end


def test_states_come_back_at_the_boundaries_of_their_blocks(tmp_path: Path) -> None:
    """A model like Qwen3-Next: three layers with states, in blocks of 640 tokens."""
    text = [NUMBERS.randrange(3, 990) for _ in range(1400)]
    one, aligned = {"prompts": [text[:1289]], "max_tokens": 8}, {"prompts": [text[:1280]], "max_tokens": 8}
    branches = [{"prompts": [text[:700] + some(), text[:1300] + some()], "max_tokens": 6} for _ in range(2)]
    rounds = {"first": one, "again": one, "branches": branches[0], "siblings": branches[1], "aligned": aligned}
    kvtile = {"host_gib": 0.1, "prefault": False, "disk_path": str(tmp_path / "kv"), "disk_gib": 0.2}
    engine = {"dtype": "bfloat16", "block_size": None, "num_gpu_blocks_override": 64}
    engine |= dict.fromkeys(("max_model_len", "max_num_batched_tokens"), 1500)
    (expected, warm, restarted), ended = run(
        [{"rounds": rounds}, {"kvtile": kvtile, "rounds": rounds}, {"kvtile": kvtile, "rounds": {"again": one}}],
        # Some virtual machines list AMX but trap on it.
        "qwen3_next", tmp_path / "model", engine=engine, patches={"amx": False},
    )
    for played in (warm, restarted):
        for name, round_ in played.items():
            assert round_["tokens"] == expected[name]["tokens"], name
    cached = {name: round_["cached"] for name, round_ in warm.items()}
    assert cached["first"] == [0] and cached["again"] == [1280] and cached["aligned"] == [640]
    # The first to branch off after 700 tokens stored the state at 640.
    assert cached["siblings"] == [640, 1280]
    assert restarted["again"]["cached"] == [1280] and counted(restarted["again"])["from_disk_blocks"] == 2 + 3
    for end in ended[1:]:
        assert not any(end["open"]) and end["directory"], end
