"""Recording the requests of an engine, and replaying them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvtile


def keys(chain: int, blocks: int) -> list[bytes]:
    return [bytes([chain, block]) for block in range(blocks)]


def test_a_recorded_trace_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    before = time.time()
    with kvtile.TraceRecorder(path, 16) as recorder:
        for _ in range(3):
            recorder.record(keys(1, 4), 70, 5)
        recorder.record(keys(2, 1), 16, arrived=1_700_000_000.5)
        assert "trace.jsonl" in repr(recorder)
    assert (recorder.recorded, recorder.dropped, recorder.error) == (4, 0, None)
    assert recorder.bytes == path.stat().st_size
    first, *_, last = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["input_length"], first["output_length"], len(first["hash_ids"])) == (70, 5, 5)
    assert before <= first["timestamp"] / 1000 + 0.001 and last["timestamp"] == 1_700_000_000_500
    program = [sys.executable, "-m", "kvtile", "replay", str(path), "--dry", "--capacity", "20", "--json"]
    shown = subprocess.run(program, capture_output=True, text=True, check=True)
    trace = json.loads(shown.stdout)["trace"]
    assert (trace["requests"], trace["page_size"], trace["distinct_blocks"]) == (4, 16, 4 + 3 + 1)


def test_a_closed_recorder_refuses_and_keeps_its_counts(tmp_path: Path) -> None:
    recorder = kvtile.TraceRecorder(tmp_path / "trace.jsonl", 16, bytes_max=300)
    for _ in range(50):
        recorder.record(keys(1, 2), 40)
    recorder.close()
    recorder.close()
    assert recorder.recorded >= 1 and recorder.recorded + recorder.dropped == 50
    with pytest.raises(kvtile.ClosedError):
        recorder.record(keys(1, 2), 40)


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with pytest.raises(kvtile.SettingsError, match="page size is 0"):
        kvtile.TraceRecorder(path, 0)
    with pytest.raises(kvtile.SettingsError, match="page_size is"):
        kvtile.TraceRecorder(path, 1 << 40)
    with pytest.raises(kvtile.DiskError):
        kvtile.TraceRecorder(tmp_path / "missing" / "trace.jsonl", 16)
    with pytest.raises(kvtile.DiskError):
        kvtile.TraceRecorder(tmp_path, 16)
    with pytest.raises(kvtile.ArgumentError):
        kvtile.TraceRecorder(7, 16)  # type: ignore[arg-type]
    first = kvtile.TraceRecorder(path, 16)
    with pytest.raises(kvtile.FolderInUseError):
        kvtile.TraceRecorder(path, 16)
    with pytest.raises(kvtile.RequestError):
        first.record(keys(1, 1), -1)
    with pytest.raises(TypeError, match="cannot be pickled"):
        __import__("pickle").dumps(first)
    first.record(keys(1, 1), 16)
    first.close()
    with pytest.raises(kvtile.SettingsError, match="another page size"):
        kvtile.TraceRecorder(path, 32)


def test_the_end_of_the_process_writes_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    code = f"""
import kvtile
recorder = kvtile.TraceRecorder({str(path)!r}, 16)
for _ in range(1000):
    recorder.record([b"key"], 16)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    lines = path.read_text().splitlines()
    assert len(lines) == 1000 and all(json.loads(line)["input_length"] == 16 for line in lines)
