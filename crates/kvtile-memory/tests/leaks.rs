//! Failures leave no mapping, descriptor or file behind. It is one test, since it counts the
//! resources of the process.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "common/counts.rs"]
mod counts;
#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{
    AlignedBuffer, DirectIo, FileMemory, MemoryError, MemoryLimit, MemoryRegion, Preallocation,
    Prefault, SharedMemory, SystemMemory,
};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;

const ROUNDS: usize = 50;
const MIB: usize = 1 << 20;

/// Runs `attempt` many times and demands that the descriptor count stays the same, and the mapped
/// bytes nearly so: a leak of 64 MiB a round would exceed the limit four times over. (The C
/// library's allocator keeps an arena of that size for every concurrent thread.)
fn leaves_nothing(what: &str, attempt: impl Fn()) {
    attempt(); // One-time initialisation.
    let descriptors = counts::open_descriptors();
    let mapped = counts::mapped_bytes();
    for _ in 0..ROUNDS {
        attempt();
    }
    assert_eq!(counts::open_descriptors(), descriptors, "{what}");
    let grown = counts::mapped_bytes().saturating_sub(mapped);
    assert!(
        grown < ROUNDS / 4 * 64 * MIB,
        "{what}: {grown} bytes stay mapped"
    );
}

#[test]
fn neither_success_nor_failure_leaks_anything() {
    regions_that_are_dropped();
    limits();
    a_progress_callback_that_panics();
    files_that_are_refused();
    in_private_mounts(|folder| {
        a_full_filesystem(folder);
        a_filesystem_without_fallocate_and_direct_io(folder);
        a_read_only_filesystem(folder);
    });
}

fn regions_that_are_dropped() {
    let folder = folder();
    let path = folder.path().join("file");
    leaves_nothing("system memory", || {
        drop(SystemMemory::allocate(64 * MIB).unwrap());
    });
    leaves_nothing("system memory without huge pages", || {
        let options = SystemMemory::options().huge_pages(false);
        drop(options.allocate(64 * MIB + 1).unwrap());
    });
    leaves_nothing("shared memory", || {
        drop(SharedMemory::create(64 * MIB).unwrap());
    });
    leaves_nothing("shared memory, handed over", || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let memory = SharedMemory::create(64 * MIB).unwrap();
        memory.send(&ours).unwrap();
        drop(SharedMemory::receive(&theirs).unwrap());
        // A hand-over that is never received is freed with the socket.
        memory.send(&ours).unwrap();
    });
    leaves_nothing("an aligned buffer", || {
        drop(AlignedBuffer::new(64 * MIB, 32 * MIB).unwrap());
    });
    leaves_nothing("files", || {
        let options = FileMemory::options().direct_io(true);
        drop(options.open_or_create(&path, MIB).unwrap());
        drop(options.scratch(folder.path(), MIB).unwrap());
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn limits() {
    let prefault = Prefault::Populate { threads: 2 };
    let too_much = 1 << 46;
    let limited = |error: Option<MemoryError>| {
        let error = error.expect("64 TiB were granted");
        assert!(
            matches!(
                error,
                MemoryError::LimitExceeded {
                    limit: MemoryLimit::Machine | MemoryLimit::ControlGroup,
                    ..
                }
            ),
            "{error}"
        );
    };
    leaves_nothing("memory that is not there", || {
        let options = SystemMemory::options().prefault(prefault);
        limited(options.allocate(too_much).err());
        let options = SharedMemory::options().prefault(prefault);
        limited(options.create(too_much).err());
    });
    leaves_nothing("addresses that are not there", || {
        let failed = |error| matches!(error, Some(MemoryError::AllocationFailed { .. }));
        assert!(failed(SystemMemory::allocate(1 << 60).err()));
        assert!(failed(SharedMemory::create(1 << 60).err()));
        assert!(failed(AlignedBuffer::new(1 << 60, 1 << 20).err()));
        assert!(failed(AlignedBuffer::new(1, 1 << 62).err()));
    });
}

/// Pitfall 12: after a panic in the middle of an allocation, later allocations work.
fn a_progress_callback_that_panics() {
    leaves_nothing("a progress callback that panics", || {
        std::panic::set_hook(Box::new(|_| {}));
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| {
            SystemMemory::options()
                .prefault(Prefault::Populate { threads: 2 })
                .progress(|_| panic!("by the caller"))
                .allocate(64 * MIB)
        }));
        drop(std::panic::take_hook());
        assert!(caught.is_err());
    });
    let options = SystemMemory::options().prefault(Prefault::Populate { threads: 2 });
    assert_eq!(options.allocate(64 * MIB).unwrap().size(), 64 * MIB);
}

fn files_that_are_refused() {
    let folder = folder();
    let path = folder.path().join("file");
    let short = folder.path().join("short");
    fs::write(&short, b"short").unwrap();
    leaves_nothing("files that are refused", || {
        for direct in [false, true] {
            let options = FileMemory::options().direct_io(direct).preallocate(direct);
            assert!(options.open(&path, 1).is_err());
            assert!(options.open(&short, 100).is_err());
            assert!(options.create_new(&short, 100).is_err());
            assert!(options.open(folder.path(), 100).is_err());
            assert!(options.open_whole("/dev/null").is_err());
            assert!(options.create_new(&path, isize::MAX as usize).is_err());
            assert!(options.scratch(folder.path(), 1 << 62).is_err());
        }
    });
    // Pitfall 10: a file whose creation failed is removed, and an existing file stays.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&short).unwrap(), b"short");
}

/// Runs `test` on a thread with a private mount namespace, which ends with the thread.
fn in_private_mounts(test: impl Fn(&Path) + Sync) {
    let folder = folder();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let everything_below = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            // SAFETY: mounts are not memory, so nothing that Rust relies on changes.
            let alone = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
                .and_then(|()| rustix::mount::mount_change("/", everything_below));
            match alone {
                Ok(()) => test(folder.path()),
                Err(errno) => eprintln!("skipped: full and odd filesystems: {errno}"),
            }
        });
        thread.join().unwrap();
    });
}

fn mounted(folder: &Path, kind: &str, data: &std::ffi::CStr, test: impl Fn()) {
    let folder = folder.to_str().unwrap();
    match rustix::mount::mount("none", folder, kind, MountFlags::empty(), data) {
        Ok(()) => {
            test();
            rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        Err(errno) => eprintln!("skipped: {kind}: {errno}"),
    }
}

fn a_full_filesystem(folder: &Path) {
    let full = |error: Option<MemoryError>| {
        let error = error.expect("8 MiB found room in 1 MiB");
        assert!(matches!(error, MemoryError::OutOfSpace { .. }), "{error}");
    };
    mounted(folder, "tmpfs", c"size=1m", || {
        let path = folder.join("file");
        let options = FileMemory::options();
        leaves_nothing("a filesystem that is full", || {
            full(options.preallocate(true).create_new(&path, 8 * MIB).err());
            assert!(!path.exists(), "the file whose creation failed is removed");
            full(options.preallocate(true).scratch(folder, 8 * MIB).err());

            let file = options.create_new(&path, 8 * MIB).unwrap();
            full(file.write_all_at(0, &vec![1; 8 * MIB]).err());
            drop(file);
            fs::remove_file(&path).unwrap();

            // An existing file stays, whichever step fails.
            fs::write(&path, b"precious").unwrap();
            let growing = options.preallocate(true).extend(true);
            full(growing.open(&path, 8 * MIB).err());
            full(growing.open_or_create(&path, 8 * MIB).err());
            assert!(fs::read(&path).unwrap().starts_with(b"precious"));
            fs::remove_file(&path).unwrap();
        });
        let file = options.direct_io(true).scratch(folder, 4096).unwrap();
        assert!(matches!(file.direct_io(), DirectIo::Unavailable { .. }));
    });
}

fn a_filesystem_without_fallocate_and_direct_io(folder: &Path) {
    mounted(folder, "ramfs", c"", || {
        let path = folder.join("file");
        let options = FileMemory::options().preallocate(true).direct_io(true);
        leaves_nothing("a filesystem that can do little", || {
            let file = options.create_new(&path, 300_000).unwrap();
            assert!(matches!(
                file.preallocation(),
                Preallocation::Unavailable { .. }
            ));
            assert!(matches!(file.direct_io(), DirectIo::Unavailable { .. }));
            file.write_all_at(299_990, b"0123456789").unwrap();
            drop(file);
            assert_eq!(fs::metadata(&path).unwrap().len(), 300_000);

            drop(options.extend(true).open(&path, 400_000).unwrap());
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 400_000);
            assert_eq!(&bytes[299_990..300_000], b"0123456789");
            fs::remove_file(&path).unwrap();

            let scratch = options.scratch(folder, 5000).unwrap();
            scratch.write_all_at(0, &[1; 5000]).unwrap();
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        });
    });
}

fn a_read_only_filesystem(folder: &Path) {
    mounted(folder, "tmpfs", c"", || {
        let path = folder.join("file");
        fs::write(&path, b"content").unwrap();
        rustix::mount::mount_remount(folder, MountFlags::RDONLY, "").unwrap();
        let denied = |error: Option<MemoryError>| {
            let error = error.expect("written on a read-only filesystem");
            assert!(
                matches!(error, MemoryError::PermissionDenied { .. }),
                "{error}"
            );
        };
        leaves_nothing("a read-only filesystem", || {
            let options = FileMemory::options();
            denied(options.create_new(folder.join("new"), 10).err());
            denied(options.scratch(folder, 10).err());
            denied(options.open(&path, 7).err());
            let file = options.read_only(true).open(&path, 7).unwrap();
            let mut bytes = [0; 7];
            file.read_exact_at(0, &mut bytes).unwrap();
            assert_eq!(&bytes, b"content");
        });
    });
}
