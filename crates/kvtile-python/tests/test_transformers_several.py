"""Models with windows, chunks, states and latents continue from kept stops as from the live cache, bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hybrids  # noqa: E402
from tiny import GREEDY, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402
from kvtile.transformers._kinds import forward, new_cache  # noqa: E402

PAGE = 8
PROMPT = 57  # the last stop before its last token is 56
SMALL = {"page_size": PAGE, "host_gib": 0.02, "disk_gib": 0.02}


def steps(model: Any, past: Any, tokens: list[int], more: int = 4) -> list[Any]:
    """The logits of the rest of a prompt and of some greedy tokens."""
    found = []
    with torch.no_grad():
        for _ in range(more):
            rest = torch.tensor([tokens[past.get_seq_length() :]])
            found.append(model(input_ids=rest, past_key_values=past, use_cache=True).logits[0, -1])
            tokens = [*tokens, int(found[-1].argmax())]
    return found


def same(left: list[Any], right: list[Any]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", hybrids.KINDS)
def test_a_kept_stop_continues_as_the_live_cache(kind: str, tmp_path: Path) -> None:
    model, inputs, disk = hybrids.model(kind), prompt(1, PROMPT), tmp_path / "kv"
    tokens = inputs[0].tolist()
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        past = cache.prefill(inputs)
        computed = past.get_seq_length()
        live = steps(model, past, tokens)
        answer = cache.generate(model, inputs, **GREEDY)
        before = cache.stats()["found_tokens"]
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 56 and cache.stats()["found_tokens"] - before == 56
        # A model whose every page's end is a stop computed the whole prompt at once.
        assert computed == 0 or same(steps(model, past, tokens), live)
        assert torch.equal(cache.generate(model, inputs, **GREEDY), answer)
        # The answer ends at 69 tokens, so its last stop is 64: the live cache came there token by token.
        longer = [*answer[0].tolist(), *prompt(2, 10)[0].tolist()]
        by_hand = cache.prefill(inputs) if computed else new_cache(model)
        for begin, end in [(computed, 57), *((at, at + 1) for at in range(57, 64))]:
            forward(model, longer[begin:end], by_hand)
        if computed:
            forward(model, longer[64:72], by_hand)
        found = cache.prefill(torch.tensor([longer]))
        assert cache.stats()["found_tokens"] - before >= 56 + 64
        assert same(steps(model, found, longer), steps(model, by_hand, longer))
    copy = tmp_path / "copy"
    shutil.copytree(disk, copy)
    with PrefixCache(model, disk=disk, **SMALL) as cache:
        past = cache.prefill(inputs)
        assert past.get_seq_length() == 56 and cache.stats()["found_tokens"] == 56
        assert computed == 0 or same(steps(model, past, tokens), live)
    for part in sorted(copy.iterdir()):
        broken = tmp_path / part.name
        shutil.copytree(copy, broken)
        slots = bytearray((broken / part.name / "slots").read_bytes())
        slots[:] = bytes(byte ^ 1 for byte in slots)
        (broken / part.name / "slots").write_bytes(slots)
        with PrefixCache(model, disk=broken, **SMALL) as cache:
            past = cache.prefill(inputs)
            assert cache.stats()["found_tokens"] == 0 and cache.stats()["lost"] > 0
            assert past.get_seq_length() == computed and same(steps(model, past, tokens), live)
