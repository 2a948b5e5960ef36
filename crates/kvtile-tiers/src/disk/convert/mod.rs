//! Conversion: copies a folder's blocks to a new folder, from version 1 or into another block
//! layout.
//!
//! ```text
//! FROM   only read, its lock held          TO     new or empty; without a manifest until the end
//!   records ─► newest of each key ─► batch of blocks, verified
//!                                      └─► permuted in memory ─► written, synced ─► … ─► manifest
//! ```
//!
//! The manifest of the new folder gets its name last ([`UnfinishedFolder`]). An error or crash before
//! that leaves a folder that is no disk tier, and that a cache or another conversion creates anew.

mod batch;
mod order;
mod report;
mod source;
mod unfinished;

pub use report::{ConversionReport, ConvertProgress, LeftOutBlock};

use std::{
    ffi::OsStr,
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use kvtile_layout::Word;

use self::{
    batch::ConvertBatches, order::ConvertOrders, source::ConvertSource,
    unfinished::UnfinishedFolder,
};
use super::{
    SlotStore, SlotStoreSettings, StoreIdentity, StoredSlot, TierGroup, capacity, folder,
    manifest::Manifest,
    medium::{FolderMedium, Medium},
    share,
};
use crate::error::{ConvertError, TierError};

/// The settings of a conversion.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConvertSettings {
    /// The layout of the blocks in the new folder (default:
    /// [`STORAGE_WORD`](crate::tier::STORAGE_WORD)).
    pub layout: Option<Word>,
    /// The layout of the blocks in the source folder (default: the first of the usual layouts that
    /// fits).
    pub stored_layout: Option<Word>,
    /// The most bytes that all files of the new folder may take (default: the source's capacity, or
    /// more if the same number of slots needs more).
    pub capacity_bytes: Option<u64>,
}

impl ConvertSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> ConvertSettings {
        ConvertSettings::default()
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn layout(mut self, layout: impl Into<Option<Word>>) -> ConvertSettings {
        self.layout = layout.into();
        self
    }

    /// Sets [`stored_layout`](Self::stored_layout).
    #[must_use]
    pub fn stored_layout(mut self, stored_layout: impl Into<Option<Word>>) -> ConvertSettings {
        self.stored_layout = stored_layout.into();
        self
    }

    /// Sets [`capacity_bytes`](Self::capacity_bytes).
    #[must_use]
    pub fn capacity_bytes(mut self, capacity_bytes: impl Into<Option<u64>>) -> ConvertSettings {
        self.capacity_bytes = capacity_bytes.into();
        self
    }
}

/// Copies every intact block of the folder `from` to the new folder `to`, in the current format.
///
/// Blocks keep their keys, parents, positions and tenants. They are written in ascending order of
/// their positions, older ones first among equals. Blocks that fail their checksum are left out;
/// their successors are copied. Nothing is written to `from`. `progress` is called after each batch
/// of blocks.
///
/// # Errors
/// `to` is `from`, lies in it, is a disk tier, or holds other files; `from` is in use, is no disk
/// tier, has several groups, is of an unknown version, or has a damaged manifest; a word is not the layout of its
/// blocks; the capacity is too small; a file system fails. `to` is no disk tier then, and the files
/// that the conversion created are removed where possible.
pub fn convert(
    from: &Path,
    to: &Path,
    settings: &ConvertSettings,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<ConversionReport, TierError> {
    check_apart(from, to)?;
    let was_there = to.symlink_metadata().is_ok();
    let (source, target) = (FolderMedium::new(from), FolderMedium::new(to));
    let converted = convert_on(Arc::new(source), Arc::new(target), settings, progress);
    if converted.is_err() && !was_there {
        // An empty folder that stays does no harm, and the caller needs the first error.
        drop(fs::remove_dir(to));
    }
    converted
}

/// As [`convert`], on any media.
///
/// # Errors
/// The same.
pub fn convert_on(
    from: Arc<dyn Medium>,
    to: Arc<dyn Medium>,
    settings: &ConvertSettings,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<ConversionReport, TierError> {
    folder::check_new(&*to)?;
    // Held to the end.
    let (_lock, not_locked) = match folder::lock_to_read(&*from)? {
        Ok(lock) => (Some(lock), None),
        Err(error) => (None, Some(error)),
    };
    let source = ConvertSource::open(Arc::clone(&from))?;
    let orders = ConvertOrders::of(&source, settings)?;
    let blocks = source.newest();
    let store_settings = SlotStoreSettings::new(capacity_bytes(
        &source,
        (&blocks, &orders.identity),
        settings.capacity_bytes,
    )?);
    let mut converted = ConversionReport::begun((&source, blocks.len()), &orders, not_locked);
    let made = make(&to, &store_settings, &orders.identity, |store| {
        let batches = ConvertBatches::new(&source, &orders, blocks.len())?;
        batches.copy((&source, &blocks), store, (&mut converted, progress))
    });
    let (capacity_bytes, blocks_max) = made.inspect_err(|_| {
        // The caller needs the first error; the next attempt removes the remaining files.
        drop(folder::remove_unfinished(&*to));
    })?;
    converted.capacity_bytes = capacity_bytes;
    converted.blocks_max = blocks_max;
    Ok(converted)
}

/// Creates the folder `to`, lets `fill` write its blocks, and then gives the manifest its name.
/// Returns the capacity of the folder in bytes and in blocks.
fn make(
    to: &Arc<dyn Medium>,
    settings: &SlotStoreSettings,
    identity: &StoreIdentity,
    fill: impl FnOnce(&SlotStore) -> Result<(), TierError>,
) -> Result<(u64, u32), TierError> {
    let unfinished = Arc::new(UnfinishedFolder::new(Arc::clone(to)));
    let medium: Arc<dyn Medium> = Arc::clone(&unfinished) as Arc<dyn Medium>;
    let (store, recovered) = SlotStore::create_or_open_on(medium, settings, identity)?;
    if !recovered.created {
        // Another process created the store after `check_new`.
        return Err(TierError::Convert(ConvertError::AlreadyAStore {
            folder: to.name(),
        }));
    }
    fill(&store)?;
    unfinished.finish()?;
    Ok((store.manifest().capacity_bytes(), store.slots()))
}

/// The capacity of the new folder in bytes. A requested capacity must have room for all blocks.
fn capacity_bytes(
    source: &ConvertSource,
    (blocks, identity): (&[(usize, StoredSlot)], &StoreIdentity),
    asked: Option<u64>,
) -> Result<u64, TierError> {
    let group = TierGroup::new("kv", identity.clone());
    let form = share::form(&group);
    let manifest_bytes = Manifest::new(&[group], 0)?.bytes_max()?;
    let blocks = blocks.len() as u64;
    let fewest = capacity::physical_for(u32::try_from(blocks).unwrap_or(u32::MAX));
    let bytes = |slots| {
        let bytes = capacity::total_bytes(slots, form, manifest_bytes);
        bytes.unwrap_or(u64::MAX)
    };
    match asked {
        None => Ok(bytes(fewest.max(source.slots())).max(source.capacity_bytes())),
        Some(capacity_bytes) if capacity_bytes < bytes(fewest) => {
            Err(TierError::Convert(ConvertError::BlocksDoNotFit {
                capacity_bytes,
                blocks,
                needed_bytes: bytes(fewest),
            }))
        }
        Some(capacity_bytes) => Ok(capacity_bytes),
    }
}

/// Refuses a folder `to` that is `from` or lies in it.
fn check_apart(from: &Path, to: &Path) -> Result<(), TierError> {
    let (Ok(source), Ok(to_absolute)) = (from.canonicalize(), std::path::absolute(to)) else {
        // Opening the folders reports what is wrong with them.
        return Ok(());
    };
    match resolved(&to_absolute).starts_with(&source) {
        false => Ok(()),
        true => Err(TierError::Convert(ConvertError::TargetInSource {
            target: FolderMedium::new(to).name(),
            source_folder: FolderMedium::new(from).name(),
        })),
    }
}

/// The target of a path, with missing components appended as if they existed.
fn resolved(path: &Path) -> PathBuf {
    for there in path.ancestors() {
        let (Ok(found), Ok(missing)) = (there.canonicalize(), path.strip_prefix(there)) else {
            continue;
        };
        return missing.components().fold(found, |mut at, part| {
            match part {
                Component::ParentDir => drop(at.pop()),
                Component::Normal(name) => at.push(AsRef::<OsStr>::as_ref(name)),
                _ => {}
            }
            at
        });
    }
    path.to_owned()
}
