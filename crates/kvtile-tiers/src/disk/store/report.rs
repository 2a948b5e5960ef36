//! What the store tells: misses, what became of writes and syncs, what was recovered.

use kvtile_blocks::BlockKey;

use crate::error::TierError;

/// Why a slot does not give the block that was asked for. No byte of such a block may be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Miss {
    /// The slot holds nothing that can be read.
    #[error("the slot is empty")]
    Empty,
    /// The slot holds another block.
    #[error("the slot holds another block")]
    WrongKey,
    /// The slot was erased or written anew while it was being read.
    #[error("the slot was given to another block while it was being read")]
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
    /// Where; the slot is empty.
    pub slot: u32,
    /// The block's key.
    pub key: BlockKey,
    /// The key of the block before it in its chain, if it has one.
    pub parent: Option<BlockKey>,
    /// How many blocks stand before it in its chain: more than before its parent.
    pub position: u32,
    /// Whose block it is.
    pub tenant: u32,
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// One block to read, or consecutive pieces of one.
#[derive(Debug)]
pub struct SlotRead<'a> {
    /// Where it is.
    pub slot: u32,
    /// The key that it must have.
    pub key: BlockKey,
    /// Where in the block the bytes begin: 0, or the start of a piece.
    pub start: u64,
    /// Where the bytes go; as long as a block, or as the pieces.
    pub buffer: &'a mut [u8],
}

/// Stands for everything written up to a moment. Tickets are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What became of a batch of writes.
#[derive(Debug)]
#[must_use = "writes that failed are not stored"]
pub struct Written {
    /// Becomes durable with a later sync.
    pub ticket: Ticket,
    /// Blocks that are not stored, with the reason; their slots are as they were before.
    pub failed: Vec<FailedWrite>,
}

/// A block that was not stored.
#[derive(Clone, Debug)]
pub struct FailedWrite {
    /// The slot.
    pub slot: u32,
    /// Why.
    pub error: TierError,
}

/// What became of a sync.
#[derive(Debug)]
#[must_use = "blocks may have been lost"]
pub struct Synced {
    /// Everything written up to here is durable or was reported as lost.
    pub durable: Ticket,
    /// Blocks that became durable.
    pub blocks: usize,
    /// Erased places that may be written again.
    pub erased: usize,
    /// Blocks that could not be brought to the disk; their slots are empty.
    pub lost: Vec<LostBlock>,
    /// Why not everything is durable that this sync was to bring to the disk, or why nothing is:
    /// [`TierError::FileGone`]. What was not lost is tried again by the next sync.
    /// [`SlotStore::are_durable`](super::SlotStore::are_durable) tells it for single blocks, those
    /// that other syncs lost included.
    pub failure: Option<TierError>,
}

/// A block that was written and could not be brought to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostBlock {
    /// The slot that held it.
    pub slot: u32,
    /// Its key.
    pub key: BlockKey,
}

/// A block that was found when the folder was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its slot.
    pub slot: u32,
    /// Its key.
    pub key: BlockKey,
    /// The key of the block before it in its chain; that block need not be stored.
    pub parent: Option<BlockKey>,
    /// How many blocks stand before it in its chain.
    pub position: u32,
    /// Whose block it is.
    pub tenant: u32,
    /// When it was written, compared with others of the same folder.
    pub sequence: u64,
}

/// What was found when a folder was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The blocks, those with smaller positions first, older ones first among equals, so that no
    /// block comes before its parent. Their slots are 0, 1, 2, ….
    pub entries: Vec<StoredBlock>,
    /// What was left out.
    pub dropped: Dropped,
    /// Whether the folder was made by this call.
    pub created: bool,
}

/// Slots that were left out when a folder was opened, by reason. They are empty now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Records that are neither whole nor erased: a crash tore them, or bits flipped.
    pub torn: u32,
    /// Records that could not be read.
    pub unreadable: u32,
    /// Slots that the files are too short for.
    pub truncated: u32,
    /// Older copies of blocks that are there twice.
    pub duplicate: u32,
    /// Blocks that there are no slots for: the capacity is smaller than before, or a crash left both
    /// old blocks that were erased and new ones in their stead.
    pub over_capacity: u32,
}

impl Dropped {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.torn + self.unreadable + self.truncated + self.duplicate + self.over_capacity
    }
}
