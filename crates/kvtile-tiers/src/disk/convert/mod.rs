//! Copying the blocks of a folder to a new one: from version 1, or into another order of stored blocks.
//!
//! ```text
//! FROM   only read, its lock held          TO     new or empty; without a manifest until the end
//!   records ─► newest of each key ─► batch of blocks, verified
//!                                      └─► permuted in memory ─► written, synced ─► … ─► manifest
//! ```
//!
//! The manifest of the new folder gets its name last ([`Unfinished`]). Whatever happens before leaves a folder
//! that is no disk tier, and that a cache or another conversion makes anew.

mod batch;
mod order;
mod report;
mod source;
mod unfinished;

pub use report::{ConvertProgress, Converted, LeftOut};

use std::{
    ffi::OsStr,
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use kvtile_layout::Word;

use self::{batch::Batches, order::Orders, source::Source, unfinished::Unfinished};
use super::{
    SlotStore, SlotStoreSettings, StoreIdentity, StoredBlock, capacity,
    capacity::SlotForm,
    folder,
    manifest::Manifest,
    medium::{FolderMedium, Medium},
    record::RecordForm,
};
use crate::error::TierError;

/// What a conversion is to do.
#[derive(Clone, Debug, Default)]
pub struct ConvertSettings {
    /// The order of the blocks in the new folder (default: [`STORAGE_WORD`](crate::tier::STORAGE_WORD)).
    pub layout: Option<Word>,
    /// The order of the blocks in the folder that is read (default: the first of the usual ones that fits).
    pub stored_layout: Option<Word>,
    /// What the files of the new folder may take together (default: what those of the other may, and more where
    /// the same number of slots needs it).
    pub capacity_bytes: Option<u64>,
}

/// Copies every whole block of the folder `from` to the new folder `to`, in the current format.
///
/// Blocks keep their keys, parents, positions and tenants, and are written in the order of their positions, older
/// ones first among equals. Blocks that fail their checksum are left out, and those after them stay. Nothing is
/// written to `from`. `progress` is called after each batch of blocks.
///
/// # Errors
/// `to` is `from`, lies in it, is a disk tier, or holds other files; `from` is in use, is no disk tier, is of a
/// version that is not known, or has a damaged manifest; a word that is not the order of its blocks; a capacity
/// that is too small; what the file systems say. `to` is no disk tier then, and what was made of it is removed
/// where that can be done.
pub fn convert(
    from: &Path,
    to: &Path,
    settings: &ConvertSettings,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<Converted, TierError> {
    check_apart(from, to)?;
    let was_there = to.symlink_metadata().is_ok();
    let (source, target) = (FolderMedium::new(from), FolderMedium::new(to));
    let converted = convert_on(Arc::new(source), Arc::new(target), settings, progress);
    if converted.is_err() && !was_there {
        // The error is what the caller needs; an empty folder does no harm.
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
) -> Result<Converted, TierError> {
    folder::check_new(&*to)?;
    // Held to the end.
    let (_lock, not_locked) = match folder::lock_to_read(&*from)? {
        Ok(lock) => (Some(lock), None),
        Err(error) => (None, Some(error)),
    };
    let source = Source::open(Arc::clone(&from))?;
    let orders = Orders::of(&source, settings)?;
    let blocks = source.newest();
    let store_settings = SlotStoreSettings::new(capacity_bytes(
        &source,
        (&blocks, &orders.identity),
        settings.capacity_bytes,
    )?);
    let mut converted = Converted::begun((&source, blocks.len()), &orders, not_locked);
    let made = make(&to, &store_settings, &orders.identity, |store| {
        let batches = Batches::new(&source, &orders, blocks.len())?;
        batches.copy((&source, &blocks), store, (&mut converted, progress))
    });
    let manifest = made.inspect_err(|_| {
        // The error is what the caller needs; the next attempt removes what stays.
        drop(folder::remove_unfinished(&*to));
    })?;
    converted.capacity_bytes = manifest.capacity_bytes();
    converted.blocks_max = manifest.blocks_max();
    Ok(converted)
}

/// Makes the folder `to`, lets `fill` write its blocks, and gives its manifest its name.
fn make(
    to: &Arc<dyn Medium>,
    settings: &SlotStoreSettings,
    identity: &StoreIdentity,
    fill: impl FnOnce(&SlotStore) -> Result<(), TierError>,
) -> Result<Manifest, TierError> {
    let unfinished = Arc::new(Unfinished::new(Arc::clone(to)));
    let medium: Arc<dyn Medium> = Arc::clone(&unfinished) as Arc<dyn Medium>;
    let (store, recovered) = SlotStore::create_or_open_on(medium, settings, identity)?;
    if !recovered.created {
        // Another process made it since it was looked at.
        return Err(TierError::AlreadyAStore { folder: to.name() });
    }
    fill(&store)?;
    unfinished.finish()?;
    Ok(store.manifest().clone())
}

/// Bytes that the new folder may have. A capacity that was asked for must have room for all blocks.
fn capacity_bytes(
    source: &Source,
    (blocks, identity): (&[(usize, StoredBlock)], &StoreIdentity),
    asked: Option<u64>,
) -> Result<u64, TierError> {
    let manifest_bytes = Manifest::new(identity, 0, 0)?.bytes_max()?;
    let form = SlotForm {
        block_bytes: identity.block_bytes(),
        record: RecordForm::of(&identity.pieces),
    };
    let blocks = blocks.len() as u64;
    let fewest = capacity::physical_for(u32::try_from(blocks).unwrap_or(u32::MAX));
    let bytes = |slots| {
        let bytes = capacity::total_bytes(slots, form, manifest_bytes);
        bytes.unwrap_or(u64::MAX)
    };
    match asked {
        None => Ok(bytes(fewest.max(source.slots())).max(source.capacity_bytes())),
        Some(capacity_bytes) if capacity_bytes < bytes(fewest) => Err(TierError::BlocksDoNotFit {
            capacity_bytes,
            blocks,
            needed_bytes: bytes(fewest),
        }),
        Some(capacity_bytes) => Ok(capacity_bytes),
    }
}

/// Refuses a folder `to` that is `from` or lies in it.
fn check_apart(from: &Path, to: &Path) -> Result<(), TierError> {
    let (Ok(source), Ok(to_absolute)) = (from.canonicalize(), std::path::absolute(to)) else {
        // What is wrong with them is said when they are opened.
        return Ok(());
    };
    match resolved(&to_absolute).starts_with(&source) {
        false => Ok(()),
        true => Err(TierError::TargetInSource {
            target: FolderMedium::new(to).name(),
            source_folder: FolderMedium::new(from).name(),
        }),
    }
}

/// Where a path leads, or would lead once what is missing is made.
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
