"""Writes keys.txt: block keys computed from the written format, by other implementations of the
hashes (the PyPI packages blake3 and xxhash). It shares no code with the crate.

    pip install blake3 xxhash && python keys.py > keys.txt
"""

import struct

from blake3 import blake3
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

CONTEXT = "kvtile 2026-11-23 04:22:00 block keys"


def u64(number):
    return struct.pack("<Q", number)


def secrets(name, identity, salt):
    material = u64(len(identity)) + identity + u64(len(salt)) + salt
    derived = blake3(material, derive_key_context=f"{CONTEXT}, {name}").digest(length=112)
    return derived[:32], derived[32:64], derived[64:96], derived[96:112]


def extra_digest(list_key, extra):
    message = u64(len(extra)) + b"".join(u64(len(one)) + one for one in extra)
    return blake3(message, key=list_key).digest()[:16]


def words(tokens):
    return struct.pack(f"<{len(tokens)}I", *tokens)


def key_blake3(identity, salt, parent, tokens, extra):
    plain, with_extra, list_key, root = secrets("BLAKE3", identity, salt)
    tweak = bytes(16) + (root if parent is None else parent)
    base, message = plain, words(tokens)
    if extra:
        base, message = with_extra, message + extra_digest(list_key, extra)
    return blake3(message, key=bytes(a ^ b for a, b in zip(base, tweak))).digest()[:16]


def key_xxh3(identity, salt, parent, tokens, extra):
    plain, _, list_key, root = secrets("XXH3-128", identity, salt)
    digest = extra_digest(list_key, extra) if extra else bytes(16)
    message = words(tokens) + (root if parent is None else parent) + digest + u64(len(tokens))
    seed = struct.unpack("<Q", plain[:8])[0]
    return xxh3_128_intdigest(message, seed=seed).to_bytes(16, "little")


def key_router(seed, parent, tokens):
    block = xxh3_64_intdigest(words(tokens), seed=seed)
    sequence = block
    if parent is not None:
        sequence = xxh3_64_intdigest(parent[:8] + u64(block), seed=1337)
    return u64(sequence) + u64(block)


def row(profile, identity, salt, page_size, parent, tokens, extra, key):
    print(
        profile,
        identity.hex() or "-",
        salt.decode() or "-",
        page_size,
        parent.hex() if parent else "-",
        ",".join(map(str, tokens)),
        ",".join(one.hex() for one in extra) or "-",
        key.hex(),
    )


def main():
    print("# profile identity salt page_size parent tokens extra key")
    for page_size in (1, 4, 16, 17, 64, 65, 256, 300):
        owners = [(b"model", b"tenant")]
        if page_size in (4, 16):
            owners += [(b"", b""), (b"model", b""), (bytes(range(32)), b"")]
        for identity, salt in owners:
            for extra in ([], [b"image"], [b"", b"adapter"]):
                for name, make in (("blake3", key_blake3), ("xxh3", key_xxh3)):
                    parent = None
                    for block in range(2):
                        first = block * page_size
                        tokens = [(first + i) * 2654435761 % 2**32 for i in range(page_size)]
                        key = make(identity, salt, parent, tokens, extra)
                        row(name, identity, salt, page_size, parent, tokens, extra, key)
                        parent = key
    for page_size in (4, 16, 64):
        parent = None
        for block in range(3):
            tokens = [block * page_size + i + 1 for i in range(page_size)]
            key = key_router(1337, parent, tokens)
            row("router", b"", b"1337", page_size, parent, tokens, [], key)
            parent = key


main()
