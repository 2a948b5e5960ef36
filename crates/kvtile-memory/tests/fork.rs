//! Locks across `fork`: a child neither keeps a lock nor releases the parent's.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs::{File, TryLockError},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use kvtile_memory::{ProcessFile, ProcessMark};

/// Runs `child` in a forked child and returns its exit code.
fn in_fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs only `child`, which takes no lock of other threads, and ends with
    // `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` is a live integer, and the child is ours.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(waited, pid);
            libc::WEXITSTATUS(status)
        }
    }
}

fn locked(path: &Path) -> ProcessFile {
    let held = ProcessFile::open(|| Ok(File::open(path)?.into())).unwrap();
    held.file().unwrap().try_lock().unwrap();
    held
}

/// Releases the lock by name: a child that another test forks at that moment inherits this plain
/// file, and would keep the lock past the close.
fn is_free(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    match file.try_lock() {
        Ok(()) => {
            file.unlock().unwrap();
            true
        }
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

#[test]
fn a_child_has_no_lock_and_its_drop_does_not_unlock_the_parents() {
    let folder = tempfile::tempdir().unwrap();
    let held = locked(folder.path());
    let mark = ProcessMark::now();
    let code = in_fork(|| {
        let gone = held.file().is_none() && !mark.is_current();
        // Closes and unlocks nothing.
        drop(held);
        let free = is_free(folder.path());
        i32::from(gone) | i32::from(free) << 1
    });
    assert_eq!(code, 1, "the child has no file, and the lock is not free");
    assert!(mark.is_current());
}

#[test]
fn a_lock_that_is_dropped_is_free_though_children_live() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let held = locked(folder.path());
        assert!(!is_free(folder.path()));
        // SAFETY: the child only waits and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: waits for a signal, which ends the child.
            unsafe { libc::pause() };
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        drop(held);
        let free = is_free(folder.path());
        // SAFETY: the child is ours, and is waited for below.
        unsafe { libc::kill(child, libc::SIGKILL) };
        // SAFETY: the child is ours, and no status is requested.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert!(free);
    }
}

/// Whether a descriptor of this process holds a lock in that folder, according to the kernel.
fn has_a_lock(path: &Path) -> bool {
    let number = format!(":{} ", std::fs::metadata(path).unwrap().ino());
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let mut texts = infos.filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok());
    texts.any(|text| text.contains("FLOCK") && text.contains(&number))
}

#[test]
fn a_lock_is_seen_in_the_process_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let held = locked(folder.path());
    assert!(has_a_lock(folder.path()));
    drop(held);
}

/// Forks at arbitrary moments of opening and locking.
#[test]
fn no_child_keeps_a_lock_whenever_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let ends = AtomicBool::new(false);
    let forks = || {
        let mut bad = 0;
        while !ends.load(Ordering::Relaxed) {
            // A child that lives for a while, so that locks taken after the fork are checked too.
            bad += in_fork(|| {
                thread::sleep(Duration::from_millis(1));
                i32::from(has_a_lock(folder.path()))
            });
        }
        bad
    };
    let bad = thread::scope(|scope| {
        let forks = scope.spawn(forks);
        let mut refused = 0;
        for _ in 0..20_000 {
            let held = ProcessFile::open(|| Ok(File::open(folder.path())?.into())).unwrap();
            refused += i32::from(held.file().unwrap().try_lock().is_err());
        }
        ends.store(true, Ordering::Relaxed);
        forks.join().unwrap() + refused
    });
    assert_eq!(
        bad, 0,
        "children that have a lock, and locks that were refused"
    );
}
