"""The daemon's page in a browser: its figures are those of ``/stats.json``, it fits a phone, and it stays live."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, Browser
from test_cache import PAGE, Engine, tokens
from test_daemon import Daemon, connected

BLOCKS = 8
# The blocks of one value of the shared folder.
BUNDLE = 64
WIDTHS = {"phone": (360, 780), "desktop": (1280, 900)}
# The last panel is drawn, so the page shows all numbers of one answer.
DRAWN = "document.querySelectorAll('article .tile b').length === 4"

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="Chromium is not installed: `apt-get install --no-install-recommends chromium` has it"
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon with a disk and a shared folder, and the address of its page."""
    # An address that a phone has no room for in one line.
    shared = tmp_path / ("a-shared-folder-with-a-long-name" * 4)
    more = ["--shared", str(shared), "--http", "127.0.0.1:0"]
    daemon = Daemon(tmp_path, more=more)
    assert daemon.process.stdout is not None
    try:
        line = next(line for line in daemon.process.stdout if line.startswith("numbers at "))
        yield daemon, line.split()[-1]
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "stats.json", timeout=60) as response:
        page: dict[str, Any] = json.loads(response.read())
        return page


def in_units(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.{0 if unit == 'B' or number >= 100 else 1 if number >= 10 else 2}f} {unit}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def expected(cache: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a cache, from the JSON."""
    numbers, size = cache["stats"], cache["block_bytes"]
    looked, hits = numbers["lookup_blocks"], numbers["hits"]
    rows = [(f"hit: {tier}", blocks) for tier, blocks in hits.items()]
    rows += [(f"miss: {why.replace('_', ' ')}", blocks) for why, blocks in numbers["misses"].items()]
    present = {tier["tier"]: (tier["present"], tier["capacity"]) for tier in cache["tiers"]}
    stores = [tier["shared"] for tier in cache["tiers"] if tier["shared"]]
    return {
        "tiles": {
            "block hits": share(sum(hits.values()), looked),
            "lookups": f"{numbers['lookups']:,}",
            "blocks looked up": f"{looked:,}",
            "bytes moved": in_units(sum(route["bytes"] for route in numbers["moves"])),
        },
        "tiers": {
            tier: f"{blocks:,} of {capacity:,} blocks · {in_units(blocks * size)} of {in_units(capacity * size)}"
            if capacity else f"{blocks:,} blocks · {in_units(blocks * size)}"
            for tier, (blocks, capacity) in present.items()
        },
        "hits": {name: [f"{blocks:,}", share(blocks, looked)] for name, blocks in rows},
        "queues": {
            queue["queue"]: [f"{queue['depth']:,} of {queue['capacity']:,}", f"{queue['offered']:,}", f"{queue['refused']:,}"]
            for queue in numbers["queues"]
        },
        "stores": [
            {
                name.replace("_", " "): in_units(number) if "bytes" in name else f"{number:,}"
                for name, number in store["counters"].items() if number
            }
            for store in stores
        ],
    }


READ = """(() => {
  const texts = (element, selector) => [...element.querySelectorAll(selector)].map(one => one.innerText.trim());
  const panel = start => [...document.querySelectorAll("article section")].filter(
    one => one.querySelector("h3").innerText.startsWith(start));
  const table = element => Object.fromEntries([...element.querySelectorAll("tbody tr")].map(
    row => [row.querySelector("th").innerText.trim(), texts(row, "td")]));
  const tiles = [...document.querySelectorAll(".tile")].map(tile => [texts(tile, "span")[0], texts(tile, "b")[0]]);
  const rows = [...panel("What is where")[0].querySelectorAll(".line")].map(line => [...line.children]);
  return {
    tiles: Object.fromEntries(tiles),
    tiers: Object.fromEntries(rows.map(row => [row[0].innerText.split(/\\s/)[0], row[1].innerText.trim()])),
    hits: table(panel("Hits and misses")[0]),
    queues: table(panel("Queues")[0]),
    stores: panel("Store of").map(table),
  };
})()"""


def shown(browser: Browser) -> dict[str, Any]:
    page: dict[str, Any] = browser.value(READ)
    # The last column is of the last minute, which the JSON does not have.
    page["hits"] = {name: row[:2] for name, row in page["hits"].items()}
    page["stores"] = [{name: row[0] for name, row in store.items()} for store in page["stores"]]
    return page


def settled(browser: Browser, url: str) -> dict[str, Any]:
    """The page's figures at a moment when the daemon's do not change."""
    while True:
        before = stats(url)["caches"]
        browser.wait_for(DRAWN)
        # The page shows an answer that is younger than `before` from its second refresh on.
        for _ in range(2):
            serving = browser.value("document.getElementById('state').innerText")
            browser.wait_for(f"document.getElementById('state').innerText !== {json.dumps(serving)}")
        page = shown(browser)
        if stats(url)["caches"] == before:
            [cache] = before
            assert page == expected(cache)
            return page


def test_the_page_shows_the_numbers_of_the_daemon_at_every_width(
    served: tuple[Daemon, str], browser: Browser, tmp_path: Path
) -> None:
    daemon, url = served
    engine = Engine()
    keys = engine.hasher.keys(tokens(BUNDLE * PAGE, 0))
    for block in range(BLOCKS):
        engine.compute(block, block)
    with connected(engine, daemon) as cache:
        for start in range(0, BUNDLE, BLOCKS):
            stored = cache.store(keys[: start + BLOCKS], range(BLOCKS), first=start).wait(30)
            assert stored.stored == BLOCKS
        cache.flush()
        cache.lookup(keys).release()
        cache.seek(engine.hasher.keys(tokens(2 * BUNDLE * PAGE, 7)), 20.0).wait().release()
        browser.open(url)
        lookups = set()
        for name, (width, height) in WIDTHS.items():
            browser.resize(width, height, phone=name == "phone")
            page = settled(browser, url)
            lookups.add(page["tiles"]["lookups"])
            assert page["hits"]["hit: host"][0] != "0" and any(name.startswith("miss: ") for name in page["hits"])
            assert page["stores"][0]["written"] == "1" and "written bytes" in page["stores"][0], page
            inside, outside = browser.value("[document.documentElement.scrollWidth, innerWidth]")
            assert inside <= outside == width, (name, inside, outside)
            # A test that is looked at: the variable names a folder.
            if folder := os.environ.get("KVTILE_PICTURES"):
                browser.picture(Path(folder) / f"{name}.png")
            # The open page shows new numbers by itself.
            cache.lookup(keys).release()
        assert settled(browser, url)["tiles"]["lookups"] not in lookups and len(lookups) == 2
        assert browser.errors == []
    daemon.stop()
    browser.wait_for("document.getElementById('state').className === 'bad'")
    assert re.match(r"no answer for .*: the numbers below are old", browser.value("document.getElementById('state').innerText"))
