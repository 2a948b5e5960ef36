//! Shared memory that its owner writes and that other processes only read.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{MemoryError, MemoryRegion, SharedMemory, SharedReadMemory};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

const SIZE: usize = 64 * 1024;

#[test]
fn another_process_cannot_write_it_in_any_way_and_sees_later_writes() {
    if let Some((role, path)) = child::role() {
        assert_eq!(role, "reader");
        return reader(&path);
    }
    let folder = folder();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = child::command(
        "another_process_cannot_write_it_in_any_way_and_sees_later_writes",
        "reader",
        path.to_str().unwrap(),
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut memory = SharedMemory::options()
        .create_read_only_for_others(SIZE)
        .unwrap();
    // SAFETY: no other code has the memory yet.
    unsafe { memory.as_mut_slice() }.fill(7);
    let (mut socket, _) = listener.accept().unwrap();
    memory.send(&socket).unwrap();
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    // SAFETY: the other process reads only after the next byte on the socket.
    let bytes = unsafe { memory.as_mut_slice() };
    bytes[SIZE - 1] = 9;
    socket.write_all(&byte).unwrap();
    child::passes(child);
}

fn reader(path: &str) {
    let mut socket = UnixStream::connect(path).unwrap();
    let memory = SharedReadMemory::receive(&socket).unwrap();
    assert!(!memory.is_writable());
    every_way_of_writing_is_refused(&memory);
    let mut byte = [0];
    memory.read_exact_at(SIZE - 1, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    socket.write_all(&byte).unwrap();
    socket.read_exact(&mut byte).unwrap();
    memory.read_exact_at(SIZE - 1, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

fn every_way_of_writing_is_refused(memory: &SharedReadMemory) {
    let fd = memory.as_fd();
    // As memory that may be written.
    let again = fd.try_clone_to_owned().unwrap();
    assert!(matches!(
        SharedMemory::from_fd(again),
        Err(MemoryError::SharedNotWritable { .. })
    ));
    // A second mapping with the right to write.
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address; the mapping is refused.
    let mapped =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), SIZE, rights, MapFlags::SHARED, fd, 0) };
    assert_eq!(mapped.unwrap_err(), Errno::PERM);
    // Through the descriptor.
    assert_eq!(rustix::io::pwrite(fd, &[1], 0), Err(Errno::PERM));
    // Through a descriptor of its own, opened for writing.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if let Ok(opened) = rustix::fs::open(&path, OFlags::RDWR, Mode::empty()) {
        assert_eq!(rustix::io::pwrite(&opened, &[1], 0), Err(Errno::PERM));
        // SAFETY: as above.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                SIZE,
                rights,
                MapFlags::SHARED,
                &opened,
                0,
            )
        };
        assert_eq!(mapped.unwrap_err(), Errno::PERM);
    }
    // The right to write on the mapping that it has.
    let start = std::ptr::with_exposed_provenance_mut(memory.addr());
    let rights = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: the range is the mapping of `memory`; the change is refused.
    let protected = unsafe { rustix::mm::mprotect(start, SIZE, rights) };
    assert_eq!(protected, Err(Errno::ACCESS));
    // A hole, through the descriptor and through the mapping.
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(fd, hole, 0, 4096), Err(Errno::PERM));
    // SAFETY: the range is the mapping of `memory`; the removal is refused.
    let removed = unsafe { rustix::mm::madvise(start, SIZE, Advice::LinuxRemove) };
    assert_eq!(removed, Err(Errno::ACCESS));
    // Another size.
    for size in [0, SIZE as u64 - 1, SIZE as u64 + 1] {
        assert_eq!(rustix::fs::ftruncate(fd, size), Err(Errno::PERM));
    }
}

#[test]
fn the_owner_writes_through_its_mapping_only() {
    let mut memory = SharedMemory::options()
        .create_read_only_for_others(SIZE)
        .unwrap();
    assert!(memory.write_all_at(0, &[1]).is_err());
    // SAFETY: no other code has the memory.
    let bytes = unsafe { memory.as_mut_slice() };
    bytes[5] = 3;
    let mut byte = [0];
    memory.read_exact_at(5, &mut byte).unwrap();
    assert_eq!(byte, [3]);
}

#[test]
fn memory_that_may_be_written_is_received_for_reading_too() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let memory = SharedMemory::create(100).unwrap();
    memory.send(&ours).unwrap();
    let received = SharedReadMemory::receive(&theirs).unwrap();
    memory.write_all_at(99, &[4]).unwrap();
    drop(memory);
    let mut byte = [0];
    received.read_exact_at(99, &mut byte).unwrap();
    assert_eq!((byte, received.size()), ([4], 100));
    assert!(matches!(
        received.read_exact_at(100, &mut byte),
        Err(MemoryError::OutOfBounds { .. })
    ));
}
