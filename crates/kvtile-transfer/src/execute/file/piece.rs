//! Pieces: the units of the queue. Each is completely direct or completely buffered.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, BorrowedFd},
};

use kvtile_memory::{FileMemory, TransferDivision};
use rustix::io::{ReadWriteFlags, preadv2};

use super::queue::IoDirection;
use crate::error::TransferError;

/// A read or write between a file and memory, through one file descriptor.
#[derive(Clone, Copy)]
pub(super) struct FilePiece<'a> {
    pub(super) file: &'a FileMemory,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) direction: IoDirection,
    pub(super) offset: u64,
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
    /// The round that waits for it; a run without staging has none.
    pub(super) round: Option<usize>,
    /// Whether a queue must execute it. Transfers through the page cache are first tried without
    /// one.
    pub(super) is_for_queue: bool,
}

impl<'a> FilePiece<'a> {
    /// Splits this piece and passes the parts to `take`. The unaligned edges of a direct transfer
    /// go through the page cache. Its middle is split into pieces of `piece_bytes`, rounded up to
    /// the file's alignment. A buffered piece stays whole, because it is tried at once.
    pub(super) fn cut(
        self,
        piece_bytes: usize,
        mut take: impl FnMut(FilePiece<'a>),
    ) -> Result<(), TransferError> {
        let division = self.file.divide(self.offset, self.address, self.bytes)?;
        let TransferDivision::Direct {
            fd,
            head,
            middle,
            alignment,
        } = division
        else {
            take(self);
            return Ok(());
        };
        // A multiple of the alignment keeps every piece aligned.
        let aligned = piece_bytes.max(1).next_multiple_of(alignment.max(1));
        self.part(0, head).chop(head.max(1), &mut take);
        let direct = FilePiece {
            fd,
            is_for_queue: true,
            ..self.part(head, middle)
        };
        direct.chop(aligned, &mut take);
        let tail = self.bytes - head - middle;
        self.part(head + middle, tail).chop(tail.max(1), &mut take);
        Ok(())
    }

    /// The `bytes` bytes from offset `from` on.
    fn part(self, from: usize, bytes: usize) -> FilePiece<'a> {
        FilePiece {
            offset: self.offset + from as u64,
            address: self.address.wrapping_add(from),
            bytes,
            ..self
        }
    }

    /// Passes pieces of `piece_bytes` to `take`.
    pub(super) fn chop(self, piece_bytes: usize, take: &mut impl FnMut(FilePiece<'a>)) {
        for from in (0..self.bytes).step_by(piece_bytes) {
            take(self.part(from, piece_bytes.min(self.bytes - from)));
        }
    }

    /// Does the part that needs no wait for the device, and returns the rest for the queue, if any.
    ///
    /// Writes to the page cache are copies, which a queue would delegate to a kernel thread. So are
    /// reads of bytes in the page cache.
    ///
    /// # Safety
    /// As for [`FilePiece::finish`].
    pub(super) unsafe fn start(self) -> Result<Option<FilePiece<'a>>, TransferError> {
        if self.direction == IoDirection::Write {
            // SAFETY: passed on to the caller.
            unsafe { self.finish(0) }?;
            return Ok(None);
        }
        // SAFETY: the caller keeps the bytes mapped and initialised and excludes all other access.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) };
        let bytes = &mut [IoSliceMut::new(bytes)];
        let flags = ReadWriteFlags::NOWAIT;
        // The queue will report any error.
        let done = preadv2(self.fd, bytes, self.offset, flags).unwrap_or(0);
        let rest = FilePiece {
            is_for_queue: true,
            ..self.part(done, self.bytes.saturating_sub(done))
        };
        Ok((rest.bytes > 0).then_some(rest))
    }

    /// Transfers the bytes after the first `done` with a blocking call. That call knows which
    /// errors are retryable, and returns a precise error.
    ///
    /// # Safety
    /// As for [`super::queue::FileQueue::submit`], and the piece is not in flight.
    pub(super) unsafe fn finish(self, done: usize) -> Result<(), TransferError> {
        let rest = self.part(done, self.bytes.saturating_sub(done));
        match rest.direction {
            IoDirection::Read => {
                // SAFETY: the caller keeps the bytes mapped and initialised and excludes all other
                // access; the kernel no longer uses them.
                let bytes = unsafe { std::slice::from_raw_parts_mut(rest.address, rest.bytes) };
                rest.file.read_exact_at(rest.offset, bytes)?;
            }
            IoDirection::Write => {
                let address = rest.address.cast_const();
                // SAFETY: the caller keeps the bytes mapped and initialised and writers away.
                let bytes = unsafe { std::slice::from_raw_parts(address, rest.bytes) };
                rest.file.write_all_at(rest.offset, bytes)?;
            }
        }
        Ok(())
    }
}

/// The piece of `bytes` bytes of `file` at `offset`, not split yet.
pub(super) fn piece(
    file: &FileMemory,
    direction: IoDirection,
    offset: u64,
    (address, bytes): (*mut u8, usize),
) -> FilePiece<'_> {
    FilePiece {
        file,
        fd: file.as_fd(),
        direction,
        offset,
        address,
        bytes,
        round: None,
        is_for_queue: false,
    }
}
