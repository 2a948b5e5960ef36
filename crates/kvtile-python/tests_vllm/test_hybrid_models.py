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
# Prompts that leave the text at each of the 32 offsets in a page, from the first page to beyond the windows, and beside the
# ends of the windows and of a chunk.
BRANCHES = sorted({*range(13, 293, 9), 79, 80, 81, 95, 96, 97, 127, 128, 129})
assert {branch % PAGE for branch in BRANCHES} == set(range(PAGE))
# Prompts for damage in one group each: the last stop is at 160, where every rule needs pages.
APART = [[NUMBERS.randrange(3, 990) for _ in range(170)] for _ in range(5)]


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
STATES: dict[str, Any] = {"dtype": "bfloat16", "block_size": None, "num_gpu_blocks_override": 64}
STATES |= dict.fromkeys(("max_model_len", "max_num_batched_tokens"), 1500)
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


@pytest.mark.parametrize(
    ("kind", "small", "ends_answers", "groups"), [("gemma3", 110, False, 4), ("gpt_oss", 60, True, 2), ("llama4", 110, True, 4)]
)
def test_answers_are_those_without_the_connector(
    kind: str, small: int, ends_answers: bool, groups: int, tmp_path: Path
) -> None:
    disk = tmp_path / "kv"
    kvtile = {"host_gib": 0.02, "prefault": False, "disk_path": str(disk), "disk_gib": 0.05}
    first = {name: ROUNDS[name] for name in ("first", "again")}
    damage: dict[str, Any] = {"damage": [str(disk)], "damage_every": 1 << 10}
    apart: dict[str, Any] = {f"apart {at}": {"prompts": [APART[at]], "max_tokens": 8} for at in range(groups)}
    apart["mended"] = apart[f"apart {groups - 1}"]
    # Each round damages one group, and mends that of the round before.
    in_turn = {
        name: {**round_, **damage, "damage_groups": list(range(groups))[max(0, at - 1) : at + 1]}
        for at, (name, round_) in enumerate(apart.items())
    }
    plain = {name: round_ for name, round_ in ROUNDS.items() if "abort" not in round_}
    (expected, warm, restarted, one_group, damaged), ended = run(
        [
            {"rounds": {**plain, **apart, **CLEARED, "crowd": CROWD}},
            {"kvtile": kvtile, "rounds": {**ROUNDS, **apart}},
            {
                "kvtile": kvtile, "engine": {**ENGINE, "num_gpu_blocks_override": small},
                "rounds": {"first": ROUNDS["first"], "siblings": ROUNDS["siblings"], "crowd": CROWD},
            },
            {"kvtile": kvtile, "rounds": in_turn},
            {"kvtile": kvtile, "rounds": {**first, **CLEARED}, **damage},
        ],
        kind, tmp_path / "model",
    )
    for rounds in (warm, restarted, one_group, damaged):
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

    # Damage in any group costs the stop, and is found in that group.
    assert [round_["cached"] for round_ in one_group.values()] == [[0]] * groups + [[160]]
    failures = {name: facts["checksum_failures"] for name, facts in ended[3]["stats"]["groups"].items()}
    assert len(failures) == groups and all(failure.get("disk", 0) > 0 for failure in failures.values()), failures

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
    (expected, warm, restarted), ended = run(
        [{"rounds": rounds}, {"kvtile": kvtile, "rounds": rounds}, {"kvtile": kvtile, "rounds": {"again": one}}],
        # Some virtual machines list AMX but trap on it.
        "qwen3_next", tmp_path / "model", engine=STATES, patches={"amx": False},
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


# Of each model: its settings, the tokens of a prompt and those of its last stop, its blocks that vLLM keeps below, and the bytes
# of a block.
BELOW: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    # Nine pages of full attention, and three for each of the three tables of windows.
    "gemma3": (ENGINE, 300, 288, 9 + 3 * 3, 8192),
    # Two pages of full attention, and the last state of each of the three layers.
    "qwen3_next": (STATES, 1289, 1280, 2 + 3, 327_680),
}


@pytest.mark.parametrize("kind", BELOW)
def test_the_tier_below_vllms_offloading_brings_the_same_answers(kind: str, tmp_path: Path) -> None:
    """vLLM's own connector looks up the groups; the tier keeps rows of all of them. The primary tier holds one prompt."""
    engine, length, stop, blocks, row_bytes = BELOW[kind]
    prompts = [[NUMBERS.randrange(3, 990) for _ in range(length)] for _ in range(2)]
    one, other = ({"prompts": [prompt], "max_tokens": 8} for prompt in prompts)
    folder = tmp_path / "kv"
    tier = {"type": "kvtile", "path": str(folder), "capacity": 100 * row_bytes}
    tiers = {"cpu_bytes_to_use": blocks * row_bytes, "secondary_tiers": [tier]}
    filled = {"one": one, "other": other, "one again": one, "other again": other}
    kept = {**filled, "damaged": {**one, "damage": [str(folder)], "damage_every": 1 << 10}, "computed": other, "stored again": one}
    (expected, first, restarted), _ = run(
        [{"rounds": {"one": one, "other": other}}, {"tiers": tiers, "rounds": filled}, {"tiers": tiers, "rounds": kept}],
        # Some virtual machines list AMX but trap on it.
        kind, tmp_path / "model", engine=engine, patches={"amx": False},
    )
    for rounds in (first, restarted):
        for name, round_ in rounds.items():
            of_other = name.startswith("other") or name == "computed"
            assert round_["tokens"] == expected["other" if of_other else "one"]["tokens"], name
    assert len(set(expected["one"]["tokens"][0])) > 3
    cached = {name: round_["cached"][0] for name, round_ in first.items()}
    assert cached == {"one": 0, "other": 0, "one again": stop, "other again": stop}
    assert first["other again"]["tier"]["blocks load ok"] == 2 * blocks, "vLLM's primary tier has evicted them"
    cached = {name: round_["cached"][0] for name, round_ in restarted.items()}
    assert cached == {**dict.fromkeys(filled, stop), "damaged": 0, "computed": 0, "stored again": stop}
    counted = restarted["stored again"]["tier"]
    # The damaged blocks of both prompts were stored again, and one prompt came from there.
    assert counted["blocks load damaged"] == 2 * blocks and counted["blocks load ok"] == 5 * blocks
    assert not [name for name in counted if name.startswith("errors")]


def test_two_ranks_resume_at_stops_that_both_have(tmp_path: Path) -> None:
    """Each rank has a head, a process and a folder."""
    prompts = [[NUMBERS.randrange(3, 990) for _ in range(300)] for _ in range(2)]
    one, other = ({"prompts": [prompt], "max_tokens": 24} for prompt in prompts)
    siblings = {"prompts": [prompts[0][:branch] + some() for branch in BRANCHES], "max_tokens": 6}
    alone = {f"{name} alone": {**round_, "alone": True} for name, round_ in (("one", one), ("other", other), ("siblings", siblings))}
    disk = tmp_path / "kv"
    kvtile = {"host_gib": 0.04, "prefault": False, "disk_path": str(disk), "disk_gib": 0.05}
    damaged = {**other, "damage": [str(disk / "rank-1-of-2")], "damage_every": 1 << 10}
    (first, restarted), _ = run(
        [
            {"kvtile": kvtile, "rounds": {**alone, "one": one, "siblings": siblings}},
            {"kvtile": kvtile, "rounds": {"one": one, "other": damaged, "other again": other}},
        ],
        "gemma3_of_two_heads", tmp_path / "model", engine={**ENGINE, "tensor_parallel_size": 2},
        patches={"start_method": "forkserver"}, environment={"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    for rounds in (first, restarted):
        for name, round_ in rounds.items():
            assert round_["tokens"] == first[f"{name.split()[0]} alone"]["tokens"], name
    # Each prompt was sent before: only its last page is computed.
    assert first["one"]["cached"] == [288]
    assert first["siblings"]["cached"] == [(branch + 4) // PAGE * PAGE for branch in BRANCHES]
    assert counted(first["siblings"])["failed_blocks"] == 0
    assert restarted["one"]["cached"] == [288] and counted(restarted["one"])["from_disk_blocks"] == 2 * (9 + 3 * 3)
    # One rank cannot load the stop, so both compute.
    assert restarted["other"]["cached"] == [0] and counted(restarted["other"])["failed_blocks"] > 0
    assert restarted["other again"]["cached"] == [288]
    assert sorted(folder.name for folder in disk.iterdir()) == ["rank-0-of-2", "rank-1-of-2"]


def test_folders_of_transformers_and_vllm_are_refused_by_their_groups(tmp_path: Path) -> None:
    """The same weights under the same name and revision: what one side keeps of a window is not what the other one has."""
    import torch
    from hybrid_models import gemma3
    from transformers import Gemma3ForCausalLM

    import kvtile
    from kvtile.transformers import PrefixCache

    folder, prompt = tmp_path / "model", [TEXT[:100]]
    model = Gemma3ForCausalLM.from_pretrained(gemma3(folder), dtype=torch.float32).eval()
    settings: dict[str, Any] = {"page_size": PAGE, "host_gib": 0.02, "disk_gib": 0.05, "revision": "one"}
    with PrefixCache(model, disk=tmp_path / "transformers", **settings) as cache:
        cache.prefill(prompt)
        ours = cache._kept.hasher.keys(prompt[0])
        assert cache.cache.lookup(ours).stop == 96
    same: dict[str, Any] = {"host_gib": 0.02, "prefault": False, "disk_gib": 0.05, "model": str(folder), "revision": "one"}
    engines: list[dict[str, Any]] = [
        {"kvtile": {**same, "disk_path": str(tmp_path / "vllm")}, "rounds": {"one": {"prompts": prompt, "max_tokens": 4}}},
        {"kvtile": {**same, "disk_path": str(tmp_path / "transformers")}, "rounds": {}},
    ]
    told = {"kind": "gemma3", "model": str(folder), "engine": ENGINE, "engines": engines}
    process = Process(told, hybrid_engine.main)
    events = list(process.events())
    assert process.wait() == 0, "".join(process.log)[-5000:]
    assert [event["event"] for event in events] == ["round", "ended", "refused"], events
    assert "keeps the groups pages, stops, and the cache" in "".join([events[-1]["message"], *process.log])
    with pytest.raises(kvtile.IdentityError, match="keeps the groups .*window-80-.*, and the cache"):
        PrefixCache(model, disk=tmp_path / "vllm", **settings)
    # Neither refusal has damaged what is there.
    with PrefixCache(model, disk=tmp_path / "transformers", **settings) as cache:
        assert cache.cache.lookup(ours).stop == 96
