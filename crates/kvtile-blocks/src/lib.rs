//! Block management: which blocks hold which tokens, which are in use, and which to evict.
//!
//! | module | what it is |
//! | --- | --- |
//! | `key` | the 128-bit key of a block's content: chained, keyed by identity and tenant |
//! | `sequence` | a growing token sequence, and the keys of its full blocks |
//! | `pool` | the blocks of one tier: states, registration, prefixes, pins, quotas |
//! | `policy` | which block to evict: LRU, ARC, S3-FIFO, and a learned policy over leaves |
//! | `events` | an ordered log of stored and removed blocks |
//!
//! The crate is pure logic: it holds no bytes and no addresses, reads no clock (callers pass the
//! time as a [`Tick`]), does no I/O and starts no thread.

#![forbid(unsafe_code)]

mod error;
pub mod events;
mod grow;
mod id_run;
pub mod key;
pub mod policy;
pub mod pool;
pub mod sequence;

pub use error::BlocksError;
pub use key::BlockKey;

/// The index of a block inside one pool, `0..blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The id as a slice index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A group of layers whose blocks have one size. The same key in two groups names different bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// A time on the caller's clock, in milliseconds from an arbitrary fixed start. Only differences
/// are meaningful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tick(pub u64);
