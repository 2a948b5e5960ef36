//! Two processes on the same memory.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/child.rs"]
mod child;
#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{MemoryError, MemoryRegion, SharedMemory};
use rustix::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

const SIZE: usize = 3 * 1024 * 1024 + 5;

/// A byte that differs between neighbours, pages and huge pages.
fn pattern(index: usize, seed: usize) -> u8 {
    let mixed = (index + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56).to_le_bytes()[0]
}

#[test]
fn two_processes_share_bytes_and_neither_can_cut_them() {
    if let Some((role, path)) = child::role() {
        assert_eq!(role, "receiver");
        return receiver(&path);
    }
    let folder = folder();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = child::command(
        "two_processes_share_bytes_and_neither_can_cut_them",
        "receiver",
        path.to_str().unwrap(),
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();

    let mut memory = SharedMemory::create(SIZE).unwrap();
    // SAFETY: no other code has the memory yet.
    let bytes = unsafe { memory.as_mut_slice() };
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = pattern(index, 1);
    }
    let (socket, _) = listener.accept().unwrap();
    memory.send(&socket).unwrap();
    // The child sends memory of its own and exits; the memory stays valid.
    let theirs = SharedMemory::receive(&socket).unwrap();
    child::passes(child);

    let mut bytes = vec![0; SIZE];
    memory.read_exact_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == pattern(i, 2)));
    assert_eq!(theirs.size(), 4097);
    let mut bytes = vec![0; 4097];
    theirs.read_exact_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == pattern(i, 3)));
}

fn receiver(path: &str) {
    let socket = UnixStream::connect(path).unwrap();
    let mut memory = SharedMemory::receive(&socket).unwrap();
    assert_eq!(memory.size(), SIZE);
    for size in [0, 1, SIZE as u64 - 1, SIZE as u64 + 1] {
        let cut = rustix::fs::ftruncate(memory.as_fd(), size);
        assert_eq!(cut, Err(rustix::io::Errno::PERM), "size {size}");
    }
    // SAFETY: the parent waits for this process before it reads.
    let bytes = unsafe { memory.as_mut_slice() };
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == pattern(i, 1)));
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = pattern(index, 2);
    }
    let mine = SharedMemory::create(4097).unwrap();
    let bytes: Vec<u8> = (0..4097).map(|index| pattern(index, 3)).collect();
    mine.write_all_at(0, &bytes).unwrap();
    mine.send(&socket).unwrap();
}

#[test]
fn both_mappings_and_the_kernel_see_the_same_bytes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut memory = SharedMemory::create(10_000).unwrap();
    memory.send(&ours).unwrap();
    let mut other = SharedMemory::receive(&theirs).unwrap();
    assert_ne!(memory.addr(), other.addr());
    memory.write_all_at(9_998, &[5, 6]).unwrap();
    // SAFETY: the slice ends before other code accesses the memory.
    let seen = unsafe { other.as_mut_slice() };
    assert_eq!(seen[9_997..], [0, 5, 6]);
    // SAFETY: as before.
    let bytes = unsafe { memory.as_mut_slice() };
    bytes[0] = 9;
    let mut byte = [0];
    other.read_exact_at(0, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn accesses_outside_shared_memory_are_refused_and_touch_nothing() {
    let memory = SharedMemory::create(100).unwrap();
    for (offset, len) in [
        (100, 1),
        (0, 101),
        (usize::MAX, 1),
        (99, 2),
        (usize::MAX, 0),
    ] {
        let refused = |error| matches!(error, Err(MemoryError::OutOfBounds { .. }));
        assert!(refused(memory.read_exact_at(offset, &mut vec![0; len])));
        assert!(refused(memory.write_all_at(offset, &vec![1; len])));
    }
    memory.write_all_at(100, &[]).unwrap();
    let mut bytes = [1; 100];
    memory.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 100]);
}

#[test]
fn several_hand_overs_follow_each_other_on_one_socket() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for size in 1..20 {
        SharedMemory::create(size).unwrap().send(&ours).unwrap();
    }
    for size in 1..20 {
        assert_eq!(SharedMemory::receive(&theirs).unwrap().size(), size);
    }
}
