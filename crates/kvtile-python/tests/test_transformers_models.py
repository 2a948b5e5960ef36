"""Every plain model type as a small random model: the answers are the same, or opening refuses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hf_tiny import tiny_config, tiny_model  # noqa: E402
from tiny import GREEDY, padded, prompt  # noqa: E402

import kvtile._hf  # noqa: E402
from kvtile.transformers import PrefixCache  # noqa: E402

TYPES = json.loads((Path(kvtile._hf.__file__).parent / "models.json").read_text())["models"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_of_each_type_gives_the_same_answers_or_is_refused(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type))
    if not model.can_generate():
        with pytest.raises(kvtile.IdentityError, match="cannot generate"):
            PrefixCache(model, host_gib=0.05)
        return
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [0]
    model.generation_config.use_cache = True
    rows = [(prompt(seed, length) % 127 + 1)[0].tolist() for seed, length in ((1, 40), (2, 29))]
    with PrefixCache(model, host_gib=0.05, page_size=8) as cache:
        assert all(name.startswith("config.") for name in cache.identity.extra), "the model equals its config"
        for inputs in ({"input_ids": torch.tensor(rows[:1])}, padded(rows)):
            wanted = model.generate(**inputs, **GREEDY)
            for _ in range(3):
                assert torch.equal(cache.generate(model, inputs, **GREEDY), wanted)
        assert cache.stats()["hits"]["host"] >= 20
