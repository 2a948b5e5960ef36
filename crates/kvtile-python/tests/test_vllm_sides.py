"""The two sides of the vLLM connector against a small engine, without vLLM."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from vllm_engine import BLOCKS, LAYERS, PAGE, Engine, Tensor, layout_and_identity, run_to_the_end, sides

__all__ = ["sides"]  # The fixture of the tests below.


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_block_is_right_and_every_operation_completes(
    sides: Any, seed: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several ranks that evict independently and disagree about the length of a hit."""
    on_disk = seed % 2 == 1
    run_to_the_end(Engine(sides, seed, ranks, tmp_path / "disk" if on_disk else None, monkeypatch), on_disk, steps=400)


def test_a_worker_serves_a_page_of_its_cache(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(sides, 1, 1, None, monkeypatch, http="127.0.0.1:0")
    (worker,) = engine.workers
    try:
        for _ in range(100):
            engine.step()
        url = worker._server.url
        with urllib.request.urlopen(url + "stats.json", timeout=20) as page:
            (cache,) = json.loads(page.read())["caches"]
        assert cache["name"].endswith(", rank 0") and cache["stats"]["stored"]["host"] > 0
        # A taken address costs the page alone.
        assert worker._serve(url.removeprefix("http://").rstrip("/")) is None
    finally:
        worker.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=20)


def test_a_block_counts_when_all_workers_have_it(sides: Any) -> None:
    directory = sides.directory
    one = directory.directory_of([("stored", "host", b"a", None), ("stored", "disk", b"b", b"a")])
    two = directory.directory_of([("stored", "disk", b"A", None), ("stored", "host", b"B", b"A"), ("stored", "host", b"C", b"B")])
    keys = {0: [b"a", b"b", b"c"], 1: [b"A", b"B", b"C"]}
    both = {0: one, 1: two}
    assert directory.leading_tiers({0: one}, keys) == ["host", "disk"]
    assert directory.leading_tiers(both, keys) == ["disk", "disk"]
    one.apply([("removed", "host", b"a", None)])
    assert directory.leading_tiers(both, keys) == []
    two.apply([("cleared", "host", b"", None)])
    assert directory.leading_tiers({1: two}, keys) == ["disk"]
    assert directory.leading_tiers({}, keys) == []


def identity_of(number: int, size: int, *, is_opaque: bool = False) -> kvtile.Identity:
    kv = {f"layers.{layer}": Tensor(np.zeros((BLOCKS, 2, PAGE, 1, 4), np.float32)) for layer in range(LAYERS)}
    layout, identity = layout_and_identity(None, kv, None, SimpleNamespace(number=number, size=size))
    if not is_opaque:
        return identity
    return kvtile.Identity(identity.model, identity.revision, layout.shape, extra={"rank": f"{number} of {size}"})


def test_workers_share_a_folder_if_their_blocks_can_be_cut(sides: Any, tmp_path: Path) -> None:
    rank = sides.rank.Rank
    assert rank().folder(tmp_path / "none", identity_of(0, 1)) == tmp_path / "none"
    for name in ("manifest.json", "layers-0-2.heads-0-1"):
        (tmp_path / "one" / name).mkdir(parents=True)
    for size in (1, 2, 4):
        assert rank(0, size).folder(tmp_path / "one", identity_of(0, size)) == tmp_path / "one"
    (tmp_path / "two" / "rank-0-of-2").mkdir(parents=True)
    for size in (1, 2):
        with pytest.raises(kvtile.IdentityError, match="rank-0-of-2 and following, .* only 2 workers"):
            rank(0, size).folder(tmp_path / "two", identity_of(0, size))


def test_blocks_of_unknown_order_stay_with_their_number_of_workers(sides: Any, tmp_path: Path) -> None:
    rank = sides.rank.Rank
    opaque = identity_of(1, 2, is_opaque=True)
    assert rank(1, 2).folder(tmp_path / "none", opaque) == tmp_path / "none" / "rank-1-of-2"
    (tmp_path / "two" / "rank-0-of-2").mkdir(parents=True)
    assert rank(1, 2).folder(tmp_path / "two", opaque) == tmp_path / "two" / "rank-1-of-2"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").touch()
    (tmp_path / "part" / "layers-0-2.heads-0-1").mkdir(parents=True)
    for folder, size, found in (("one", 2, "1"), ("two", 3, "2"), ("part", 2, "layers-0-2.heads-0-1")):
        with pytest.raises(kvtile.IdentityError, match=f"tensor_parallel_size differs: .* of {found}, .* {size};"):
            rank(0, size).folder(tmp_path / folder, opaque)
