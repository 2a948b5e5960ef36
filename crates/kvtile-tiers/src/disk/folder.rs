//! The file names of a folder, its lock, and how the folder is cleared.

use super::{
    PartFolderName,
    capacity::GROUPS_MAX,
    manifest::{MANIFEST_FILE, MANIFEST_PARTIAL_FILE, file_name},
    medium::{LockError, Medium, MediumFile, MediumLock, NotPlain, OpenFile},
    store::{SlotMiss, is_end},
};
use crate::error::{ConvertError, FolderError, TierError};

/// Names the process that uses the folder.
pub(crate) const LOCK_FILE: &str = "lock";

/// One record per slot of the first group.
pub(super) const RECORDS_FILE: &str = "records";

/// The slots of the first group: the bytes of its blocks.
pub(super) const SLOTS_FILE: &str = "slots";

/// The file with the records of group number `group`: `records`, `records-1`, `records-2`, …
pub(super) fn records_file(group: usize) -> String {
    data_file(RECORDS_FILE, group)
}

/// The file with the slots of group number `group`: `slots`, `slots-1`, `slots-2`, …
pub(super) fn slots_file(group: usize) -> String {
    data_file(SLOTS_FILE, group)
}

fn data_file(of_first: &str, group: usize) -> String {
    match group {
        0 => of_first.to_owned(),
        group => format!("{of_first}-{group}"),
    }
}

/// Whether a file has the name of the records or the slots of a group.
fn is_data_file(name: &str) -> bool {
    [RECORDS_FILE, SLOTS_FILE].into_iter().any(|of_first| {
        let rest = name.strip_prefix(of_first);
        let group = match rest.map(|rest| rest.strip_prefix('-')) {
            None => return false,
            Some(None) => Some(0),
            Some(Some(number)) => number.parse().ok(),
        };
        // The name of a number is compared too: `records-01` is foreign.
        group.is_some_and(|group| group < GROUPS_MAX && name == data_file(of_first, group))
    })
}

/// Whether a store creates files of this name.
fn is_ours(name: &str) -> bool {
    [LOCK_FILE, MANIFEST_FILE, MANIFEST_PARTIAL_FILE].contains(&name) || is_data_file(name)
}

/// Whether a folder of this name in the folder of a model belongs to it: that of a part.
fn is_part(name: &str) -> bool {
    PartFolderName::parse(name).is_some()
}

/// A folder that file systems create in their root.
const LOST_AND_FOUND: &str = "lost+found";

/// Refuses a folder with foreign files before anything in it changes. A folder with a manifest is a
/// store. A folder without one may remain from an interrupted creation, whose first file is the
/// lock.
pub(super) fn check_ours(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    if names.iter().any(|name| name == MANIFEST_FILE) {
        return Ok(());
    }
    let begun = names.iter().any(|name| name == LOCK_FILE);
    let foreign = names.into_iter().find(|name| {
        let ours = begun && is_ours(name);
        !ours && name != LOST_AND_FOUND && !is_part(name)
    });
    match foreign {
        None => Ok(()),
        Some(found) => Err(TierError::Folder(FolderError::ForeignFolder {
            folder: medium.name(),
            found,
        })),
    }
}

/// Takes the lock of the folder for writing.
pub(super) fn lock(medium: &dyn Medium) -> Result<Box<dyn MediumLock>, TierError> {
    let lock = medium.lock(LOCK_FILE);
    lock.map_err(|error| lock_error(medium, error))
}

/// Takes the lock of the folder for reading, and writes nothing. `Ok(Err(_))` is the reason why the
/// lock cannot be taken here although no process is known to use the folder.
pub(super) fn lock_to_read(
    medium: &dyn Medium,
) -> Result<Result<Box<dyn MediumLock>, TierError>, TierError> {
    match medium.lock_to_read(LOCK_FILE) {
        Ok(lock) => Ok(Ok(lock)),
        Err(held @ LockError::Held(_)) => Err(lock_error(medium, held)),
        Err(error @ LockError::Io(_)) => Ok(Err(lock_error(medium, error))),
    }
}

/// Refuses a folder that is neither new nor empty. The remains of an interrupted creation count as
/// empty.
pub(super) fn check_new(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    match names.iter().any(|name| name == MANIFEST_FILE) {
        true => Err(TierError::Convert(ConvertError::AlreadyAStore {
            folder: medium.name(),
        })),
        false => check_ours(medium),
    }
}

/// Length of a file in bytes, 0 if it is missing.
pub(super) fn length(medium: &dyn Medium, file: &str) -> Result<u64, TierError> {
    let failed = |error| TierError::file("look at", file_name(medium, file), error);
    Ok(medium.length(file).map_err(failed)?.unwrap_or(0))
}

/// Opens a file of `length_bytes` for reading; `None` if that length is 0.
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

/// Fills `buffer` with the bytes of a slot of the file `file`. The caller verifies them.
pub(super) fn read_slot(
    medium: &dyn Medium,
    (file, slots): (&str, Option<&dyn MediumFile>),
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), SlotMiss> {
    let slots = slots.ok_or(SlotMiss::Truncated)?;
    let read = slots.read_exact_at(offset, buffer);
    read.map_err(|error| match is_end(&error) {
        true => SlotMiss::Truncated,
        false => SlotMiss::Io(TierError::file("read", file_name(medium, file), error)),
    })
}

/// Removes the remains of an interrupted creation, and the file `lock`. A folder that is in use or
/// has a manifest stays unchanged.
pub(super) fn remove_unfinished(medium: &dyn Medium) -> Result<(), TierError> {
    let _lock = lock(medium)?;
    check_new(medium)?;
    remove_data(medium)?;
    let failed = |error| TierError::file("clear", medium.name(), error);
    medium.remove(LOCK_FILE).map_err(failed)
}

fn lock_error(medium: &dyn Medium, error: LockError) -> TierError {
    match error {
        LockError::Held(holder) => TierError::Folder(FolderError::InUse {
            folder: medium.name(),
            holder,
        }),
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

/// Removes the data files of all groups of a folder without a manifest. The lock file stays: another process may
/// be waiting for it.
pub(super) fn remove_data(medium: &dyn Medium) -> Result<(), TierError> {
    let failed = |error| TierError::file("clear", medium.name(), error);
    let names = medium.names().map_err(failed)?;
    medium.remove(MANIFEST_PARTIAL_FILE).map_err(failed)?;
    for file in names.iter().filter(|name| is_data_file(name)) {
        medium.remove(file).map_err(failed)?;
    }
    medium.sync_folder().map_err(failed)
}

/// Removes all blocks and the manifest; the next store creates the folder anew. The manifest is
/// removed first, so that a crash leaves an unfinished folder and never a half-empty store.
///
/// # Errors
/// The folder is in use or is no disk tier, or the file system fails.
pub fn clear(medium: &dyn Medium) -> Result<(), TierError> {
    let names = medium.names();
    let names = names.map_err(|error| TierError::file("list", medium.name(), error))?;
    check_ours(medium)?;
    if !names.iter().any(|name| is_ours(name)) {
        return Err(TierError::Folder(FolderError::NotAStore {
            folder: medium.name(),
        }));
    }
    let _lock = lock(medium)?;
    let failed = |error| TierError::file("clear", medium.name(), error);
    medium.remove(MANIFEST_FILE).map_err(failed)?;
    medium.sync_folder().map_err(failed)?;
    remove_data(medium)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_possible_groups_are_those_of_data_files() {
        for ours in ["records", "slots", "records-1", "slots-1", "slots-63"] {
            assert!(is_data_file(ours), "{ours}");
        }
        for foreign in [
            "records-0",
            "records-01",
            "records-+1",
            "records-64",
            "slots-",
            "slots-1 ",
            "slots1",
            "slots-1-1",
            "slots-99999999999999999999",
            "Slots",
            "lock",
            "",
        ] {
            assert!(!is_data_file(foreign), "{foreign}");
        }
    }
}
