"""Copies agree with a naive implementation of the layout language."""

from __future__ import annotations

import random
import threading
import time

import ml_dtypes
import numpy as np
import pytest

import kvtile
from helpers import EXTENTS, WORDS, layout, shape
from reference import places

DTYPES = ["float32", "float64", "float16", "int8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def fill(tensors: list[np.ndarray], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for tensor in tensors:
        data = generator.integers(0, 256, tensor.nbytes, dtype=np.uint8)
        tensor.view(np.uint8)[:] = data


@pytest.mark.parametrize("seed", range(60))
def test_a_copy_between_random_words_is_the_naive_copy(seed: int) -> None:
    choose = random.Random(seed)
    src_word, dst_word, dtype = choose.choice(WORDS), choose.choice(WORDS), choose.choice(DTYPES)
    print("seed", seed, src_word, dst_word, dtype)
    src, src_tensors = layout(src_word, shape(dtype), dtype)
    dst, dst_tensors = layout(dst_word, shape(dtype, B=7), dtype)
    fill(src_tensors, seed)
    fill(dst_tensors, seed + 1000)
    expected = [tensor.copy() for tensor in dst_tensors]

    count = choose.randint(1, EXTENTS["B"])
    src_blocks = choose.choices(range(EXTENTS["B"]), k=count)
    dst_blocks = choose.sample(range(7), count)
    ranges = {}
    for name, axis in [("layers", "L"), ("tokens", "N"), ("heads", "H")]:
        if choose.random() < 0.4:
            start = choose.randrange(EXTENTS[axis])
            ranges[name] = (start, choose.randint(start + 1, EXTENTS[axis]))
    try:
        report = kvtile.copy_blocks(src, dst, src_blocks, dst_blocks, **ranges)
    except kvtile.LayoutError:
        # The plan refuses ranges of tokens that cut a unit of the layout.
        assert "tokens" in ranges
        assert all((a.view(np.uint8) == b.view(np.uint8)).all() for a, b in zip(expected, dst_tensors, strict=True))
        return

    there = places(src_word, EXTENTS, ("k", "v"))
    here = places(dst_word, {**EXTENTS, "B": 7}, ("k", "v"))
    inside = {axis: range(*ranges.get(name, (0, EXTENTS[axis]))) for name, axis in
              [("layers", "L"), ("tokens", "N"), ("heads", "H")]}
    moved = 0
    for plane in ("k", "v"):
        for source, destination in zip(src_blocks, dst_blocks, strict=True):
            for layer in inside["L"]:
                for token in inside["N"]:
                    for head in inside["H"]:
                        for content in range(EXTENTS["C"]):
                            rest = (layer, token, head, content)
                            to_region, to = here[(plane, destination, *rest)]
                            from_region, at = there[(plane, source, *rest)]
                            expected[to_region][to] = src_tensors[from_region][at]
                            moved += 1
    for found, wanted in zip(dst_tensors, expected, strict=True):
        assert (found.view(np.uint8) == wanted.view(np.uint8)).all()
    assert report.bytes == moved * np.dtype(dtype).itemsize


def test_sides_may_differ_in_ranges() -> None:
    src, src_tensors = layout("BLKNHC", shape())
    dst, dst_tensors = layout("BLKNHC", shape(L=3, H=4))
    src_tensors[0][:] = np.arange(src_tensors[0].size)
    kvtile.copy_blocks(src, dst, [1], [2], layers=((0, 2), (1, 3)), heads=((0, 2), (2, 4)))
    found = dst_tensors[0].reshape(5, 3, 2, 4, 4, 8)
    wanted = src_tensors[0].reshape(5, 2, 2, 4, 2, 8)
    assert (found[2, 1:, :, :, 2:] == wanted[1]).all()
    assert not found[2, 0].any() and not found[2, :, :, :, :2].any()


def test_a_verified_copy_reports_it() -> None:
    src, _ = layout("L|BH(kCN,vNC)", shape())
    dst, _ = layout("BHLKNC", shape())
    report = kvtile.copy_blocks(src, dst, [0, 3], verify=True)
    assert report.verified and report.bytes == 2 * shape().block_bytes
    assert report.seconds > 0 and report.runs >= 1
    assert "bytes=" in repr(report)


def test_pages_of_bytes_that_no_tokens_divide_are_copied() -> None:
    state = kvtile.Plane("s", "state", unit_bytes=4100, opaque=True, per_page=True)
    held = kvtile.Shape(num_blocks=8, num_layers=2, page_size=16, planes=[state])
    source = np.zeros((8, 2, 4100), np.uint8)
    targets = [np.zeros((8, 4100), np.uint8) for _ in range(2)]
    fill([source.reshape(-1), *(target.reshape(-1) for target in targets)], 3)
    expected = [target.copy() for target in targets]
    src = kvtile.Layout("BLs", shape=held, tensors=source)
    dst = kvtile.Layout("L|Bs", shape=held, tensors=targets)
    report = kvtile.copy_blocks(src, dst, [7, 0, 3], [1, 6, 2], verify=True)
    assert report.bytes == 3 * 2 * 4100
    for layer in range(2):
        expected[layer][[1, 6, 2]] = source[[7, 0, 3], layer]
        assert (targets[layer] == expected[layer]).all()


def test_other_threads_run_while_blocks_are_copied() -> None:
    large = kvtile.Shape(num_blocks=256, num_layers=4, page_size=16, num_heads=8, head_size=64, dtype="float32")
    src = kvtile.Layout("BLKNHC", shape=large, tensors=np.ones(256 * large.block_bytes // 4, "float32"))
    dst = kvtile.Layout("BHLKNC", shape=large, tensors=np.zeros(256 * large.block_bytes // 4, "float32"))
    ticks: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.0005):
            ticks.append(time.perf_counter())

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.perf_counter()
    for _ in range(5):
        kvtile.copy_blocks(src, dst, range(256))
    end = time.perf_counter()
    over.set()
    ticking.join()
    # If the copy held the GIL, only a tick or two would fit into the five copies.
    assert sum(start < tick < end for tick in ticks) > 10, (end - start, len(ticks))


def test_invalid_copies_are_refused_before_a_byte_is_written() -> None:
    src, tensors = layout("L|BH(kCN,vNC)", shape())
    dst, written = layout("BHLKNC", shape())
    for tensor in tensors:
        tensor[:] = 1
    for blocks in [([0], [9]), ([9], [0]), ([0, 1], [0]), ([0, 1], [2, 2]), ([], [])]:
        with pytest.raises(kvtile.LayoutError):
            kvtile.copy_blocks(src, dst, *blocks)
    with pytest.raises(kvtile.LayoutError, match="layers"):
        kvtile.copy_blocks(src, dst, [0], layers=(1, 9))
    with pytest.raises(kvtile.LayoutError, match="not a range"):
        kvtile.copy_blocks(src, dst, [0], layers=(1, 1))
    with pytest.raises(ValueError, match="plane"):
        kvtile.copy_blocks(src, layout("BHLKNC", shape("float16"), "float16")[0], [0])
    with pytest.raises(kvtile.LayoutError, match="src_blocks"):
        kvtile.copy_blocks(src, dst, [-1])
    assert not written[0].any()


def test_a_plan_reads_like_a_plan() -> None:
    src = kvtile.Layout("L|BH(kCN,vNC)", shape=shape())
    dst = kvtile.Layout("BHLKNC", shape=shape())
    plan = kvtile.plan(src, dst)
    assert plan.bytes == 5 * shape().block_bytes
    assert plan.longest_run == 4 * 8 * 4 and plan.shortest_run == 4
    assert "L|BH(kCN,vNC) -> BHLKNC" in repr(plan) and "block pairs" in str(plan)
    assert plan._repr_html_().startswith("<svg") and "Destination: BHLKNC" in plan._repr_html_()
    assert kvtile.plan(dst, dst, [0], [1]).runs == 1
    with pytest.raises(kvtile.LayoutError):
        kvtile.plan(src, dst, [0], [5])
    with pytest.raises(kvtile.TensorError, match="no tensors"):
        kvtile.copy_blocks(src, dst, [0])


def test_a_callback_runs_on_completion_not_per_layer() -> None:
    shape = kvtile.Shape(num_blocks=256, num_layers=8, page_size=16, num_heads=2, head_size=64, dtype="float32")
    src, dst = (
        kvtile.Layout("L|BKNHC", shape=shape, tensors=[np.zeros(256 * 4096, "float32") for _ in range(8)])
        for _ in range(2)
    )
    for _ in range(20):
        ended: list[bool] = []
        over = threading.Event()

        def callback(copy: kvtile.Completion, ended: list[bool] = ended, over: threading.Event = over) -> None:
            ended.append(copy.done())
            over.set()

        copy = kvtile.copy_blocks_async(src, dst, range(256))
        copy.add_done_callback(callback)
        assert over.wait(10)
        copy.wait(10)
        assert ended == [True]
