//! The outcomes of loads.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlocksError, events::TierId};
use kvtile_transfer::TransferError;

/// Why a load ended before its last block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LoadStop {
    /// The caller cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The cache was closed.
    Closed,
    /// A worker thread panicked during the load: a bug of kvtile or of a medium.
    Panicked,
    /// A block of a tier was damaged or could not be read.
    Lost,
    /// A block of a tier was evicted before it was read.
    Evicted,
    /// A tier did not complete a read in time.
    Late,
    /// All host memory is in use, and for a load the spare block of the tier too.
    HostFull,
    /// The pool of host memory refused a block.
    Pool(BlocksError),
    /// The copy to the engine was refused or failed.
    Transfer(TransferError),
    /// The daemon of a connected cache refused it, for the reason in its message.
    Refused(Arc<str>),
}

/// The outcome of a load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// Number of leading blocks that arrived at their destinations. The engine has to compute the
    /// blocks after them.
    pub blocks: usize,
    /// Blocks of the request.
    pub wanted: usize,
    /// Blocks that were in host memory.
    pub from_host: usize,
    /// Blocks read from tiers below host memory, for each tier with at least one, in the order of
    /// the cache's tiers.
    pub from_below: Vec<(TierId, usize)>,
    /// Payload bytes copied to the engine.
    pub bytes: u64,
    /// Time from the call to the completion.
    pub elapsed: Duration,
    /// Why not all blocks arrived; `None` if they did.
    pub stopped: Option<LoadStop>,
}

impl LoadReport {
    /// The report of a load of no blocks.
    pub(super) fn nothing() -> LoadReport {
        LoadReport {
            blocks: 0,
            wanted: 0,
            from_host: 0,
            from_below: Vec::new(),
            bytes: 0,
            elapsed: Duration::ZERO,
            stopped: None,
        }
    }

    /// Number of blocks that came from a tier.
    #[must_use]
    pub fn blocks_from(&self, tier: TierId) -> usize {
        if tier == TierId::HOST {
            return self.from_host;
        }
        let of = |(one, blocks): &(TierId, usize)| (*one == tier).then_some(*blocks);
        self.from_below.iter().find_map(of).unwrap_or(0)
    }
}
