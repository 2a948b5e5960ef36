//! The names in a folder, its lock, and how it is emptied.

use super::{
    manifest::{MANIFEST_FILE, MANIFEST_PARTIAL_FILE, file_name},
    medium::{LockError, Medium, MediumLock, NotPlain},
};
use crate::error::TierError;

/// Which process uses the folder.
pub(super) const LOCK_FILE: &str = "lock";

/// One record a slot.
pub(super) const RECORDS_FILE: &str = "records";

/// The slots.
pub(super) const SLOTS_FILE: &str = "slots";

/// Every name that we make.
const OURS: [&str; 5] = [
    LOCK_FILE,
    MANIFEST_FILE,
    MANIFEST_PARTIAL_FILE,
    RECORDS_FILE,
    SLOTS_FILE,
];

/// A folder that file systems make in their own root.
const LOST_AND_FOUND: &str = "lost+found";

/// Refuses a folder that holds files of somebody else, before anything in it is touched. One with
/// a manifest is ours; one without may be left over from a creation that did not end, and that
/// starts with the lock.
pub(super) fn check_ours(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    if names.iter().any(|name| name == MANIFEST_FILE) {
        return Ok(());
    }
    let begun = names.iter().any(|name| name == LOCK_FILE);
    let foreign = names.into_iter().find(|name| {
        let ours = begun && OURS.contains(&name.as_str());
        !ours && name != LOST_AND_FOUND
    });
    match foreign {
        None => Ok(()),
        Some(found) => Err(TierError::ForeignFolder {
            folder: medium.name(),
            found,
        }),
    }
}

/// Takes the lock of the folder, to write in it.
pub(super) fn lock(medium: &dyn Medium) -> Result<Box<dyn MediumLock>, TierError> {
    let lock = medium.lock(LOCK_FILE);
    lock.map_err(|error| lock_error(medium, error))
}

fn lock_error(medium: &dyn Medium, error: LockError) -> TierError {
    match error {
        LockError::Held(holder) => TierError::InUse {
            folder: medium.name(),
            holder,
        },
        LockError::Io(error) => {
            let inner = error.get_ref();
            let name = match inner.is_some_and(|inner| inner.is::<NotPlain>()) {
                true => file_name(medium, LOCK_FILE),
                false => medium.name(),
            };
            TierError::file("lock", name, error)
        }
    }
}

/// Removes what is left of a folder without a manifest. The lock stays: another process may be
/// waiting for it.
pub(super) fn remove_data(medium: &dyn Medium) -> Result<(), TierError> {
    let failed = |error| TierError::file("clear", medium.name(), error);
    for file in [MANIFEST_PARTIAL_FILE, RECORDS_FILE, SLOTS_FILE] {
        medium.remove(file).map_err(failed)?;
    }
    medium.sync_folder().map_err(failed)
}

/// Removes all blocks and the manifest; the next store makes the folder anew. The manifest goes
/// first, so that a crash leaves an unfinished folder and never a half-empty one.
///
/// # Errors
/// The folder is in use, is no disk tier, or what the file system says.
pub fn clear(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    check_ours(medium)?;
    if !names.iter().any(|name| OURS.contains(&name.as_str())) {
        return Err(TierError::NotAStore {
            folder: medium.name(),
        });
    }
    let _lock = lock(medium)?;
    let failed = |error| TierError::file("clear", medium.name(), error);
    medium.remove(MANIFEST_FILE).map_err(failed)?;
    medium.sync_folder().map_err(failed)?;
    remove_data(medium)
}
