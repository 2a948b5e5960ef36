//! Positional reads and writes: all bytes or an error.

use super::direct::DirectFile;
use super::{DirectState, FileMemory, TransferDivision};
use crate::MemoryError;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{Errno, pread, pwrite};

impl FileMemory {
    /// Fills `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfBounds`] if the range is not inside the region,
    /// [`MemoryError::UnexpectedEnd`] if the file was truncated, [`MemoryError::Io`]. The content
    /// of `buffer` after an error is unspecified.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check_range(offset, buffer.len())?;
        let mut cursor = offset;
        let mut rest = buffer;
        if let Some((direct, head, middle)) = self.direct_part(offset, rest.as_ptr(), rest.len()) {
            let (first, others) = rest.split_at_mut(head);
            self.read_buffered(cursor, first)?;
            cursor += head as u64;
            let done = self.read_direct(direct, cursor, others.split_at_mut(middle).0)?;
            cursor += done as u64;
            rest = others.split_at_mut(done).1;
        }
        self.read_buffered(cursor, rest)
    }

    /// Writes all of `bytes` at `offset`. They are in the file when this returns, and durable after
    /// [`FileMemory::sync_data`].
    ///
    /// # Errors
    ///
    /// [`MemoryError::ReadOnly`], [`MemoryError::OutOfBounds`] (nothing is written),
    /// [`MemoryError::OutOfSpace`], [`MemoryError::Io`] (a part may be written).
    pub fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        if !self.writable {
            return Err(MemoryError::ReadOnly {
                path: self.path.clone(),
            });
        }
        self.check_range(offset, bytes.len())?;
        let mut cursor = offset;
        let mut rest = bytes;
        if let Some((direct, head, middle)) = self.direct_part(offset, rest.as_ptr(), rest.len()) {
            let (first, others) = rest.split_at(head);
            self.write_buffered(cursor, first)?;
            cursor += head as u64;
            let done = self.write_direct(direct, cursor, others.split_at(middle).0)?;
            cursor += done as u64;
            rest = others.split_at(done).1;
        }
        self.write_buffered(cursor, rest)
    }

    /// How a transfer of `len` bytes at `offset` and `address` is split between the two
    /// descriptors, for callers that submit transfers themselves. A caller that follows the
    /// division keeps the alignment of [`FileMemory::direct_io`] and accesses a page directly only
    /// where the transfer covers the whole page.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfBounds`] if the range is not inside the region.
    pub fn divide(
        &self,
        offset: u64,
        address: *const u8,
        len: usize,
    ) -> Result<TransferDivision<'_>, MemoryError> {
        self.check_range(offset, len)?;
        let direct = self.direct_part(offset, address, len);
        Ok(
            direct.map_or(TransferDivision::Buffered, |(direct, head, middle)| {
                TransferDivision::Direct {
                    fd: direct.fd(),
                    head,
                    middle,
                    alignment: direct.alignment().of_offsets(),
                }
            }),
        )
    }

    fn check_range(&self, offset: u64, len: usize) -> Result<(), MemoryError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size as u64 => Ok(()),
            _ => Err(MemoryError::OutOfBounds {
                offset,
                len,
                size: self.size,
            }),
        }
    }

    /// The direct descriptor for a transfer, the bytes before its direct part and the bytes of it.
    fn direct_part(
        &self,
        offset: u64,
        address: *const u8,
        len: usize,
    ) -> Option<(&DirectFile, usize, usize)> {
        let DirectState::Open(direct) = &self.direct else {
            return None;
        };
        let direct = direct.usable()?;
        let (head, middle) = direct.alignment().split(offset, address.addr(), len);
        (middle > 0).then_some((direct, head, middle))
    }

    fn read_buffered(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let wanted = buffer.len();
        let done = read_on(self.fd.as_fd(), offset, buffer)
            .map_err(|stop| self.error("read", wanted as u64, stop.errno))?;
        if done == wanted {
            return Ok(());
        }
        Err(MemoryError::UnexpectedEnd {
            path: self.path.clone(),
            offset: offset + done as u64,
            missing: wanted - done,
        })
    }

    fn write_buffered(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        write_on(self.fd.as_fd(), offset, bytes)
            .map_err(|stop| self.error("write", (bytes.len() - stop.done) as u64, stop.errno))
    }

    /// Returns the bytes read: fewer than requested at the end of the file or if the kernel
    /// declines.
    fn read_direct(
        &self,
        direct: &DirectFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, MemoryError> {
        let wanted = buffer.len() as u64;
        read_on(direct.fd(), offset, buffer)
            .or_else(|stop| self.declined(direct, &stop, "read", wanted))
    }

    /// Returns the bytes written: fewer than requested if the kernel declines.
    fn write_direct(
        &self,
        direct: &DirectFile,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, MemoryError> {
        let wanted = bytes.len() as u64;
        match write_on(direct.fd(), offset, bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(stop) => self.declined(direct, &stop, "write", wanted),
        }
    }

    /// Handles a kernel that finds a transfer misaligned (`EINVAL`): this transfer and all later
    /// ones are buffered. After a short transfer the remainder is unaligned, so `EINVAL` then does
    /// not disable direct I/O.
    fn declined(
        &self,
        direct: &DirectFile,
        stop: &StoppedTransfer,
        operation: &'static str,
        wanted: u64,
    ) -> Result<usize, MemoryError> {
        if stop.errno != Errno::INVAL {
            return Err(self.error(operation, wanted, stop.errno));
        }
        if stop.done == 0 {
            direct.set_refused();
        }
        Ok(stop.done)
    }
}

/// An error after `done` bytes.
struct StoppedTransfer {
    done: usize,
    errno: Errno,
}

/// Reads until `buffer` is full or the file ends. Returns the bytes read.
fn read_on(fd: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize, StoppedTransfer> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(fd, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StoppedTransfer { done, errno }),
        }
    }
    Ok(done)
}

/// Writes until all of `bytes` is written.
fn write_on(fd: BorrowedFd<'_>, offset: u64, bytes: &[u8]) -> Result<(), StoppedTransfer> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(fd, rest, offset + done as u64) {
            // A write that takes nothing and reports no error would loop forever.
            Ok(0) => {
                let errno = Errno::IO;
                return Err(StoppedTransfer { done, errno });
            }
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StoppedTransfer { done, errno }),
        }
    }
    Ok(())
}
