"""A model whose stops get lost, and the logits that it must give in spite of it.

They are those of the live cache object that takes the same steps.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hybrids
import torch
from tiny import GREEDY, prompt

from kvtile.transformers import PrefixCache
from kvtile.transformers._kinds import cache_name, computes_by_token, forward, new_cache
from kvtile.transformers._prompts import prompts_of

PAGE, EVERY = 8, 16
PROMPT = 57
# Types whose cache objects have the layers of those of another type here. They are tried where the variable is set.
_ALIKE = {"gemma2", "cohere2", "olmo3", "qwen3_5_text", "olmo_hybrid", "granitemoehybrid", "mamba"}
KINDS = [kind for kind in hybrids.KINDS if os.environ.get("KVTILE_EVERY_TYPE") or kind not in _ALIKE]
# Children are forked from a process that has torch and the models, and that has not used kvtile.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["transformers_losses_models"])
STOPS = [16, 32, 48, 56]
# Not where a prompt leaves those known, which would be computed in other pieces.
MEMORY: dict[str, Any] = {"page_size": PAGE, "every": EVERY, "stops": ("prompt", "answer"), "host_gib": 0.004}
SETTINGS: dict[str, Any] = {**MEMORY, "disk_gib": 0.002}


@functools.cache
def model_of(kind: str) -> Any:
    """A model of this type."""
    return hybrids.model(kind)


class Lossy:
    """A model of one type, one prompt, and what has to follow.

    Attributes:
        groups: their names, in the order of their files.
        records: whether stops have records; without them every page's end is a stop.
    """

    def __init__(self, kind: str) -> None:
        self.model = model_of(kind)
        self.inputs = prompt(1, PROMPT)
        self.tokens = self.inputs[0].tolist()
        with PrefixCache(self.model, **MEMORY) as cache:
            self.groups = sorted(cache.identity.groups)
            self.contents, self.hasher = cache._kept._contents, cache._kept.hasher
        self.records = "stops" in self.groups
        self._wanted: dict[int, list[Any]] = {}

    @functools.cached_property
    def answer(self) -> Any:
        """The tokens of ``generate`` without kvtile."""
        return self.model.generate(self.inputs, **GREEDY)

    def past(self) -> Iterator[tuple[int, Any]]:
        """A live cache object at each of the stops, computed in the steps in which ``PrefixCache`` computes."""
        past = new_cache(self.model)
        if not self.records:
            forward(self.model, self.tokens, past)
        for begin, end in itertools.pairwise([0, *STOPS]):
            if self.records:
                self._compute(past, begin, end)
            yield end, past

    def _compute(self, past: Any, begin: int, end: int) -> None:
        by_token = computes_by_token(self.model) and begin > 0
        for at in range(begin, end) if by_token else [begin]:
            forward(self.model, self.tokens[at : at + 1] if by_token else self.tokens[begin:end], past)

    def wanted(self, stop: int) -> list[Any]:
        """The logits after a stop."""
        if self.records:
            # All stops are on the way of one live cache object.
            assert stop in (0, *STOPS)
            stop = STOPS[-1]
        if stop not in self._wanted:
            past = new_cache(self.model)
            if stop:
                *_, (_, past) = self.past()
                if not self.records:
                    past.crop(stop)
            self._wanted[stop] = self._continued(past, stop)
        return self._wanted[stop]

    def _continued(self, past: Any, done: int, more: int = 4) -> list[Any]:
        tokens, found = list(self.tokens), []
        with torch.no_grad():
            for _ in range(more):
                given = {"input_ids": torch.tensor([tokens[done:]]), cache_name(self.model): past, "use_cache": True}
                found.append(self.model(**given).logits[0, -1])
                done = len(tokens)
                tokens.append(int(found[-1].argmax()))
        return found

    def fill(self, cache: PrefixCache) -> None:
        """Computes and keeps the prompt and an answer."""
        assert torch.equal(cache.generate(self.model, self.inputs, **GREEDY), self.answer)

    def resumed(self, cache: PrefixCache) -> int:
        """The stop from which the prompt continues now. Checks that the logits are those of the live cache object."""
        before = cache.stats()["loaded_tokens"]
        past = cache._kept.begin(self.model, prompts_of(self.inputs))
        stop = cache.stats()["loaded_tokens"] - before
        found = self._continued(past, past.get_seq_length())
        pairs = list(zip(found, self.wanted(stop), strict=True))
        assert len(pairs) == 4 and all(torch.equal(*pair) for pair in pairs), f"wrong after {stop} tokens"
        return stop

    def again(self, cache: PrefixCache) -> None:
        """What was computed again is kept again."""
        if self.records:
            assert self.resumed(cache) == 56
            return
        # Pages that were computed in other pieces differ in the last bits.
        for _ in range(2):
            before = cache.stats()["loaded_tokens"]
            self.fill(cache)
        assert cache.stats()["loaded_tokens"] - before == 56

    def places(self) -> dict[str, tuple[str, int, bytes]]:
        """For a tensor of each kind: its group, the longest stop without it, and bytes of it that are nowhere else."""
        found: dict[str, tuple[str, int, bytes]] = {}
        *_, (stop, past) = self.past()
        for at, pages in enumerate(self.contents.pages):
            halves = pages.of(past, stop)
            entries = PAGE // pages.every
            # The last layer's page of the tokens from 32 to 40.
            page = halves[-1][0, 4 * entries : 5 * entries]
            found[f"page {at}"] = (f"pages{at or ''}", 32, page.contiguous().view(torch.uint8).numpy().tobytes())
        if self.records:
            record = self.contents.record(past, stop)
            for begin, part in self.contents._record:
                view = self.contents._view(record, begin, part, stop).contiguous().view(torch.uint8)
                data = view.numpy().tobytes()
                if any(data):
                    found[f"{part.place.rule} of a record"] = ("stops", 48, data)
        return found


def without_warnings(kind: str) -> Lossy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Lossy(kind)


def flip_one_bit(folder: Path, group: int, data: bytes) -> None:
    """Flips one bit in the middle of data in the file of a group."""
    file = folder / (f"slots-{group}" if group else "slots")
    before = file.read_bytes()
    assert before.count(data) == 1
    at = before.index(data) + len(data) // 2
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes([before[at] ^ 4]))


class SomeGroups:
    """Stores the pages of some groups alone, as a process leaves them that dies before it writes the other groups."""

    def __init__(self, cache: Any, names: list[str]) -> None:
        self._cache, self._names = cache, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def store(self, keys: list[bytes], blocks: Any, *, stop: int, layouts: Any) -> Any:
        some = {name: blocks[name] for name in self._names if name in blocks}
        of_some = {name: layouts[name] for name in some}
        return self._cache.store(keys, some, stop=stop, layouts=of_some)


def cuts(groups: list[str]) -> dict[str, list[str]]:
    """What may be there of a stop when a process dies between the groups: each group alone, and all but each."""
    found = {f"only {name}": [name] for name in groups if len(groups) > 1}
    found |= {f"without {name}": [other for other in groups if other != name] for name in groups}
    return found


def write_and_die(kind: str, folder: Path) -> None:
    """In a process of its own: in a folder for each cut the stop at 16 and a part of that at 32; in one more all stops,
    without waiting for the disk."""
    lossy, kept = without_warnings(kind), []
    for name, written in cuts(lossy.groups).items():
        cache = PrefixCache(lossy.model, disk=folder / name, **SETTINGS)
        tiers = cache._kept._tiers
        whole = tiers.cache
        for stop, past in lossy.past():
            if stop > 32:
                break
            if stop == 32:
                tiers.cache = SomeGroups(whole, written)
            keys = lossy.hasher.keys(lossy.tokens[:stop])
            tiers.store(keys, past, lossy.contents.record(past, stop) if lossy.records else None)
        whole.flush()
        kept.append(cache)
    cache = PrefixCache(lossy.model, disk=folder / "at once", **SETTINGS)
    lossy.fill(cache)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(kind: str, folder: Path, seconds: float = 120) -> None:
    """Runs ``write_and_die`` in a process of its own."""
    child = PROCESSES.Process(target=write_and_die, args=(kind, folder))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError("the process that writes does not end")
    assert child.exitcode == -signal.SIGKILL, child.exitcode
