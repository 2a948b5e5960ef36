//! The keys of block contents.
//!
//! A key depends on everything that the content depends on: the tokens of the block, all tokens
//! before it, extra inputs, the model, and the tenant. It does not depend on the layout or the
//! location of the bytes. This module takes the identity as opaque bytes.
//!
//! # The format
//!
//! Integers are little-endian, `‖` joins bytes, `u64(x)` is 8 bytes. `tokens` are the block's token
//! ids as u32. `identity` identifies the model and everything else that stored bytes depend on (the
//! fingerprint of a logical identity); `salt` is the tenant's salt, in UTF-8.
//!
//! **Secrets**, once per hasher, the first 112 bytes of BLAKE3's extendable output:
//!
//! ```text
//! derive_key(context, u64(len(identity)) ‖ identity ‖ u64(len(salt)) ‖ salt)
//! ┌────────────┬──────────────────┬───────────────────┬───────────┐
//! │ plain   32 │ with extra    32 │ list           32 │ root   16 │
//! └────────────┴──────────────────┴───────────────────┴───────────┘
//! context: "kvtile 2026-11-23 04:22:00 block keys, BLAKE3"     for KeyProfile::Blake3
//!          "kvtile 2026-11-23 04:22:00 block keys, XXH3-128"   for KeyProfile::Xxh3
//! ```
//!
//! **Extra keys** of a block are digested to 16 bytes, if there are any:
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
//! The parent enters through the hash's key, where BLAKE3 itself puts the chaining value between
//! the 64-byte blocks of a message. So a page of 16 tokens, exactly one such block, costs one
//! compression; with the parent in the message it would cost a second one. BLAKE3 includes the
//! message length, so pages of different sizes cannot match.
//!
//! **XXH3-128**: `seed` is the first 8 bytes of `plain`, `extra` is 16 zeros without extra keys; the
//! result is written as 16 bytes, the low half first.
//!
//! ```text
//! key = xxh3_128(tokens ‖ parent ‖ extra ‖ u64(number of tokens), seed)
//! ```
//!
//! **Router** (XXH3-64, unkeyed): the two hashes that such routers use, combined in one key.
//!
//! ```text
//! block    = xxh3_64(tokens, seed)
//! sequence = block for the first block, else xxh3_64(u64(parent's sequence) ‖ u64(block), 1337)
//! key      = u64(sequence) ‖ u64(block)
//! ```
//!
//! # Collision resistance and tenancy
//!
//! | profile | two contents with one key | tenants of one cache |
//! | --- | --- | --- |
//! | `Blake3` | infeasible to find, for any attacker | any, separated by salt |
//! | `Xxh3` | not by accident; deliberately, by an author of prompts | one trusted tenant |
//! | `Router` | by accident among some 2³² prefixes of one last block; deliberately within minutes on one core | one trusted tenant whose router requires it |
//!
//! XXH3 is not a cryptographic hash, regardless of its width and seed. A router's sequence hash has
//! 64 bits; the key keeps the block's own hash beside it, so both must match, but a chain still
//! rests on 64 bits of its past. No profile truncates a key for an index or a file name. A router
//! key does not contain the identity: the caller must separate models by other means.

mod hasher;
mod settings;
#[cfg(test)]
mod tests;

pub use hasher::{BlockHasher, ExtraKeys};
pub use settings::{KeyProfile, KeySettings, PAGE_SIZE_MAX};

pub(crate) use hasher::{ExtraDigest, ParentKey};

use std::fmt;

/// The key of a block's content: 128 bits. Equal keys mean equal content, in every process and on
/// every machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 16]);

impl BlockKey {
    /// A key from its 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> BlockKey {
        BlockKey(bytes)
    }

    /// A key that an engine supplies, of any length. The bytes of a 16-byte key stay unchanged.
    /// Keys of other lengths are hashed, never truncated or padded: the first 16 bytes of BLAKE3's `derive_key("kvtile
    /// 2026-11-23 04:22:00 block keys of an engine", bytes)`.
    ///
    /// Such a key covers only what the engine put into it. If that is the tokens alone, blocks of
    /// different models have the same keys and must not share a store.
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

    /// The key's bytes, as stored and sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The sequence hash and the block hash of a [`KeyProfile::Router`] key; two meaningless numbers
    /// for keys of other profiles.
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
