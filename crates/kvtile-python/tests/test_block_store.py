"""BlockStore: blocks in the caller's memory, on disk."""

from __future__ import annotations

import ctypes
import gc
import mmap
import select
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import kvtile

BLOCK = 8192
ROWS = 32


def group(**extra: str) -> kvtile.StoreGroup:
    return kvtile.StoreGroup.opaque("kv", BLOCK, model="a/model", revision="1", extra={"dtype": "bf16", **extra})


def open_store(folder: Path, **settings: object) -> kvtile.BlockStore:
    return kvtile.BlockStore(group(), **{"disk": folder, "disk_bytes": 8 << 20, "staging_bytes": 1 << 20, **settings})


def filled(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, BLOCK), np.uint8)


def keys(*numbers: int) -> list[str]:
    return [f"a key of the engine {number}" for number in numbers]


def test_rows_come_back_after_a_restart_each_by_itself(tmp_path: Path) -> None:
    memory = filled()
    expected = memory.copy()
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        assert (len(rows), rows.group, rows.is_direct) == (ROWS, "kv", True)
        report = store.store(keys(*range(8)), rows, range(8)).wait()
        assert report.outcomes == ["ok"] * 8
        assert report.bytes == 8 * BLOCK
        assert store.store(keys(3, 99), rows, [3, 9]).wait().outcomes == ["present", "ok"]
    memory[:] = 0
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        assert store.contains(keys(0, 7, 8, 99)) == [True, True, False, True]
        assert store.store(keys(3, 99), rows, [3, 9]).wait_layer(0) and not store.load(keys(7, 50), rows, [20, 21]).wait_layer(0)
        loaded = store.load(keys(7, 50, 2, 99), rows, [20, 21, 22, 23]).wait()
        assert loaded.outcomes == ["ok", "absent", "ok", "ok"]
        assert loaded.ok == [True, False, True, True]
        for row, source in ((20, 7), (22, 2), (23, 9)):
            assert np.array_equal(memory[row], expected[source])
        assert store.touch(keys(7, 50)) == 1
        assert store.forget(keys(7, 50)) == 1
        assert store.contains(keys(7)) == [False]
        assert store.flush().durable
        assert store.clear() == 8


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "ctypes", "mmap", "int8", "two-dimensional"])
def test_any_contiguous_buffer_is_rows_and_is_released(tmp_path: Path, kind: str) -> None:
    size = 4 * BLOCK
    memory: object = {
        "bytearray": lambda: bytearray(size),
        "memoryview": lambda: memoryview(bytearray(size)),
        "ctypes": lambda: (ctypes.c_ubyte * size)(),
        "mmap": lambda: mmap.mmap(-1, size),
        "int8": lambda: memoryview(bytearray(size)).cast("b"),
        "two-dimensional": lambda: memoryview(bytearray(size)).cast("b", (4, BLOCK)),
    }[kind]()
    flat = memoryview(memory).cast("B") if kind != "two-dimensional" else memory.cast("B")  # type: ignore[arg-type, union-attr]
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        assert len(rows) == 4
        flat[BLOCK : BLOCK + 3] = b"abc"
        store.store(["a"], rows, [1]).wait()
        assert store.load(["a"], rows, [3]).wait().ok == [True]
        assert bytes(flat[3 * BLOCK : 3 * BLOCK + 3]) == b"abc"
        flat.release()
        rows.release()
        rows.release()
        with pytest.raises(kvtile.ClosedError, match="released"):
            store.load(["a"], rows, [0])
        if isinstance(memory, memoryview):
            # vLLM releases its view at shutdown.
            memory.release()
        if isinstance(memory, mmap.mmap):
            memory.close()


def test_memory_that_is_no_rows_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        with pytest.raises(kvtile.TensorError, match="no whole number of blocks of 8192"):
            store.register(bytearray(BLOCK + 1))
        with pytest.raises(kvtile.TensorError, match="gaps"):
            store.register(np.zeros((4, 2 * BLOCK), np.uint8)[:, :BLOCK])
        # Read-only memory can be stored from, and not loaded into.
        rows = store.register(bytes(BLOCK))
        assert store.store(["a"], rows, [0]).wait().outcomes == ["ok"]
        store.flush()
        loaded = store.load(["a"], rows, [0]).wait()
        assert loaded.outcomes == ["failed"]
        assert loaded.detail is not None
        assert "read-only" in loaded.detail
        with pytest.raises(kvtile.TensorError, match="not a tensor"):
            store.register(7)
        with pytest.raises(kvtile.RequestError, match="no group 'swa'|no group \"swa\""):
            store.register(bytearray(BLOCK), "swa")


def test_jobs_in_the_queue_wake_a_poller(tmp_path: Path) -> None:
    memory = filled()
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        poller = select.poll()
        poller.register(store.fileno(), select.POLLIN)
        assert poller.poll(0) == []
        for job in range(10):
            store.submit_store(job, keys(job), rows, [job])
        finished: dict[int, kvtile.BlockOutcomes] = {}
        while len(finished) < 10:
            assert poller.poll(20_000)
            finished.update(store.take_finished())
        assert poller.poll(0) == []
        assert all(outcomes.outcomes == ["ok"] for outcomes in finished.values())
        store.submit_load(77, keys(3, 44), rows, [30, 31])
        store.drain()
        assert store.pending == 0
        ((job, outcomes),) = store.take_finished()
        assert (job, outcomes.outcomes) == (77, ["ok", "absent"])


def test_a_flipped_bit_is_damage_and_counted(tmp_path: Path) -> None:
    memory = filled()
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        store.store(keys(*range(6)), rows, range(6)).wait()
        assert store.flush().durable
        slots = tmp_path / "slots"
        content = bytearray(slots.read_bytes()[: 6 * BLOCK])
        content[2 * BLOCK + 100] ^= 4
        with slots.open("r+b") as file:
            file.write(content)
        outcomes = store.load(keys(*range(6)), rows, range(10, 16)).wait().outcomes
        assert sorted(outcomes) == ["damaged", *["ok"] * 5]
        assert store.stats()["checksum_failures"] == {"disk": 1}
        assert sorted(store.contains(keys(*range(6)))) == [False, *[True] * 5]


def test_another_configuration_is_refused_by_the_field(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with pytest.raises(kvtile.IdentityError) as error:
        kvtile.BlockStore(group(dtype="float16"), disk=tmp_path, disk_bytes=8 << 20)
    assert (error.value.field, error.value.ours, error.value.theirs) == ("extra.dtype", "float16", "bf16")
    with pytest.raises(kvtile.IdentityError, match="block_bytes|planes"):
        other = kvtile.StoreGroup.opaque("kv", 2 * BLOCK, model="a/model", revision="1", extra={"dtype": "bf16"})
        kvtile.BlockStore(other, disk=tmp_path, disk_bytes=8 << 20)
    with open_store(tmp_path), pytest.raises(kvtile.FolderInUseError):
        open_store(tmp_path)


def test_groups_have_blocks_of_their_own(tmp_path: Path) -> None:
    groups = [group(), kvtile.StoreGroup.opaque("states", 50_000, model="a/model", revision="1", share=0.5)]
    settings = {"disk": tmp_path, "disk_bytes": 16 << 20, "staging_bytes": 4 << 20}
    memory, states = filled(), np.arange(4 * 50_000, dtype=np.uint32).view(np.uint8)[: 4 * 50_000].copy()
    with kvtile.BlockStore(groups, **settings) as store:
        assert store.groups == ["kv", "states"]
        with pytest.raises(kvtile.RequestError, match="give group"):
            store.contains(["a"])
        rows, wide = store.register(memory, "kv"), store.register(states, "states")
        store.store(["a"], rows, [0]).wait()
        store.store(["a"], wide, [1]).wait()
        assert store.flush().durable
    expected, wanted = memory[0].copy(), states[50_000:100_000].copy()
    memory[:] = 0
    states[:] = 0
    with kvtile.BlockStore(groups, **settings) as store:
        rows, wide = store.register(memory, "kv"), store.register(states, "states")
        assert store.load(["a"], rows, [5]).wait().ok == [True]
        assert store.load(["a"], wide, [3]).wait().ok == [True]
        assert np.array_equal(memory[5], expected)
        assert np.array_equal(states[150_000:], wanted)
        assert store.forget(["a"], "states") == 1
        assert store.contains(["a"], "kv") == [True]


def test_rows_in_another_order_are_permuted(tmp_path: Path) -> None:
    shape = kvtile.Shape(num_blocks=4, num_layers=2, page_size=4, num_heads=2, head_size=8, dtype="float32")
    identity = kvtile.Identity("a/model", "1", shape)
    engine = np.random.default_rng(2).random((2, 4, 2, 4, 2 * 8), "float32")
    layout = kvtile.Layout("L|BH(kCN,vNC)", shape=shape, tensors=list(engine))
    direct = np.zeros((4, shape.block_bytes // 4), "float32")
    other = kvtile.Layout(kvtile.STORAGE_WORD, shape=shape, tensors=direct)
    with kvtile.BlockStore(kvtile.StoreGroup("kv", identity, shape), disk=tmp_path, disk_bytes=8 << 20) as store:
        rows, target = store.register(layout), store.register(other)
        assert (rows.is_direct, target.is_direct) == (False, True)
        store.store(["a", "b"], rows, [1, 2]).wait()
        assert store.load(["b"], target, [0]).wait().ok == [True]
        kvtile.copy_blocks(layout, other, [2], [3])
        assert np.array_equal(direct[0], direct[3])
        assert store.load(["a"], rows, [3]).wait().ok == [True]
        assert np.array_equal(engine[:, 3], engine[:, 1])


def test_a_second_process_reads_while_this_one_writes(tmp_path: Path) -> None:
    memory = filled()
    script = f"""
import sys, time
import numpy as np, kvtile
group = kvtile.StoreGroup.opaque("kv", {BLOCK}, model="a/model", revision="1", extra={{"dtype": "bf16"}})
memory = np.zeros(({ROWS}, {BLOCK}), np.uint8)
with kvtile.BlockStore(group, disk={str(tmp_path / "kv")!r}, read_only=True) as store:
    rows = store.register(memory)
    print("ready", flush=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if all(store.load(["a key of the engine 1", "a key of the engine 2"], rows, [0, 1]).wait().ok):
            print(int(memory[0].sum(dtype=np.int64)), int(memory[1].sum(dtype=np.int64)))
            assert store.store(["x"], rows, [0]).wait().outcomes == ["failed"]
            sys.exit(0)
        time.sleep(0.02)
sys.exit(1)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with open_store(tmp_path / "kv") as store:
        rows = store.register(memory)
        store.store(keys(1, 2), rows, [1, 2]).wait()
        assert store.flush().durable
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert text.split() == [str(memory[row].sum(dtype=np.int64)) for row in (1, 2)]


def test_threads_and_a_forgotten_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    memory = filled()
    rows = store.register(memory)
    wrong: list[int] = []

    def work(first: int) -> None:
        for turn in range(30):
            number = first * 1000 + turn
            row = first * 4
            memory[row] = number % 251
            store.store(keys(number), rows, [row]).wait()
            memory[row + 1] = 0
            if store.load(keys(number), rows, [row + 1]).wait().ok == [True] and memory[row + 1].max() != number % 251:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # Never closed: dropping the last reference releases the folder.
    del store
    gc.collect()
    with open_store(tmp_path) as again:
        assert again.contains(keys(0, 5029)) == [True, True]
    del rows


def test_a_killed_process_loses_no_flushed_block(tmp_path: Path) -> None:
    script = f"""
import os, signal, kvtile
group = kvtile.StoreGroup.opaque("kv", {BLOCK}, model="a/model", revision="1", extra={{"dtype": "bf16"}})
store = kvtile.BlockStore(group, disk={str(tmp_path)!r}, disk_bytes=8 << 20, staging_bytes=1 << 20)
rows = store.register(bytearray(b"k" * {BLOCK}))
store.store(["kept"], rows, [0]).wait()
assert store.flush().durable
store.submit_store(1, ["perhaps"], rows, [0])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    memory = bytearray(2 * BLOCK)
    with open_store(tmp_path) as store:
        rows = store.register(memory)
        loaded = store.load(["kept", "perhaps"], rows, [0, 1]).wait()
        assert loaded.outcomes[0] == "ok"
        assert memory[:BLOCK] == b"k" * BLOCK
        assert loaded.outcomes[1] in {"ok", "absent"}


def test_block_keys_are_those_of_events(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        events = store.subscribe()
        rows = store.register(bytearray(BLOCK))
        store.store([b"x" * 36], rows, [0]).wait()
        store.flush()
        assert [event.key for event in events.poll()] == [kvtile.block_key(b"x" * 36)]
        assert kvtile.block_key(bytes(16)) == bytes(16)


def test_a_callback_may_drain_release_and_close(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    rows = store.register(filled())
    ended = threading.Event()
    reports: list[object] = []

    def call(completion: kvtile.Completion[kvtile.BlockOutcomes]) -> None:
        store.drain()
        rows.release()
        reports.append((completion.wait().ok, store.close()))
        ended.set()

    store.store(keys(*range(20)), rows, range(20)).add_done_callback(call)
    assert ended.wait(30)
    assert reports[0][0] == [True] * 20  # type: ignore[index]
    with open_store(tmp_path) as again:
        assert again.contains(keys(0, 19)) == [True, True]


def test_a_store_that_cannot_be_opened_leaves_no_memory(tmp_path: Path) -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    with open_store(tmp_path):
        before = mapped()
        for _ in range(20):
            with pytest.raises(kvtile.FolderInUseError):
                open_store(tmp_path, staging_bytes=1 << 30)
        assert mapped() - before < 4 << 30
