//! Shared memory that this process only reads.

use super::{handover, read_exact_at, received_size};
use crate::MemoryError;
use crate::mapping::Mapping;
use crate::region::{MemoryRegion, StorageKind};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::any::Any;
use std::os::unix::net::UnixStream;

/// Shared memory of another process, mapped without the right to write. It lives as long as any
/// process maps it, also after the death of the process that made it.
///
/// Its owner may change its bytes at any time, so no slice of it exists: copy from it, and use the
/// copy only if its owner promised not to change the bytes during it.
///
/// ```
/// use kvtile_memory::{MemoryRegion, SharedMemory, SharedReadMemory};
/// use std::os::unix::net::UnixStream;
///
/// // Two ends of one socket; usually they are in two processes.
/// let (ours, theirs) = UnixStream::pair().unwrap();
/// let mut memory = SharedMemory::options().create_read_only_for_others(1 << 20)?;
/// memory.send(&ours)?;
///
/// let received = SharedReadMemory::receive(&theirs)?;
/// assert!(!received.is_writable());
/// // SAFETY: no other code reads or writes the memory now.
/// let bytes = unsafe { memory.as_mut_slice() };
/// bytes[77] = 5;
/// let mut byte = [0];
/// received.read_exact_at(77, &mut byte)?;
/// assert_eq!(byte, [5]);
/// # Ok::<(), kvtile_memory::MemoryError>(())
/// ```
#[derive(Debug)]
pub struct SharedReadMemory {
    mapping: Mapping,
    fd: OwnedFd,
    size: usize,
}

impl SharedReadMemory {
    /// Receives one hand-over ([`SharedMemory::send`](crate::SharedMemory::send)) from `socket` and
    /// maps it for reading. Blocks as long as the socket does.
    ///
    /// The peer is not trusted: the memory is mapped only if it is one memfd, sealed against
    /// shrinking, of exactly the claimed size.
    ///
    /// # Errors
    ///
    /// As for [`SharedMemory::receive`](crate::SharedMemory::receive), except that memory which may
    /// not be written is accepted.
    pub fn receive(socket: &UnixStream) -> Result<Self, MemoryError> {
        let (fd, claimed) = handover::receive(socket)?;
        Self::map_received(fd, Some(claimed))
    }

    /// Maps shared memory that came by other means (inherited, `pidfd_getfd`) for reading.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotSharedMemory`] for any other descriptor, [`MemoryError::NotSealed`]
    /// unless it is sealed against shrinking, [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`],
    /// [`MemoryError::AllocationFailed`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MemoryError> {
        Self::map_received(fd, None)
    }

    fn map_received(fd: OwnedFd, claimed: Option<u64>) -> Result<Self, MemoryError> {
        let size = received_size(fd.as_fd(), claimed)?;
        let mapping = Mapping::shared_read_only(fd.as_fd(), size).map_err(|errno| {
            MemoryError::AllocationFailed {
                bytes: size,
                source: errno.into(),
            }
        })?;
        Ok(Self { mapping, fd, size })
    }

    /// Copies the bytes at `offset` into `buffer` through the kernel. A concurrent write of the
    /// owner may arrive only in part.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfBounds`], [`MemoryError::System`].
    pub fn read_exact_at(&self, offset: usize, buffer: &mut [u8]) -> Result<(), MemoryError> {
        read_exact_at((self.fd.as_fd(), self.size), offset, buffer)
    }
}

impl AsFd for SharedReadMemory {
    /// The memfd, to pass on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY: the mapping covers `size`, which is the size of the memory behind it, and that cannot
// shrink: `map_received` saw the seal, and seals cannot be removed. It is readable, initialised by
// the kernel or by its owner, at most `isize::MAX` bytes, with exposed provenance, and is unmapped
// only when `self.mapping` is dropped. It is not writable, and `is_writable` returns false.
unsafe impl MemoryRegion for SharedReadMemory {
    fn addr(&self) -> usize {
        self.mapping.address()
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::System
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_writable(&self) -> bool {
        false
    }
}
