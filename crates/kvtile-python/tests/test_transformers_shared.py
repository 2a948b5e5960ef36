"""Stops of models with windows and states in shared stores: other processes find them, and damage is a miss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvtile
from test_daemon import Daemon

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hybrids  # noqa: E402
from test_transformers_several import PAGE, PROMPT, loaded_tokens, same, steps  # noqa: E402
from tiny import GREEDY, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402
from kvtile.transformers import _tiers  # noqa: E402

# A window, and states.
KINDS = ["gemma3_text", "qwen3_next"]
SETTINGS = {"page_size": PAGE, "host_gib": 0.02, "shared_within": 60.0}

# Another process without a folder of its own: it answers the prompt of each model, and prints what it loaded for it.
OTHER = f"""
import json, sys
import hybrids
from tiny import GREEDY, prompt
from kvtile.transformers import PrefixCache
for kind in {KINDS}:
    model = hybrids.model(kind)
    with PrefixCache(model, shared=sys.argv[1] + "/" + kind, **{SETTINGS}) as cache:
        answer = cache.generate(model, prompt(1, {PROMPT}), **GREEDY)[0].tolist()
        print(json.dumps([cache.stats()["loaded_tokens"], cache.stats()["groups"]["stops"]["hits"], answer]))
"""


def test_another_process_without_a_folder_continues_from_the_stop_in_a_shared_folder(tmp_path: Path) -> None:
    answers = {}
    for kind in KINDS:
        model = hybrids.model(kind)
        with PrefixCache(model, shared=tmp_path / kind, **SETTINGS) as cache:
            answers[kind] = cache.generate(model, prompt(1, PROMPT), **GREEDY)[0].tolist()
            assert loaded_tokens(cache) == 0
        assert answers[kind] == model.generate(prompt(1, PROMPT), **GREEDY)[0].tolist()
    paths = [str(Path(__file__).parent), str(Path(kvtile.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert found == [[56, {"shared": 1}, answers[kind]] for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_value_of_a_shared_store_is_an_earlier_stop_or_none(kind: str, tmp_path: Path) -> None:
    model, inputs, shared = hybrids.model(kind), prompt(1, PROMPT), tmp_path / "shared"
    tokens = inputs[0].tolist()
    with PrefixCache(model, shared=shared, stops=("prompt",), every=32, **SETTINGS) as cache:
        live = steps(model, cache.prefill(inputs), tokens)
        keys = [key.hex() for key in cache._kept.hasher.keys(tokens)]
    values = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file() and path.name[:32] in keys}
    # The pages, and the records at 32 and 56 tokens.
    assert len(values) == 7 + 2, sorted(shared.rglob("*"))
    lost = {}
    for path, value in values.items():
        damaged = bytearray(value)
        damaged[len(value) // 2] ^= 1
        path.write_bytes(damaged)
        with PrefixCache(model, shared=shared, stops=(), **SETTINGS) as cache:
            past = cache.prefill(inputs)
            lost[path] = loaded_tokens(cache)
            damage = (cache.stats()["shared"]["damaged"], cache.stats()["lost"])
            assert damage == ((0, 0) if lost[path] == 56 else (1, 1)), path
            forward = steps(model, past, tokens)
        # A cache of its own that continues from the same tokens computes the rest of the prompt in the same pieces.
        if lost[path] < 56:
            with PrefixCache(model, stops=(), every=lost[path] or None, page_size=PAGE, host_gib=0.02) as cache:
                assert same(forward, steps(model, cache.prefill(inputs), tokens)), path
        path.write_bytes(value)
    # Without one of the first four pages there is no stop; without another one, or the record at 56, there is that at 32.
    assert sorted(lost.values()) == [0] * 4 + [32] * 4 + [56]
    with PrefixCache(model, shared=shared, **SETTINGS) as cache:
        assert same(steps(model, cache.prefill(inputs), tokens), live) and loaded_tokens(cache) == 56


def test_a_daemon_with_a_shared_store_brings_stops_that_another_daemon_wrote(tmp_path: Path) -> None:
    model, inputs = hybrids.model("gemma3_text"), prompt(1, PROMPT)
    settings: dict[str, Any] = {"page_size": PAGE, "shared_within": 60.0}
    answers, loaded = [], []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        daemon = Daemon(tmp_path / name, host="64MiB", disk="64MiB", more=["--shared", str(tmp_path / "shared")])
        try:
            with PrefixCache(model, connect=daemon.socket, **settings) as cache:
                answers.append(cache.generate(model, inputs, **GREEDY).tolist())
                loaded.append(loaded_tokens(cache))
        finally:
            daemon.stop(signal.SIGTERM)
    assert loaded == [0, 56] and answers[0] == answers[1]


def test_values_of_a_shared_store_have_room_for_two_records() -> None:
    assert [_tiers._staging_bytes(record) >> 20 for record in (0, 100 << 20, 429 << 20)] == [256, 256, 858]


def test_settings_of_a_shared_store_are_refused_where_they_have_no_effect(tmp_path: Path) -> None:
    model = hybrids.model("gemma3_text")
    for settings, why in [
        ({"shared_within": 1.0}, "shared_within has no effect without shared"),
        ({"shared_bundle_blocks": 2}, "without shared"),
        ({"connect": tmp_path / "socket", "shared": tmp_path}, "shared has no effect with connect"),
        ({"connect": tmp_path / "socket", "shared_bundle_blocks": 2}, "bundle_blocks has no effect with connect"),
    ]:
        with pytest.raises(kvtile.SettingsError, match=why):
            PrefixCache(model, page_size=PAGE, **settings)
