//! Long blocks: their pieces are operations of their own, and several threads share them.
//!
//! ```text
//! block      |  piece 0  |  piece 1  |  piece 2  |  piece 3  |
//! threads    |       one thread      |    another thread     |   neighbours stay together
//! ```
//!
//! A thread verifies a piece, or computes its checksum, as soon as it has come, while other pieces are
//! in flight. The threads exist for one call: starting them takes microseconds, and reading what they
//! share takes milliseconds.

use std::{io, num::NonZeroUsize, thread};

use kvtile_layout::broken;
use parking_lot::Mutex;

use super::{
    super::{
        medium::{FileRead, FileWrite, MediumFile},
        record::piece_sum,
    },
    SlotMiss, SlotWrite,
    read::{ExpectedBlock, ReadSource},
};
use crate::{error::TierError, tier::BlockPieces};

/// The fewest bytes that are worth a thread.
const THREAD_BYTES: u64 = 2 * BlockPieces::BYTES_MAX;

/// Whether blocks are read and written piece by piece.
pub(super) fn is_long(pieces: &BlockPieces) -> bool {
    pieces.count() > 1 && pieces.block_bytes() > BlockPieces::BYTES_MAX
}

/// A piece to read.
struct PieceRead<'a> {
    /// The index of its block in the batch.
    block: usize,
    piece: usize,
    read: FileRead<'a>,
}

/// Reads blocks piece by piece. Returns the outcome of each: that of its first piece that is bad.
pub(super) fn read(
    from: &ReadSource<'_>,
    (reads, expected): (&mut [FileRead<'_>], &[ExpectedBlock]),
) -> Vec<Result<(), SlotMiss>> {
    let blocks = reads.len();
    let mut pieces = Vec::new();
    for (block, (read, expected)) in reads.iter_mut().zip(expected).enumerate() {
        let mut rest = &mut *read.bytes;
        let mut offset = read.offset;
        for piece in expected.pieces.clone() {
            let bytes = from.pieces.bytes(piece..piece + 1);
            let bytes = bytes.end - bytes.start;
            let length = usize::try_from(bytes).ok();
            let split = length.and_then(|length| rest.split_at_mut_checked(length));
            let Some((bytes, after)) = split else {
                broken(format_args!("piece {piece} of a block of {blocks}"))
            };
            rest = after;
            let read = FileRead { offset, bytes };
            offset += read.bytes.len() as u64;
            pieces.push(PieceRead { block, piece, read });
        }
    }
    let misses: Vec<Option<(usize, SlotMiss)>> = (0..blocks).map(|_| None).collect();
    let misses = Mutex::new(misses);
    share(from.threads, &mut pieces, &|pieces| {
        let names: Vec<(usize, usize)> = pieces.iter().map(|of| (of.block, of.piece)).collect();
        let each = pieces.iter_mut().map(|of| FileRead {
            offset: of.read.offset,
            bytes: &mut *of.read.bytes,
        });
        let mut reads: Vec<FileRead<'_>> = each.collect();
        from.slots.read_many(&mut reads, &mut |read, bytes| {
            let name = names.get(read).copied();
            let Some((block, piece, expected)) =
                name.and_then(|(block, piece)| Some((block, piece, expected.get(block)?)))
            else {
                broken(format_args!("read {read} of {} pieces", names.len()))
            };
            if let Err(miss) = from.verified((expected, piece..piece + 1), bytes)
                && let Some(place) = misses.lock().get_mut(block)
                && place.as_ref().is_none_or(|(first, _)| piece < *first)
            {
                *place = Some((piece, miss));
            }
        });
    });
    let misses = misses.into_inner().into_iter();
    misses
        .map(|miss| miss.map_or(Ok(()), |(_, miss)| Err(miss)))
        .collect()
}

/// Calls `work` with all pieces, divided among up to `threads` threads, including the caller's.
///
/// # Panics
/// If `work` does, after all threads have ended.
fn share(
    threads: usize,
    pieces: &mut [PieceRead<'_>],
    work: &(dyn Fn(&mut [PieceRead<'_>]) + Sync),
) {
    let bytes: u64 = pieces.iter().map(|of| of.read.bytes.len() as u64).sum();
    let worth = usize::try_from(bytes / THREAD_BYTES).unwrap_or(usize::MAX);
    let threads = NonZeroUsize::new(threads.min(worth)).unwrap_or(NonZeroUsize::MIN);
    let each = pieces.len().div_ceil(threads.get()).max(1);
    let parts: Mutex<Vec<&mut [PieceRead<'_>]>> = Mutex::new(pieces.chunks_mut(each).collect());
    let take = || parts.lock().pop();
    let serve = || {
        while let Some(part) = take() {
            work(part);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.get() {
            let thread = thread::Builder::new().name("kvtile-piece".to_owned());
            if thread.spawn_scoped(scope, serve).is_err() {
                // The other threads take its part.
                break;
            }
        }
        serve();
    });
}

/// The checksums of the pieces of a block that was written, or why it was not.
type PieceSums = Result<Box<[u64]>, TierError>;

/// Writes blocks piece by piece, each to its offset. Sets the outcome of a block in `landed` once all of
/// its pieces have ended.
pub(super) fn write(
    (slots, pieces): (&dyn MediumFile, &BlockPieces),
    blocks: &[(u64, &SlotWrite<'_>)],
    failed: &dyn Fn(io::Error) -> TierError,
    landed: &mut [PieceSums],
) {
    let count = pieces.count();
    let mut names = Vec::with_capacity(blocks.len() * count);
    let mut writes = Vec::with_capacity(blocks.len() * count);
    for (block, (start, write)) in blocks.iter().enumerate() {
        let mut offset = *start;
        for (piece, bytes) in pieces.split(0..count, write.bytes).into_iter().enumerate() {
            names.push((block, piece));
            writes.push(FileWrite { offset, bytes });
            offset += bytes.len() as u64;
        }
    }
    let none = |_| (count, Ok(vec![0; count].into_boxed_slice()));
    let mut under_way: Vec<(usize, PieceSums)> = (0..blocks.len()).map(none).collect();
    slots.write_many(&writes, &mut |at, outcome| {
        let name = names.get(at).copied();
        let of = name.and_then(|(block, piece)| {
            let write = blocks.get(block)?.1;
            Some((
                block,
                piece,
                write,
                writes.get(at)?,
                under_way.get_mut(block)?,
            ))
        });
        let Some((block, piece, write, bytes, (left, sums))) = of else {
            broken(format_args!("write {at} of {} pieces", names.len()))
        };
        match (outcome, &mut *sums) {
            (Ok(()), Ok(sums)) => {
                if let Some(sum) = sums.get_mut(piece) {
                    *sum = piece_sum(&write.key, write.position, (piece, bytes.bytes));
                }
            }
            (Err(error), Ok(_)) => *sums = Err(failed(error)),
            (_, Err(_)) => {}
        }
        *left = left.saturating_sub(1);
        if *left == 0
            && let Some(landed) = landed.get_mut(block)
        {
            *landed = sums.clone();
        }
    });
}
