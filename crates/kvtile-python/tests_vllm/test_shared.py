"""Two engines with private folders share a store: the second one's first request hits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from helpers import run, told
from test_parallel import FORKED
from tiny import CONFIG, tiny_model

BLOCK = 32 * CONFIG["num_hidden_layers"] * 2 * CONFIG["hidden_size"] * 4
SHARED = {"shared_within": 20.0, "shared_bundle_blocks": 2}


def prompts() -> list[list[int]]:
    numbers = random.Random(11)
    shared = [numbers.randrange(3, 990) for _ in range(640)]
    return [shared + [numbers.randrange(3, 990) for _ in range(20)], [numbers.randrange(3, 990) for _ in range(400)]]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    kvtile = {"host_gib": 200 * BLOCK / (1 << 30), "disk_path": str(folder), "disk_gib": 1}
    return {**kvtile, "model": "a-model", "revision": "a-revision", **changes}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_the_first_request_of_a_second_engine_hits(model: Path, tmp_path: Path) -> None:
    turn = {"prompts": prompts()}
    expected = run(told([turn], kvtile=None, model=str(model)))["rounds"][0]["tokens"]
    store = str(tmp_path / "shared")
    first = run(told([turn], kvtile=settings(tmp_path / "one", shared=store, **SHARED), model=str(model)))
    assert first["rounds"][0]["tokens"] == expected
    counts = first["rounds"][0]["kvtile"]
    assert counts["vllm:kvtile_seeks"] == len(turn["prompts"]) and not any(first["ended"]["open"])
    assert first["ended"]["directory"]
    second = run(told([turn, turn], kvtile=settings(tmp_path / "two", shared=store, **SHARED), model=str(model)))
    assert [said["tokens"] for said in second["rounds"]] == [expected] * 2
    assert second["ended"]["directory"]
    counts = second["rounds"][0]["kvtile"]
    assert counts["vllm:kvtile_from_shared_blocks"] >= 16 and counts["vllm:kvtile_failed_blocks"] == 0, counts
    assert sum(second["rounds"][0]["cached"]) >= 16 * 32


def test_damaged_values_are_computed_again(model: Path, tmp_path: Path) -> None:
    turn = {"prompts": prompts()}
    store = tmp_path / "shared"
    first = run(told([turn], kvtile=settings(tmp_path / "one", shared=str(store), **SHARED), model=str(model)))
    values = [path for path in store.rglob("*") if path.is_file()]
    assert len(values) > 4
    for path in values:
        value = bytearray(path.read_bytes())
        value[len(value) // 2] ^= 1
        path.write_bytes(value)
    second = run(told([turn], kvtile=settings(tmp_path / "two", shared=str(store), **SHARED), model=str(model)))
    assert second["rounds"][0]["tokens"] == first["rounds"][0]["tokens"]
    counts = second["rounds"][0]["kvtile"]
    assert counts["vllm:kvtile_from_shared_blocks"] == 0 and second["ended"]["stats"]["shared"]["damaged"] > 0, counts


def test_a_store_that_is_gone_costs_a_bounded_wait(model: Path, tmp_path: Path) -> None:
    turn = {"prompts": prompts()}
    kvtile = settings(tmp_path / "one", shared="redis://127.0.0.1:1/0")
    refused = run(told([turn], kvtile=kvtile, model=str(model)))["refused"]
    assert "127.0.0.1" in refused["message"], refused


def of_ranks(ranks: int, model: Path, folder: Path, store: Path) -> list[dict[str, Any]]:
    """The rounds of an engine with a new private folder: one that may hit, and one that computes everything."""
    turn = {"prompts": prompts()}
    parallel: dict[str, Any] = {"engine": {"tensor_parallel_size": ranks}, **FORKED} if ranks > 1 else {}
    kvtile = settings(folder, shared=str(store), **SHARED)
    rounds: list[dict[str, Any]] = run(told([turn, {**turn, "alone": True}], kvtile=kvtile, model=str(model), **parallel))["rounds"]
    for done in rounds:
        assert done["kvtile"]["vllm:kvtile_failed_blocks"] == 0, done
    return rounds


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_an_engine_with_another_number_of_ranks_hits(first: int, second: int, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "shared"
    wrote, _ = of_ranks(first, model, tmp_path / "first", store)
    assert not any(wrote["cached"]) and wrote["kvtile"]["vllm:kvtile_from_shared_blocks"] == 0
    hit, alone = of_ranks(second, model, tmp_path / "second", store)
    assert hit["tokens"] == alone["tokens"] == wrote["tokens"]
    # Each rank counts its part of a block.
    assert hit["kvtile"]["vllm:kvtile_from_shared_blocks"] >= 16 * second, hit["kvtile"]
    assert sum(hit["cached"]) >= 16 * 32 and not any(alone["cached"])
