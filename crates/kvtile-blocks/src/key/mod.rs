//! What the content of a block is called.
//!
//! A key says everything that the content depends on: the tokens of the block, all tokens before
//! it, whatever else went into it, the model, and the tenant. It does not say in which layout the
//! bytes lie, nor where. This module does not know what an identity consists of: it takes bytes.
//!
//! # The format
//!
//! Integers are little-endian, `‖` joins bytes, `u64(x)` is 8 bytes. `tokens` are the block's
//! token ids as u32. `identity` is whatever names the model and everything else that stored
//! bytes depend on (the fingerprint of a logical identity), `salt` is the tenant's, in UTF-8.
//!
//! **Secrets**, once per hasher, the first 112 bytes of BLAKE3's extendable output:
//!
//! ```text
//! derive_key(context, u64(len(identity)) ‖ identity ‖ u64(len(salt)) ‖ salt)
//! ┌────────────┬──────────────────┬───────────────────┬───────────┐
//! │ plain   32 │ with extra    32 │ list           32 │ root   16 │
//! └────────────┴──────────────────┴───────────────────┴───────────┘
//! context: "kvtile 2026-11-23 04:22:00 block keys, BLAKE3"     for Profile::Blake3
//!          "kvtile 2026-11-23 04:22:00 block keys, XXH3-128"   for Profile::Xxh3
//! ```
//!
//! **Extra keys** of a block, where there are any, become 16 bytes:
//!
//! ```text
//! extra = keyed_hash(list, u64(count) ‖ u64(len) ‖ bytes ‖ u64(len) ‖ bytes …)[0..16]
//! ```
//!
//! **BLAKE3**: `parent` is the key of the block before, or `root` for the first one.
//!
//! ```text
//! key = keyed_hash(plain      ⊕ (0¹⁶ ‖ parent), tokens)[0..16]            without extra keys
//! key = keyed_hash(with extra ⊕ (0¹⁶ ‖ parent), tokens ‖ extra)[0..16]    with extra keys
//! ```
//!
//! The parent enters through the key of the hash, where BLAKE3 itself puts what came before when it
//! goes from one 64-byte block of a message to the next. So a page of 16 tokens, exactly one such
//! block, costs one compression; as a part of the message the parent would cost a second one.
//! BLAKE3 hashes the length of a message along, so that pages of different sizes cannot match.
//!
//! **XXH3-128**: `seed` is the first 8 bytes of `plain`, `extra` is 16 zeros without extra keys; the
//! result is written as 16 bytes, the low half first.
//!
//! ```text
//! key = xxh3_128(tokens ‖ parent ‖ extra ‖ u64(number of tokens), seed)
//! ```
//!
//! **Router** (XXH3-64, unkeyed): the hashes that routers of this kind use, both of them in one key.
//!
//! ```text
//! block    = xxh3_64(tokens, seed)
//! sequence = block for the first block, else xxh3_64(u64(parent's sequence) ‖ u64(block), 1337)
//! key      = u64(sequence) ‖ u64(block)
//! ```
//!
//! # What may be trusted to which
//!
//! | profile | two contents with one key | may share a cache |
//! | --- | --- | --- |
//! | `Blake3` | cannot be found, whoever tries | anyone, apart by salt |
//! | `Xxh3` | not by accident; on purpose, by someone who writes prompts | one trusted tenant |
//! | `Router` | by accident among some 2³² prefixes of one last block; on purpose within minutes on one core | one trusted tenant whose router asks for it |
//!
//! XXH3 is not a cryptographic hash, whatever its width and seed. A router's sequence hash has 64
//! bits; the key keeps the block's own hash beside it, so both must match, but a chain still rests on
//! 64 bits of its past. No profile cuts a key for an index or a file name. A router's key does not
//! contain the identity: whoever stores blocks under it must keep models apart by other means.

mod hasher;
mod settings;
#[cfg(test)]
mod tests;

pub use hasher::{BlockHasher, ExtraKeys};
pub use settings::{KeySettings, PAGE_SIZE_MAX, Profile};

pub(crate) use hasher::{ExtraDigest, Parent};

use std::fmt;

/// The name of a block's content: 128 bits. Equal keys mean equal content, in every process and on
/// every machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 16]);

impl BlockKey {
    /// A key that somebody else made, taken as it is.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> BlockKey {
        BlockKey(bytes)
    }

    /// A key that an engine gives, of any length: 16 bytes are taken as they are. Others are hashed,
    /// never cut or padded: the first 16 bytes of BLAKE3's `derive_key("kvtile 2026-11-23 04:22:00
    /// block keys of an engine", bytes)`.
    ///
    /// Such a key says what the engine put into it. Where that is the tokens alone, another model's
    /// blocks have the same keys and must not be in the same store.
    #[must_use]
    pub fn from_opaque(bytes: &[u8]) -> BlockKey {
        if let Ok(&whole) = <&[u8; 16]>::try_from(bytes) {
            return BlockKey(whole);
        }
        let hash = blake3::Hasher::new_derive_key(settings::CONTEXT_OPAQUE)
            .update(bytes)
            .finalize();
        BlockKey(hasher::first_16(hash.as_bytes()))
    }

    /// Its bytes, as they are stored and sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The sequence hash and the block hash in a key of [`Profile::Router`]; for keys of other
    /// profiles two meaningless numbers.
    #[must_use]
    pub const fn router_hashes(&self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        (
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        )
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}
