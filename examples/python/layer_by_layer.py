"""Waits for a load layer by layer: attention of layer 0 begins while later layers are being copied."""

import numpy as np

import kvtile

LAYERS = 8
shape = kvtile.Shape(num_blocks=64, num_layers=LAYERS, page_size=16, num_heads=2, head_size=64, dtype="float32")
tensors = [np.zeros((64, 2, 16, 2, 64), "float32") for _ in range(LAYERS)]
engine = kvtile.Layout("L|BKNHC", shape=shape, tensors=tensors)
identity = kvtile.Identity("a-model", "main", shape)
keys = kvtile.TokenHasher(identity).keys(range(16 * 16))

rng = np.random.default_rng(1)
for tensor in tensors:
    tensor[:16] = rng.random(tensor[:16].shape)  # blocks 0 to 15 are computed

with kvtile.Cache(identity, engine, host_bytes=64 << 20) as cache:
    cache.store(keys, range(16)).wait()
    load = cache.load(cache.lookup(keys), range(32, 48))
    for layer, tensor in enumerate(tensors):
        # False after a load that ended without this layer: the engine computes it.
        assert load.wait_layer(layer)
        assert (tensor[32:48] == tensor[:16]).all()
        print("layer", layer, "is complete")
    report = load.wait()
    print(report.blocks, "blocks, stopped:", report.stopped)

# prints:
# layer 0 is complete
# layer 1 is complete
# layer 2 is complete
# layer 3 is complete
# layer 4 is complete
# layer 5 is complete
# layer 6 is complete
# layer 7 is complete
# 16 blocks, stopped: None
