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
    time::{Duration, Instant},
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

/// What a process takes the lock for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockUse {
    /// To use the folder for as long as it lives.
    Keep,
    /// To free room in a folder that no process uses, which ends soon.
    FreeRoom,
}

impl LockUse {
    /// The text before the process number in the lock file.
    const fn text(self) -> &'static str {
        match self {
            LockUse::Keep => "kvtile disk tier, used by process ",
            LockUse::FreeRoom => "kvtile disk tier, room freed by process ",
        }
    }
}

/// How often to try: a process that examines the lock holds it for a moment.
const TRIES: u32 = 20;

/// The time between two tries.
const TRY_AFTER: Duration = Duration::from_millis(5);

/// How long a process that is to use the folder waits for one that frees room in it.
const FREE_ROOM_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct FolderLock {
    _lock: ProcessFile,
}

impl MediumLock for FolderLock {}

/// Takes the lock of the folder for writing, and writes the use and the process number to the file `name`.
pub(super) fn take(
    folder: &File,
    name: &str,
    used: LockUse,
) -> Result<Box<dyn MediumLock>, LockError> {
    let taken = take_to_read(folder, name, used)?;
    let text = format!("{}{}\n", used.text(), std::process::id());
    let mut says = File::from(open_plain(folder, name, FileAccess::Write)?);
    ftruncate(&says, 0).map_err(io::Error::from)?;
    says.write_all(text.as_bytes())?;
    Ok(taken)
}

/// Takes the lock of the folder, and writes nothing.
pub(super) fn take_to_read(
    folder: &File,
    name: &str,
    used: LockUse,
) -> Result<Box<dyn MediumLock>, LockError> {
    take_within(folder, name, (used, FREE_ROOM_WITHIN))
}

/// As [`take_to_read`], with another bound of the wait for a process that frees room.
fn take_within(
    folder: &File,
    name: &str,
    (used, free_room_within): (LockUse, Duration),
) -> Result<Box<dyn MediumLock>, LockError> {
    check_local(folder)?;
    let lock = open(folder)?;
    let Some(file) = lock.file() else {
        return Err(io::Error::other("the process forked; the child has no lock").into());
    };
    let start = Instant::now();
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => {}
        }
        tries += 1;
        if tries > TRIES {
            let frees = said_in(folder, name).is_some_and(|(held, _)| held == LockUse::FreeRoom);
            if !frees || used == LockUse::FreeRoom || start.elapsed() >= free_room_within {
                return Err(LockError::Held(holder(folder, name)));
            }
        }
        thread::sleep(TRY_AFTER);
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
    let opened_by = said_in(folder, name).map(|(_, pid)| pid);
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

/// The last process that took the lock and what for, according to the lock file.
fn said_in(folder: &File, name: &str) -> Option<(LockUse, u32)> {
    let mut text = String::new();
    let file = File::from(open_plain(folder, name, FileAccess::Read).ok()?);
    file.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
    [LockUse::Keep, LockUse::FreeRoom]
        .into_iter()
        .find_map(|used| {
            let pid = text.strip_prefix(used.text())?.trim_end().parse().ok()?;
            Some((used, pid))
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "lock";

    fn folder() -> (tempfile::TempDir, File) {
        let made = tempfile::tempdir().unwrap();
        let opened = File::open(made.path()).unwrap();
        (made, opened)
    }

    #[test]
    fn a_process_waits_for_one_that_frees_room() {
        let (_made, folder) = folder();
        let held = take(&folder, NAME, LockUse::FreeRoom).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Longer than the tries that wait for an examination of the lock.
                thread::sleep(TRY_AFTER * TRIES * 4);
                drop(held);
            });
            drop(take(&folder, NAME, LockUse::Keep).unwrap());
        });
    }

    #[test]
    fn the_wait_is_bounded() {
        let (_made, folder) = folder();
        let _held = take(&folder, NAME, LockUse::FreeRoom).unwrap();
        let within = TRY_AFTER * TRIES * 2;
        let start = Instant::now();
        let refused = take_within(&folder, NAME, (LockUse::Keep, within)).unwrap_err();
        assert!(start.elapsed() >= within);
        let LockError::Held(holder) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(holder.opened_by, Some(std::process::id()));
    }

    #[test]
    fn nothing_else_is_waited_for() {
        for (held, taken) in [
            (LockUse::Keep, LockUse::Keep),
            (LockUse::Keep, LockUse::FreeRoom),
            (LockUse::FreeRoom, LockUse::FreeRoom),
        ] {
            let (_made, folder) = folder();
            let _held = take(&folder, NAME, held).unwrap();
            // A wait for an hour would not end here.
            let hour = Duration::from_secs(3600);
            let refused = take_within(&folder, NAME, (taken, hour)).unwrap_err();
            assert!(matches!(refused, LockError::Held(_)), "{refused:?}");
        }
    }

    #[test]
    fn a_lock_file_with_other_text_names_no_process() {
        let (made, folder) = folder();
        for text in [
            "",
            "kvtile disk tier, used by process ",
            "room freed by process 1",
            "kvtile disk tier, used by process 99999999999",
        ] {
            fs::write(made.path().join(NAME), text).unwrap();
            assert_eq!(said_in(&folder, NAME), None, "{text}");
        }
    }
}
