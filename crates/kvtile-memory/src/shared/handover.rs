//! One descriptor and one size over a Unix socket.
//!
//! ```text
//! bytes 0..8   "kvtshm\0" and the version, 1
//! bytes 8..16  size of the memory in bytes, little-endian
//! with byte 0  the descriptor (SCM_RIGHTS), exactly one
//! ```

use crate::MemoryError;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

const MAGIC: [u8; 8] = *b"kvtshm\0\x01";
const MESSAGE_BYTES: usize = 16;

pub(super) fn send(socket: &UnixStream, fd: BorrowedFd<'_>, size: u64) -> Result<(), MemoryError> {
    let system = |errno| MemoryError::system("send shared memory", errno);
    let message: Vec<u8> = MAGIC.into_iter().chain(size.to_le_bytes()).collect();
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(system(Errno::NOBUFS));
    }
    let mut rest = message.as_slice();
    while !rest.is_empty() {
        let sent = retry_on_intr(|| {
            sendmsg(
                socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })
        .map_err(system)?;
        if sent > 0 {
            control.clear(); // The first byte carries the descriptor.
        }
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Returns the descriptor and the size that the sender claims for it.
pub(super) fn receive(socket: &UnixStream) -> Result<(OwnedFd, u64), MemoryError> {
    let mut message = [0; MESSAGE_BYTES];
    let mut fds = Vec::new();
    let mut received = 0;
    while let Some(rest) = message.get_mut(received..).filter(|rest| !rest.is_empty()) {
        let count = receive_part(socket, rest, &mut fds)?;
        if count == 0 {
            return Err(MemoryError::HandoverIncomplete {
                received,
                expected: MESSAGE_BYTES,
            });
        }
        received += count;
    }
    let (magic, size) = message.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(MemoryError::HandoverMessage);
    }
    let size = size
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| MemoryError::HandoverMessage)?;
    let count = fds.len();
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok((fd, size)),
        _ => Err(MemoryError::HandoverDescriptors { count }),
    }
}

/// Receives up to `rest.len()` bytes and adds the descriptors that came with them to `fds`.
fn receive_part(
    socket: &UnixStream,
    rest: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, MemoryError> {
    // Room for more than one descriptor, so that extra ones are detected; the kernel closes any
    // that exceed the room.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let result = retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(rest)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(|errno| MemoryError::system("receive shared memory", errno))?;
    for entry in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = entry {
            fds.extend(received);
        }
    }
    if result.flags.contains(ReturnFlags::CTRUNC) {
        return Err(MemoryError::HandoverDescriptors {
            count: fds.len() + 1,
        });
    }
    Ok(result.bytes)
}
