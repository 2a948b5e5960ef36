//! Files: persistence, refusals, and operations that must never change a file.
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{
    DirectIo, FileMemory, MemoryError, MemoryRegion, OwnedMemoryRegion, Preallocation, RegionView,
    StorageKind, file_of,
};
use rustix::fd::{AsFd, AsRawFd};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

const SIZE: usize = 50_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Pitfall 10: data is lost on a restart, or a region deletes a file that it did not create.
#[test]
fn a_file_outlives_its_region_with_all_its_bytes() {
    let folder = folder();
    let path = folder.path().join("cache");
    for direct in [false, true] {
        let _ = fs::remove_file(&path);
        let options = FileMemory::options().direct_io(direct);
        let file = options.create_new(&path, SIZE).unwrap();
        file.write_all_at(0, &content()).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.path(), Some(path.as_path()));
        assert_eq!(file.len(), SIZE as u64);
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), content());

        let again = options.open_or_create(&path, SIZE).unwrap();
        let mut bytes = vec![0; SIZE];
        again.read_exact_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, content());
        drop(again);
        assert_eq!(fs::read(&path).unwrap(), content());
    }
}

/// Pitfall 10: opening changes nothing, with any options and any outcome.
#[test]
fn an_existing_file_is_never_cut_replaced_or_removed() {
    let folder = folder();
    let path = folder.path().join("precious");
    fs::write(&path, content()).unwrap();
    let inode = |path| rustix::fs::stat(path).unwrap().st_ino;
    let before = inode(&path);
    for bits in 0..16_u8 {
        let on = |bit: u8| bits >> bit & 1 == 1;
        let options = FileMemory::options()
            .read_only(on(0))
            .direct_io(on(1))
            .preallocate(on(2))
            .extend(on(3));
        for size in [0, 1, SIZE - 1, SIZE, SIZE + 1, SIZE * 2, usize::MAX] {
            // Extending is the one allowed change; it is not tested here.
            if size > SIZE && size < usize::MAX && on(3) && !on(0) {
                continue;
            }
            drop(options.create_new(&path, size));
            drop(options.open(&path, size));
            drop(options.open_or_create(&path, size));
            drop(options.open_whole(&path));
            drop(options.scratch(folder.path(), size.min(SIZE)));
        }
    }
    assert_eq!(inode(&path), before);
    assert_eq!(fs::read(&path).unwrap(), content());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn creating_over_anything_that_exists_is_refused_by_name() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, b"x").unwrap();
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let inner = folder.path().join("folder");
    fs::create_dir(&inner).unwrap();
    for path in [&file, &dangling, &inner] {
        assert!(matches!(
            FileMemory::options().create_new(path, 10),
            Err(MemoryError::AlreadyExists { path: named }) if named == *path
        ));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn a_file_that_is_too_small_is_refused_unless_it_may_grow() {
    let folder = folder();
    let path = folder.path().join("short");
    fs::write(&path, b"0123456789").unwrap();
    assert!(matches!(
        FileMemory::options().open(&path, 4000),
        Err(MemoryError::FileTooSmall { have: 10, need: 4000, path: named }) if named == path
    ));
    assert_eq!(fs::read(&path).unwrap(), b"0123456789");

    let file = FileMemory::options()
        .extend(true)
        .open(&path, 4000)
        .unwrap();
    assert_eq!(file.len(), 4000);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 4000);
    assert_eq!(&bytes[..10], b"0123456789");
    assert!(bytes[10..].iter().all(|byte| *byte == 0));
    // A file that is long enough is unchanged.
    drop(FileMemory::options().extend(true).open(&path, 9).unwrap());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Concurrent extensions of one file never undo each other.
#[test]
fn a_file_that_several_extend_at_once_only_grows() {
    let folder = folder();
    let path = folder.path().join("growing");
    fs::write(&path, b"start").unwrap();
    let grown = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let extenders: Vec<_> = (0..3_usize)
            .map(|thread| {
                let path = &path;
                scope.spawn(move || {
                    let options = FileMemory::options().extend(true);
                    for step in 1..200 {
                        let size = step * 1000 + thread * 333;
                        let file = options.open(path, size).unwrap();
                        file.write_all_at(size as u64 - 1, &[1]).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut seen = 0;
            while !grown.load(std::sync::atomic::Ordering::Relaxed) {
                let length = fs::metadata(&path).unwrap().len();
                assert!(length >= seen, "it was {seen} bytes and is {length}");
                seen = length;
            }
        });
        let ended: Vec<_> = extenders.into_iter().map(|thread| thread.join()).collect();
        grown.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 199 * 1000 + 2 * 333);
    assert!(bytes.starts_with(b"start"));
    let written = (1..200).flat_map(|step| (0..3).map(move |thread| step * 1000 + thread * 333));
    for size in written {
        assert_eq!(bytes.get(size - 1), Some(&1), "byte {size}");
    }
}

#[test]
fn a_region_shorter_than_its_file_does_not_reach_the_rest() {
    let folder = folder();
    let path = folder.path().join("long");
    fs::write(&path, content()).unwrap();
    let file = FileMemory::options().open(&path, 100).unwrap();
    assert_eq!(file.size(), 100);
    assert!(file.write_all_at(99, &[1, 2]).is_err());
    assert_eq!(fs::read(&path).unwrap(), content());
    let whole = FileMemory::options().open_whole(&path).unwrap();
    // On a non-blocking descriptor, asynchronous reads would fail.
    let status = rustix::fs::fcntl_getfl(&whole).unwrap();
    assert!(!status.contains(rustix::fs::OFlags::NONBLOCK));
    assert_eq!(whole.size(), SIZE);
}

#[test]
fn accesses_outside_the_region_are_refused_and_touch_nothing() {
    let folder = folder();
    let path = folder.path().join("file");
    let file = FileMemory::options().create_new(&path, 100).unwrap();
    for (offset, len) in [
        (100, 1),
        (0, 101),
        (u64::MAX, 1),
        (99, 2),
        (u64::MAX, 0),
        (101, 0),
    ] {
        let refused = |error| matches!(error, Err(MemoryError::OutOfBounds { size: 100, .. }));
        assert!(refused(file.read_exact_at(offset, &mut vec![0; len])));
        assert!(refused(file.write_all_at(offset, &vec![1; len])));
    }
    file.write_all_at(100, &[]).unwrap();
    file.read_exact_at(0, &mut []).unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![0; 100]);
}

#[test]
fn a_read_only_file_is_read_and_never_written() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, content()).unwrap();
    for direct in [false, true] {
        let options = FileMemory::options().read_only(true).direct_io(direct);
        let file = options.open_whole(&path).unwrap();
        assert!(!file.is_writable());
        let mut bytes = vec![0; SIZE];
        file.read_exact_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, content());
        assert!(matches!(
            file.write_all_at(0, &[1]),
            Err(MemoryError::ReadOnly { path: named }) if named == path
        ));
        file.sync_data().unwrap();
        let region: OwnedMemoryRegion = Arc::new(file);
        assert!(!RegionView::new(region, 1, 1).unwrap().is_writable());

        let new = folder.path().join("new");
        let read_only = |result| matches!(result, Err(MemoryError::ReadOnly { .. }));
        assert!(read_only(options.create_new(&new, 10)));
        assert!(read_only(options.scratch(folder.path(), 10)));
        assert!(read_only(options.extend(true).open(&path, 10)));
        assert!(read_only(options.preallocate(true).open(&path, 10)));
        assert!(!new.exists());
    }
    assert_eq!(fs::read(&path).unwrap(), content());
}

#[test]
fn anything_but_a_file_is_refused_by_name() {
    let folder = folder();
    let missing = folder.path().join("missing");
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for read_only in [false, true] {
        let options = FileMemory::options().read_only(read_only);
        assert!(matches!(
            options.open(&missing, 1),
            Err(MemoryError::NotFound { path }) if path == missing
        ));
        assert!(!missing.exists());
        for path in [
            folder.path(),
            &fifo,
            &socket,
            "/dev/zero".as_ref(),
            "/dev/full".as_ref(),
        ] {
            assert!(
                matches!(options.open(path, 1), Err(MemoryError::NotAFile { .. })),
                "{path:?}"
            );
        }
    }
    let deep = missing.join("file");
    let not_found = |result| matches!(result, Err(MemoryError::NotFound { .. }));
    assert!(not_found(FileMemory::options().create_new(&deep, 1)));
    assert!(not_found(FileMemory::options().scratch(&missing, 1)));
}

#[test]
fn a_scratch_file_has_no_name_and_no_other_reader() {
    let folder = folder();
    let file = FileMemory::options()
        .direct_io(true)
        .scratch(folder.path(), SIZE);
    let file = file.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(file.path(), None);
    file.write_all_at(0, &content()).unwrap();
    let mut bytes = vec![0; SIZE];
    file.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, content());
    let mode = rustix::fs::fstat(&file).unwrap().st_mode;
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_new_file_is_for_its_user_alone() {
    let folder = folder();
    let path = folder.path().join("file");
    drop(FileMemory::options().create_new(&path, 1).unwrap());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o177, 0);
}

/// A concurrent truncation gives a typed error, not zeroes.
#[test]
fn a_file_that_is_cut_while_open_gives_a_typed_error() {
    let folder = folder();
    let path = folder.path().join("cut");
    for direct in [false, true] {
        for kept in [0, 100, 4096, 10_000, 40_960] {
            fs::write(&path, content()).unwrap();
            let options = FileMemory::options().direct_io(direct);
            let file = options.open_whole(&path).unwrap();
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(kept)
                .unwrap();
            let mut buffer = kvtile_memory::AlignedBuffer::new(SIZE, 4096).unwrap();
            match file.read_exact_at(0, &mut buffer) {
                Err(MemoryError::UnexpectedEnd {
                    offset, missing, ..
                }) => {
                    assert_eq!(offset, kept);
                    assert_eq!(missing as u64, SIZE as u64 - kept);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn preallocation_is_reported_and_takes_the_room() {
    let folder = folder();
    let path = folder.path().join("file");
    let sparse = FileMemory::options().create_new(&path, 8 << 20).unwrap();
    assert_eq!(*sparse.preallocation(), Preallocation::NotRequested);
    assert!(rustix::fs::fstat(&sparse).unwrap().st_blocks < 4096);
    drop(sparse);
    let options = FileMemory::options().preallocate(true);
    let full = options.open(&path, 8 << 20).unwrap();
    match full.preallocation() {
        Preallocation::Done => {
            assert!(rustix::fs::fstat(&full).unwrap().st_blocks >= (8 << 20) / 512);
        }
        other => eprintln!("this filesystem does not reserve room: {other:?}"),
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
}

#[test]
fn a_file_region_tells_its_descriptor_and_resolves_from_views() {
    let folder = folder();
    let file = Arc::new(FileMemory::options().scratch(folder.path(), SIZE).unwrap());
    let number = u64::try_from(file.as_fd().as_raw_fd()).unwrap();
    assert_eq!(file.storage_kind(), StorageKind::Disk(number));
    assert_eq!(file.addr(), 0);
    let view = RegionView::new(Arc::clone(&file) as OwnedMemoryRegion, 4096, 100).unwrap();
    let (found, start) = file_of(&view).unwrap();
    assert!(std::ptr::eq(found, &*file));
    assert_eq!(start, 4096);
}

#[test]
fn direct_io_reports_its_availability() {
    let folder = folder();
    let options = FileMemory::options();
    let file = options.scratch(folder.path(), SIZE).unwrap();
    assert_eq!(file.direct_io(), DirectIo::NotRequested);
    assert!(file.direct_fd().is_none());
    let file = options
        .direct_io(true)
        .scratch(folder.path(), SIZE)
        .unwrap();
    match file.direct_io() {
        DirectIo::Active { align } => {
            assert!(align.is_power_of_two() && align >= rustix::param::page_size());
            let flags = rustix::fs::fcntl_getfl(file.direct_fd().unwrap()).unwrap();
            assert!(flags.contains(rustix::fs::OFlags::DIRECT));
        }
        DirectIo::Unavailable { reason } => {
            eprintln!("no direct I/O here: {reason}");
            assert!(file.direct_fd().is_none());
        }
        DirectIo::NotRequested => panic!("direct I/O was requested"),
    }
    match options.direct_io(true).scratch("/dev/shm", SIZE) {
        Ok(file) => assert!(matches!(file.direct_io(), DirectIo::Unavailable { .. })),
        Err(error) => eprintln!("tmpfs is not tried: {error}"),
    }
}
