//! The store's reports: misses, outcomes of writes and syncs, recovered blocks.

use kvtile_blocks::BlockKey;

use crate::error::TierError;

/// Why a read of a slot does not return the requested block. No byte of its buffer may be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotMiss {
    /// The slot holds no block that can be read.
    #[error("the slot is empty")]
    Empty,
    /// The slot holds another block.
    #[error("the slot holds another block")]
    WrongKey,
    /// The slot was erased or rewritten during the read.
    #[error("the slot was reused for another block during the read")]
    Replaced,
    /// The bytes are not those that were written.
    #[error("the block fails its checksum")]
    Checksum,
    /// The record is neither whole nor erased.
    #[error("the record of the slot is torn")]
    Torn,
    /// The data file ends before or inside the slot.
    #[error("the data file was cut short")]
    Truncated,
    /// The slot could not be read.
    #[error(transparent)]
    Io(TierError),
    /// The buffer is not as long as a block.
    #[error(transparent)]
    Buffer(TierError),
}

/// One block to write.
#[derive(Clone, Copy, Debug)]
pub struct SlotWrite<'a> {
    /// The slot to write, which must be empty.
    pub slot: u32,
    /// The block's key.
    pub key: BlockKey,
    /// The key of the block before it in its chain, if it has one.
    pub parent: Option<BlockKey>,
    /// How many blocks precede it in its chain: more than precede its parent.
    pub position: u32,
    /// The tenant of the block.
    pub tenant: u32,
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// One block to read, or consecutive pieces of one.
#[derive(Debug)]
pub struct SlotRead<'a> {
    /// The slot to read.
    pub slot: u32,
    /// The key that the block must have.
    pub key: BlockKey,
    /// Offset in the block at which the read starts: 0, or the start of a piece.
    pub start: u64,
    /// The destination; as long as a block, or as the pieces.
    pub buffer: &'a mut [u8],
}

/// Identifies everything written up to a moment. Tickets are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteTicket(pub(super) u64);

/// The outcome of a batch of writes.
#[derive(Debug)]
#[must_use = "writes that failed are not stored"]
pub struct SlotWriteReport {
    /// The writes of the batch are durable once
    /// [`SlotStore::is_durable`](super::SlotStore::is_durable) accepts this ticket, unless they
    /// were lost.
    pub ticket: WriteTicket,
    /// Blocks that are not stored, with the reason; their slots are unchanged.
    pub failed: Vec<FailedWrite>,
}

/// A block that was not stored.
#[derive(Clone, Debug)]
pub struct FailedWrite {
    /// The slot.
    pub slot: u32,
    /// The reason.
    pub error: TierError,
}

/// The outcome of a sync.
#[derive(Debug)]
#[must_use = "blocks may have been lost"]
pub struct SlotSyncReport {
    /// Everything written up to here is durable or was reported as lost.
    pub durable: WriteTicket,
    /// Blocks that became durable.
    pub blocks: usize,
    /// Erased places that are free for new writes.
    pub erased: usize,
    /// Blocks that could not be made durable; their slots are empty.
    pub lost: Vec<LostBlock>,
    /// Why part of this sync is not durable, or why nothing is: [`FolderError::FileGone`](crate::FolderError::FileGone). The next
    /// sync retries everything that was not lost.
    /// [`SlotStore::are_durable`](super::SlotStore::are_durable) reports single blocks, and covers
    /// blocks that other syncs lost.
    pub failure: Option<TierError>,
}

/// A block that was written and could not be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostBlock {
    /// The slot that held it.
    pub slot: u32,
    /// Its key.
    pub key: BlockKey,
}

/// A block that was found when the folder was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSlot {
    /// Its slot.
    pub slot: u32,
    /// Its key.
    pub key: BlockKey,
    /// The key of the block before it in its chain, which may not be stored.
    pub parent: Option<BlockKey>,
    /// How many blocks precede it in its chain.
    pub position: u32,
    /// The tenant of the block.
    pub tenant: u32,
    /// Its write's number, ascending over all writes of the folder.
    pub sequence: u64,
}

/// The blocks that were found when a folder was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredBlocks {
    /// The blocks, smaller positions first, older ones first among equals, so that no block comes
    /// before its parent. Their slots are 0, 1, 2, ….
    pub entries: Vec<StoredSlot>,
    /// Counts of the slots that were left out.
    pub dropped: DroppedSlots,
    /// Whether this call created the folder.
    pub created: bool,
}

/// Slots that were left out when a folder was opened, by reason. They are empty now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DroppedSlots {
    /// Records that are neither whole nor erased: a crash tore them, or bits flipped.
    pub torn: u32,
    /// Records that could not be read.
    pub unreadable: u32,
    /// Slots beyond the end of a file.
    pub truncated: u32,
    /// Older copies of blocks that are stored twice.
    pub duplicate: u32,
    /// Blocks without a slot: the capacity is smaller than before, or a crash left both the erased
    /// old blocks and the new ones that replaced them.
    pub over_capacity: u32,
}

impl DroppedSlots {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.torn + self.unreadable + self.truncated + self.duplicate + self.over_capacity
    }
}
