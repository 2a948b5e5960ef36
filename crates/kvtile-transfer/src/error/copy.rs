//! A transfer that is refused or that failed.

use std::{path::PathBuf, sync::Arc};

use kvtile_layout::identity::Fingerprint;
use kvtile_memory::StorageKind;
use thiserror::Error;

/// A transfer that is refused or that failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// Source and destination hold the KV of different models.
    #[error("the source holds blocks of identity {from}, the destination of {to}")]
    LogicalDiffers {
        /// Logical fingerprint of the source.
        from: Fingerprint,
        /// Logical fingerprint of the destination.
        to: Fingerprint,
    },
    /// A whole-block copy between pages of different sizes. A
    /// [`Selection::sequence`](kvtile_layout::Selection::sequence) copies by token position
    /// instead.
    #[error(
        "pages of {source_page_size} tokens into pages of {destination_page_size}: whole blocks are \
         copied between pages of one size; specify the tokens of each block"
    )]
    PageSizesDiffer {
        /// Tokens a block of the source.
        source_page_size: u64,
        /// Tokens a block of the destination.
        destination_page_size: u64,
    },
    /// A token range in the options of a selection. The selection's block pairs have token ranges
    /// of their own.
    #[error("a token range beside a selection: its block pairs specify the tokens; change them")]
    TokensOfSelection,
    /// Source and destination share bytes.
    #[error("source and destination share bytes at {addr:#x}; copy through other blocks")]
    Overlap {
        /// Address, or file offset, of a shared byte.
        addr: u64,
    },
    /// Both layouts lie over the same memory, and the transfer has too many runs to prove that they
    /// share no bytes.
    #[error(
        "source and destination share memory, and {runs} runs are too many to check for overlap"
    )]
    OverlapUnproved {
        /// Number of runs.
        runs: u64,
    },
    /// The memory or file is read-only.
    #[error("the destination is read-only")]
    ReadOnly,
    /// The verification after the copy found a difference.
    #[error("destination block {block} differs from its source after the copy")]
    VerifyFailed {
        /// The destination block.
        block: u64,
    },
    /// The transfer has no such layer.
    #[error("layer {layer} is not among the {layers} layers of this transfer")]
    NoSuchLayer {
        /// The requested layer, counted from the first of the transfer.
        layer: usize,
        /// Layers of the transfer.
        layers: usize,
    },
    /// A plan reaches outside the regions that it was made for. This is a defect; executors check
    /// for it nevertheless.
    #[error("a plan reaches outside region {region}; this is a defect of kvtile")]
    OutsidePlan {
        /// The region.
        region: u64,
    },
    /// A part of a transfer is missing. This is a defect; it ends the transfer and leaves its
    /// destination blocks undefined.
    #[error("{what} {index} of a transfer is missing; this is a defect of kvtile")]
    Missing {
        /// The missing part.
        what: &'static str,
        /// Its index.
        index: u64,
    },
    /// A worker thread panicked. This is a defect.
    #[error(
        "a transfer panicked; the destination blocks are undefined; this is a defect of kvtile"
    )]
    Panicked,
    /// A transfer thread could not be started.
    #[error("a transfer thread could not be started: {problem}")]
    NoThread {
        /// The system's error message.
        problem: String,
    },
    /// A transfer after a mark or a stream of a device, in which no device takes part.
    #[error(
        "a transfer from {from} to {to} cannot start after work of a device; wait for the mark, then start it without `after`"
    )]
    AfterWithoutDevice {
        /// The kind of the source.
        from: StorageKind,
        /// The kind of the destination.
        to: StorageKind,
    },
    /// The system refused an operation on a file or folder.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
}
