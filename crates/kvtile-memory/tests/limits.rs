//! Process limits and permissions, each in a child process of its own.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
#[path = "common/counts.rs"]
mod counts;
#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{
    AlignedBuffer, DirectIo, FileMemory, MemoryError, MemoryRegion, SharedMemory, SystemMemory,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

const MIB: usize = 1 << 20;

/// Runs this test again in a child, which calls `limited` with the path of a fresh folder.
fn in_child(name: &str, user: Option<u32>, limited: impl Fn(&Path)) {
    if let Some((_, path)) = child::role() {
        return limited(Path::new(&path));
    }
    let folder = folder();
    let mut command = child::command(name, "limited", folder.path().to_str().unwrap());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user);
    }
    match command.spawn() {
        Ok(child) => child::passes(child),
        Err(error) => eprintln!("skipped: cannot run a child with user {user:?}: {error}"),
    }
}

fn limit(resource: Resource, to: usize) {
    let limit = Rlimit {
        current: Some(to as u64),
        maximum: Some(to as u64),
    };
    setrlimit(resource, limit).unwrap();
}

#[test]
fn an_address_space_limit_is_a_typed_error_and_leaves_room_for_less() {
    in_child(
        "an_address_space_limit_is_a_typed_error_and_leaves_room_for_less",
        None,
        |_| {
            limit(Resource::As, counts::mapped_bytes() + 256 * MIB);
            let descriptors = counts::open_descriptors();
            let mapped = counts::mapped_bytes();
            for _ in 0..100 {
                let refused = [
                    SystemMemory::allocate(512 * MIB).err(),
                    SharedMemory::create(512 * MIB).err(),
                    AlignedBuffer::new(512 * MIB, 4096).err(),
                ];
                for error in refused {
                    assert!(
                        matches!(
                            error,
                            Some(MemoryError::AllocationFailed { bytes, .. }) if bytes == 512 * MIB
                        ),
                        "{error:?}"
                    );
                }
            }
            assert_eq!(counts::open_descriptors(), descriptors);
            assert!(counts::mapped_bytes() < mapped + 16 * MIB);
            let mut memory = SystemMemory::allocate(64 * MIB).unwrap();
            memory.as_mut_slice().fill(1);
            SharedMemory::create(64 * MIB).unwrap();
            let available = kvtile_memory::machine::Machine::probe().address_space;
            assert!(available.soft_bytes.is_some());
        },
    );
}

/// Enough space for the memory, but not for the slack that aligns it to huge pages.
#[test]
fn memory_that_just_fits_is_granted_without_its_alignment() {
    in_child(
        "memory_that_just_fits_is_granted_without_its_alignment",
        None,
        |_| {
            let slack = 512 * 1024;
            limit(Resource::As, counts::mapped_bytes() + 256 * MIB + slack);
            let memory = SystemMemory::allocate(256 * MIB).unwrap();
            assert_eq!(memory.size(), 256 * MIB);
        },
    );
}

#[test]
fn a_descriptor_limit_is_a_typed_error_that_leaves_no_file() {
    in_child(
        "a_descriptor_limit_is_a_typed_error_that_leaves_no_file",
        None,
        |folder| {
            leave_room_for_one_descriptor();
            // Listing the directory takes the one descriptor during the count.
            let open = counts::open_descriptors();
            let options = FileMemory::options().direct_io(true);
            let path = folder.join("file");
            // The second, direct descriptor is missing, and the file reports it.
            let file = options.create_new(&path, 8192).unwrap();
            assert!(matches!(
                file.direct_io(),
                DirectIo::Unavailable { reason } if reason.contains("open")
            ));
            for _ in 0..50 {
                let new = folder.join("new");
                assert!(matches!(
                    options.create_new(&new, 8192),
                    Err(MemoryError::Io { .. })
                ));
                assert!(matches!(
                    options.scratch(folder, 8192),
                    Err(MemoryError::Io { .. })
                ));
                assert!(matches!(
                    SharedMemory::create(8192),
                    Err(MemoryError::System { .. })
                ));
            }
            drop(file);
            assert_eq!(counts::open_descriptors(), open);
            let names = fs::read_dir(folder).unwrap().count();
            assert_eq!(names, 1);
        },
    );
}

/// Leaves room for one more descriptor. The limit is on descriptor numbers, and the kernel assigns
/// the lowest free number, so all numbers below are occupied for good.
fn leave_room_for_one_descriptor() {
    let names = fs::read_dir("/proc/self/fd").unwrap();
    let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<usize>().ok());
    let highest = numbers.max().unwrap();
    loop {
        let filler = fs::File::open("/dev/null").unwrap();
        let number = usize::try_from(std::os::fd::AsRawFd::as_raw_fd(&filler)).unwrap();
        if number >= highest {
            // This descriptor is closed, and its number is the one left.
            return limit(Resource::Nofile, number + 1);
        }
        std::mem::forget(filler);
    }
}

/// The kernel would kill the process (SIGXFSZ); here the call returns an error.
#[test]
fn a_file_size_limit_is_a_typed_error_and_no_signal() {
    in_child(
        "a_file_size_limit_is_a_typed_error_and_no_signal",
        None,
        |folder| {
            let path = folder.join("file");
            let long = folder.join("long");
            fs::write(&long, vec![7; 2 * MIB]).unwrap();
            limit(Resource::Fsize, MIB);
            let options = FileMemory::options();
            let refused = |error| matches!(error, Some(MemoryError::OutOfSpace { .. }));
            assert!(refused(options.create_new(&path, MIB + 1).err()));
            assert!(refused(options.scratch(folder, MIB + 1).err()));
            assert!(refused(options.open(&long, MIB + 1).err()));
            assert!(refused(options.extend(true).open(&long, 3 * MIB).err()));
            assert!(!path.exists());
            let file = options.create_new(&path, MIB).unwrap();
            file.write_all_at(0, &vec![1; MIB]).unwrap();
            let file = options.read_only(true).open_whole(&long).unwrap();
            file.read_exact_at(0, &mut vec![0; 2 * MIB]).unwrap();
            assert!(matches!(
                SharedMemory::create(MIB + 1),
                Err(MemoryError::AllocationFailed { .. })
            ));
            SharedMemory::create(MIB).unwrap();
        },
    );
}

#[test]
fn a_missing_permission_is_refused_by_name() {
    const NOBODY: u32 = 65_534;
    let root = rustix::process::geteuid().is_root();
    if root && child::role().is_none() {
        eprintln!("as root, permissions are tried by user {NOBODY}");
    }
    let user = root.then_some(NOBODY);
    in_child("a_missing_permission_is_refused_by_name", user, |_| {
        let Ok(folder) = tempfile::tempdir() else {
            eprintln!("skipped: this user has no folder to write in");
            return;
        };
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let denied = |error: Option<MemoryError>| {
            let error = error.expect("it was allowed");
            assert!(
                matches!(error, MemoryError::PermissionDenied { .. }),
                "{error}"
            );
        };
        let options = FileMemory::options();
        let file = folder.path().join("file");
        fs::write(&file, b"content").unwrap();
        mode(&file, 0o400);
        denied(options.open(&file, 7).err());
        options.read_only(true).open(&file, 7).unwrap();
        mode(&file, 0);
        denied(options.read_only(true).open(&file, 7).err());
        mode(folder.path(), 0o500);
        denied(options.create_new(folder.path().join("new"), 7).err());
        denied(options.scratch(folder.path(), 7).err());
        mode(folder.path(), 0o700);
        mode(&file, 0o600);
        assert_eq!(fs::read(&file).unwrap(), b"content");
    });
}
