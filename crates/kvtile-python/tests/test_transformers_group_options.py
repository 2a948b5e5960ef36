"""With every option of generate, models with windows or states give the tokens that they give alone, missed and hit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import hybrids  # noqa: E402
from test_transformers_options import BATCHES, COMPUTED, OPTIONS, SAMPLE, TOKENS, Streamer, result, same  # noqa: E402
from tiny import GREEDY, llama, padded, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402

SETTINGS: dict[str, Any] = {"host_gib": 0.05, "page_size": 8}
# A window alone for all options; for what reads or replaces the cache object also the other ways to keep a past: pages
# alone, states beside full attention, both in one layer, states alone.
ALL, SOME = "gemma3_text", ["deepseek_v3", "qwen3_next", "inkling_text", "mamba2"]
DECODING: dict[str, tuple[dict[str, Any], bool]] = {
    "one token": ({"max_new_tokens": 1}, True),
    "sampling": (SAMPLE, True),
    "streamer": ({"streamer": Streamer}, True),
    "beam search": ({"num_beams": 3}, False),
    "several answers": ({"num_return_sequences": 2, **SAMPLE}, False),
    "assisted decoding": ({"assistant_model": llama}, False),
    "drafts from the prompt": ({"prompt_lookup_num_tokens": 3}, False),
    "no cache": ({"use_cache": False}, False),
}
SIZES: dict[str, tuple[Any, bool]] = {
    "shorter than a page": (prompt(1, 5), False),
    # Its last token is computed, so nothing of one page is used.
    "exactly a page": (prompt(2, 8), False),
    "one token more than a page": (prompt(3, 9), True),
    "exactly two pages": (prompt(4, 16), True),
    "a batch": (torch.cat([prompt(5, 24), prompt(6, 24)]), True),
    "left padding": (padded([prompt(7, 33)[0].tolist(), prompt(8, 18)[0].tolist(), prompt(9, 2)[0].tolist()]), True),
}


class Asked:
    """One model and one cache for many requests."""

    def __init__(self, kind: str) -> None:
        self.model = hybrids.model(kind)
        self.cache = PrefixCache(self.model, **SETTINGS)

    def check(self, inputs: dict[str, Any], options: dict[str, Any], cached: bool | None, times: int = 2) -> None:
        """Each answer is that of the model alone, and the last one continues from a stop where it can be cached."""
        wanted = result(lambda named, made: self.model.generate(**named, **made), inputs, options)
        for _ in range(times):
            before = self.cache.stats()["loaded_tokens"]
            same(result(lambda named, made: self.cache.generate(self.model, named, **made), inputs, options), wanted)
        assert (self.cache.stats()["loaded_tokens"] > before) == cached


@pytest.fixture(scope="module")
def asked() -> Iterator[dict[str, Asked]]:
    found: dict[str, Asked] = {kind: Asked(kind) for kind in [ALL, *SOME]}
    yield found
    for one in found.values():
        one.cache.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*OPTIONS, *COMPUTED])
def test_with_every_option(name: str, asked: dict[str, Asked], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "kvtile.transformers")
    inputs = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    if name == "inputs_embeds":
        inputs = {"input_ids": TOKENS[:, :0]}
    if name == "inputs":
        inputs = {"inputs": TOKENS}
    asked[ALL].check(inputs, OPTIONS[name] if name in OPTIONS else COMPUTED[name], name in OPTIONS)
    assert not [record for record in caplog.records if "not kept" in record.getMessage()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in BATCHES if name not in ("400 rows", "until the positions end")])
def test_with_every_batch(name: str, asked: dict[str, Asked]) -> None:
    batch, cached = BATCHES[name]
    inputs = {key: value for key, value in batch.items() if value is not None}
    for options in ({}, {"eos_token_id": list(range(1, 40))}):
        asked[ALL].check(inputs, options, cached)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOME)
def test_with_every_way_to_decode_and_every_size(kind: str, asked: dict[str, Asked]) -> None:
    for options, cached in DECODING.values():
        asked[kind].check({"input_ids": TOKENS}, options, cached)
    for inputs, cached in SIZES.values():
        asked[kind].check(inputs if isinstance(inputs, dict) else {"input_ids": inputs}, GREEDY, cached)
