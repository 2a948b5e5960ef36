"""Caches of parts of a model share a folder of a disk tier, or a shared store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvtile

BLOCKS, LAYERS, PAGE, HEADS, SIZE = 8, 3, 4, 4, 6
TOKENS = list(range(3 * PAGE))


class Rank:
    """A cache over an array of (layer, block, K or V, token, head, content)."""

    def __init__(
        self, disk: Path | None, first: int, heads: int, replica: int = 0, **settings: float | str
    ) -> None:
        self.heads = slice(first, first + heads)
        self.kv = np.zeros((LAYERS, BLOCKS, 2, PAGE, heads, SIZE), np.float32)
        shape = kvtile.Shape(
            num_blocks=BLOCKS, num_layers=LAYERS, page_size=PAGE, num_heads=heads, head_size=SIZE, dtype="float32",
            first_head=first, total_heads=HEADS, replica=replica,
        )
        self.identity = kvtile.Identity("a-model", "main", shape)
        layout = kvtile.Layout("L|BKNHC", shape=shape, tensors=list(self.kv))
        told: dict[str, Any] = {"host_bytes": 1 << 20, **settings}
        if disk is not None:
            told |= {"disk": str(disk), "disk_bytes": 1 << 20}
        self.cache = kvtile.Cache(self.identity, layout, **told)

    @property
    def keys(self) -> list[bytes]:
        return kvtile.TokenHasher(self.identity).keys(TOKENS)

    def store(self, model: np.ndarray) -> None:
        """Stores the heads of this rank, and closes."""
        self.kv[:, :3] = model[:, :, :, :, self.heads]
        assert self.cache.store(self.keys, [0, 1, 2]).wait().stored == 3
        assert self.cache.flush().durable
        self.cache.close()

    def load(self, model: np.ndarray) -> dict[str, int]:
        """Loads all blocks and compares them. Returns how many came from which tier."""
        found = self.cache.seek(self.keys, 60.0).wait()
        report = self.cache.load(found, [5, 6, 7]).wait()
        assert report.blocks == 3 and report.bytes > 0
        np.testing.assert_array_equal(self.kv[:, 5:], model[:, :, :, :, self.heads])
        return report.from_tiers


@pytest.fixture
def model() -> np.ndarray:
    """The KV of three blocks, for all heads."""
    return np.random.default_rng(3).random((LAYERS, 3, 2, PAGE, HEADS, SIZE), np.float32)


@pytest.mark.parametrize("writers", [1, 2, 4])
def test_any_number_of_ranks_reads_what_another_wrote(model: np.ndarray, writers: int, tmp_path: Path) -> None:
    heads = HEADS // writers
    for rank in range(writers):
        Rank(tmp_path, rank * heads, heads).store(model)
    names = sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir())
    assert names == ([] if writers == 1 else [f"layers-0-3.heads-{at}-{at + heads}" for at in range(0, HEADS, heads)])
    for readers in (1, 2, 4):
        heads = HEADS // readers
        for rank in range(readers):
            # Without time to write, closing does not make a part of what was read.
            reader = Rank(tmp_path, rank * heads, heads, close_within=0)
            assert reader.load(model) == {"disk" if readers == writers else "disk:parts": 3}
            assert reader.cache.disk_bytes_per_second
            reader.cache.close()


def test_ranks_with_the_same_heads_write_folders_of_their_own(model: np.ndarray, tmp_path: Path) -> None:
    first, second = Rank(tmp_path, 0, 2), Rank(tmp_path, 0, 2, replica=1)
    assert first.identity == second.identity
    first.store(model)
    second.store(model)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["layers-0-3.heads-0-2", "layers-0-3.heads-0-2.replica-1"]
    assert Rank(tmp_path, 0, 2, replica=2).load(model) == {"disk:parts": 3}


def test_the_fingerprint_of_the_model_is_that_of_all_heads(tmp_path: Path) -> None:
    whole, part = Rank(tmp_path / "one", 0, HEADS).identity, Rank(tmp_path / "two", 2, 2).identity
    assert whole.fingerprint != part.fingerprint
    assert whole.model_fingerprint == part.model_fingerprint == whole.fingerprint
    assert kvtile.TokenHasher(whole).keys(TOKENS) == kvtile.TokenHasher(part).keys(TOKENS)


@pytest.mark.parametrize("writers", [1, 2, 4])
def test_any_number_of_ranks_reads_what_another_wrote_to_a_shared_store(
    model: np.ndarray, writers: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"shared": str(tmp_path / "store"), "shared_bundle_blocks": 1}
    heads = HEADS // writers
    for rank in range(writers):
        writer = Rank(None, rank * heads, heads, **settings)
        writer.store(model)
    for readers in (1, 2, 4):
        heads = HEADS // readers
        for rank in range(readers):
            reader = Rank(None, rank * heads, heads, **settings)
            assert reader.load(model) == {"shared" if readers == writers else "shared:parts": 3}
            reader.cache.close()


def test_copies_of_a_rank_share_one_part_of_a_store(model: np.ndarray, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shared": str(tmp_path / "store"), "shared_bundle_blocks": 1}
    Rank(None, 0, 2, **settings).store(model)
    assert Rank(None, 0, 2, replica=1, **settings).load(model) == {"shared": 3}
