"""What caches do, over HTTP."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import kvtile

SHAPE = kvtile.Shape(num_blocks=8, num_layers=2, page_size=4, num_heads=2, head_size=16, dtype="float32")
IDENTITY = kvtile.Identity("a/model", "1", SHAPE, rope={"rope_theta": 1e4})
KEYS = kvtile.TokenHasher(IDENTITY).keys(range(16))


def opened() -> kvtile.Cache:
    layout = kvtile.Layout("BLKNHC", shape=SHAPE, tensors=np.zeros(SHAPE.block_bytes * 8 // 4, "float32"))
    return kvtile.Cache(IDENTITY, layout, host_bytes=1 << 20)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


def test_the_pages_have_the_numbers_of_the_caches(tmp_path: Path) -> None:
    group = kvtile.StoreGroup.opaque("kv", 4096, model="a/model", revision="1")
    with opened() as cache, kvtile.BlockStore(group, disk=tmp_path / "store", disk_bytes=1 << 20) as store:
        cache.store(KEYS, [0, 1, 2, 3]).wait()
        cache.lookup(KEYS).release()
        with kvtile.serve_http({"engine": cache, "rows": store}) as server:
            page = json.loads(get(server.url + "stats.json"))
            assert [one["name"] for one in page["caches"]] == ["engine", "rows"]
            engine, rows = page["caches"]
            counters = cache.stats()
            assert engine["stats"] == {name: counters[name] for name in engine["stats"]}
            assert engine["identities"][0]["model"] == "a/model" and engine["block_bytes"] == SHAPE.block_bytes
            assert [tier["tier"] for tier in rows["tiers"]] == ["disk"]
            metrics = get(server.url + "metrics")
            assert 'kvtile_lookup_hit_blocks_total{cache="engine",tier="host"} 4\n' in metrics
            assert "<title>kvtile" in get(server.url) and get(server.url + "healthz") == "ok\n"
            assert not server.closed and server.url in repr(server)
        assert server.closed
        with pytest.raises(urllib.error.URLError):
            get(server.url)
        server.close()


def test_a_server_does_not_keep_a_cache_open() -> None:
    cache = opened()
    with kvtile.serve_http(cache) as server:
        assert len(json.loads(get(server.url + "stats.json"))["caches"]) == 1
        cache.close()
        # The numbers of one moment serve for a tenth of a second.
        while json.loads(get(server.url + "stats.json"))["caches"]:
            pass
        other = opened()
        with kvtile.serve_http(other) as second:
            del other
            while json.loads(get(second.url + "stats.json"))["caches"]:
                pass


def test_addresses_are_checked() -> None:
    with opened() as cache:
        for address in ("", "localhost", ":80", "65536", "http://127.0.0.1:1"):
            with pytest.raises(kvtile.SettingsError, match="127.0.0.1:PORT"):
                kvtile.serve_http(cache, address)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(kvtile.HttpServerError, match=re.escape(f"127.0.0.1:{port}")):
                kvtile.serve_http(cache, f"127.0.0.1:{port}")
        for caches in (None, 1, {"a": 1}, [cache]):
            with pytest.raises(kvtile.ArgumentError):
                kvtile.serve_http(caches)  # type: ignore[arg-type]
