"""Serves requests in asyncio: each awaits its load, computes the blocks that are missing, and stores them."""

import asyncio

import numpy as np

import kvtile

shape = kvtile.Shape(num_blocks=64, num_layers=4, page_size=16, num_heads=2, head_size=64, dtype="float32")
tensor = np.zeros((64, 4, 2, 16, 2, 64), "float32")
engine = kvtile.Layout("BLKNHC", shape=shape, tensors=tensor)
identity = kvtile.Identity("a-model", "main", shape)
hasher = kvtile.TokenHasher(identity)


def compute(block: int, key: bytes) -> None:
    """The place of the model: the values of a block depend on its tokens and on those before it."""
    tensor[block] = np.frombuffer(key, "uint8").sum()


async def serve(cache: kvtile.Cache, tokens: list[int], blocks: range) -> int:
    """Brings the KV of a prompt into the blocks; returns how many of them were loaded."""
    keys = hasher.keys(tokens)
    loaded = 0
    found = cache.lookup(keys)
    if len(found):
        try:
            report = await cache.load(found, blocks[: len(found)])
            loaded = report.blocks
        except kvtile.BusyError:
            pass  # a full queue: compute instead
    for block, key in zip(blocks[loaded:], keys[loaded:]):
        compute(block, key)
    await cache.store(keys, blocks)
    return loaded


async def main() -> None:
    system = list(range(64))  # a system prompt of four blocks
    prompts = [system + [1000 * user + token for token in range(32)] for user in range(4)]
    with kvtile.Cache(identity, engine, host_bytes=16 << 20) as cache:
        first = await serve(cache, prompts[0], range(6))
        others = await asyncio.gather(
            *(serve(cache, prompt, range(6 * user, 6 * user + 6)) for user, prompt in enumerate(prompts[1:], 1))
        )
    print("loaded blocks:", [first, *others])
    for user in range(4):
        assert (tensor[6 * user : 6 * user + 4] == tensor[:4]).all()


asyncio.run(main())

# prints:
# loaded blocks: [0, 4, 4, 4]
