//! Memory that other processes map too: a memfd whose size is sealed.
//!
//! The seal matters: if the file were truncated, SIGBUS would kill every process that maps it.

mod handover;
mod read;

pub use read::SharedReadMemory;

use crate::MemoryError;
use crate::file::check_file_limit;
use crate::mapping::Mapping;
use crate::options::{AllocateOptions, HugePages};
use crate::prefault::{self, MappingBacking};
use crate::region::{MemoryRegion, StorageKind, check_size};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::any::Any;
use std::os::unix::net::UnixStream;

/// Memory that can be sent to other processes. It lives as long as any process maps it.
///
/// Its size never changes, and no process can change it. Every process that has it can change its
/// bytes at any time, so making a slice of it is unsafe.
///
/// ```
/// use kvtile_memory::{MemoryRegion, SharedMemory};
/// use std::os::unix::net::UnixStream;
///
/// // Two ends of one socket; usually they are in two processes.
/// let (ours, theirs) = UnixStream::pair().unwrap();
/// let memory = SharedMemory::create(1 << 20)?;
/// memory.send(&ours)?;
///
/// let received = SharedMemory::receive(&theirs)?;
/// memory.write_all_at(77, b"both see it")?;
/// let mut bytes = [0; 11];
/// received.read_exact_at(77, &mut bytes)?;
/// assert_eq!(&bytes, b"both see it");
/// # Ok::<(), kvtile_memory::MemoryError>(())
/// ```
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Mapping,
    fd: OwnedFd,
    size: usize,
    huge_pages: HugePages,
    is_only_written_here: bool,
}

impl SharedMemory {
    /// Options: huge pages (on), pre-fault (off), progress.
    #[must_use]
    pub fn options<'a>() -> AllocateOptions<'a, Self> {
        AllocateOptions::new()
    }

    /// Creates `bytes` of zeroed shared memory with the default options.
    ///
    /// # Errors
    ///
    /// As [`AllocateOptions::<SharedMemory>::create`].
    pub fn create(bytes: usize) -> Result<Self, MemoryError> {
        Self::options().create(bytes)
    }

    /// Sends the memory to the process at the other end of `socket`, which receives it with
    /// [`SharedMemory::receive`]. Both processes then share the same bytes.
    ///
    /// # Errors
    ///
    /// [`MemoryError::System`] if the socket fails; the peer may have received a part.
    pub fn send(&self, socket: &UnixStream) -> Result<(), MemoryError> {
        handover::send(socket, self.fd.as_fd(), self.size as u64)
    }

    /// Receives one hand-over from `socket` and maps it. Blocks as long as the socket does.
    ///
    /// The peer is not trusted: the memory is mapped only if it is one memfd, sealed against
    /// shrinking, of exactly the claimed size.
    ///
    /// # Errors
    ///
    /// [`MemoryError::HandoverDescriptors`], [`MemoryError::HandoverMessage`],
    /// [`MemoryError::HandoverIncomplete`], [`MemoryError::System`] (including a socket timeout),
    /// or as [`SharedMemory::from_fd`]. On an error all received descriptors are closed. The socket
    /// may then still hold part of a broken message, so close it.
    pub fn receive(socket: &UnixStream) -> Result<Self, MemoryError> {
        let (fd, claimed) = handover::receive(socket)?;
        Self::map_received(fd, Some(claimed))
    }

    /// Maps shared memory that came by other means (inherited, `pidfd_getfd`).
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotSharedMemory`] for any other descriptor, [`MemoryError::NotSealed`]
    /// unless it is sealed against shrinking, [`MemoryError::SharedNotWritable`],
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`],
    /// [`MemoryError::AllocationFailed`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MemoryError> {
        Self::map_received(fd, None)
    }

    fn map_received(fd: OwnedFd, claimed: Option<u64>) -> Result<Self, MemoryError> {
        let size = received_size(fd.as_fd(), claimed)?;
        let mapping = map(fd.as_fd(), size)?;
        Ok(Self {
            mapping,
            fd,
            size,
            huge_pages: HugePages::NotRequested,
            is_only_written_here: false,
        })
    }

    /// Whether the kernel may use huge pages here; not requested for received memory.
    #[must_use]
    pub fn huge_pages(&self) -> &HugePages {
        &self.huge_pages
    }

    /// Whether no other process can write the memory: it was made by
    /// [`AllocateOptions::create_read_only_for_others`] in this process.
    #[must_use]
    pub fn is_only_written_here(&self) -> bool {
        self.is_only_written_here
    }

    /// All bytes.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, no other code reads or writes the memory: no other process that
    /// has it, and no other mapping or descriptor of it in this one.
    #[must_use]
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `&mut self` excludes users of this mapping, and the caller excludes all others.
        unsafe { self.mapping.as_mut_slice(self.size) }
    }

    /// Copies the bytes at `offset` into `buffer` through the kernel. No slice of the memory is
    /// made, so other processes may write it concurrently; a concurrent write may arrive only in
    /// part.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfBounds`], [`MemoryError::System`].
    pub fn read_exact_at(&self, offset: usize, buffer: &mut [u8]) -> Result<(), MemoryError> {
        read_exact_at((self.fd.as_fd(), self.size), offset, buffer)
    }

    /// Copies `bytes` to `offset` through the kernel, as [`SharedMemory::read_exact_at`].
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfBounds`], [`MemoryError::System`], also for memory that only its mapping
    /// may write ([`AllocateOptions::create_read_only_for_others`]).
    pub fn write_all_at(&self, offset: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        check_range(self.size, offset, bytes.len())?;
        let mut position = offset as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::pwrite(&self.fd, rest, position) {
                Ok(0) => return Err(MemoryError::system("write shared memory", Errno::IO)),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    position += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(MemoryError::system("write shared memory", errno)),
            }
        }
        Ok(())
    }
}

impl AllocateOptions<'_, SharedMemory> {
    /// Creates `bytes` of zeroed shared memory.
    ///
    /// Without pre-faulting, the first touch allocates each page; a machine without free memory
    /// then kills the process.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::AllocationFailed`],
    /// [`MemoryError::LimitExceeded`] (with pre-faulting), [`MemoryError::System`] if no descriptor
    /// is available. On an error nothing stays mapped or open.
    pub fn create(self, bytes: usize) -> Result<SharedMemory, MemoryError> {
        let memory = self.create_unsealed(bytes)?;
        seal(&memory.fd, SealFlags::empty())?;
        Ok(memory)
    }

    /// Creates `bytes` of zeroed shared memory that only this process writes, through the mapping
    /// that it has now. A process that receives it maps it with [`SharedReadMemory`] and sees all
    /// later writes; no process, this one included, gets another writable mapping of it or writes
    /// it through its descriptor ([`SharedMemory::write_all_at`]).
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create); [`MemoryError::System`] on kernels before 5.1, which do not
    /// know this seal.
    pub fn create_read_only_for_others(self, bytes: usize) -> Result<SharedMemory, MemoryError> {
        let mut memory = self.create_unsealed(bytes)?;
        seal(&memory.fd, SealFlags::FUTURE_WRITE)?;
        memory.is_only_written_here = true;
        Ok(memory)
    }

    /// Creates the memory and maps it. Its descriptor must be sealed before another process gets it.
    fn create_unsealed(self, bytes: usize) -> Result<SharedMemory, MemoryError> {
        check_size(bytes)?;
        prefault::check_room(&self, bytes)?;
        let fd = memfd(bytes)?;
        let mapping = map(fd.as_fd(), bytes)?;
        // SAFETY: the memory was just made here; no other code has its address or descriptor.
        let huge_pages = unsafe { prefault::prepare(&mapping, &self, MappingBacking::Shared) }?;
        Ok(SharedMemory {
            mapping,
            fd,
            size: bytes,
            huge_pages,
            is_only_written_here: false,
        })
    }
}

impl AsFd for SharedMemory {
    /// The memfd, to pass on by other means than [`SharedMemory::send`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY: the mapping covers `size`, which is the size of the memory behind it, and that cannot
// shrink: `create` and its variant sealed it, `map_received` saw the seal, and seals cannot be removed. It is readable and
// writable, initialised by the kernel or by other processes, at most `isize::MAX` bytes, with
// exposed provenance, and is unmapped only when `self.mapping` is dropped.
unsafe impl MemoryRegion for SharedMemory {
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
}

/// A memfd of `bytes`, not sealed yet.
fn memfd(bytes: usize) -> Result<OwnedFd, MemoryError> {
    let system = |errno| MemoryError::system("create shared memory", errno);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create("kvtile", flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know `MFD_NOEXEC_SEAL`.
        Err(Errno::INVAL) => rustix::fs::memfd_create("kvtile", flags),
        created => created,
    }
    .map_err(system)?;
    check_file_limit(bytes)
        .and_then(|()| rustix::fs::ftruncate(&fd, bytes as u64))
        .map_err(|errno| MemoryError::AllocationFailed {
            bytes,
            source: errno.into(),
        })?;
    Ok(fd)
}

/// Seals the size of a memfd, and what `also` names.
fn seal(fd: &OwnedFd, also: SealFlags) -> Result<(), MemoryError> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL | also;
    rustix::fs::fcntl_add_seals(fd, seals)
        .map_err(|errno| MemoryError::system("seal shared memory", errno))
}

/// The size of received memory. Refuses a descriptor that is not a memfd, whose size may shrink, or
/// whose size is not the claimed one.
fn received_size(fd: BorrowedFd<'_>, claimed: Option<u64>) -> Result<usize, MemoryError> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|errno| MemoryError::NotSharedMemory {
        source: errno.into(),
    })?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(MemoryError::NotSealed);
    }
    // Its size is reliable only now that the seal is known to prevent shrinking.
    let stat = rustix::fs::fstat(fd)
        .map_err(|errno| MemoryError::system("examine the received memory", errno))?;
    let actual = u64::try_from(stat.st_size).unwrap_or(0);
    if let Some(claimed) = claimed.filter(|claimed| *claimed != actual) {
        return Err(MemoryError::SharedSizeMismatch { claimed, actual });
    }
    let size = usize::try_from(actual).map_err(|_| MemoryError::TooLarge { bytes: actual })?;
    check_size(size)?;
    Ok(size)
}

fn read_exact_at(
    (fd, size): (BorrowedFd<'_>, usize),
    offset: usize,
    buffer: &mut [u8],
) -> Result<(), MemoryError> {
    check_range(size, offset, buffer.len())?;
    let mut position = offset as u64;
    let mut rest = buffer;
    while !rest.is_empty() {
        match rustix::io::pread(fd, &mut *rest, position) {
            Ok(0) => return Err(MemoryError::system("read shared memory", Errno::IO)),
            Ok(count) => {
                rest = rest.get_mut(count..).unwrap_or_default();
                position += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(MemoryError::system("read shared memory", errno)),
        }
    }
    Ok(())
}

fn check_range(size: usize, offset: usize, len: usize) -> Result<(), MemoryError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(MemoryError::OutOfBounds {
            offset: offset as u64,
            len,
            size,
        }),
    }
}

fn map(fd: BorrowedFd<'_>, bytes: usize) -> Result<Mapping, MemoryError> {
    Mapping::shared(fd, bytes).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => MemoryError::SharedNotWritable {
            source: errno.into(),
        },
        _ => MemoryError::AllocationFailed {
            bytes,
            source: errno.into(),
        },
    })
}
