//! Why something could not be measured.

use std::path::PathBuf;

use kvtile::{
    layout::LayoutError,
    memory::MemoryError,
    tiers::{TierError, disk::Miss},
    transfer::TransferError,
};
use kvtile_blocks::BlocksError;
use thiserror::Error;

/// Why a benchmark ended without its report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A word or a shape that does not work out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A transfer failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Keys or pools refused what was done with them.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// The disk tier refused what was done with it.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// A cache moved fewer blocks than it was given.
    #[error("the cache came to {came} of {wanted} blocks in a round of {operation}")]
    CacheFellShort {
        /// What it was to do.
        operation: &'static str,
        /// Blocks that it did it with.
        came: usize,
        /// Blocks that it was given.
        wanted: usize,
    },
    /// A block of the disk tier did not come back.
    #[error("block {slot} of the disk tier did not come back: {miss}")]
    Miss {
        /// Its slot.
        slot: u32,
        /// Why not.
        miss: Miss,
    },
    /// A rival cannot be made as the benchmark needs it.
    #[error("{name}: {source}")]
    Rival {
        /// Which one.
        name: &'static str,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Filters, or models and pairs that do not fit, leave nothing.
    #[error("nothing matches {filters:?}; there are {known}")]
    NothingLeft {
        /// The filters.
        filters: Vec<String>,
        /// What there is.
        known: String,
    },
    /// Both sides do not fit the memory that is there.
    #[error("{bytes} bytes need {needed} of memory and {available} are available; give less")]
    TooManyBytes {
        /// What one cell moves.
        bytes: u64,
        /// What that takes.
        needed: u64,
        /// What there is.
        available: u64,
    },
    /// Something was copied wrong.
    #[error("{row}: block {block} arrived changed; this is a defect of {method}")]
    WrongCopy {
        /// What was measured.
        row: String,
        /// What copied.
        method: &'static str,
        /// The destination block.
        block: u64,
    },
    /// Memory that was lent to a transfer did not come back.
    #[error("memory of a finished transfer is still held")]
    StillHeld,
    /// The number of threads cannot be chosen.
    #[error("transfers on {threads} threads cannot be asked for")]
    Threads {
        /// What was asked for.
        threads: u32,
    },
    /// A file of the system's or the user's.
    #[error("cannot {operation} {path}", path = .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that was run beside ours.
    #[error("{program}: {problem}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What went wrong.
        problem: String,
    },
    /// Stored results that cannot be read.
    #[error("these are no results of a benchmark")]
    Results(#[from] serde_json::Error),
}
