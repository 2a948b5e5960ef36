"""The measurements and their summary."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any


class WrongTokensError(Exception):
    """Two answers to one prompt differ. The source of the KV must never change an answer."""


class NotLoadedError(Exception):
    """A tier did not have a prompt that it was measured with."""


@dataclass(frozen=True)
class Way:
    """One source of a prompt's KV: the engine that answers, and the state of its caches."""

    engine: str
    state: str
    title: str
    # The baseline of the ratio, in the same round.
    against: tuple[str, str]
    # Source of the prefix: computed, vLLM's own cache, host memory, disk, files of the ExampleConnector.
    source: str


OWN = ("none", "again")
COLD = ("none", "cold")
COMPUTED = ("none", "restarted")
WAYS = (
    Way("none", "cold", "no connector", COLD, "computed"),
    Way("kvtile", "cold", "kvtile, storing it", COLD, "computed"),
    Way("example", "cold", "ExampleConnector, storing it", COLD, "computed"),
    Way("none", "again", "vLLM's own cache", OWN, "own"),
    Way("kvtile", "forgotten", "kvtile, host memory", OWN, "host"),
    Way("example", "forgotten", "ExampleConnector, files", OWN, "files"),
    Way("kvtile", "restarted", "kvtile, disk after a restart", ("kvtile", "again"), "disk"),
    Way("fs tier", "cold", "vLLM's fs tier, storing it", COLD, "computed"),
    Way("kvtile tier", "cold", "kvtile's tier, storing it", COLD, "computed"),
    Way("none", "restarted", "restarted, no tier", COMPUTED, "computed"),
    Way("fs tier", "restarted", "restarted, vLLM's fs tier", COMPUTED, "files"),
    Way("kvtile tier", "restarted", "restarted, kvtile's tier", COMPUTED, "disk"),
)
# Tokens of a prompt that vLLM may compute although they are stored: the last block, of which it needs a token.
LAST_BLOCK = 128


@dataclass
class Row:
    """The medians of a way over the rounds."""

    way: Way
    seconds: float
    low_seconds: float
    high_seconds: float
    ratio: float
    tokens_per_second: float | None
    cached_tokens: int
    from_host_blocks: int
    from_disk_blocks: int


@dataclass
class Results:
    """All answers, with the machine, the versions and the sizes."""

    machine: str
    versions: dict[str, str]
    told: dict[str, int]
    answers: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """All answers and the metadata."""
        return asdict(self)

    def check(self) -> None:
        """Checks that all answers to a prompt have the same tokens."""
        expected: dict[int, list[int]] = {}
        for answer in self.answers:
            tokens = expected.setdefault(answer["round"], answer["tokens"])
            if answer["tokens"] != tokens:
                raise WrongTokensError(
                    f"prompt {answer['round']} got {answer['tokens']} from {answer['engine']} ({answer['state']}) "
                    f"and {tokens} before"
                )
            if answer["engine"].endswith("tier") and answer["state"] == "restarted":
                missing = answer["prompt_tokens"] - answer["cached_tokens"]
                if missing > LAST_BLOCK:
                    raise NotLoadedError(f"{answer['engine']} loaded all but {missing} tokens of prompt {answer['round']}")

    def tiers_ratio(self) -> float | None:
        """The time of kvtile's tier over that of vLLM's own, the median of the prompts."""
        ours, theirs = (self.of(name, "restarted", restarted=True) for name in ("kvtile tier", "fs tier"))
        ratios = [ours[at]["first_token_seconds"] / theirs[at]["first_token_seconds"] for at in ours if at in theirs]
        return statistics.median(ratios) if ratios else None

    def of(self, engine: str, state: str, *, restarted: bool) -> dict[int, dict[str, Any]]:
        """The answers of one way in one of the two processes, by round."""
        first_of_second = next(
            (at for at, answer in enumerate(self.answers) if answer["state"] == "restarted"), len(self.answers)
        )
        part = self.answers[first_of_second:] if restarted else self.answers[:first_of_second]
        return {answer["round"]: answer for answer in part if (answer["engine"], answer["state"]) == (engine, state)}

    def rows(self) -> list[Row]:
        """One row per way."""
        return [self._row(way) for way in WAYS if self.of(way.engine, way.state, restarted=way.state == "restarted")]

    def _row(self, way: Way) -> Row:
        restarted = way.state == "restarted"
        answers = self.of(way.engine, way.state, restarted=restarted)
        against = self.of(*way.against, restarted=restarted)
        seconds = [answer["first_token_seconds"] for answer in answers.values()]
        ratios = [answer["first_token_seconds"] / against[at]["first_token_seconds"] for at, answer in answers.items()]
        rates = [answer["tokens_per_second"] for answer in answers.values() if answer["tokens_per_second"]]
        return Row(
            way,
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            statistics.median(ratios),
            statistics.median(rates) if rates else None,
            *(
                int(statistics.median(answer.get(name, 0) for answer in answers.values()))
                for name in ("cached_tokens", "from_host_blocks", "from_disk_blocks")
            ),
        )
