"""Stores two blocks and loads them elsewhere, with tensors of the standard library alone."""

import array

import kvtile

# 8 blocks of 16 tokens, 2 layers, 2 KV heads of 8 float32 values; one tensor for each layer.
shape = kvtile.Shape(num_blocks=8, num_layers=2, page_size=16, num_heads=2, head_size=8, dtype="float32")
layers = [array.array("f", bytes(8 * 2 * 16 * 2 * 8 * 4)) for _ in range(shape.num_layers)]
engine = kvtile.Layout("L|BKNHC", shape=shape, tensors=layers)

values = 2 * 16 * 2 * 8  # of one block of one layer
for number, layer in enumerate(layers):
    layer[: 2 * values] = array.array("f", [1000 * number + index for index in range(2 * values)])

identity = kvtile.Identity("a-model", "main", shape)
with kvtile.Cache(identity, engine, host_bytes=1 << 20) as cache:
    keys = kvtile.TokenHasher(identity).keys(range(40))  # two full blocks
    print("stored", cache.store(keys, [0, 1]).wait().stored)
    found = cache.lookup(keys)
    print("loaded", cache.load(found, [6, 5]).wait().blocks)

for layer in layers:
    assert layer[6 * values : 7 * values] == layer[:values]
    assert layer[5 * values : 6 * values] == layer[values : 2 * values]

# prints:
# stored 2
# loaded 2
