//! Blocks in a folder: what survives a restart, a crash and a loss of power.
//!
//! ```text
//! manifest.json   version, identity in full, layout and pieces of a block, sizes; replaced in one step
//! records         64 bytes a slot and more: key, parent, position, tenant, sequence, checksums of pieces
//! slots           one block a slot, at multiples of 4096
//! lock            which process uses the folder; the lock itself is on the folder
//! ```
//!
//! [`SlotStore`] keeps blocks in slots and says which ones are durable. Everything is bounded by
//! the capacity it was given. It does not know which blocks are worth keeping: slots are chosen,
//! emptied and pinned by whoever uses it. Files are reached through a [`Medium`](medium::Medium).

mod capacity;
mod convert;
mod folder;
mod inspect;
mod manifest;
mod old;
pub use crate::medium;
mod record;
mod settings;
mod store;
mod tier;

pub use capacity::SLOTS_MAX;
pub use convert::{ConvertProgress, ConvertSettings, Converted, LeftOut, convert, convert_on};
pub use folder::clear;
pub use inspect::{FolderUsage, Inspection};
pub use manifest::{Created, Manifest};

pub use crate::tier::{Pieces, StoreIdentity};
pub use settings::DiskSettings;
pub use store::{
    Dropped, FailedWrite, LostBlock, Miss, Recovered, SlotRead, SlotState, SlotStore,
    SlotStoreSettings, SlotStoreStats, SlotWrite, StoredBlock, Synced, Ticket, Written,
};
pub use tier::DiskTier;
