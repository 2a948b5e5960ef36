"""``PrefixCache`` for a model on a device, under the stand-in driver. Not run on hardware."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvtile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hybrids  # noqa: E402
from hf_tiny import tiny_config, tiny_model  # noqa: E402
from standin import checked, driver, provokes  # noqa: E402
from standin_torch import CUDA, StandinMode, StandinTensor, mode, moved  # noqa: E402
from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402
from kvtile.transformers._tiers import StopTiers  # noqa: E402

__all__ = ["checked", "mode", "provokes"]  # The fixtures of the tests below.

SMALL = {"page_size": 8, "host_gib": 0.02}


def here(inputs: Any) -> Any:
    """Inputs on the device."""
    if isinstance(inputs, dict):
        return {name: tensor.to(CUDA) for name, tensor in inputs.items()}
    return inputs.to(CUDA)


def test_the_same_tokens_come_with_and_without_the_cache(mode: StandinMode) -> None:
    plain, model = llama(), moved(llama())
    with PrefixCache(model, **SMALL) as cache:
        assert driver().registrations() > 0, "host memory is registered with the driver"
        base, choose = prompt(1, 60), random.Random(2)
        for number in range(6):
            inputs = torch.cat([base[:, : choose.randrange(0, 60)], prompt(100 + number, choose.randrange(1, 30))], dim=1)
            outputs = cache.generate(model, here(inputs), **GREEDY)
            assert isinstance(outputs, StandinTensor)
            assert torch.equal(outputs.cpu(), plain.generate(inputs, **GREEDY)), number
        assert sum(cache.stats()["hits"].values()) > 5
        # A prompt of numbers, and one in host memory, are read too.
        assert cache.prefill(inputs[0].tolist()).get_seq_length() > 0
    assert mode.storages, "kvtile copied from memory of the device"


def test_a_batch_continues_from_what_is_known_of_each_row(mode: StandinMode) -> None:
    plain, model = llama(), moved(llama())
    base, choose, known = prompt(1, 80)[0].tolist(), random.Random(8), 0
    with PrefixCache(model, **SMALL) as cache:
        for number in range(5):
            prompts = [
                base[: choose.randrange(0, 80)] + prompt(200 + 10 * number + row, choose.randrange(1, 12))[0].tolist()
                for row in range(choose.randrange(1, 5))
            ]
            inputs = padded(prompts)
            past = cache.prefill(here(inputs))
            known += past.get_seq_length()
            outputs = model.generate(**here(inputs), past_key_values=past, **GREEDY)
            assert torch.equal(outputs.cpu(), plain.generate(**inputs, **GREEDY)), number
            assert len(cache.save(here(inputs), outputs, past)) == len(prompts)
    assert known > 50


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_models_with_experts_go_on_from_the_cache(mode: StandinMode, kind: str) -> None:
    config = tiny_config(kind)
    config._experts_implementation = "eager"  # torch multiplies the experts' matrices at once with CUDA alone
    model, inputs = tiny_model(config), prompt(1, 57) % config.vocab_size
    wanted = model.generate(inputs, **GREEDY)
    with PrefixCache(moved(model), **SMALL) as cache:
        for _ in range(2):
            assert torch.equal(cache.generate(model, here(inputs), **GREEDY).cpu(), wanted)
        assert cache.stats()["hits"] == {"host": 7}
    assert mode.storages, "kvtile copied from memory of the device"


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_folder_is_for_both_kinds_of_memory(mode: StandinMode, first: str, tmp_path: Path) -> None:
    settings = {**SMALL, "disk": tmp_path / "kv", "disk_gib": 0.05}
    inputs, plain = prompt(5, 50), llama()
    models = {"cpu": llama(), "cuda": moved(llama())}
    wanted = plain.generate(inputs, **GREEDY)
    for kind in (first, "cuda" if first == "cpu" else "cpu"):
        model = models[kind]
        given = here(inputs) if kind == "cuda" else inputs
        with PrefixCache(model, **settings) as cache:
            assert torch.equal(cache.generate(model, given, **GREEDY).cpu(), wanted)
            assert cache.stats()["hits"] == ({} if kind == first else {"disk": 6})


@pytest.mark.parametrize("kind", ["gemma3_text", "falcon_h1"])
def test_stops_of_several_groups_come_back(mode: StandinMode, kind: str, tmp_path: Path) -> None:
    plain, model = hybrids.model(kind), moved(hybrids.model(kind))
    settings = {**SMALL, "disk": tmp_path / "kv", "disk_gib": 0.05}
    inputs = prompt(1, 57)
    wanted = plain.generate(inputs, **GREEDY)
    with PrefixCache(model, **settings) as cache:
        assert torch.equal(cache.generate(model, here(inputs), **GREEDY).cpu(), wanted)
        assert torch.equal(cache.generate(model, here(inputs), **GREEDY).cpu(), wanted)
        assert cache.stats()["loaded_tokens"] == 56
    with PrefixCache(model, **settings) as cache:
        assert torch.equal(cache.generate(model, here(inputs), **GREEDY).cpu(), wanted)
        assert cache.stats()["loaded_tokens"] == 56 and cache.stats()["lost"] == 0
    with PrefixCache(plain, **settings) as cache:
        assert torch.equal(cache.generate(plain, inputs, **GREEDY), wanted)
        assert cache.stats()["loaded_tokens"] == 56


def without_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The calls of a cache forget the stream."""
    call = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, after=None, **options: call(*args, **options))


@pytest.mark.parametrize("left_out", ["store", "load"])
def test_the_checker_finds_each_wait_that_is_left_out(
    provokes: str, mode: StandinMode, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_after(monkeypatch, kvtile.Cache, left_out)
    model, inputs = moved(llama()), here(prompt(1, 60))
    with PrefixCache(model, **SMALL) as cache:
        for _ in range(2):
            cache.generate(model, inputs, **GREEDY)


def test_the_stream_waits_for_each_layer_of_a_load_and_no_thread_does(
    mode: StandinMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = moved(llama()), here(prompt(1, 60))
    calls: list[Any] = []
    wait_layer_on = kvtile.Completion.wait_layer_on

    def record(load: Any, stream: Any, layer: int) -> bool:
        calls.append((stream, layer))
        return wait_layer_on(load, stream, layer)

    with PrefixCache(model, **SMALL) as cache:
        cache.generate(model, inputs, **GREEDY)
        monkeypatch.setattr(kvtile.Completion, "wait_layer_on", record)
        monkeypatch.setattr(kvtile.Completion, "wait", lambda load: calls.append("wait"))
        assert cache.prefill(inputs).get_seq_length() == 56
        assert calls == [(mode.stream, layer) for layer in range(3)]
        monkeypatch.undo()


def test_the_checker_finds_a_wait_of_groups_that_is_left_out(
    provokes: str, mode: StandinMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopTiers, "_wait_for_the_model", lambda self: None)
    model, inputs = moved(hybrids.model("gemma3_text")), here(prompt(1, 57))
    with PrefixCache(model, **SMALL) as cache:
        for _ in range(2):
            cache.generate(model, inputs, **GREEDY)


def test_a_damaged_block_reaches_no_tensor_and_is_computed(mode: StandinMode, tmp_path: Path) -> None:
    settings = {**SMALL, "disk": tmp_path / "kv", "disk_gib": 0.05}
    model, inputs = moved(llama()), prompt(5, 50)
    wanted = llama().generate(inputs, **GREEDY)
    with PrefixCache(model, **settings) as cache:
        cache.generate(model, here(inputs), **GREEDY)
    for slots in (tmp_path / "kv").glob("slots*"):
        slots.write_bytes(bytes(byte ^ 1 for byte in slots.read_bytes()))
    with PrefixCache(model, **settings) as cache:
        assert cache.prefill(here(inputs)).get_seq_length() == 0
        # The tensors into which they would have been loaded are as the model made them.
        pool = list(mode.storages.values())[-1].memory
        mode.stream.synchronize()
        assert driver().read(pool.address, pool.size) == bytes(pool.size)
        assert torch.equal(cache.generate(model, here(inputs), **GREEDY).cpu(), wanted)


def test_models_and_caches_elsewhere_are_refused(mode: StandinMode) -> None:
    model = llama()
    with PrefixCache(model, **SMALL) as cache:
        moved(model)
        with pytest.raises(kvtile.IdentityError, match="it was on cpu and is on cuda:0"):
            cache.prefill(here(prompt(1, 20)))
    half = llama()
    moved(half.model.layers[1])
    with pytest.raises(kvtile.TensorError, match=r"on several devices \(model.* on cpu, model.layers.1.* on cuda:0\)"):
        PrefixCache(half, **SMALL)
    with PrefixCache(model, **SMALL) as cache:
        inputs = prompt(1, 20)
        with torch.no_grad():
            past = llama()(inputs).past_key_values
        with pytest.raises(kvtile.RequestError, match=r"on cpu, and 1 prompts .* on cuda:0"):
            cache.save(inputs, inputs, past)
    with pytest.raises(kvtile.TensorError, match="is on meta, and kvtile uses CPU memory and memory of CUDA devices"):
        PrefixCache(llama().to("meta"), **SMALL)


ABSENT = """
import sys
sys.path.insert(0, {tests!r})
import torch, kvtile, standin_torch
from types import SimpleNamespace
from tiny import llama
from kvtile.transformers import PrefixCache
standin_torch.SharedStorage = lambda storage, stream: SimpleNamespace(memory=SimpleNamespace(address=1 << 20, size=storage.nbytes(), ordinal=0))
standin_torch.StandinMode.current = mode = standin_torch.StandinMode(None)
with mode:
    try:
        PrefixCache(standin_torch.moved(llama()), host_gib=0.02)
    except kvtile.DeviceError as error:
        print(error)
"""


def test_without_a_driver_one_sentence_refuses_the_model() -> None:
    script = ABSENT.format(tests=str(Path(__file__).parent))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    [sentence] = ended.stdout.splitlines()
    assert "libcuda.so.1" in sentence
