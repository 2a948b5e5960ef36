//! Pieces: what goes to the queue, cut so that each is direct or buffered as a whole.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, BorrowedFd},
};

use kvtile_memory::{Division, FileMemory};
use rustix::io::{ReadWriteFlags, preadv2};

use super::queue::Direction;
use crate::error::TransferError;

/// A read or write between a file and memory, all of it through one descriptor.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) file: &'a FileMemory,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) direction: Direction,
    pub(super) offset: u64,
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
    /// The round that waits for it; runs without staging have none.
    pub(super) round: Option<usize>,
    /// Whether a queue is the way to do it. What goes through the page cache is tried without one
    /// first.
    pub(super) is_for_queue: bool,
}

impl<'a> Piece<'a> {
    /// Hands the pieces of this one to `take`: the unaligned edges of a direct transfer, which go
    /// through the page cache, and its middle in pieces of `piece_bytes`, as far as the file's
    /// alignment allows. What goes through the page cache stays whole: it is tried at once.
    pub(super) fn cut(
        self,
        piece_bytes: usize,
        mut take: impl FnMut(Piece<'a>),
    ) -> Result<(), TransferError> {
        let division = self.file.divide(self.offset, self.address, self.bytes)?;
        let Division::Direct {
            fd,
            head,
            middle,
            alignment,
        } = division
        else {
            take(self);
            return Ok(());
        };
        // A multiple of the alignment at least as long as a piece keeps every piece aligned.
        let aligned = piece_bytes.max(1).next_multiple_of(alignment.max(1));
        self.part(0, head).chop(head.max(1), &mut take);
        let direct = Piece {
            fd,
            is_for_queue: true,
            ..self.part(head, middle)
        };
        direct.chop(aligned, &mut take);
        let tail = self.bytes - head - middle;
        self.part(head + middle, tail).chop(tail.max(1), &mut take);
        Ok(())
    }

    /// `bytes` bytes from `from` on.
    fn part(self, from: usize, bytes: usize) -> Piece<'a> {
        Piece {
            offset: self.offset + from as u64,
            address: self.address.wrapping_add(from),
            bytes,
            ..self
        }
    }

    /// Hands pieces of `piece_bytes` to `take`.
    pub(super) fn chop(self, piece_bytes: usize, take: &mut impl FnMut(Piece<'a>)) {
        for from in (0..self.bytes).step_by(piece_bytes) {
            take(self.part(from, piece_bytes.min(self.bytes - from)));
        }
    }

    /// Does what needs no waiting for the device; what is left, if anything, is for a queue.
    ///
    /// Writes to the page cache are copies: a queue would have a thread of the kernel do them.
    /// Reads are, as far as the page cache has the bytes.
    ///
    /// # Safety
    /// As for [`Piece::finish`].
    pub(super) unsafe fn start(self) -> Result<Option<Piece<'a>>, TransferError> {
        if self.direction == Direction::Write {
            // SAFETY: passed on to the caller.
            unsafe { self.finish(0) }?;
            return Ok(None);
        }
        // SAFETY: the caller keeps the bytes mapped and initialised and everybody else away.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) };
        let bytes = &mut [IoSliceMut::new(bytes)];
        let flags = ReadWriteFlags::NOWAIT;
        // Whatever keeps it from reading, the queue will find out.
        let done = preadv2(self.fd, bytes, self.offset, flags).unwrap_or(0);
        let rest = Piece {
            is_for_queue: true,
            ..self.part(done, self.bytes.saturating_sub(done))
        };
        Ok((rest.bytes > 0).then_some(rest))
    }

    /// Does what is left after `done` bytes with a call that blocks. It knows what may be tried
    /// again and what may not, and names what went wrong.
    ///
    /// # Safety
    /// As for [`super::queue::FileQueue::submit`], and the piece is not in flight.
    pub(super) unsafe fn finish(self, done: usize) -> Result<(), TransferError> {
        let rest = self.part(done, self.bytes.saturating_sub(done));
        match rest.direction {
            Direction::Read => {
                // SAFETY: the caller keeps the bytes mapped and initialised and everybody else
                // away; the kernel is done with them.
                let bytes = unsafe { std::slice::from_raw_parts_mut(rest.address, rest.bytes) };
                rest.file.read_exact_at(rest.offset, bytes)?;
            }
            Direction::Write => {
                let address = rest.address.cast_const();
                // SAFETY: the caller keeps the bytes mapped and initialised and writers away.
                let bytes = unsafe { std::slice::from_raw_parts(address, rest.bytes) };
                rest.file.write_all_at(rest.offset, bytes)?;
            }
        }
        Ok(())
    }
}

/// The piece of `bytes` bytes of `file` at `offset`, not cut yet.
pub(super) fn piece(
    file: &FileMemory,
    direction: Direction,
    offset: u64,
    (address, bytes): (*mut u8, usize),
) -> Piece<'_> {
    Piece {
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
