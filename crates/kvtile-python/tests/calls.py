"""All public callables of the package with valid arguments, for tests that make these invalid."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import kvtile

# Reports, events and similar objects have no constructor: only the library makes them.
MADE_BY_KVTILE = {
    "BlockOutcomes",
    "Completion",
    "Event",
    "FlushReport",
    "GroupLoadReport",
    "GroupMatch",
    "GroupSeek",
    "GroupStoreReport",
    "HttpServer",
    "LoadReport",
    "Match",
    "Plan",
    "Seek",
    "Snapshot",
    "StoreFlush",
    "StoreQuery",
    "StoreReport",
    "StoreRows",
    "Subscriber",
    "TransferReport",
}

# Methods that Python itself calls, with any arguments.
LEFT_TO_PYTHON = {"__reduce__", "_from_pickle", "__exit__", "__class_getitem__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}

SETTINGS = {
    "connect": None,
    "connect_staging_bytes": None,
    "connect_within": None,
    "host_bytes": 1 << 20,
    "prefault": False,
    "disk": None,
    "disk_bytes": 8 << 20,
    "disk_writes": "at_once",
    "disk_policy": "lru",
    "close_within": 5.0,
    "answer_within": 5.0,
    "shared": None,
    "shared_lifetime": 60.0,
    "shared_bundle_blocks": 2,
    "shared_compress": True,
    "shared_staging_bytes": 8 << 20,
    "shared_within": 5.0,
    "policy": "arc",
    "storage_word": "BHLKNC",
    "quotas": {1: 4},
    "workers": 0,
    "queue_capacity": 4,
    "recompute_tokens_per_second": 100.0,
    "event_capacity": 16,
}

STORE_SETTINGS = {
    "disk_bytes": 8 << 20,
    "disk_policy": "lru",
    "read_only": False,
    "close_within": 5.0,
    "answer_within": 5.0,
    "shared_lifetime": 60.0,
    "shared_bundle_blocks": 1,
    "shared_compress": True,
    "shared_staging_bytes": 8 << 20,
    "shared_within": 5.0,
    "staging_bytes": 1 << 20,
    "stage_within": 5.0,
    "workers": 1,
    "queue_capacity": 4,
    "event_capacity": 16,
}


@dataclass
class World:
    """An engine of 8 blocks of 64 KiB, and one object of every class over it."""

    folder: Path
    caches: list[kvtile.Cache] = field(default_factory=list)
    stores: list[kvtile.BlockStore] = field(default_factory=list)
    group_caches: list[kvtile.GroupCache] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape = kvtile.Shape(num_blocks=8, num_layers=2, page_size=4, num_heads=2, head_size=512, dtype="float32")
        size = self.shape.block_bytes * 8 // 4
        self.tensor = np.zeros(size, "float32")
        self.layout = kvtile.Layout("BLKNHC", shape=self.shape, tensors=self.tensor)
        self.other = kvtile.Layout("BHLKNC", shape=self.shape, tensors=np.zeros(size, "float32"))
        self.identity = kvtile.Identity("a/model", "1", self.shape, rope={"rope_theta": 1e4})
        self.model_group = kvtile.ModelGroup("window", self.shape, rule="window", tokens=128, layers=[1, 3])
        self.model = kvtile.ModelIdentity("a/model", "1", [self.model_group])
        self.hasher = kvtile.TokenHasher(self.identity)
        self.keys = self.hasher.keys(range(16))
        self.cache = self.open(workers=1)
        self.cache.store(self.keys, [0, 1, 2, 3]).wait()
        self.traces = 0
        self.group = kvtile.StoreGroup.opaque("kv", 65536, model="a/model", revision="1")
        self.store = self.open_store()
        self.groups = self.open_groups(workers=1)
        self.chain = self.groups.hasher().keys(range(16))
        self.groups.store(self.chain, {"full": [0, 1, 2, 3], "state": ([3], 3)}, stop=16).wait()

    def recorder(self) -> kvtile.TraceRecorder:
        self.traces += 1
        return kvtile.TraceRecorder(self.folder / f"trace-{self.traces}.jsonl", 4)

    def publisher(self) -> kvtile.EventPublisher:
        return kvtile.EventPublisher(self.cache, "tcp://127.0.0.1:0")

    def open(self, **settings: Any) -> kvtile.Cache:
        cache = kvtile.Cache(self.identity, self.layout, **{"host_bytes": 4 << 20, **settings})
        self.caches.append(cache)
        return cache

    def open_groups(self, **settings: Any) -> kvtile.GroupCache:
        shares = {"full": 1.0, "state": 1.0}
        cache = kvtile.GroupCache(**self.group_arguments(), **{"host_bytes": 4 << 20, "shares": shares, **settings})
        self.group_caches.append(cache)
        return cache

    def group_arguments(self) -> dict[str, Any]:
        groups = [kvtile.ModelGroup("full", self.shape), kvtile.ModelGroup("state", self.shape, rule="stop")]
        model = kvtile.ModelIdentity("a/model", "1", groups)
        return {"model": model, "layouts": {"full": self.layout, "state": self.other}}

    def open_store(self) -> kvtile.BlockStore:
        store = kvtile.BlockStore(self.group, **self.store_settings())
        self.stores.append(store)
        return store

    def rows(self) -> kvtile.StoreRows:
        return self.store.register(bytearray(8 * 65536))

    def store_settings(self) -> dict[str, Any]:
        folder = self.folder / f"store-{len(self.stores)}-{len(list(self.folder.iterdir()))}"
        return {**STORE_SETTINGS, "disk": str(folder), "shared": str(self.folder / "shared")}

    def group_settings(self) -> dict[str, Any]:
        folder = self.folder / f"groups-{len(list(self.folder.iterdir()))}"
        of_groups = {"disk": str(folder), "shares": {"full": 1.0}, "storage_words": {"full": "BHLKNC"}}
        of_groups["shared"] = str(self.folder / "shared")
        without = ("storage_word", "quotas")
        common = {name: value for name, value in SETTINGS.items() if not name.startswith(without)}
        return {**common, **of_groups, "host_bytes": 2 << 20}

    def settings(self) -> dict[str, Any]:
        number = len(self.caches)
        return {**SETTINGS, "disk": str(self.folder / f"disk-{number}"), "shared": str(self.folder / "shared")}

    def close(self) -> None:
        for opened in (*self.caches, *self.stores, *self.group_caches):
            opened.close()


Call = tuple[Callable[..., Any], dict[str, Any]]


def shape_settings() -> dict[str, Any]:
    counts = {"num_blocks": 8, "num_layers": 2, "page_size": 4, "num_heads": 2, "head_size": 8, "dtype": "float32"}
    shard = {"first_layer": 0, "total_layers": 2, "first_head": 0, "total_heads": 2, "replica": 0}
    return {**counts, **shard}


def config() -> dict[str, Any]:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "hidden_size": 32}
    rope = {"rope_theta": 1e4, "rope_scaling": None, "max_position_embeddings": 64}
    names = {"_name_or_path": "a", "_commit_hash": "1", "dtype": "float32", "model_type": "llama"}
    return {**sizes, **rope, **names, "num_key_value_heads": 2}


def calls(world: World) -> dict[str, Callable[[], Call]]:
    """By callable name, a function that makes the callable and its arguments anew."""
    w = world
    ranges = {"layers": (0, 1), "tokens": (0, 2), "heads": ((0, 1), (1, 2))}
    copy = {"src": w.layout, "dst": w.other, "src_blocks": [0], "dst_blocks": [1], **ranges, "verify": False, "after": None}
    names: list[bytes | str] = [b"a", "b"]
    chain = {"parents": [None, b"a"], "positions": [0, 1], "tenant": 1}
    hints = {"lifetime": 5.0, "output_tokens": 0, "partial_tail": False}

    def sequence() -> kvtile.TokenSequence:
        return kvtile.TokenSequence(w.hasher, range(4))

    def found() -> kvtile.Match:
        return w.cache.lookup(w.keys)

    def store() -> kvtile.Completion:
        return w.cache.store(w.keys, [0, 1, 2, 3])

    def fresh() -> kvtile.Cache:
        return w.open(workers=0)

    def stop() -> kvtile.GroupMatch:
        return w.groups.lookup(w.chain)

    def load_stop() -> kvtile.Completion:
        return w.groups.load(stop(), {"full": [4, 5, 6, 7], "state": [7]})

    bare = {
        "Completion": (store, ["done", "cancel", "__await__", "__repr__"]),
        "Seek": (lambda: w.cache.seek(w.keys, 1.0), ["match", "wait", "__repr__"]),
        "Match": (found, ["release", "__enter__", "__len__", "__repr__"]),
        "TokenSequence": (sequence, ["__len__", "__repr__"]),
        "Cache": (
            fresh,
            ["clear", "flush", "stats", "overdue", "subscribe", "snapshot", "step", "close", "__enter__", "__repr__",
             "_repr_html_"],
        ),
        "GroupCache": (
            lambda: w.open_groups(workers=0),
            ["clear", "flush", "stats", "subscribe", "snapshot", "step", "close", "__enter__", "__repr__"],
        ),
        "GroupSeek": (lambda: w.groups.seek(w.chain, 1.0), ["match", "wait", "__repr__"]),
        "GroupMatch": (stop, ["release", "__enter__", "__repr__"]),
        "GroupLoadReport": (lambda: load_stop().wait(), ["__repr__"]),
        "GroupStoreReport": (lambda: w.groups.store(w.chain, {"full": [0]}).wait(), ["__repr__"]),
        "Snapshot": (w.cache.snapshot, ["__len__"]),
        "Identity": (lambda: w.identity, ["to_json", "__repr__", "__hash__"]),
        "ModelGroup": (lambda: w.model_group, ["__repr__"]),
        "ModelIdentity": (lambda: w.model, ["to_json", "__repr__", "__hash__"]),
        "Layout": (lambda: w.layout, ["describe", "__repr__", "_repr_html_"]),
        "Shape": (lambda: w.shape, ["__repr__", "__hash__"]),
        "Plane": (lambda: w.shape.planes[0], ["__repr__", "__hash__"]),
        "TokenHasher": (lambda: w.hasher, ["__repr__"]),
        "TierDirectory": (lambda: kvtile.TierDirectory(), ["clear", "__len__", "__repr__"]),
        "TraceRecorder": (w.recorder, ["close", "__enter__", "__repr__"]),
        "EventPublisher": (w.publisher, ["publish_again", "stats", "__enter__", "__repr__"]),
        "Plan": (lambda: kvtile.plan(w.layout, w.other), ["__str__", "__repr__", "_repr_html_"]),
        "TransferReport": (lambda: kvtile.copy_blocks(w.layout, w.other, [0]), ["__repr__"]),
        "StoreReport": (lambda: store().wait(), ["__repr__"]),
        "LoadReport": (lambda: w.cache.prefetch(w.keys).wait(), ["__repr__"]),
        "FlushReport": (w.cache.flush, ["__repr__"]),
        "Event": (lambda: events(w), ["__repr__"]),
        "HttpServer": (lambda: kvtile.serve_http(w.cache), ["close", "__enter__", "__repr__"]),
        "EvictionOrder": (lambda: kvtile.EvictionOrder(4), ["clear", "__len__", "__repr__"]),
        "StoreGroup": (lambda: w.group, ["__repr__"]),
        "StoreRows": (w.rows, ["release", "__len__", "__repr__"]),
        "BlockOutcomes": (lambda: w.store.load([], w.rows(), []).wait(), ["__len__", "__repr__"]),
        "StoreFlush": (w.store.flush, ["__repr__"]),
        "StoreQuery": (lambda: w.store.ask(names), ["__repr__"]),
        "BlockStore": (
            w.open_store,
            ["take_finished", "fileno", "drain", "clear", "stats", "subscribe", "snapshot", "__enter__", "__repr__"],
        ),
    }
    made: dict[str, Callable[[], Call]] = {
        "Plane": lambda: (
            kvtile.Plane,
            {"name": "k", "dtype": "x", "unit_bytes": 4, "opaque": False, "per_page": False, "every": 2, "H": 2, "C": 8},
        ),
        "Shape": lambda: (kvtile.Shape, shape_settings()),
        "Shape of planes": lambda: (
            kvtile.Shape,
            {"num_blocks": 1, "num_layers": 1, "page_size": 1, "planes": [kvtile.Plane("k", "f32", C=8)]},
        ),
        "Shape.with_num_blocks": lambda: (w.shape.with_num_blocks, {"num_blocks": 3}),
        "Shape.from_hf_config": lambda: (kvtile.Shape.from_hf_config, {"config": config(), "page_size": 4}),
        "Layout": lambda: (kvtile.Layout, {"word": "BLKNHC", "shape": w.shape, "tensors": [w.tensor]}),
        "Layout.preset": lambda: (
            kvtile.Layout.preset,
            {
                "name": "vllm:LBHNC/cpu/float32/vec",
                "shape": w.shape,
                "tensors": [w.tensor[: w.tensor.size // 2], w.tensor[w.tensor.size // 2 :]],
            },
        ),
        "Identity": lambda: (
            kvtile.Identity,
            {
                "model": "a",
                "revision": "1",
                "shape": w.shape,
                "rope": {"rope_type": "default", "rope_theta": 1e4},
                "extra": {"lora": "x"},
            },
        ),
        "Identity.from_hf_config": lambda: (kvtile.Identity.from_hf_config, {"config": config(), "page_size": 4}),
        "Identity.from_json": lambda: (kvtile.Identity.from_json, {"text": w.identity.to_json()}),
        "Identity.difference": lambda: (w.identity.difference, {"other": w.identity}),
        "ModelGroup": lambda: (
            kvtile.ModelGroup,
            {
                "name": "window",
                "shape": w.shape,
                "rule": "window",
                "tokens": 128,
                "layers": [1, 3],
                "rope": {"rope_type": "default", "rope_theta": 1e4},
                "draft": False,
                "extra": {"scales": "x"},
            },
        ),
        "ModelGroup.needs": lambda: (w.model_group.needs, {"stop": 16}),
        "ModelIdentity": lambda: (
            kvtile.ModelIdentity,
            {"model": "a", "revision": "1", "groups": [w.model_group], "extra": {"lora": "x"}},
        ),
        "ModelIdentity.of": lambda: (kvtile.ModelIdentity.of, {"identity": w.identity}),
        "ModelIdentity.from_hf_config": lambda: (kvtile.ModelIdentity.from_hf_config, {"config": config(), "page_size": 4}),
        "ModelIdentity.from_json": lambda: (kvtile.ModelIdentity.from_json, {"text": w.model.to_json()}),
        "ModelIdentity.group_identity": lambda: (w.model.group_identity, {"name": "window"}),
        "ModelIdentity.difference": lambda: (w.model.difference, {"other": w.model}),
        "TokenHasher": lambda: (
            kvtile.TokenHasher,
            {"identity": w.identity, "salt": "", "profile": "router", "seed": 1, "page_size": 4},
        ),
        "TokenHasher.keys": lambda: (w.hasher.keys, {"tokens": [1, 2, 3, 4], "parent": w.keys[0], "extra": [b"a"]}),
        "TokenSequence": lambda: (kvtile.TokenSequence, {"hasher": w.hasher, "tokens": [1, 2], "extra": [b"a"]}),
        "TokenSequence.extend": lambda: (sequence().extend, {"tokens": [1, 2]}),
        "TokenSequence.mark": lambda: (sequence().mark, {"start": 4, "stop": 8, "content": b"x"}),
        "TokenSequence.truncate": lambda: (sequence().truncate, {"length": 2}),
        "TierDirectory": lambda: (kvtile.TierDirectory, {"tiers": ["host"]}),
        "TierDirectory.apply": lambda: (kvtile.TierDirectory().apply, {"changes": [("stored", "host", b"a", None)]}),
        "TierDirectory.leading": lambda: (kvtile.TierDirectory().leading, {"keys": w.keys}),
        "TierDirectory.blocks": lambda: (kvtile.TierDirectory().blocks, {"tier": "host"}),
        "TraceRecorder": lambda: (
            kvtile.TraceRecorder,
            {"path": str(w.folder / f"trace-of-{len(list(w.folder.iterdir()))}.jsonl"), "page_size": 4, "bytes_max": 1 << 20},
        ),
        "EventPublisher": lambda: (
            kvtile.EventPublisher,
            {
                "source": w.cache,
                "endpoint": "tcp://127.0.0.1:0",
                "replay": "tcp://127.0.0.1:0",
                "topic": "kv@pod@model",
                "rank": 0,
                "hashes": "bytes",
                "unknown_tokens": "leave_out",
                "token_blocks": 16,
            },
        ),
        "EventPublisher.give_tokens": lambda: (w.publisher().give_tokens, {"keys": w.keys, "tokens": list(range(16))}),
        "EventPublisher.catch_up": lambda: (w.publisher().catch_up, {"timeout": 5.0}),
        "EventPublisher.close": lambda: (w.publisher().close, {"within": 5.0}),
        "TraceRecorder.record": lambda: (
            w.recorder().record,
            {"keys": w.keys, "input_tokens": 16, "output_tokens": 1, "arrived": 1.5},
        ),
        "plan": lambda: (kvtile.plan, {name: copy[name] for name in copy if name not in ("verify", "after")}),
        "copy_blocks": lambda: (kvtile.copy_blocks, copy),
        "copy_blocks_async": lambda: (kvtile.copy_blocks_async, copy),
        "Completion.wait": lambda: (store().wait, {"timeout": 5.0}),
        "Completion.wait_layer": lambda: (store().wait_layer, {"layer": 0, "timeout": 5.0}),
        "Completion.wait_layer_on": lambda: (store().wait_layer_on, {"stream": None, "layer": 0, "timeout": 5.0}),
        "Completion.add_done_callback": lambda: (store().add_done_callback, {"callback": lambda _: None}),
        "Match.blocks_in": lambda: (found().blocks_in, {"tier": "host"}),
        "Match.skip": lambda: (found().skip, {"blocks": 1}),
        "Match.truncate": lambda: (found().truncate, {"blocks": 1}),
        "Subscriber.poll": lambda: (w.cache.subscribe().poll, {"count": 4}),
        "Subscriber.resynchronise": lambda: (w.cache.subscribe().resynchronise, {"snapshot": w.cache.snapshot()}),
        "Cache": lambda: (kvtile.Cache, {"identity": w.identity, "layout": w.layout, **w.settings()}),
        "Cache.lookup": lambda: (
            w.cache.lookup,
            {"keys": w.keys, "owner": 1, "hold": 5.0, "priority": 0, **hints},
        ),
        "Cache.seek": lambda: (
            w.cache.seek,
            {"keys": w.keys, "within": 1.0, "owner": 1, "hold": 5.0, "priority": 0, **hints},
        ),
        "Cache.load": lambda: (
            w.cache.load,
            {"found": found(), "blocks": [4, 5], "priority": "low", "within": 5.0, "layout": w.other, "after": None},
        ),
        "Cache.store": lambda: (
            w.cache.store,
            {
                "keys": w.keys,
                "blocks": [0, 1],
                "first": 1,
                "tenant": 1,
                "priority": "low",
                "within": 5.0,
                "keep": 0,
                **hints,
                "layout": w.other,
                "after": None,
            },
        ),
        "Cache.prefetch": lambda: (w.cache.prefetch, {"keys": w.keys}),
        "Cache.evict": lambda: (fresh().evict, {"tier": "host", "blocks": 1}),
        "Cache.pool_stats": lambda: (w.cache.pool_stats, {"tier": "host"}),
        "Cache.read_seconds": lambda: (w.cache.read_seconds, {"tier": "disk", "blocks": 1}),
        "GroupCache": lambda: (kvtile.GroupCache, {**w.group_arguments(), **w.group_settings()}),
        "GroupCache.hasher": lambda: (w.groups.hasher, {"salt": "a"}),
        "GroupCache.lookup": lambda: (
            w.groups.lookup,
            {"keys": w.chain, "at_most": 16, "owner": 1, "hold": 5.0, "priority": 0, "lifetime": 5.0},
        ),
        "GroupCache.seek": lambda: (
            w.groups.seek,
            {"keys": w.chain, "within": 1.0, "at_most": 16, "owner": 1, "hold": 5.0, "priority": 0, "lifetime": 5.0},
        ),
        "GroupCache.load": lambda: (
            w.groups.load,
            {
                "found": stop(),
                "blocks": {"full": [5, 6, 7], "state": [4]},
                "have": {"full": 4},
                "layouts": {"full": w.other},
                "priority": "low",
                "within": 5.0,
                "after": None,
            },
        ),
        "GroupCache.prefetch": lambda: (w.groups.prefetch, {"found": stop()}),
        "GroupCache.store": lambda: (
            w.groups.store,
            {
                "keys": w.chain,
                "blocks": {"full": [0, 1], "state": ([1], 1)},
                "stop": [8],
                "layouts": {"full": w.other},
                "tenant": 1,
                "priority": "low",
                "within": 5.0,
                "keep": 0,
                "lifetime": 5.0,
                "after": None,
            },
        ),
        "GroupCache.evict": lambda: (w.open_groups(workers=0).evict, {"tier": "host", "blocks": 1, "group": "full"}),
        "GroupMatch.needs": lambda: (stop().needs, {"group": "full", "have": 4}),
        "GroupMatch.back_to": lambda: (stop().back_to, {"tokens": 8}),
        "StoreGroup": lambda: (
            kvtile.StoreGroup,
            {"name": "kv", "identity": w.identity, "shape": w.shape, "word": "BHLKNC", "share": 0.5},
        ),
        "StoreGroup.opaque": lambda: (
            kvtile.StoreGroup.opaque,
            {"name": "kv", "block_bytes": 4096, "model": "a", "revision": "1", "extra": {"dtype": "f16"}, "share": 0.5},
        ),
        "BlockStore": lambda: (kvtile.BlockStore, {"groups": w.group, **w.store_settings()}),
        "BlockStore.register": lambda: (w.store.register, {"memory": bytearray(65536), "group": "kv"}),
        "BlockStore.ask": lambda: (w.store.ask, {"keys": names, "group": "kv"}),
        "StoreQuery.wait": lambda: (w.store.ask(names).wait, {"timeout": 5.0}),
        "BlockStore.contains": lambda: (w.store.contains, {"keys": names, "group": "kv"}),
        "BlockStore.touch": lambda: (w.store.touch, {"keys": names, "group": "kv"}),
        "BlockStore.load": lambda: (w.store.load, rows_of(w)),
        "BlockStore.store": lambda: (w.store.store, {**rows_of(w), **chain}),
        "BlockStore.submit_load": lambda: (w.store.submit_load, {"job": 1, **rows_of(w)}),
        "BlockStore.submit_store": lambda: (w.store.submit_store, {"job": 1, **rows_of(w), **chain}),
        "BlockStore.forget": lambda: (w.store.forget, {"keys": names, "group": "kv"}),
        "BlockStore.flush": lambda: (w.store.flush, {"within": 5.0}),
        "BlockStore.close": lambda: (w.open_store().close, {"within": 5.0}),
        "EvictionOrder": lambda: (kvtile.EvictionOrder, {"capacity": 4, "policy": "lru"}),
        "EvictionOrder.insert": lambda: (kvtile.EvictionOrder(4).insert, {"key": b"a", "parent": b"b"}),
        "EvictionOrder.hold": lambda: (kvtile.EvictionOrder(4).hold, {"keys": names}),
        "EvictionOrder.release": lambda: (kvtile.EvictionOrder(4).release, {"keys": names}),
        "EvictionOrder.touch": lambda: (kvtile.EvictionOrder(4).touch, {"keys": names}),
        "EvictionOrder.remove": lambda: (kvtile.EvictionOrder(4).remove, {"keys": names}),
        "EvictionOrder.evict": lambda: (kvtile.EvictionOrder(4).evict, {"count": 1, "protected": names}),
        "serve_http": lambda: (kvtile.serve_http, {"caches": {"a": w.cache, "b": w.store}, "address": "127.0.0.1:0"}),
        "block_key": lambda: (kvtile.block_key, {"key": b"a"}),
    }
    for name, (maker, methods) in bare.items():
        for method in methods:
            made[f"{name}.{method}"] = lambda maker=maker, method=method: (getattr(maker(), method), {})
    return made


def rows_of(world: World) -> dict[str, Any]:
    """The arguments of a job over new rows."""
    return {"keys": [b"a", "b"], "rows": world.rows(), "ids": [0, 1]}


def events(world: World) -> kvtile.Event:
    """An event of a store."""
    cache = world.open(workers=1)
    subscriber = cache.subscribe()
    cache.store(world.keys, [0]).wait()
    return subscriber.poll()[0]


def public() -> set[str]:
    """The names of all public callables: functions, constructors, methods."""
    names = set()
    for name in kvtile.__all__:
        value = getattr(kvtile, name)
        if not inspect.isclass(value):
            if callable(value):
                names.add(name)
            continue
        # Of a base class, kvtile calls the methods.
        if issubclass(value, Exception) or inspect.isabstract(value):
            continue
        if name not in MADE_BY_KVTILE:
            names.add(name)
        for member, attribute in vars(value).items():
            plain = not member.startswith("_") or member in vars(value)
            special = member in {"__new__", "__doc__", "__module__"} or member in LEFT_TO_PYTHON
            if plain and not special and callable(getattr(value, member)):
                names.add(f"{name}.{member}")
    return names
