//! The lock of a folder: the process that opened it holds it until it ends, and its children do
//! not.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::common::{check_offered, content, key, room_for, store_chain, usual, write};
use kvtile_tiers::{
    FolderError, TierError,
    disk::{FolderUsage, Inspection, RecoveredBlocks, SlotState, SlotStore},
};

/// Environment variables of the owner: its folder, and how it creates its child.
const FOLDER: &str = "KVTILE_DISK_OWNER_FOLDER";
const HOW: &str = "KVTILE_DISK_OWNER_HOW";
/// An owner or child that is not killed ends by itself after this time.
const SECONDS: u64 = 60;

fn open(path: &Path) -> Result<(SlotStore, RecoveredBlocks), TierError> {
    let identity = usual();
    SlotStore::create_or_open(path, &room_for(8, &identity), &identity)
}

/// A process that has the folder open with two durable blocks, and its child process.
struct LockOwner {
    process: Child,
    child: i32,
    said: Vec<String>,
}

impl LockOwner {
    fn begin(folder: &Path, how: &str) -> LockOwner {
        let mut owner = Command::new(std::env::current_exe().unwrap());
        owner.args(["--exact", "lock::the_owner_that_is_killed", "--nocapture"]);
        owner.env(FOLDER, folder).env(HOW, how);
        let mut process = owner.stdout(Stdio::piped()).spawn().unwrap();
        let (mut child, mut said) = (0, Vec::new());
        for line in BufReader::new(process.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(pid) = line.strip_prefix("child ") {
                child = pid.parse().unwrap();
                break;
            }
            said.push(line);
        }
        assert!(child > 0, "{said:?}");
        LockOwner {
            process,
            child,
            said,
        }
    }

    fn is_child_alive(&self) -> bool {
        // SAFETY: signal 0 only checks that the process exists.
        unsafe { libc::kill(self.child, 0) == 0 }
    }
}

impl Drop for LockOwner {
    fn drop(&mut self) {
        // SAFETY: the number is that of a child of the owner, which waits to be killed.
        unsafe { libc::kill(self.child, libc::SIGKILL) };
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn a_folder_is_free_after_its_process_was_killed_even_if_a_child_lives() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = LockOwner::begin(folder.path(), "fork");
    assert!(
        owner.said.contains(&"the child was refused".to_owned()),
        "{:?}",
        owner.said
    );
    // While the owner lives, it keeps the lock, although its child dropped the store.
    match open(folder.path()) {
        Err(TierError::Folder(FolderError::InUse { holder, .. })) => {
            assert_eq!(holder.pid, Some(owner.process.id()));
        }
        other => panic!("{other:?}"),
    }
    owner.process.kill().unwrap();
    owner.process.wait().unwrap();
    assert!(owner.is_child_alive());
    let (store, recovered) = open(folder.path()).unwrap();
    assert_eq!(recovered.entries.len(), 2);
    check_offered(&store, &recovered, &usual());
    assert!(owner.is_child_alive());
}

/// A child created by a raw system call inherits the lock: the error names that live process.
#[test]
fn the_error_names_the_child_that_keeps_the_lock_and_the_process_that_opened_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = LockOwner::begin(folder.path(), "clone");
    owner.process.kill().unwrap();
    owner.process.wait().unwrap();
    let (dead, child) = (owner.process.id(), u32::try_from(owner.child).unwrap());
    let error = open(folder.path()).unwrap_err();
    let TierError::Folder(FolderError::InUse { holder, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!((holder.pid, holder.opened_by), (Some(child), Some(dead)));
    let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
    assert_eq!(holder.program.as_deref(), Some(comm.trim_end()));
    let text = error.to_string();
    assert!(
        text.contains(&format!("by process {child} ({})", comm.trim_end())),
        "{text}"
    );
    assert!(
        text.contains(&format!("has it from process {dead}")),
        "{text}"
    );
    match Inspection::open(folder.path()).unwrap().usage() {
        FolderUsage::Used(seen) => assert_eq!(seen, holder),
        other => panic!("{other:?}"),
    }
    drop(owner);
    // The lock ends with the child, once the kernel has closed its files.
    let mut opened = open(folder.path());
    for _ in 0..100 {
        if opened.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        opened = open(folder.path());
    }
    assert_eq!(opened.unwrap().1.entries.len(), 2);
}

/// Removing or replacing the file `lock` does not release the lock.
#[test]
fn the_file_lock_is_not_the_lock() {
    for replace in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path()).unwrap();
        std::fs::remove_file(folder.path().join("lock")).unwrap();
        if replace {
            std::fs::write(folder.path().join("lock"), "else").unwrap();
        }
        match open(folder.path()) {
            Err(TierError::Folder(FolderError::InUse { holder, .. })) => {
                assert_eq!(holder.pid, Some(std::process::id()));
                assert_eq!(holder.opened_by, None);
            }
            other => panic!("{other:?}"),
        }
        store_chain(&store, &usual(), 0, 2);
        drop(store);
        let (_, recovered) = open(folder.path()).unwrap();
        assert_eq!(recovered.entries.len(), 2);
    }
}

/// A folder reached through a link, or renamed, is the same folder.
#[test]
fn other_names_of_a_folder_are_the_same_folder() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, link) = (parent.path().join("tier"), parent.path().join("link"));
    let (store, _) = open(&folder).unwrap();
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    assert!(matches!(
        open(&link),
        Err(TierError::Folder(FolderError::InUse { .. }))
    ));
    let moved = parent.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    assert!(matches!(
        open(&moved),
        Err(TierError::Folder(FolderError::InUse { .. }))
    ));
    drop(store);
    open(&moved).unwrap();
}

/// Concurrent inspections never make an open fail.
#[test]
fn constant_inspection_refuses_no_open() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                drop(Inspection::open(folder.path()));
            }
        });
        let opened: Vec<bool> = (0..50).map(|_| open(folder.path()).is_ok()).collect();
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(opened.iter().all(|opened| *opened), "{opened:?}");
    });
}

fn say(text: &str) {
    // Not by `println`, whose output may be captured.
    std::io::stdout()
        .write_all(format!("\n{text}\n").as_bytes())
        .unwrap();
    std::io::stdout().flush().unwrap();
}

/// Not a test: the process that is killed. Without the variables it does nothing.
#[test]
fn the_owner_that_is_killed() {
    let (Ok(folder), Ok(how)) = (std::env::var(FOLDER), std::env::var(HOW)) else {
        return;
    };
    let (store, _) = open(folder.as_ref()).unwrap();
    store_chain(&store, &usual(), 0, 2);
    if how == "fork" {
        refuse_in_child(&store);
    }
    let child = match how.as_str() {
        // SAFETY: the child only sleeps and exits.
        "fork" => unsafe { libc::fork() },
        // SAFETY: the child only sleeps and exits; a null stack copies the parent's, as fork does.
        _ => i32::try_from(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })
            .unwrap(),
    };
    if child == 0 {
        // SAFETY: `sleep` touches no state of the process.
        unsafe { libc::sleep(u32::try_from(SECONDS).unwrap()) };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    say(&format!("child {child}"));
    std::thread::sleep(Duration::from_secs(SECONDS));
    drop(store);
}

/// Checks in a forked child that the store refuses to write, and that dropping it releases nothing.
fn refuse_in_child(store: &SlotStore) {
    let bytes = content(2, &usual());
    // SAFETY: the child only calls the store, whose locks no thread holds, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forked =
            |error: &TierError| matches!(error, TierError::Folder(FolderError::Forked { .. }));
        let written = store.write(&[write(2, 2, &bytes)]);
        let refused = forked(&written.failed[0].error)
            && forked(&store.sync().failure.unwrap())
            && forked(&store.are_durable(&[(0, key(0))]).unwrap_err())
            && store.state(2) == SlotState::Empty;
        // Dropping the child's copy of the store must not unlock the parent's folder. SAFETY: the
        // child ends below, and nothing uses the store after this.
        drop(unsafe { std::ptr::read(store) });
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(refused)) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` lives.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if libc::WEXITSTATUS(status) == 1 {
        say("the child was refused");
    }
}
