//! A slot of a disk tier that is not in the required state.

use std::sync::Arc;

use thiserror::Error;

/// A slot of a disk tier that is not in the required state.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SlotError {
    /// A slot index out of range.
    #[error("slot {slot} is not one of the {slots} slots")]
    SlotOutOfRange {
        /// The slot.
        slot: u32,
        /// Number of slots.
        slots: u32,
    },
    /// A write to a slot that holds a block or has a write in flight.
    #[error("slot {slot} holds a block; erase it before something else is written there")]
    SlotOccupied {
        /// The slot.
        slot: u32,
    },
    /// A buffer whose length is not that of one block.
    #[error("{found_bytes} bytes were given for a block of {block_bytes}")]
    WrongBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
        /// Bytes of the buffer.
        found_bytes: u64,
    },
    /// No slot is durably erased, because the syncs of the erasures failed.
    #[error(
        "no erased slot is left: earlier erasures are not on the disk ({failures} syncs failed)"
    )]
    NoErasedSlot {
        /// Syncs that failed since the folder was opened.
        failures: u64,
    },
    /// A sync failed while the write of the block was in flight, so the block may be lost.
    #[error("the disk failed a sync while slot {slot} was being written; write it again")]
    SyncFailedMeanwhile {
        /// The slot.
        slot: u32,
    },
    /// A byte range of a block that does not coincide with whole pieces.
    #[error("bytes {start} to {end} of a block are no whole pieces; its pieces end at {ends:?}")]
    NoSuchPieces {
        /// The first byte.
        start: u64,
        /// The end of the range (exclusive).
        end: u64,
        /// The offsets at which the pieces of a block end.
        ends: Arc<[u64]>,
    },
}
