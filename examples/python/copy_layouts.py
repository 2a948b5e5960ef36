"""Copies blocks from the layout of vLLM's CPU backend, whose K is transposed, to plain numpy arrays."""

import numpy as np

import kvtile

shape = kvtile.Shape(num_blocks=8, num_layers=4, page_size=16, num_heads=4, head_size=64, dtype="float32")

# vLLM: a tensor for each layer; a head of a block is K with content before tokens, then V with tokens before content.
rng = np.random.default_rng(1)
layers = [rng.random((8, 4, 2, 64 * 16), dtype="float32") for _ in range(4)]
engine = kvtile.Layout("L|BH(kCN,vNC)", shape=shape, tensors=[layer.reshape(8, 4, -1) for layer in layers])

# Plain: blocks, layers, K and V, tokens, heads, content.
array = np.zeros((8, 4, 2, 16, 4, 64), "float32")
plain = kvtile.Layout("BLKNHC", shape=shape, tensors=array)

plan = kvtile.plan(engine, plain, [0, 1], [6, 7])
print(f"{plan.bytes} bytes in runs of {plan.shortest_run} to {plan.longest_run} bytes")
report = kvtile.copy_blocks(engine, plain, [0, 1], [6, 7], verify=True)
assert report.bytes == 2 * shape.block_bytes

# The same by numpy, for layer 3 of block 1.
keys = layers[3][1, :, 0].reshape(4, 64, 16).transpose(2, 0, 1)
values = layers[3][1, :, 1].reshape(4, 16, 64).transpose(1, 0, 2)
assert (array[7, 3, 0] == keys).all()
assert (array[7, 3, 1] == values).all()

try:
    kvtile.copy_blocks(plain, plain, [6], [6])
except kvtile.TransferError as error:
    print("refused:", error)

# prints:
# 262144 bytes in runs of 4 to 256 bytes
# refused: block 6 is both read and written; copy to other blocks
