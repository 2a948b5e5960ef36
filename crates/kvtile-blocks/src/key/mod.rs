//! What the content of a block is called.
//!
//! A key says everything that the content depends on: the tokens of the block, all tokens before
//! it, whatever else went into it, the model, and the tenant. It does not say in which layout the
//! bytes lie, nor where.

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

    /// Its bytes, as they are stored and sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
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
