"""Re-slices blocks between tensor parallel sizes: two ranks wrote them, four ranks read them."""

import numpy as np

import kvtile

HEADS, HEAD_SIZE, LAYERS, BLOCKS = 8, 32, 2, 4


def rank(number: int, ranks: int) -> tuple[kvtile.Layout, np.ndarray]:
    """The layout and the tensor of one rank, which holds its share of the heads."""
    heads = HEADS // ranks
    shape = kvtile.Shape(
        num_blocks=BLOCKS,
        num_layers=LAYERS,
        page_size=16,
        num_heads=heads,
        head_size=HEAD_SIZE,
        dtype="float32",
        first_head=number * heads,
        total_heads=HEADS,
    )
    tensor = np.zeros((BLOCKS, LAYERS, 2, 16, heads, HEAD_SIZE), "float32")
    return kvtile.Layout("BLKNHC", shape=shape, tensors=tensor), tensor


rng = np.random.default_rng(1)
whole = rng.random((BLOCKS, LAYERS, 2, 16, HEADS, HEAD_SIZE), dtype="float32")
writers = [rank(number, 2) for number in range(2)]
for number, (_, tensor) in enumerate(writers):
    tensor[:] = whole[..., 4 * number : 4 * number + 4, :]

for number in range(4):
    layout, tensor = rank(number, 4)
    writer, first = divmod(2 * number, 4)  # heads 2n and 2n + 1 of the model
    source, _ = writers[writer]
    # Heads of the source, then heads of the destination, each counted from the rank's first head.
    report = kvtile.copy_blocks(source, layout, range(BLOCKS), heads=((first, first + 2), (0, 2)))
    assert (tensor == whole[..., 2 * number : 2 * number + 2, :]).all()
    print(f"rank {number} of 4: {report.bytes} bytes from rank {writer} of 2")

# prints:
# rank 0 of 4: 65536 bytes from rank 0 of 2
# rank 1 of 4: 65536 bytes from rank 0 of 2
# rank 2 of 4: 65536 bytes from rank 1 of 2
# rank 3 of 4: 65536 bytes from rank 1 of 2
