//! The disk tier: blocks in a folder, which survive a restart, a crash and a loss of power.
//!
//! ```text
//! manifest.json   version, identity in full, layout and pieces of a block, sizes; replaced in one step
//! records         64 bytes or more per slot: key, parent, position, tenant, sequence, checksums of pieces
//! slots           one block a slot, at multiples of 4096
//! lock            names the process that uses the folder; the lock itself is on the folder
//! ```
//!
//! [`SlotStore`] keeps blocks in slots and reports which ones are durable. Its capacity bounds all
//! of its files. It does not know which blocks are worth keeping: the caller chooses, erases and
//! pins slots. All file access goes through a [`Medium`](medium::Medium).
//!
//! [`DiskTier`] is the tier of the process that writes a folder. [`DiskFollower`] is the tier of
//! other processes, which only read it at the same time.

mod capacity;
mod convert;
mod folder;
mod follow;
mod inspect;
mod manifest;
mod old;
pub use crate::medium;
mod record;
mod settings;
mod store;
mod tier;

pub use capacity::SLOTS_MAX;
pub use convert::{
    ConversionReport, ConvertProgress, ConvertSettings, LeftOutBlock, convert, convert_on,
};
pub use folder::clear;
pub use follow::{DiskFollower, FollowCondition, FollowerStats};
pub use inspect::{FolderUsage, Inspection};
pub use manifest::{FolderCreation, Manifest};

pub use crate::tier::{BlockPieces, StoreIdentity};
pub use settings::DiskSettings;
pub use store::{
    DroppedSlots, FailedWrite, LostBlock, RecoveredBlocks, SlotMiss, SlotRead, SlotState,
    SlotStore, SlotStoreSettings, SlotStoreStats, SlotSyncReport, SlotWrite, SlotWriteReport,
    StoredSlot, WriteTicket,
};
pub use tier::DiskTier;
