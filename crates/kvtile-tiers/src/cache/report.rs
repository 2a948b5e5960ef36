//! What loads come to.

use std::time::Duration;

use kvtile_blocks::{BlocksError, events::TierId};
use kvtile_transfer::TransferError;

/// Why a load ended before its last block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LoadStop {
    /// It was cancelled.
    Cancelled,
    /// It was not its turn in time.
    Deadline,
    /// The cache was closed.
    Closed,
    /// A thread panicked while it loaded a part: a defect of kvtile or of a medium.
    Panicked,
    /// A block of a tier is not what was written, or cannot be read.
    Lost,
    /// A block of a tier was evicted before it was read.
    Evicted,
    /// A tier did not answer in time.
    Late,
    /// All host memory is in use; only prefetching ends so.
    HostFull,
    /// The pool of host memory refused a key.
    Pool(BlocksError),
    /// The copy to the engine was refused or failed.
    Transfer(TransferError),
}

/// What a load came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// Leading blocks that are where they were wanted. What comes after them has to be computed.
    pub blocks: usize,
    /// Blocks that were wanted.
    pub wanted: usize,
    /// Blocks that came from host memory.
    pub from_host: usize,
    /// Blocks that were read from tiers below host memory: each tier that gave some, in the order of the
    /// cache's tiers.
    pub from_below: Vec<(TierId, usize)>,
    /// Payload bytes that were copied to the engine.
    pub bytes: u64,
    /// From the call to the end.
    pub elapsed: Duration,
    /// Why not all of them came.
    pub stopped: Option<LoadStop>,
}

impl LoadReport {
    /// Blocks that came from a tier.
    #[must_use]
    pub fn blocks_from(&self, tier: TierId) -> usize {
        if tier == TierId::HOST {
            return self.from_host;
        }
        let of = |(one, blocks): &(TierId, usize)| (*one == tier).then_some(*blocks);
        self.from_below.iter().find_map(of).unwrap_or(0)
    }
}
