"""The shared tier from Python: folders, stores in Python, seeks, errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvtile
from test_cache import PAGE, Engine, tokens

BLOCKS = 8


class DictionaryTier(kvtile.SharedTier):
    """A store in a dictionary."""

    name = "dictionary"
    in_flight = 2

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.failure: Exception | None = None
        self.pause = 0.0

    def _called(self, call: str) -> None:
        self.calls.append(call)
        time.sleep(self.pause)
        if self.failure is not None:
            raise self.failure

    def has(self, names: list[str]) -> list[bool]:
        self._called("has")
        return [name in self.values for name in names]

    def read(self, name: str) -> bytes | memoryview | None:
        self._called("read")
        value = self.values.get(name)
        return None if value is None else memoryview(value)

    def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
        self._called("write")
        if name in self.values:
            return False
        self.values[name] = b"".join(parts)
        return True

    def remove(self, names: list[str]) -> int:
        self._called("remove")
        return sum(self.values.pop(name, None) is not None for name in names)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def opened(engine: Engine, shared: object, **settings: object) -> kvtile.Cache:
    options = {"host_bytes": 1 << 20, "shared": shared, "shared_bundle_blocks": 2, **settings}
    return kvtile.Cache(engine.identity, engine.layout, **options)  # type: ignore[arg-type]


def keys_of(engine: Engine, start: int = 0) -> list[bytes]:
    return engine.hasher.keys(tokens(BLOCKS * PAGE, start))


def stored(engine: Engine, cache: kvtile.Cache, start: int = 0) -> list[bytes]:
    keys = keys_of(engine, start)
    for block in range(BLOCKS):
        engine.compute(block, start + block)
    assert cache.store(keys, range(BLOCKS)).wait(10).stored == BLOCKS
    return keys


def written(cache: kvtile.Cache, bundles: int) -> None:
    """Waits until the store has these bundles."""
    deadline = time.monotonic() + 120
    while cache.stats()["shared"]["written"] < bundles:
        assert time.monotonic() < deadline, cache.stats()["shared"]
        time.sleep(0.01)


@pytest.fixture(params=["folder", "dictionary"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    yield str(tmp_path / "shared") if request.param == "folder" else DictionaryTier()


def test_what_one_cache_stores_another_one_finds(engine: Engine, shared: object) -> None:
    with opened(engine, shared) as first:
        keys = stored(engine, first)
        written(first, BLOCKS // 2)
    wanted = [engine.block(block) for block in range(BLOCKS)]
    other = Engine()
    with opened(other, shared) as second:
        assert second.lookup(keys).blocks == 0
        seek = second.seek(keys, 20)
        found = seek.wait()
        assert seek.ready is False and "taken" in repr(seek)
        assert found.blocks_in("shared") == BLOCKS and found.tiers == ["shared"] * BLOCKS
        assert second.load(found, range(16, 16 + BLOCKS)).wait(20).blocks == BLOCKS
        assert [other.block(block) for block in range(16, 16 + BLOCKS)] == wanted
        counters = second.stats()["shared"]
        assert counters["read_blocks"] == BLOCKS and counters["damaged"] == 0
        # A match that is ready comes without waiting.
        again = second.seek(keys, 0)
        assert again.ready
        match = again.match()
        assert match is not None and match.blocks == BLOCKS
        with pytest.raises(kvtile.ClosedError):
            again.match()


def test_closing_reports_the_blocks_of_a_cache_whose_only_durable_tier_is_shared(engine: Engine, tmp_path: Path) -> None:
    cache = opened(engine, tmp_path / "shared")
    stored(engine, cache)
    report = cache.close()
    assert report is not None and report.durable, report
    assert cache.close() is None


def test_a_seek_returns_none_until_the_store_answers(engine: Engine) -> None:
    store = DictionaryTier()
    with opened(engine, store) as first:
        keys = stored(engine, first)
        written(first, BLOCKS // 2)
    with opened(Engine(), store) as second:
        store.pause = 0.2
        seek = second.seek(keys, 20)
        assert not seek.ready and seek.match() is None and "waiting" in repr(seek)
        late = second.seek(keys, 0.01).wait()
        assert late.blocks == 0 and second.stats()["misses"]["late"] == BLOCKS
        assert seek.wait().blocks == BLOCKS
        with pytest.raises(kvtile.ClosedError):
            seek.wait()
        with pytest.raises(TypeError):
            pickle.dumps(seek)


def test_damaged_values_are_misses_and_are_counted(engine: Engine) -> None:
    store = DictionaryTier()
    with opened(engine, store) as first:
        keys = stored(engine, first)
        written(first, BLOCKS // 2)
    for at, name in enumerate(store.values):
        value = bytearray(store.values[name])
        value[(len(value) // 2 + at) % len(value)] ^= 1
        store.values[name] = bytes(value)
    with opened(Engine(), store) as second:
        found = second.seek(keys, 20).wait()
        report = second.load(found, range(found.blocks)).wait(20)
        assert report.blocks == 0
        counters = second.stats()["shared"]
        assert counters["damaged"] >= 1 and counters["read_blocks"] == 0


@pytest.mark.parametrize("failure", [OSError("no route"), ValueError("odd"), KeyboardInterrupt()])
def test_a_store_that_raises_is_a_miss(engine: Engine, failure: BaseException) -> None:
    store = DictionaryTier()
    store.failure = failure  # type: ignore[assignment]
    with opened(engine, store) as cache:
        keys = stored(engine, cache)
        assert cache.lookup(keys).blocks == BLOCKS
        cache.evict("host", BLOCKS)
        # Blocks that wait to be written are found in staging memory; the store has none of them.
        assert cache.seek(keys_of(engine, 4096), 5).wait().blocks == 0
    assert not store.values and store.calls


def test_wrong_answers_of_a_store_are_errors_and_no_crash(engine: Engine) -> None:
    class Wrong(DictionaryTier):
        def has(self, names: list[str]) -> list[bool]:
            return [True] * (len(names) + 1)

        def read(self, name: str) -> bytes | memoryview | None:
            return 5  # type: ignore[return-value]

        def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
            return True

    with opened(engine, Wrong()) as cache:
        assert cache.seek(stored(engine, cache), 5).wait().blocks == BLOCKS
        assert cache.seek(keys_of(engine, 4096), 5).wait().blocks == 0

    class Forgetful(DictionaryTier):
        def has(self, names: list[str]) -> list[bool]:
            return [True] * len(names)

    with opened(engine, Forgetful()) as cache:
        found = cache.seek(keys_of(engine, 4096), 5).wait()
        assert found.blocks == BLOCKS
        assert cache.load(found, range(BLOCKS)).wait(10).blocks == 0


def test_lifetimes_reach_the_store(engine: Engine) -> None:
    lifetimes: dict[bool, set[float | None]] = {True: set(), False: set()}

    class Expiring(DictionaryTier):
        expires = True

        def write(self, name: str, parts: list[bytes], lifetime: float | None) -> bool:
            lifetimes["/all/" not in name].add(lifetime)
            return super().write(name, parts, lifetime)

    with opened(engine, Expiring(), shared_lifetime=90) as cache:
        stored(engine, cache)
        written(cache, BLOCKS // 2)
    # The manifest and the announcement of the part stay: they tell whose values these were, and which.
    assert lifetimes == {True: {None}, False: {90.0}}


def test_settings_are_refused_with_the_reason(engine: Engine, tmp_path: Path) -> None:
    for text, named in [
        ("ftp://host", "ftp"),
        ("s3://bucket?colour=red", "colour"),
        ("redis://127.0.0.1:1/0", "127.0.0.1"),
        ("/proc/no/such", "/proc/no/such"),
    ]:
        with pytest.raises(kvtile.SharedTierError, match=named) as caught:
            opened(engine, text)
        assert isinstance(caught.value, kvtile.KvtileError) and isinstance(caught.value, OSError)
    with pytest.raises(kvtile.ArgumentError, match="SharedTier"):
        opened(engine, object())
    with pytest.raises(kvtile.SettingsError, match="without shared"):
        kvtile.Cache(engine.identity, engine.layout, host_bytes=1 << 20, shared_lifetime=5)
    with pytest.raises(kvtile.KvtileError, match="65"):
        opened(engine, str(tmp_path), shared_bundle_blocks=65)

    class Large(DictionaryTier):
        value_bytes = 0

    with pytest.raises(kvtile.SettingsError, match="value_bytes"):
        opened(engine, Large())


def test_another_identity_finds_nothing(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as first:
        keys = stored(engine, first)
        written(first, BLOCKS // 2)
    other = Engine()
    other.identity = kvtile.Identity("a-model", "other", other.shape, rope={"rope_theta": 1e4})
    with opened(other, tmp_path) as second:
        assert second.seek(keys, 20).wait().blocks == 0


def test_many_threads_seek_and_load(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as first:
        keys = stored(engine, first)
        written(first, BLOCKS // 2)
        wanted = [engine.block(block) for block in range(BLOCKS)]
    other = Engine()
    problems: list[str] = []
    with opened(other, tmp_path, host_bytes=1 << 18) as second:

        def work(place: int) -> None:
            for _ in range(10):
                found = second.seek(keys, 20).wait()
                blocks = found.blocks
                report = second.load(found, range(place, place + blocks)).wait(20)
                got = [other.block(place + at) for at in range(report.blocks)]
                if got != wanted[: report.blocks]:
                    problems.append("wrong bytes")
                second.evict("host", 4)

        threads = [threading.Thread(target=work, args=(8 * at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_a_process_that_ends_with_an_open_cache_ends(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import kvtile
        from test_cache import Engine
        from test_shared import DictionaryTier, opened, stored
        engine = Engine()
        store = DictionaryTier()
        store.pause = 0.05
        cache = opened(engine, store)
        stored(engine, cache)
        print("stored", flush=True)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0 and ended.stdout == "stored\n", ended.stderr
