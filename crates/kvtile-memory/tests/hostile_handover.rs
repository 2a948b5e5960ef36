//! Malicious peers of a hand-over. It is one test, since it counts the descriptors of the process.
#![expect(
    clippy::cast_possible_truncation,
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

use kvtile_memory::{MemoryError, SharedMemory};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

const SIZE: u64 = 8192;

fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let fd = fd.unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn message(size: u64) -> Vec<u8> {
    [&b"kvtshm\0\x01"[..], &size.to_le_bytes()].concat()
}

fn send_raw(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent.unwrap(), bytes.len());
}

/// The error of `receive` for these bytes and descriptors, after which the peer closes.
fn answer(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> MemoryError {
    let before = counts::open_descriptors();
    let error = {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_raw(&ours, bytes, fds);
        drop(ours);
        SharedMemory::receive(&theirs).expect_err("hostile")
    };
    assert_eq!(counts::open_descriptors(), before, "after {error}");
    error
}

#[test]
fn malicious_hand_overs_are_refused_by_name_and_leak_nothing() {
    let good = memfd(SIZE, SealFlags::SHRINK);
    let mapped = counts::mapped_bytes();
    descriptors(&good);
    messages(&good);
    sizes(&good);
    not_shared_memory();
    not_writable();
    a_silent_peer_times_out();
    assert!(counts::mapped_bytes() < mapped + (16 << 20));

    // The descriptor that all attempts above misused is still valid memory.
    let (ours, theirs) = UnixStream::pair().unwrap();
    send_raw(&ours, &message(SIZE), &[good.as_fd()]);
    SharedMemory::receive(&theirs).unwrap();
    // Seals against growing are not needed for safety, and `from_fd` makes the same checks.
    SharedMemory::from_fd(good).unwrap();
    let unsealed = memfd(SIZE, SealFlags::GROW);
    assert!(matches!(
        SharedMemory::from_fd(unsealed),
        Err(MemoryError::NotSealed)
    ));
}

fn descriptors(good: &OwnedFd) {
    let good = good.as_fd();
    let count = |fds: &[BorrowedFd<'_>]| match answer(&message(SIZE), fds) {
        MemoryError::HandoverDescriptors { count } => count,
        other => panic!("{other}"),
    };
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&[good; 2]), 2);
    assert!(count(&[good; 6]) > 1);
    assert!(count(&[good; 32]) > 1);

    // One descriptor with the first byte and one with a later byte are two.
    let before = counts::open_descriptors();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let bytes = message(SIZE);
    send_raw(&ours, &bytes[..3], &[good]);
    send_raw(&ours, &bytes[3..], &[good]);
    assert!(matches!(
        SharedMemory::receive(&theirs),
        Err(MemoryError::HandoverDescriptors { count: 2 })
    ));
    drop((ours, theirs));
    assert_eq!(counts::open_descriptors(), before);
}

fn messages(good: &OwnedFd) {
    let good = [good.as_fd()];
    let mut other_version = message(SIZE);
    other_version[7] = 2;
    for bytes in [other_version, vec![0; 16], b"GET / HTTP/1.1\r\n".to_vec()] {
        assert!(matches!(
            answer(&bytes, &good),
            MemoryError::HandoverMessage
        ));
    }
    for length in 1..16 {
        assert!(matches!(
            answer(&message(SIZE)[..length], &good),
            MemoryError::HandoverIncomplete { received, expected: 16 } if received == length
        ));
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    assert!(matches!(
        SharedMemory::receive(&theirs),
        Err(MemoryError::HandoverIncomplete { received: 0, .. })
    ));
}

fn sizes(good: &OwnedFd) {
    for claim in [0, 1, SIZE - 1, SIZE + 1, 1 << 40, u64::MAX] {
        assert!(matches!(
            answer(&message(claim), &[good.as_fd()]),
            MemoryError::SharedSizeMismatch { claimed, actual: SIZE } if claimed == claim
        ));
    }
    let empty = memfd(0, SealFlags::SHRINK);
    assert!(matches!(
        answer(&message(0), &[empty.as_fd()]),
        MemoryError::ZeroSize
    ));
    // Larger than any address space, although such a file exists.
    let huge = memfd(i64::MAX.unsigned_abs(), SealFlags::SHRINK);
    let error = answer(&message(i64::MAX.unsigned_abs()), &[huge.as_fd()]);
    assert!(
        matches!(
            error,
            MemoryError::TooLarge { .. } | MemoryError::AllocationFailed { .. }
        ),
        "{error}"
    );
    // If the owner truncates the memory, SIGBUS kills every process that maps it.
    for seals in [
        SealFlags::empty(),
        SealFlags::GROW,
        SealFlags::GROW | SealFlags::SEAL,
    ] {
        let unsealed = memfd(SIZE, seals);
        assert!(matches!(
            answer(&message(SIZE), &[unsealed.as_fd()]),
            MemoryError::NotSealed
        ));
    }
}

fn not_shared_memory() {
    let folder = folder::folder();
    let mut file = std::fs::File::create_new(folder.path().join("file")).unwrap();
    file.write_all(&vec![0; SIZE as usize]).unwrap();
    let directory = std::fs::File::open(folder.path()).unwrap();
    let device = std::fs::File::open("/dev/zero").unwrap();
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let (socket, _other_end) = UnixStream::pair().unwrap();
    for fd in [
        file.as_fd(),
        directory.as_fd(),
        device.as_fd(),
        pipe.as_fd(),
        socket.as_fd(),
    ] {
        let error = answer(&message(SIZE), &[fd]);
        assert!(
            matches!(error, MemoryError::NotSharedMemory { .. }),
            "{error}"
        );
    }
    // Files of tmpfs support seals, but have none.
    match tempfile::tempfile_in("/dev/shm") {
        Ok(mut file) => {
            file.write_all(&vec![0; SIZE as usize]).unwrap();
            let error = answer(&message(SIZE), &[file.as_fd()]);
            assert!(matches!(error, MemoryError::NotSealed), "{error}");
        }
        Err(error) => eprintln!("a file of tmpfs is not tried: {error}"),
    }
}

fn not_writable() {
    let refused = |fd: BorrowedFd<'_>| {
        let error = answer(&message(SIZE), &[fd]);
        assert!(
            matches!(error, MemoryError::SharedNotWritable { .. }),
            "{error}"
        );
    };
    refused(memfd(SIZE, SealFlags::SHRINK | SealFlags::WRITE).as_fd());
    refused(memfd(SIZE, SealFlags::SHRINK | SealFlags::FUTURE_WRITE).as_fd());
    let memory = memfd(SIZE, SealFlags::SHRINK);
    let number = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let read_only = std::fs::File::open(format!("/proc/self/fd/{number}")).unwrap();
    refused(read_only.as_fd());
}

fn a_silent_peer_times_out() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    theirs
        .set_read_timeout(Some(std::time::Duration::from_millis(1)))
        .unwrap();
    match SharedMemory::receive(&theirs) {
        Err(MemoryError::System { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::WouldBlock);
        }
        other => panic!("{other:?}"),
    }
}
