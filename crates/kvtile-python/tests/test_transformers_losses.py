"""Each way to lose a part of a stop, with every type of model.

An earlier stop continues as the live cache object, or none does; never a wrong one.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers_losses import (  # noqa: E402
    KINDS,
    MEMORY,
    PAGE,
    SETTINGS,
    Lossy,
    cuts,
    flip_one_bit,
    killed,
    without_warnings,
)

from kvtile.transformers import PrefixCache  # noqa: E402

every_type = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def lossy() -> Callable[[str], Lossy]:
    return functools.cache(without_warnings)


@pytest.fixture(scope="module")
def folder(lossy: Callable[[str], Lossy], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the stops of a type's prompt and answer."""

    @functools.cache
    def make(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind) / "kv"
        with PrefixCache(lossy(kind).model, disk=path, **SETTINGS) as cache:
            lossy(kind).fill(cache)
        return path

    return make


@every_type
def test_host_memory_has_the_stop(kind: str, lossy: Callable[[str], Lossy]) -> None:
    with PrefixCache(lossy(kind).model, **MEMORY) as cache:
        lossy(kind).fill(cache)
        assert lossy(kind).resumed(cache) == 56
        lossy(kind).fill(cache)


@every_type
def test_a_restart_has_the_stop(
    kind: str, lossy: Callable[[str], Lossy], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folder(kind), tmp_path / "kv")
    with PrefixCache(lossy(kind).model, disk=tmp_path / "kv", **SETTINGS) as cache:
        assert lossy(kind).resumed(cache) == 56
        lossy(kind).fill(cache)
        assert cache.stats()["lost"] == 0


@every_type
def test_a_process_that_is_killed_between_the_groups_leaves_the_stop_before(
    kind: str, lossy: Callable[[str], Lossy], tmp_path: Path
) -> None:
    one = lossy(kind)
    killed(kind, tmp_path)
    for name in cuts(one.groups):
        with PrefixCache(one.model, disk=tmp_path / name, **SETTINGS) as cache:
            assert one.resumed(cache) == 16, name
            one.again(cache)
    # Written in the background: any stop may be the last one that is whole.
    with PrefixCache(one.model, disk=tmp_path / "at once", **SETTINGS) as cache:
        one.resumed(cache)
        one.again(cache)


@every_type
def test_what_is_evicted_makes_an_earlier_stop(kind: str, lossy: Callable[[str], Lossy]) -> None:
    one = lossy(kind)
    with PrefixCache(one.model, **MEMORY) as cache:
        for group, held in itertools.product(one.groups, (16, 0)):
            cache.cache.clear()
            one.fill(cache)
            # A lookup holds what its stop needs.
            with cache.cache.lookup(one.hasher.keys(one.tokens)[: held // PAGE]) as found:
                assert found.stop == held
                assert cache.cache.evict("host", 1 << 20, group=group) > 0
            assert one.resumed(cache) == held, group
            one.again(cache)


@every_type
def test_one_flipped_bit_makes_an_earlier_stop(
    kind: str, lossy: Callable[[str], Lossy], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    one, broken = lossy(kind), tmp_path / "kv"
    for name, (group, stop, data) in one.places().items():
        shutil.copytree(folder(kind), broken)
        flip_one_bit(broken, one.groups.index(group), data)
        with PrefixCache(one.model, disk=broken, **SETTINGS) as cache:
            assert one.resumed(cache) == stop, name
            assert cache.stats()["lost"] == 1, name
            one.again(cache)
        shutil.rmtree(broken)


def test_these_are_at_least_fifteen_types_with_every_kind_of_layer() -> None:
    assert len(KINDS) >= 15
    some = {"gemma3_text", "llama4_text", "inkling_text", "lfm2", "mamba2", "deepseek_v3", "deepseek_v4"}
    assert some <= set(KINDS)
