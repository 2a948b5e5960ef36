//! The errors of the benchmarks.

use std::path::PathBuf;

use kvtile::{
    layout::LayoutError,
    memory::MemoryError,
    tiers::{TierError, disk::SlotMiss},
    transfer::TransferError,
};
use kvtile_blocks::BlocksError;
use thiserror::Error;

/// Why a benchmark ended without its report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// An invalid word or shape.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A transfer failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Memory could not be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Keys or pools refused an operation.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// The disk tier refused an operation.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// A cache moved fewer blocks than requested.
    #[error("the cache moved {came} of {wanted} blocks in a round of {operation}")]
    CacheFellShort {
        /// The operation.
        operation: &'static str,
        /// Moved blocks.
        came: usize,
        /// Requested blocks.
        wanted: usize,
    },
    /// A block of the disk tier that could not be read.
    #[error("block {slot} of the disk tier could not be read: {miss}")]
    Miss {
        /// Its slot.
        slot: u32,
        /// The reason.
        miss: SlotMiss,
    },
    /// A rival that cannot be created as required.
    #[error("{name}: {source}")]
    Rival {
        /// The rival.
        name: &'static str,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Filters without matches, or models and pairs that do not fit each other.
    #[error("nothing matches {filters:?}; there are {known}")]
    NothingLeft {
        /// The filters.
        filters: Vec<String>,
        /// The existing names.
        known: String,
    },
    /// A cell that does not fit the available memory.
    #[error("{bytes} bytes need {needed} of memory and {available} are available; give less")]
    TooManyBytes {
        /// Bytes of one cell.
        bytes: u64,
        /// Required memory.
        needed: u64,
        /// Available memory.
        available: u64,
    },
    /// A wrong copy.
    #[error("{row}: block {block} arrived changed; this is a defect of {method}")]
    WrongCopy {
        /// The measured row.
        row: String,
        /// The method.
        method: &'static str,
        /// The destination block.
        block: u64,
    },
    /// Memory that a transfer did not release.
    #[error("memory of a finished transfer is still held")]
    StillHeld,
    /// A failed operation on a file of the system or the user.
    #[error("cannot {operation} {path}", path = .path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A failure of an external program.
    #[error("{program}: {problem}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The problem.
        problem: String,
    },
    /// Stored results that cannot be read.
    #[error("these are no results of a benchmark")]
    Results(#[from] serde_json::Error),
}
