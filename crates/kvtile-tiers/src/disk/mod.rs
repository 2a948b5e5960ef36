//! The disk tier: blocks in a folder, which survive a restart, a crash and a loss of power.
//!
//! ```text
//! manifest.json        version and sizes; each group's identity in full, layout and pieces of its blocks
//! records, records-1   64 bytes or more per slot: key, parent, position, tenant, sequence, checksums of pieces
//! slots, slots-1       one block a slot, at multiples of 4096
//! lock                 names the process that uses the folder; the lock itself is on the folder
//! ```
//!
//! A folder keeps one or several groups of blocks, each with a block size of its own. The first group
//! has the files `records` and `slots`, group `i` has `records-i` and `slots-i`. All groups share the
//! manifest, which is replaced in one step, the lock and the capacity.
//!
//! [`SlotStore`] keeps the blocks of one group in slots and reports which ones are durable;
//! [`SlotFolder`] opens and syncs the stores of all groups. The capacity bounds all files. A store does not know which blocks are worth keeping: the caller chooses, erases and
//! pins slots. All file access goes through a [`Medium`](medium::Medium).
//!
//! [`DiskTier`] is the tier of the process that writes a folder. [`DiskFollower`] is the tier of
//! other processes, which only read it at the same time.

mod capacity;
mod convert;
mod folder;
mod follow;
mod inspect;
mod lent;
mod manifest;
mod old;
mod pace;
mod part_name;
pub use crate::medium;
mod record;
mod settings;
mod share;
pub(crate) use share::{check_groups, share_weight};
mod store;
mod tier;

pub use capacity::{GROUPS_MAX, SLOTS_MAX};
pub use convert::{
    ConversionReport, ConvertProgress, ConvertSettings, LeftOutBlock, convert, convert_on,
};
pub(crate) use folder::LOCK_FILE;
pub use folder::clear;
pub use follow::{DiskFollower, FollowCondition, FollowerStats};
pub use inspect::{FolderUsage, InspectedGroup, Inspection};
pub use manifest::{FolderCreation, Manifest, ManifestGroup};

pub use crate::tier::{BlockPieces, StoreIdentity, TierGroup};
pub(crate) use pace::{RefreshPace, RefreshedIndex, ask, refresh_if_old};
pub use part_name::PartFolderName;
pub use settings::DiskSettings;
pub(crate) use store::StoreCounter;
pub use store::{
    DroppedSlots, FailedWrite, LostBlock, RecoveredBlocks, SlotFolder, SlotMiss, SlotRead,
    SlotState, SlotStore, SlotStoreSettings, SlotStoreStats, SlotSyncReport, SlotWrite,
    SlotWriteReport, StoredSlot, WriteTicket,
};
pub use tier::DiskTier;
pub(crate) use tier::{BatchReader, DiskThreads, GROUP, READERS_MAX, start};
