//! The names in a folder, its lock, and how it is emptied.

use super::{
    manifest::{MANIFEST_FILE, MANIFEST_PARTIAL_FILE, file_name},
    medium::{LockError, Medium, MediumFile, MediumLock, NotPlain, OpenFile},
    store::{Miss, is_end},
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

/// Takes the lock of the folder to read in it, and writes nothing. `Ok(Err(_))` says why it cannot be taken
/// here although nothing is known to use the folder.
pub(super) fn lock_to_read(
    medium: &dyn Medium,
) -> Result<Result<Box<dyn MediumLock>, TierError>, TierError> {
    match medium.lock_to_read(LOCK_FILE) {
        Ok(lock) => Ok(Ok(lock)),
        Err(held @ LockError::Held(_)) => Err(lock_error(medium, held)),
        Err(error @ LockError::Io(_)) => Ok(Err(lock_error(medium, error))),
    }
}

/// Refuses a folder that is neither new nor empty. What a creation left over that did not end counts as empty.
pub(super) fn check_new(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    match names.iter().any(|name| name == MANIFEST_FILE) {
        true => Err(TierError::AlreadyAStore {
            folder: medium.name(),
        }),
        false => check_ours(medium),
    }
}

/// Length of a file in bytes, 0 where there is none.
pub(super) fn length(medium: &dyn Medium, file: &str) -> Result<u64, TierError> {
    let failed = |error| TierError::file("look at", file_name(medium, file), error);
    Ok(medium.length(file).map_err(failed)?.unwrap_or(0))
}

/// A file of so many bytes, to read; `None` where it has none.
pub(super) fn open_to_read(
    medium: &dyn Medium,
    file: &str,
    length_bytes: u64,
) -> Result<Option<Box<dyn MediumFile>>, TierError> {
    if length_bytes == 0 {
        return Ok(None);
    }
    let how = OpenFile {
        length_bytes,
        writable: false,
        direct: false,
        preallocate: false,
    };
    let failed = |error| TierError::file("open", file_name(medium, file), error);
    medium.open(file, &how).map(Some).map_err(failed)
}

/// Fills `buffer` with the bytes of a slot, which are not verified here.
pub(super) fn read_slot(
    medium: &dyn Medium,
    slots: Option<&dyn MediumFile>,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), Miss> {
    let slots = slots.ok_or(Miss::Truncated)?;
    let read = slots.read_exact_at(offset, buffer);
    read.map_err(|error| match is_end(&error) {
        true => Miss::Truncated,
        false => Miss::Io(TierError::file(
            "read",
            file_name(medium, SLOTS_FILE),
            error,
        )),
    })
}

/// Removes what a creation left over that did not end, and the file `lock`. A folder that is in use or has a
/// manifest stays as it is.
pub(super) fn remove_unfinished(medium: &dyn Medium) -> Result<(), TierError> {
    let _lock = lock(medium)?;
    check_new(medium)?;
    remove_data(medium)?;
    let failed = |error| TierError::file("clear", medium.name(), error);
    medium.remove(LOCK_FILE).map_err(failed)
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
