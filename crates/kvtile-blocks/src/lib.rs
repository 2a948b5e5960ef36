//! Which blocks hold which tokens, which of them are in use, and which one has to go.
//!
//! | module | what it is |
//! | --- | --- |
//! | `key` | what a block's content is called: 128 bits, chained, keyed by identity and tenant |
//! | `sequence` | tokens that grow, and the keys of their full blocks |
//! | `pool` | the blocks of one tier: states, registration, prefixes, pins, quotas |
//! | `policy` | which block is evicted: LRU, ARC, S3-FIFO, and a learned one over leaves |
//! | `events` | what was stored and removed, in order |
//!
//! It is pure logic: it holds no bytes and no addresses, reads no clock (time comes in as a
//! [`Tick`]), does no I/O and starts no thread.

#![forbid(unsafe_code)]

mod error;
pub mod events;
pub mod key;
pub mod policy;
pub mod pool;
pub mod sequence;

pub use error::BlocksError;
pub use key::BlockKey;

/// Index of a block inside one pool, `0..blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// As an index of a slice.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A group of layers whose blocks have one size. Equal keys of two groups stand for different bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// A moment on the caller's clock, in milliseconds from any start that does not change. Only
/// differences mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tick(pub u64);
