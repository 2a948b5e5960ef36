//! What can go wrong in a tier.

use std::{io, sync::Arc};

use kvtile_layout::identity::Difference;
use thiserror::Error;

/// Why a tier refused something. Every message names the values and what to do.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TierError {
    /// Another process, or another part of this one, has the folder.
    #[error(
        "{folder} is in use{by}; give each process a folder of its own, or stop the other one",
        by = .pid.map_or(String::new(), |pid| format!(" by process {pid}"))
    )]
    InUse {
        /// The folder.
        folder: String,
        /// The process that has it, where it said so.
        pid: Option<u32>,
    },
    /// A folder with files that are not a disk tier's. Nothing was touched.
    #[error("{folder} is no disk tier and holds {found:?}; give an empty folder or a new one")]
    ForeignFolder {
        /// The folder.
        folder: String,
        /// The first name that is not one of ours.
        found: String,
    },
    /// A folder without a disk tier was to be looked into.
    #[error("{folder} is no disk tier: it has no manifest")]
    NotAStore {
        /// The folder.
        folder: String,
    },
    /// A manifest that is not what was written.
    #[error(
        "the manifest of {folder} cannot be used: {problem}; its blocks cannot be told from those \
         of another model, so clear the folder (`kvtile cache clear`)"
    )]
    ManifestDamaged {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A folder of another identity, layout, block size or version. Nothing was touched.
    #[error("{folder} belongs to another cache: {difference}; give another folder or clear it")]
    FolderDiffers {
        /// The folder.
        folder: String,
        /// The first field that differs.
        difference: Difference,
    },
    /// A capacity in which not even one block can be kept safely.
    #[error(
        "{capacity_bytes} bytes of disk are too few for blocks of {block_bytes} bytes; give at \
         least {needed_bytes}"
    )]
    CapacityTooSmall {
        /// The capacity given.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
        /// The least that would do.
        needed_bytes: u64,
    },
    /// A block size that no slot can have.
    #[error("blocks of {block_bytes} bytes cannot be stored; a block has 1 byte to 1 TiB")]
    BlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A slot that the store does not have.
    #[error("slot {slot} is not one of the {slots} slots")]
    SlotOutOfRange {
        /// The slot.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// A write to a slot that holds a block, or is being written.
    #[error("slot {slot} holds a block; erase it before something else is written there")]
    SlotOccupied {
        /// The slot.
        slot: u32,
    },
    /// Bytes that are not one block.
    #[error("{found_bytes} bytes were given for a block of {block_bytes}")]
    WrongBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
        /// Bytes that were given.
        found_bytes: u64,
    },
    /// No slot is known to be erased on the disk, because the erasures could not be synced.
    #[error(
        "no erased slot is left: earlier erasures are not on the disk ({failures} syncs failed)"
    )]
    NoErasedSlot {
        /// Syncs that failed since the folder was opened.
        failures: u64,
    },
    /// A sync failed while the block was being written, and may have lost it.
    #[error("the disk failed a sync while slot {slot} was being written; write it again")]
    SyncFailedMeanwhile {
        /// The slot.
        slot: u32,
    },
    /// The disk, a quota or a file size limit has no room.
    #[error("no room to {operation} {file}")]
    DiskFull {
        /// What was tried.
        operation: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file operation failed.
    #[error("cannot {operation} {file}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        file: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl TierError {
    pub(crate) fn file(operation: &'static str, file: String, error: io::Error) -> TierError {
        let full = [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::FileTooLarge,
        ];
        let is_full = full.contains(&error.kind());
        let source = Arc::new(error);
        if is_full {
            return TierError::DiskFull {
                operation,
                file,
                source,
            };
        }
        TierError::File {
            operation,
            file,
            source,
        }
    }
}
