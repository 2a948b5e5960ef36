"""The worker side of the vLLM connector over memory of a device, under the stand-in driver. Not run on hardware."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvtile
from standin import DeviceMemory, checked, driver, provokes
from test_daemon import Daemon
from vllm_device_engine import DeviceEngine, Stream, stream
from vllm_engine import CONFIG, LAYERS, PAGE, POISON, run_to_the_end, sides

__all__ = ["checked", "provokes", "sides", "stream"]  # The fixtures of the tests below.


@pytest.mark.parametrize(("seed", "ranks"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 1)])
def test_every_block_of_a_device_is_right_and_every_operation_completes(
    sides: Any, seed: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    """The random runs of ``test_vllm_sides``, in each of vLLM's orders."""
    on_disk = seed % 2 == 1
    engine = DeviceEngine(sides, seed, ranks, tmp_path / "disk" if on_disk else None, monkeypatch, stream)
    run_to_the_end(engine, on_disk, steps=200)


class Steps:
    """An engine on a device whose worker gets orders from the test."""

    def __init__(self, sides: Any, monkeypatch: pytest.MonkeyPatch, stream: Stream, disk: Path | None = None) -> None:
        self.engine = DeviceEngine(sides, 0, 1, disk, monkeypatch, stream)
        self.sides, self.stream = sides, stream
        (self.worker,) = self.engine.workers
        (self.kv,) = self.engine.kv
        self.keys = kvtile.TokenHasher(self.worker.identity).keys(range(4 * PAGE))

    def value(self, layer: int, index: int) -> float:
        return float(100 * layer + index + 1)

    def compute(self, blocks: list[int]) -> None:
        """Enqueues the blocks of the chain in all layers."""
        for layer, tensor in enumerate(self.kv):
            for index, block in enumerate(blocks):
                self.engine.write(tensor, block, 0, [self.value(layer, index)] * PAGE)

    def poison(self, blocks: list[int]) -> None:
        self.engine.release(blocks)

    def store(self, blocks: list[int], request: str = "a") -> None:
        self.worker.end_step(self.stores(blocks, request))

    def stores(self, blocks: list[int], request: str = "a") -> Any:
        order = self.sides.messages.StoreOrder(request, {0: self.keys[: len(blocks)]}, 0, blocks)
        return self.sides.messages.Orders(stores=[order])

    def begin_load(self, blocks: list[int], *, in_step: bool = True, request: str = "b") -> None:
        order = self.sides.messages.LoadOrder(request, {0: self.keys[: len(blocks)]}, 0, blocks, in_step)
        self.worker.begin_step(self.sides.messages.Orders(loads=[order]))

    def attend(self, blocks: list[int]) -> list[list[Any]]:
        """Enqueues reading each layer behind its wait. The stream is not synchronised."""
        seen = []
        for name, tensor in zip(self.engine.names, self.kv, strict=True):
            self.worker.wait_for_layer(name)
            seen.append([self.engine.see(tensor, block) for block in blocks])
        return seen

    def right(self, seen: list[list[Any]]) -> list[bool]:
        """By block, whether all layers had its values."""
        self.stream.synchronize()
        count = len(seen[0])
        return [all((of[index].values() == self.value(layer, index)).all() for layer, of in enumerate(seen)) for index in range(count)]

    def now(self, blocks: list[int]) -> list[bool]:
        return self.right([[self.engine.see(tensor, block) for block in blocks] for tensor in self.kv])

    def stored_and_poisoned(self, blocks: list[int]) -> None:
        """Blocks that were stored, and that the engine then uses again."""
        self.compute(blocks)
        self.store(blocks)
        self.worker.wait_for_stores({"a"})
        self.poison(blocks)


@pytest.fixture
def steps(sides: Any, monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Iterator[Steps]:
    made = Steps(sides, monkeypatch, stream)
    yield made
    made.worker.close()


BLOCKS_OF_A, BLOCKS_OF_B = [3, 4, 5, 6], [13, 12, 15, 14]


def test_a_load_in_its_step_comes_before_each_layer_is_read(steps: Steps) -> None:
    """The blocks are poisoned by the stream, and read by it, when the load is ordered."""
    steps.stored_and_poisoned(BLOCKS_OF_A)
    steps.poison(BLOCKS_OF_B)
    before = [[steps.engine.see(tensor, block) for block in BLOCKS_OF_B] for tensor in steps.kv]
    steps.begin_load(BLOCKS_OF_B)
    seen = steps.attend(BLOCKS_OF_B)
    steps.worker.end_step(steps.stores([]))
    assert steps.right(seen) == [True] * 4
    assert all((one.values() == POISON).all() for of in before for one in of)
    assert not steps.worker.take_failed_blocks() and steps.worker.take_report().loads_in_step


def test_a_load_before_its_step_may_end_after_later_steps(steps: Steps) -> None:
    steps.stored_and_poisoned(BLOCKS_OF_A)
    steps.begin_load(BLOCKS_OF_B, in_step=False)
    loaded = set()
    while not loaded:
        steps.compute([20, 21])
        loaded = steps.worker.take_finished_loads(idle=True)
        steps.stream.rewind()
    assert loaded == {"b"} and steps.now(BLOCKS_OF_B) == [True] * 4


def test_a_step_that_does_not_wait_for_layers_is_computed_again(steps: Steps) -> None:
    """A full CUDA graph replays attention without Python."""
    steps.stored_and_poisoned(BLOCKS_OF_A)
    steps.begin_load(BLOCKS_OF_B)
    steps.compute([20, 21])
    steps.worker.end_step(steps.stores([20, 21], "c"))
    assert steps.worker.take_failed_blocks() == set(BLOCKS_OF_B)
    report = steps.worker.take_report()
    assert not report.loads_in_step and report.store_from == {"b": 0, "c": 0} and report.ended == {"a": 1, "c": 1}
    # The load has ended, so what is computed again stays.
    steps.compute(BLOCKS_OF_B)
    assert steps.now(BLOCKS_OF_B) == [True] * 4


def test_engines_with_full_cuda_graphs_load_before_the_step(sides: Any, monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
    graphs = SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: True))
    monkeypatch.setattr("vllm_engine.CONFIG.compilation_config", graphs)
    worker = Steps(sides, monkeypatch, stream).worker
    assert not worker.take_report().loads_in_step and worker.take_report() is None
    worker.close()


def test_the_blocks_that_are_left_of_a_load_are_loaded_and_the_others_computed(steps: Steps) -> None:
    steps.stored_and_poisoned(BLOCKS_OF_A)
    assert steps.worker.cache.evict("host", 2) == 2
    steps.poison(BLOCKS_OF_B)
    steps.begin_load(BLOCKS_OF_B)
    seen = steps.attend(BLOCKS_OF_B)
    steps.worker.end_step(steps.stores(BLOCKS_OF_B, "b"))
    assert steps.right(seen) == [True, True, False, False]
    assert steps.worker.take_failed_blocks() == set(BLOCKS_OF_B[2:])
    # The step computed with blocks that were missing, so nothing of it was stored.
    assert not steps.worker.stores and steps.worker.take_report().store_from == {"b": 0}
    steps.compute(BLOCKS_OF_B)
    steps.store(BLOCKS_OF_B, "b")
    steps.worker.wait_for_stores({"b"})
    steps.begin_load(BLOCKS_OF_A)
    assert steps.right(steps.attend(BLOCKS_OF_A)) == [True] * 4
    steps.worker.end_step(steps.stores([]))


def damage(folder: Path) -> None:
    """Flips a bit of each byte of the largest file."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(byte ^ 1 for byte in largest.read_bytes()))


@pytest.mark.parametrize("damaged", [False, True])
def test_blocks_of_the_disk_come_in_their_step_or_are_computed_if_they_are_damaged(
    damaged: bool, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    first = Steps(sides, monkeypatch, stream, tmp_path / "disk")
    first.stored_and_poisoned(BLOCKS_OF_A)
    first.worker.close()
    if damaged:
        damage(tmp_path / "disk")
    second = Steps(sides, monkeypatch, stream, tmp_path / "disk")
    second.begin_load(BLOCKS_OF_B)
    seen = second.attend(BLOCKS_OF_B)
    second.worker.end_step(second.stores([]))
    assert second.right(seen) == [not damaged] * 4
    assert second.worker.take_failed_blocks() == (set(BLOCKS_OF_B) if damaged else set())
    if damaged:
        # Bytes are verified before they go to the device.
        assert all((second.engine.see(tensor, block), stream.synchronize())[0].values().min() == POISON
                   for tensor in second.kv for block in BLOCKS_OF_B)
        second.compute(BLOCKS_OF_B)
        second.store(BLOCKS_OF_B, "b")
        second.worker.wait_for_stores({"b"})
        second.begin_load(BLOCKS_OF_A)
        assert second.right(second.attend(BLOCKS_OF_A)) == [True] * 4
        second.worker.end_step(second.stores([]))
    second.worker.close()


@pytest.mark.parametrize("ends", ["cancel", "close"])
def test_a_load_that_is_cut_off_leaves_each_block_right_or_failed(
    ends: str, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    for turn in range(8):
        steps = Steps(sides, monkeypatch, stream, tmp_path / "disk")
        if turn == 0:
            steps.stored_and_poisoned(BLOCKS_OF_A)
        else:
            steps.poison(BLOCKS_OF_B)
            steps.begin_load(BLOCKS_OF_B)
            (load,) = steps.worker.step_loads.values()
            cut = load.completion.cancel if ends == "cancel" else steps.worker.cache.close
            seen = []
            for layer, (name, tensor) in enumerate(zip(steps.engine.names, steps.kv, strict=True)):
                if layer == turn % 2:
                    cut()
                steps.worker.wait_for_layer(name)
                seen.append([steps.engine.see(tensor, block) for block in BLOCKS_OF_B])
            steps.worker.end_step(steps.stores([]))
            failed = steps.worker.take_failed_blocks()
            assert failed in [set(BLOCKS_OF_B[count:]) for count in range(5)]
            right = steps.right(seen)
            assert all(good or block in failed for good, block in zip(right, BLOCKS_OF_B, strict=True)), (right, failed)
            steps.compute(BLOCKS_OF_B)
            assert steps.now(BLOCKS_OF_B) == [True] * 4
        steps.worker.close()
        stream.rewind()


class FailedCopy:
    """A load whose copy the device failed: the wait for a layer raises, and the report has no blocks."""

    def __init__(self, error: type[kvtile.KvtileError]) -> None:
        self.error = error
        self.waits: list[tuple[str, int]] = []

    def wait_layer_on(self, stream: Any, layer: int) -> bool:
        self.waits.append(("stream", layer))
        raise self.error("the copy failed")

    def wait_layer(self, layer: int) -> bool:
        self.waits.append(("host", layer))
        return False

    def wait(self) -> Any:
        return SimpleNamespace(blocks=0, bytes=0, seconds=0.0, from_tiers={}, detail="the copy failed", stopped="transfer")


@pytest.mark.parametrize("error", [kvtile.TransferError, kvtile.DeviceError])
def test_a_step_whose_copy_the_device_failed_is_computed_again(error: type[kvtile.KvtileError], steps: Steps) -> None:
    """Where the driver's wait fails, the host waits, so the stream never reads ahead of a copy."""
    steps.begin_load(BLOCKS_OF_B)
    failed = FailedCopy(error)
    (load,) = steps.worker.step_loads.values()
    load.completion = failed
    steps.worker.take_failed_blocks()
    steps.attend(BLOCKS_OF_B)
    steps.worker.end_step(steps.stores([20], "c"))
    assert failed.waits == [(where, layer) for layer in range(LAYERS) for where in ("stream", "host")]
    assert steps.worker.take_failed_blocks() == set(BLOCKS_OF_B) and not steps.worker.stores
    assert steps.worker.take_report().store_from == {"b": 0, "c": 0}


def test_blocks_of_a_preempted_request_are_read_before_they_are_overwritten(steps: Steps) -> None:
    for turn in range(5):
        blocks = [block + turn for block in BLOCKS_OF_A]
        steps.worker.cache.clear()
        steps.stored_and_poisoned(blocks)
        steps.compute([30])
        steps.begin_load(BLOCKS_OF_B)
        seen = steps.attend(BLOCKS_OF_B)
        steps.worker.end_step(steps.stores([]))
        assert steps.right(seen) == [True] * 4
        steps.poison(BLOCKS_OF_B)


def test_a_worker_of_a_daemon_stores_and_loads_in_order_with_the_stream(steps: Steps, tmp_path: Path) -> None:
    """Its loads have no marks, so the host waits for each layer."""
    daemon = Daemon(tmp_path)
    own = steps.worker
    caches = dict(zip(steps.engine.names, steps.kv, strict=True))
    settings = steps.sides.settings.Settings(connect=str(daemon.socket))
    steps.worker = steps.sides.worker.Worker(CONFIG, caches, settings, steps.sides.rank.Rank())
    try:
        steps.stored_and_poisoned(BLOCKS_OF_A)
        steps.poison(BLOCKS_OF_B)
        steps.begin_load(BLOCKS_OF_B)
        seen = steps.attend(BLOCKS_OF_B)
        steps.worker.end_step(steps.stores([]))
        assert steps.right(seen) == [True] * 4 and not steps.worker.take_failed_blocks()
    finally:
        steps.worker.close()
        steps.worker = own
        daemon.stop()


@pytest.mark.parametrize("left_out", ["store", "load"])
def test_the_checker_finds_each_transfer_that_does_not_wait_for_the_stream(
    left_out: str, provokes: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "load":
        steps.stored_and_poisoned(BLOCKS_OF_A)
    monkeypatch.setattr(steps.sides.worker, "compute_stream", lambda _: None)
    if left_out == "store":
        steps.stored_and_poisoned(BLOCKS_OF_A)
    else:
        steps.poison(BLOCKS_OF_B)
        steps.begin_load(BLOCKS_OF_B)
        steps.worker.end_step(steps.stores([]))
    steps.stream.synchronize()


@pytest.mark.parametrize("left_out", ["layer", "preemption"])
def test_the_checker_finds_work_of_the_stream_that_does_not_wait_for_a_transfer(
    left_out: str, provokes: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host knows to be done is in order, so the transfer has to be late: the stream is busy before it."""
    busy = DeviceMemory(np.zeros(1 << 23, "uint8"))
    before = len(driver().complaints())
    if left_out == "layer":
        steps.stored_and_poisoned(BLOCKS_OF_A)
        monkeypatch.setattr(steps.worker, "wait_for_layer", lambda _: None)
    for _ in range(50):
        for fill in range(40):
            driver().fill(busy.address, fill, busy.size, steps.stream.cuda_stream)
        if left_out == "layer":
            steps.begin_load(BLOCKS_OF_B)
            steps.attend(BLOCKS_OF_B)
            steps.worker.end_step(steps.stores([]))
        else:
            steps.worker.cache.clear()
            steps.compute(BLOCKS_OF_A)
            steps.store(BLOCKS_OF_A)
            steps.poison(BLOCKS_OF_A)
            steps.worker.wait_for_stores({"a"})
        steps.stream.synchronize()
        steps.stream.rewind()
        if len(driver().complaints()) > before:
            break
