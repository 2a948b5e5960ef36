//! The lock of a folder.
//!
//! It is a `flock` on the folder itself, so that it needs no file, and removing a file cannot
//! bypass it. The file `lock` only names the process that took the lock. Forked children do not
//! hold the lock ([`ProcessFile`]): it ends with the process that took it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    thread,
    time::Duration,
};

use kvtile_memory::ProcessFile;
use rustix::{
    fs::{Mode, OFlags, ftruncate, openat},
    io::retry_on_intr,
};

use super::{
    super::{LockError, LockHolder, MediumLock},
    local::check_local,
    plain::{FileAccess, open_plain},
};

/// The most bytes of the lock file that are read.
const LOCK_BYTES_MAX: u64 = 256;

/// The text before the process number in the lock file.
const LOCK_TEXT: &str = "kvtile disk tier, used by process ";

/// How often to try: a process that examines the lock holds it for a moment.
const TRIES: u32 = 20;

/// The time between two tries.
const TRY_AFTER: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct FolderLock {
    _lock: ProcessFile,
}

impl MediumLock for FolderLock {}

/// Takes the lock of the folder for writing, and writes the process number to the file `name`.
pub(super) fn take(folder: &File, name: &str) -> Result<Box<dyn MediumLock>, LockError> {
    let taken = take_to_read(folder, name)?;
    let text = format!("{LOCK_TEXT}{}\n", std::process::id());
    let mut says = File::from(open_plain(folder, name, FileAccess::Write)?);
    ftruncate(&says, 0).map_err(io::Error::from)?;
    says.write_all(text.as_bytes())?;
    Ok(taken)
}

/// Takes the lock of the folder, and writes nothing.
pub(super) fn take_to_read(folder: &File, name: &str) -> Result<Box<dyn MediumLock>, LockError> {
    check_local(folder)?;
    let lock = open(folder)?;
    let Some(file) = lock.file() else {
        return Err(io::Error::other("the process forked; the child has no lock").into());
    };
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if tries < TRIES => thread::sleep(TRY_AFTER),
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(folder, name))),
        }
        tries += 1;
    }
    Ok(Box::new(FolderLock { _lock: lock }))
}

/// Examines the lock without keeping it; `None` if no process holds it.
pub(super) fn look(folder: &File, name: &str) -> io::Result<Option<LockHolder>> {
    // On other file systems a lock does not show whether another machine uses the folder.
    check_local(folder)?;
    let lock = open(folder)?;
    match lock.file().map(File::try_lock_shared) {
        Some(Err(TryLockError::WouldBlock)) => Ok(Some(holder(folder, name))),
        Some(Err(TryLockError::Error(error))) => Err(error),
        Some(Ok(())) | None => Ok(None),
    }
}

/// Opens the folder once more: locks of two openings exclude each other, even in one process.
fn open(folder: &File) -> io::Result<ProcessFile> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    ProcessFile::open(|| Ok(retry_on_intr(|| openat(folder, ".", flags, Mode::empty()))?))
}

/// The process that holds the lock, from `/proc` and from the lock file.
fn holder(folder: &File, name: &str) -> LockHolder {
    let opened_by = said_in(folder, name);
    let pid = match opened_by {
        Some(pid) if has_lock(pid, folder) => Some(pid),
        _ => processes().find(|pid| has_lock(*pid, folder)),
    };
    let comm = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    LockHolder {
        pid,
        program: pid.and_then(comm).map(|name| name.trim_end().to_owned()),
        opened_by,
    }
}

/// The last process that took the lock, according to the lock file.
fn said_in(folder: &File, name: &str) -> Option<u32> {
    let mut text = String::new();
    let file = File::from(open_plain(folder, name, FileAccess::Read).ok()?);
    file.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.strip_prefix(LOCK_TEXT)?.trim_end().parse().ok()
}

/// All processes that are visible.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process has an open file that locks the folder, as far as it is visible.
fn has_lock(pid: u32, folder: &File) -> bool {
    let Ok(ours) = folder.metadata() else {
        return false;
    };
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let mut infos = infos.into_iter().flatten().flatten();
    infos.any(|info| {
        // `lock:  1: FLOCK  ADVISORY  WRITE 17947 fe:00:10045161 0 EOF`. On some file systems that
        // device is not the one of `stat`, so the line only selects the files to compare by `stat`.
        let locks = fs::read_to_string(info.path())
            .is_ok_and(|text| text.contains("FLOCK") && text.contains("WRITE"));
        let name = info.file_name();
        let file = || fs::metadata(format!("/proc/{pid}/fd/{}", name.display())).ok();
        locks && file().is_some_and(|it| (it.dev(), it.ino()) == (ours.dev(), ours.ino()))
    })
}
