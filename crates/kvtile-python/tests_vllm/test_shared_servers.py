"""Two engines with private folders share a bucket or a Valkey server that runs: the first request of the second one hits. A
store that is slow is left out, and one that stops costs a bounded wait."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import servers
from helpers import run, told
from test_shared import SHARED, model, prompts, settings

__all__ = ["model"]

pytestmark = pytest.mark.skipif(
    servers.SERVERS is None, reason="KVTILE_SERVERS names no environment with servers: `cargo x test-sharing` installs one"
)


@pytest.mark.parametrize("kind", [servers.bucket, servers.valkey], ids=["bucket", "valkey"])
def test_the_first_request_of_a_second_engine_hits(kind: object, model: Path, tmp_path: Path) -> None:
    turn = {"prompts": prompts()}
    with kind(tmp_path / "server") as server:  # type: ignore[operator]
        options = {"model": str(model), "environment": servers.CREDENTIALS}
        first = run(told([turn], kvtile=settings(tmp_path / "one", shared=server.url, **SHARED), **options))
        # The first engine has computed all of them, so these are the right tokens.
        expected, counts = first["rounds"][0]["tokens"], first["rounds"][0]["kvtile"]
        assert counts["vllm:kvtile_from_shared_blocks"] == 0 and not any(first["rounds"][0]["cached"]), counts
        # The server stops before the third round, and runs on before the fourth, which repeats prompts that the private tiers
        # have by then.
        new = [[token + 1 for token in prompt] for prompt in turn["prompts"]]
        stop, resume = ([[server.process.pid, int(number)]] for number in (signal.SIGSTOP, signal.SIGCONT))
        rounds = [turn, turn, {"prompts": new, "signals": stop}, {"prompts": new, "signals": resume}]
        short = {**SHARED, "shared_within": 4.0}
        second = run(told(rounds, kvtile=settings(tmp_path / "two", shared=server.url, **short), **options))
        assert first["ended"]["directory"] and second["ended"]["directory"]
        hit, again, stopped, repeated = second["rounds"]
        assert hit["tokens"] == again["tokens"] == expected
        counts = hit["kvtile"]
        assert counts["vllm:kvtile_from_shared_blocks"] >= 16 and counts["vllm:kvtile_failed_blocks"] == 0, counts
        assert sum(hit["cached"]) >= 16 * 32
        # Requests query the store, wait at most for `shared_within`, and are computed. The answer of a query that ends by its
        # deadline and the end of the wait come at the same moment, so `seeks_late` counts some of them or none.
        before, after = again["kvtile"], stopped["kvtile"]
        assert after["vllm:kvtile_seeks"] == before["vllm:kvtile_seeks"] + len(new), (before, after)
        assert after["vllm:kvtile_from_shared_blocks"] == before["vllm:kvtile_from_shared_blocks"]
        assert stopped["seconds"] < 60, stopped
        assert not any(stopped["cached"]) and repeated["tokens"] == stopped["tokens"]
        assert sum(repeated["cached"]) >= 16 * 32 and repeated["kvtile"]["vllm:kvtile_failed_blocks"] == 0
