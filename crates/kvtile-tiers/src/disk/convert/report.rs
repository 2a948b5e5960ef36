//! The report of a conversion.

use kvtile_layout::Word;

use super::{
    super::{SlotMiss, StoredSlot},
    order::ConvertOrders,
    source::ConvertSource,
};
use crate::error::TierError;

/// The progress of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConvertProgress {
    /// Blocks read so far.
    pub blocks: usize,
    /// Blocks to read in all.
    pub of: usize,
}

/// A block that was not copied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeftOutBlock {
    /// The block; its slot is that of the source folder.
    pub block: StoredSlot,
    /// Why it was not copied.
    pub reason: SlotMiss,
}

/// The result of a conversion.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConversionReport {
    /// The format version of the source folder.
    pub from_version: u32,
    /// The layout of its blocks.
    pub stored_layout: Word,
    /// The layout of the blocks in the new folder.
    pub layout: Word,
    /// Blocks in the new folder, all of them durable.
    pub blocks: usize,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// Blocks that are not intact, in the order of their positions.
    pub left_out: Vec<LeftOutBlock>,
    /// Older copies of blocks that a crash left twice; only the newest copy is converted.
    pub duplicates: usize,
    /// Slots whose record is neither whole nor erased.
    pub torn: Vec<u32>,
    /// Slots whose record cannot be read.
    pub unreadable: Vec<u32>,
    /// Why the lock of the source folder could not be taken, if it could not: a cache on another
    /// machine may have written to the folder during the conversion.
    pub not_locked: Option<TierError>,
    /// The most bytes that all files of the new folder may take.
    pub capacity_bytes: u64,
    /// Blocks that the new folder has room for.
    pub blocks_max: u32,
}

impl ConversionReport {
    pub(super) fn begun(
        (source, newest): (&ConvertSource, usize),
        orders: &ConvertOrders,
        not_locked: Option<TierError>,
    ) -> ConversionReport {
        ConversionReport {
            from_version: source.version(),
            stored_layout: orders.stored.word.clone(),
            layout: orders.target.word.clone(),
            blocks: 0,
            bytes: 0,
            left_out: Vec::new(),
            duplicates: source.blocks().len() - newest,
            torn: source.torn().to_vec(),
            unreadable: source.unreadable().to_vec(),
            not_locked,
            capacity_bytes: 0,
            blocks_max: 0,
        }
    }

    /// Whether every block and every record of the source folder is intact.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left_out.is_empty() && self.torn.is_empty() && self.unreadable.is_empty()
    }
}
