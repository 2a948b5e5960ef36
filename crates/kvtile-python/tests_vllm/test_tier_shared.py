"""The tier over a shared store, under vLLM's own scheduler side: engines with private folders and one store.

Every lookup compares every byte of the rows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tiers import ROWS, SECONDS, Tiers, context, count, entry, keys, tiers

import kvtile
import kvtile.vllm.tier
from kvtile.vllm._tier_options import TierOptions

CHAIN = keys(range(6))
# The deadline is no part of these tests.
PATIENT = 30.0


def engine(folder: Path | None, store: Path, **options: Any) -> dict[str, Any]:
    """The entry of one engine."""
    described = entry(folder or store, shared=str(store), shared_within=PATIENT, **options)
    return described if folder is not None else {name: value for name, value in described.items() if name not in ("path", "capacity")}


def written(made: Tiers, values: int) -> None:
    """Waits until the store has these values."""
    end = time.monotonic() + SECONDS
    while made.tier._store.stats()["shared"]["written"] < values:
        assert time.monotonic() < end, made.tier._store.stats()["shared"]
        time.sleep(0.005)


def shared(made: Tiers) -> dict[str, int]:
    """The counters of the shared store."""
    return dict(made.tier._store.stats()["shared"])


@pytest.mark.parametrize("has_folders", [True, False], ids=["private folders", "shared store alone"])
def test_a_second_engine_gets_what_the_first_one_has_stored(has_folders: bool, tmp_path: Path) -> None:
    one, two = (tmp_path / "one", tmp_path / "two") if has_folders else (None, None)
    with tiers(engine(one, tmp_path / "store")) as first:
        assert first.store(CHAIN)
        written(first, len(CHAIN))
    with tiers(engine(two, tmp_path / "store")) as second:
        assert second.lookup(CHAIN + keys([99])) == len(CHAIN)
        counts = shared(second)
        assert counts["read_blocks"] == len(CHAIN) and counts["damaged"] == 0
        assert count(second, "lookups", "wait for shared") >= len(CHAIN)
        assert count(second, "blocks", "load", "ok") == len(CHAIN)
        # One query for all blocks of the request.
        assert counts["asked"] == len(CHAIN) + 1
        stats = second.tier.get_stats().data["data"]
        assert stats["vllm:kvtile_tier_shared"]["KvtileTier", "read_blocks"] == len(CHAIN)
        assert second.tier.config_info()["kvtile_shared"] is True
        # Blocks that this engine computes go to the store too.
        second.store(keys([99]))
        written(second, 1)
    with tiers(engine(one, tmp_path / "store")) as first:
        assert first.lookup(CHAIN + keys([99])) == len(CHAIN) + 1


def test_both_engines_run_at_the_same_time(tmp_path: Path) -> None:
    with tiers(engine(tmp_path / "one", tmp_path / "store")) as first, tiers(engine(tmp_path / "two", tmp_path / "store")) as second:
        assert second.lookup(CHAIN) == 0
        first.store(CHAIN)
        written(first, len(CHAIN))
        end = time.monotonic() + SECONDS
        # The tier queries an absent value again after two seconds.
        while second.lookup(CHAIN) < len(CHAIN):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert shared(second)["read_blocks"] == len(CHAIN)


class Slow(kvtile.SharedTier):
    """A store in a dictionary, whose answers take a time."""

    def __init__(self, pause: float = 0.0) -> None:
        self.values: dict[str, bytes] = {}
        self.pause = pause
        self.has_all = False

    def has(self, names: list[str]) -> list[bool]:
        time.sleep(self.pause)
        return [self.has_all or name in self.values for name in names]

    def read(self, name: str) -> bytes | None:
        return self.values.get(name)

    def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
        self.values.setdefault(name, b"".join(parts))
        return True

    def remove(self, names: list[str]) -> int:
        return sum(self.values.pop(name, None) is not None for name in names)


def use(store: kvtile.SharedTier, patch: pytest.MonkeyPatch) -> None:
    """Makes tiers use this store."""
    patch.setattr(kvtile.vllm.tier, "keywords_of", lambda _: {"shared": store})


def test_a_slow_store_is_a_miss_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Slow(1.5)
    use(store, monkeypatch)
    with tiers(entry(tmp_path / "kv", shared="a store", shared_within=0.05)) as made:
        start = time.monotonic()
        # The tier's time goes on between steps alone. Otherwise it may end between the lookups of two blocks: then the
        # step still waits, and the next one is late again.
        now, step = [start], made.step
        made.tier._shared._clock = lambda: now[0]

        def next_step() -> None:
            step()
            now[0] = time.monotonic()

        monkeypatch.setattr(made, "step", next_step)
        assert made.lookup(CHAIN, steps=10**6) == 0
        assert time.monotonic() - start < 1.4, "the request does not wait for the answer"
        assert count(made, "lookups", "shared late") == 1
        store.pause = 0.0
        # What the folder has needs no answer.
        made.store(CHAIN)
        made.forget_primary()
        assert made.lookup(CHAIN) == len(CHAIN)


def test_no_wait_at_all(tmp_path: Path) -> None:
    with tiers(engine(tmp_path / "kv", tmp_path / "store") | {"shared_within": 0}) as made:
        assert made.lookup(CHAIN, steps=1) == 0
        assert count(made, "lookups", "shared late") == 1


def test_damage_and_lies_are_misses_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Slow()
    use(store, monkeypatch)
    described = entry(tmp_path / "one", shared="a store", shared_within=PATIENT)
    with tiers(described) as first:
        first.store(CHAIN)
        written(first, len(CHAIN))
    for name, value in store.values.items():
        damaged = bytearray(value)
        damaged[-min(100, len(damaged))] ^= 1
        store.values[name] = bytes(damaged)
    store.has_all = True
    with tiers(described | {"path": str(tmp_path / "two")}) as second:
        assert second.lookup(CHAIN + keys([99])) == 0
        assert shared(second)["damaged"] == len(CHAIN) and shared(second)["absent"] == 1
        # A second lookup does not try again, and the blocks can be computed and stored anew.
        assert second.lookup(CHAIN) == 0 and count(second, "lookups", "failed before") >= 1
        second.store(CHAIN)
        second.forget_primary()
        assert second.lookup(CHAIN) == len(CHAIN)


def test_values_of_several_rows_follow_the_chain_of_a_request(tmp_path: Path) -> None:
    options = {"shared_bundle_blocks": 2}
    with tiers(engine(tmp_path / "one", tmp_path / "store", **options)) as first:
        first.store(CHAIN)
        written(first, len(CHAIN) // 2)
    with tiers(engine(tmp_path / "two", tmp_path / "store", **options)) as second:
        request = context("a request", CHAIN + keys([99]))
        second.manager.on_new_request(request)
        assert second.lookup(CHAIN + keys([99]), request) == len(CHAIN)
        second.manager.on_request_finished(request)
        assert len(second.tier._shared._requests) == 0
    with tiers(engine(tmp_path / "three", tmp_path / "store", **options)) as third:
        # vLLM's own prefix cache has the first three blocks, so it looks up only the rest.
        request = context("a request", CHAIN)
        third.manager.on_new_request(request)
        assert third.lookup(CHAIN[3:], request) == 3
        # Without positions, no chain.
        request = context("another request")
        third.manager.on_new_request(request)
        assert third.lookup(keys([50]), request) == 0
        third.store(keys([50, 51]), request)
        assert third.lookup(keys([50, 51]), request) == 2


def test_a_request_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    with tiers(engine(tmp_path / "kv", tmp_path / "store")) as made:
        request = context("a request", CHAIN)
        made.manager.on_new_request(request)
        made.manager.lookup(CHAIN[0], request)
        made.manager.on_request_finished(request)
        made.step()
        assert not made.tier._shared._requests and not made.tier._shared._unsent
        assert shared(made)["asked"] == 0


def test_a_reader_writes_neither_folder_nor_store(tmp_path: Path) -> None:
    with tiers(engine(tmp_path / "one", tmp_path / "store")) as first:
        first.store(CHAIN)
        written(first, len(CHAIN))
    with tiers(engine(None, tmp_path / "store", read_only=True)) as reader:
        assert reader.lookup(CHAIN) == len(CHAIN)
        reader.store(keys(range(50, 50 + ROWS)))
        assert count(reader, "blocks", "store", "read only") == ROWS
    with tiers(engine(tmp_path / "three", tmp_path / "store")) as other:
        assert other.lookup(keys([50])) == 0


@pytest.mark.parametrize("revision", ["r2"])
def test_an_engine_of_other_weights_finds_nothing(revision: str, tmp_path: Path) -> None:
    with tiers(engine(tmp_path / "one", tmp_path / "store")) as first:
        first.store(CHAIN)
        written(first, len(CHAIN))
    with tiers(engine(tmp_path / "two", tmp_path / "store", revision=revision)) as other:
        assert other.lookup(CHAIN) == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"shared_within": 1}, "shared_within has no effect without shared"),
        ({"shared": 5}, "shared is 5; it takes str or null"),
        ({"shared": ""}, "shared is empty"),
        ({"shared": "/kv", "shared_within": -1}, "shared_within is -1"),
        ({"shared": "/kv", "shared_within": float("nan")}, "shared_within is nan"),
        ({"shared": "/kv", "shared_bundle_blocks": 0}, "shared_bundle_blocks is 0; it takes 1 to 64"),
        ({"shared": "/kv", "shared_bundle_blocks": 65}, "shared_bundle_blocks is 65"),
        ({"shared": "/kv", "shared_bundle_blocks": 1.5}, "shared_bundle_blocks is 1.5"),
        ({"shared": "/kv", "shared_lifetime": 0}, "shared_lifetime is 0"),
        ({"share": "/kv"}, "did you mean 'shared'"),
    ],
)
def test_options_are_refused_by_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(kvtile.SettingsError, match=text):
        TierOptions.read({"path": "/kv", "capacity": 1, **given})


def test_options_of_a_folder_that_is_not_there_are_refused() -> None:
    for idle in ({"capacity": 1}, {"policy": "lru"}):
        with pytest.raises(kvtile.SettingsError, match="has no effect without path"):
            TierOptions.read({"shared": "/kv", **idle})
    assert TierOptions.read({"shared": "/kv"}).path is None


@pytest.mark.parametrize(("store", "text"), [("ftp://host/kv", "ftp"), ("redis://127.0.0.1:1/0", "127.0.0.1")])
def test_a_store_that_cannot_be_opened_is_refused_at_start(store: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(kvtile.SharedTierError, match=text), tiers(entry(tmp_path / "kv", shared=store)):
        pass
