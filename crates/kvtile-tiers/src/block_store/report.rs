//! The outcomes of jobs.

use std::{sync::Arc, time::Duration};

use crate::error::TierError;

/// The outcome of one block of a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BlockOutcome {
    /// A load filled the row with verified bytes; a store copied the row to staging memory.
    Done,
    /// The block is stored already; the store did not read the row.
    Present,
    /// No tier has the block, or the tiers that may have it are in a backoff after failures.
    Absent,
    /// The bytes of the block differ from those that were stored. The tier has removed it.
    Damaged,
    /// Staging memory stayed full for
    /// [`stage_within`](super::BlockStoreSettings::stage_within).
    NoRoom,
    /// The caller cancelled the job before it came to the block.
    Cancelled,
    /// The store was closed before the job began.
    Closed,
    /// The read or the copy failed.
    Failed(TierError),
}

impl BlockOutcome {
    /// Whether the block is where the job should bring it: in the row, or in the store.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, BlockOutcome::Done | BlockOutcome::Present)
    }

    /// The name in reports: `ok`, `present`, `absent`, `damaged`, `no room`, `cancelled`, `closed`
    /// or `failed`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            BlockOutcome::Done => "ok",
            BlockOutcome::Present => "present",
            BlockOutcome::Absent => "absent",
            BlockOutcome::Damaged => "damaged",
            BlockOutcome::NoRoom => "no room",
            BlockOutcome::Cancelled => "cancelled",
            BlockOutcome::Closed => "closed",
            BlockOutcome::Failed(_) => "failed",
        }
    }
}

/// The outcome of a job. The job no longer touches its rows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BlockOutcomes {
    /// One outcome for each key, in the order of the call. The row of a block that was not loaded
    /// has unspecified bytes.
    pub blocks: Arc<[BlockOutcome]>,
    /// Bytes that the job copied to or from rows.
    pub bytes: u64,
    /// Time from the call to the end.
    pub elapsed: Duration,
}

impl BlockOutcomes {
    /// The same outcome for `blocks` blocks.
    pub(super) fn all(blocks: usize, outcome: &BlockOutcome, elapsed: Duration) -> BlockOutcomes {
        BlockOutcomes {
            blocks: vec![outcome.clone(); blocks].into(),
            bytes: 0,
            elapsed,
        }
    }

    /// Number of blocks that are where the job should bring them.
    #[must_use]
    pub fn ok(&self) -> usize {
        self.blocks.iter().filter(|block| block.is_ok()).count()
    }
}

/// The outcome of a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFlush {
    /// Whether the store has a durable tier and every block that was stored before the flush is
    /// durable on each of them, or was evicted or removed since. Blocks that an earlier flush
    /// reported as failed do not count again.
    pub durable: bool,
    /// Blocks that still wait in staging memory.
    pub unwritten: usize,
    /// Blocks whose write has failed, or that a sync has lost, since the previous flush.
    pub failed: usize,
}
