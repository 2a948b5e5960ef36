"""A cache with a disk tier: one process stores blocks and ends, another one finds them in the folder.

Without arguments the example starts both processes.
"""

import subprocess
import sys

import numpy as np

import kvtile

FOLDER = "kv-cache"
TOKENS = range(100)  # six full blocks of 16 tokens

shape = kvtile.Shape(num_blocks=32, num_layers=4, page_size=16, num_heads=2, head_size=64, dtype="float32")
identity = kvtile.Identity("a-model", "main", shape)
keys = kvtile.TokenHasher(identity).keys(TOKENS)
computed = np.random.default_rng(1).random((6, 4, 2, 16, 2, 64), dtype="float32")


def open_cache(word: str, tensor: np.ndarray) -> kvtile.Cache:
    """The engine's layout may change between the processes; the identity may not."""
    layout = kvtile.Layout(word, shape=shape, tensors=tensor)
    return kvtile.Cache(identity, layout, host_bytes=16 << 20, disk=FOLDER, disk_bytes=64 << 20)


def store() -> None:
    tensor = np.zeros((32, 4, 2, 16, 2, 64), "float32")
    tensor[:6] = computed
    with open_cache("BLKNHC", tensor) as cache:
        print("stored", cache.store(keys, range(6)).wait().stored)
        assert cache.flush().durable  # the blocks outlive a crash from here on; closing the cache flushes too


def load() -> None:
    tensor = np.zeros((32, 2, 4, 2, 16, 64), "float32")  # heads before layers
    with open_cache("BHLKNC", tensor) as cache:
        report = cache.load(cache.lookup(keys), range(10, 16)).wait()
        print("loaded", report.blocks, report.from_tiers)
    assert (tensor[10:16] == computed.transpose(0, 4, 1, 2, 3, 5)).all()


if len(sys.argv) == 1:
    for step in ("store", "load"):
        subprocess.run([sys.executable, __file__, step], check=True)
elif sys.argv[1] == "store":
    store()
else:
    load()

# prints:
# stored 6
# loaded 6 {'disk': 6}
