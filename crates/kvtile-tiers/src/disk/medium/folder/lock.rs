//! The lock of a folder.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
};

use super::{
    super::{LockError, MediumLock},
    plain::{Access, open_plain},
};

/// A longer text in a lock is not ours.
const LOCK_BYTES_MAX: u64 = 256;

/// What stands before the number of the process in a lock.
const LOCK_TEXT: &str = "kvtile disk tier, used by process ";

/// Takes the lock `name` of the folder.
pub(super) fn take(
    folder: &File,
    name: &str,
    writable: bool,
) -> Result<Box<dyn MediumLock>, LockError> {
    let access = match writable {
        true => Access::Write,
        false => Access::Read,
    };
    // Not truncated: what the holder wrote must stay readable.
    let mut lock = File::from(open_plain(folder, name, access)?);
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(LockError::Held { pid: holder(&lock) });
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    if writable {
        let text = format!("{LOCK_TEXT}{}\n", std::process::id());
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(text.as_bytes())?;
    }
    Ok(Box::new(FolderLock { lock }))
}

/// Who holds a lock, where it says so.
fn holder(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.strip_prefix(LOCK_TEXT)?.trim_end().parse().ok()
}

#[derive(Debug)]
struct FolderLock {
    /// The kernel gives the lock back with the last descriptor.
    lock: File,
}

impl MediumLock for FolderLock {}

impl Drop for FolderLock {
    /// A child that is just being made has the descriptor too, for a moment; nobody should be refused
    /// because of it.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            log::warn!("the lock of a folder ends with its descriptor only: {error}");
        }
    }
}
