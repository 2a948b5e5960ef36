"""PrefixCaches of several processes over one daemon, and over its restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvtile
from test_daemon import Daemon, eventually

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hybrids  # noqa: E402
from tiny import GREEDY, llama, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402

PAGE = 8
TOKENS = 60

# Another process with the same model: it answers the prompt, and prints what it knew and what it answered.
OTHER = f"""
import json, sys
from tiny import GREEDY, llama, prompt
from kvtile.transformers import PrefixCache
model = llama()
with PrefixCache(model, connect=sys.argv[1], page_size={PAGE}) as cache:
    inputs = prompt(1, {TOKENS})
    known = cache.prefill(inputs).get_seq_length()
    print(json.dumps([known, cache.generate(model, inputs, **GREEDY)[0].tolist()]))
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop(signal.SIGKILL)


def other(daemon: Daemon) -> tuple[int, list[int]]:
    paths = [str(Path(__file__).parent), str(Path(kvtile.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", OTHER, str(daemon.socket)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    known, answer = json.loads(ended.stdout)
    return known, answer


def test_a_prefix_of_one_process_is_known_to_the_others(daemon: Daemon) -> None:
    model, inputs = llama(), prompt(1, TOKENS)
    expected = model.generate(inputs, **GREEDY)
    assert other(daemon) == (0, expected[0].tolist())
    assert daemon.status()["sessions"] == []
    with PrefixCache(model, connect=daemon.socket, page_size=PAGE) as cache:
        assert cache.prefill(inputs).get_seq_length() == TOKENS // PAGE * PAGE
        assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
        # The answer of the other process too.
        longer = torch.cat([expected, prompt(2, 5)], dim=1)
        assert cache.prefill(longer).get_seq_length() == (TOKENS + GREEDY["max_new_tokens"] - 1) // PAGE * PAGE
        assert torch.equal(cache.generate(model, longer, **GREEDY), model.generate(longer, **GREEDY))


def test_a_cache_outlives_its_daemon(daemon: Daemon) -> None:
    model, inputs = llama(), prompt(1, TOKENS)
    expected = model.generate(inputs, **GREEDY)
    with PrefixCache(model, connect=daemon.socket, page_size=PAGE) as cache:
        assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
        daemon.stop()
        eventually(lambda: not cache.cache.connected)
        # Without the daemon the model computes.
        assert cache.prefill(inputs).get_seq_length() == 0
        assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
        daemon.start()
        eventually(lambda: cache.cache.connected)
        assert cache.prefill(inputs).get_seq_length() == TOKENS // PAGE * PAGE
        assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
        # A daemon that is killed loses host memory, and its disk has what was synced.
        daemon.stop(signal.SIGKILL)
        eventually(lambda: not cache.cache.connected)
        daemon.start()
        eventually(lambda: cache.cache.connected)
        assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
        assert cache.prefill(inputs).get_seq_length() == TOKENS // PAGE * PAGE


def test_settings_of_the_daemon_are_refused_by_name(daemon: Daemon) -> None:
    for settings in ({"host_gib": 1.0}, {"disk": "kv"}, {"disk_gib": 1.0}, {"close_within": 1.0}, {"shared": "store"}):
        (name,) = settings
        with pytest.raises(kvtile.SettingsError, match=f"{name} has no effect with connect"):
            PrefixCache(llama(), connect=daemon.socket, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_next"])
def test_stops_of_a_model_with_several_groups_outlive_the_process_and_the_daemon(kind: str, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, host="64MiB", disk="64MiB")
    model, inputs = hybrids.model(kind), prompt(1, TOKENS)
    try:
        with PrefixCache(model, connect=daemon.socket, page_size=PAGE) as cache:
            expected = cache.generate(model, inputs, **GREEDY)
        assert daemon.status()["sessions"] == []
        for how in (None, signal.SIGTERM):
            if how is not None:
                daemon.stop(how)
                daemon.start()
            with PrefixCache(model, connect=daemon.socket, page_size=PAGE) as cache:
                assert cache.stats()["loaded_tokens"] == 0
                assert torch.equal(cache.generate(model, inputs, **GREEDY), expected)
                assert cache.stats()["loaded_tokens"] >= (TOKENS - 1) // PAGE * PAGE
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)
