//! Batches of pieces of one file: adjacent pieces are merged, and many operations are in flight.
//!
//! ```text
//! pieces           a b c   d     e        in the order of the caller
//! parts            the direct middle of each piece, its edges, and segments of long parts
//! runs             [b a c] [d] [e ...     adjacent parts of the file, as one operation
//! queue            up to its capacity of runs in flight
//! ```
//!
//! A piece is reported as soon as all of its parts have ended; other runs may still be in flight.
//! After a short or failed run, the blocking calls of [`FileMemory`] finish it part by part, so
//! that each piece has its own result.

use std::{
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use kvtile_layout::broken;
use kvtile_memory::{FileMemory, MemoryError, TransferDivision};

use super::{
    queue::{
        CAPACITY, FileCompletion, FileIo, FileOperation, FileQueue, FileWay, IoDirection,
        MemorySpan, OperationMemory, SPANS_MAX, perform,
    },
    staging::FileWorker,
};

/// Receives the index of each piece that was read, with its bytes or its error.
type ReadCallback<'l> = dyn FnMut(usize, Result<&[u8], MemoryError>) + 'l;

/// Receives the index of each piece that has ended.
type PieceCallback<'l> = dyn FnMut(usize, Result<(), MemoryError>) + 'l;

/// Maximum length of a merged run, and of a segment of a long piece in a short batch. 512 KiB is
/// fewer 4 KiB pages than a virtio request has segments (254): the kernel splits a longer request.
const RUN_BYTES: usize = 512 << 10;

/// Maximum length of a segment of a long piece. On a virtual disk, writes in segments of 4 MiB are 9
/// to 14 % faster than in segments of 512 KiB with as many in flight, reads up to 9 %
/// (docs/benchmarks).
const SEGMENT_BYTES: usize = 4 << 20;

/// The segments that a batch should have at least, so that enough are in flight.
const SEGMENTS_MIN: usize = CAPACITY / 2;

/// A piece of a file to read.
#[derive(Debug)]
pub struct FileRead<'a> {
    /// Offset in the file.
    pub offset: u64,
    /// The destination buffer, which also gives the length.
    pub bytes: &'a mut [u8],
}

/// A piece of a file to write.
#[derive(Clone, Copy, Debug)]
pub struct FileWrite<'a> {
    /// Offset in the file.
    pub offset: u64,
    /// The bytes to write.
    pub bytes: &'a [u8],
}

/// Reads and writes many pieces of a file in one call, each as [`FileMemory::read_exact_at`] and
/// [`FileMemory::write_all_at`] would. Pieces that are adjacent in the file become one operation,
/// even if their memory is not adjacent; the pieces may be in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileBatch {
    way: FileWay,
}

impl FileBatch {
    /// A batch through the queue of kind `way`.
    #[must_use]
    pub fn new(way: FileWay) -> FileBatch {
        FileBatch { way }
    }

    /// The I/O method that batches use on this machine now.
    #[must_use]
    pub fn io(&self) -> FileIo {
        FileIo::of(self.way)
    }

    /// Reads all of `reads`. Calls `landed` once for each piece, as soon as it has ended, with its
    /// index and its bytes or error; other pieces may still be in flight. After the call returns or
    /// unwinds from a panic of `landed`, no buffer is written any more.
    pub fn read(
        &self,
        file: &FileMemory,
        reads: &mut [FileRead<'_>],
        landed: &mut ReadCallback<'_>,
    ) {
        let pieces: Vec<(u64, MemorySpan)> = reads
            .iter_mut()
            .map(|read| {
                let (address, bytes) = (read.bytes.as_mut_ptr(), read.bytes.len());
                (read.offset, MemorySpan { address, bytes })
            })
            .collect();
        let spans: Vec<MemorySpan> = pieces.iter().map(|(_, span)| *span).collect();
        let mut landed = |index: usize, outcome: Result<(), MemoryError>| {
            let Some(span) = spans.get(index) else {
                broken(format_args!("piece {index} of {}", spans.len()));
            };
            // SAFETY: the span is the buffer of `reads[index]`, which is borrowed for this whole
            // function and used through this address alone. All of its parts have ended, so nothing
            // writes it any more; the slice ends with the call.
            let bytes = unsafe { std::slice::from_raw_parts(span.address, span.bytes) };
            landed(index, outcome.map(|()| bytes));
        };
        // SAFETY: the spans are the buffers of `reads`, which are borrowed exclusively until this
        // returns, do not overlap, and are used through these addresses alone.
        unsafe { self.transfer(file, IoDirection::Read, &pieces, &mut landed) }
    }

    /// Writes all of `writes`. Calls `landed` once for each piece, as soon as it has ended; other
    /// pieces may still be in flight. Where pieces of one call overlap in the file, any of them may
    /// be the last to write. After the call returns or unwinds from a panic of `landed`, no buffer
    /// is read any more.
    pub fn write(
        &self,
        file: &FileMemory,
        writes: &[FileWrite<'_>],
        landed: &mut dyn FnMut(usize, Result<(), MemoryError>),
    ) {
        let pieces: Vec<(u64, MemorySpan)> = writes
            .iter()
            .map(|write| {
                let (address, bytes) = (write.bytes.as_ptr().cast_mut(), write.bytes.len());
                (write.offset, MemorySpan { address, bytes })
            })
            .collect();
        // SAFETY: the spans are the bytes of `writes`, which are borrowed until this returns, and
        // writes only read them.
        unsafe { self.transfer(file, IoDirection::Write, &pieces, landed) }
    }

    /// # Safety
    /// Until this returns or unwinds the spans of `pieces` stay mapped and initialised, nothing else
    /// writes them, and nothing else reads those of a read, no other piece included.
    unsafe fn transfer(
        &self,
        file: &FileMemory,
        direction: IoDirection,
        pieces: &[(u64, MemorySpan)],
        landed: &mut PieceCallback<'_>,
    ) {
        let mut flight = BatchFlight::new(file, direction, pieces);
        for (index, (offset, span)) in pieces.iter().enumerate() {
            if let Err(error) = flight.cut(index, *offset, *span) {
                landed(index, Err(error));
            } else if flight.left.get(index) == Some(&0) {
                landed(index, Ok(()));
            }
        }
        flight.join();
        if direction == IoDirection::Write {
            // Writes to the page cache are copies, which a queue would delegate to a kernel thread.
            // SAFETY: passed on to the caller.
            unsafe { flight.run_here(|is_direct| !is_direct, landed) };
        }
        if flight.runs.len() - flight.next <= 1 {
            // SAFETY: passed on to the caller.
            return unsafe { flight.run_here(|_| true, landed) };
        }
        let mut worker = FileWorker::take(self.way);
        // SAFETY: passed on to the caller.
        unsafe { flight.fly(worker.queue(), landed) };
        worker.give_back();
    }
}

/// A part of a piece, transferred through one file descriptor.
#[derive(Clone, Copy)]
struct PiecePart<'a> {
    piece: usize,
    fd: BorrowedFd<'a>,
    is_direct: bool,
    offset: u64,
    span: MemorySpan,
}

/// Adjacent parts of the file.
struct Run {
    parts: Range<usize>,
    /// Their memory, in `spans`; parts that are also adjacent in memory share a span.
    spans: Range<usize>,
    bytes: usize,
}

/// A batch in progress.
struct BatchFlight<'a> {
    file: &'a FileMemory,
    direction: IoDirection,
    /// The length of a segment of a long piece.
    segment: usize,
    parts: Vec<PiecePart<'a>>,
    spans: Vec<MemorySpan>,
    runs: Vec<Run>,
    /// The first run that has not started.
    next: usize,
    /// Number of unfinished parts of each piece.
    left: Vec<usize>,
    /// The first error of each failed piece, until it is reported.
    errors: Vec<(usize, MemoryError)>,
}

/// Waits on drop for all operations in flight, also while a panic unwinds.
struct DrainOnDrop<'q>(&'q mut FileQueue);

impl Drop for DrainOnDrop<'_> {
    fn drop(&mut self) {
        self.0.drain();
    }
}

impl<'a> BatchFlight<'a> {
    fn new(
        file: &'a FileMemory,
        direction: IoDirection,
        pieces: &[(u64, MemorySpan)],
    ) -> BatchFlight<'a> {
        let bytes = pieces.iter().map(|(_, span)| span.bytes);
        let bytes = bytes.fold(0, usize::saturating_add);
        let runs = bytes / SEGMENTS_MIN / RUN_BYTES;
        BatchFlight {
            file,
            direction,
            segment: (runs * RUN_BYTES).clamp(RUN_BYTES, SEGMENT_BYTES),
            parts: Vec::with_capacity(pieces.len()),
            spans: Vec::with_capacity(pieces.len()),
            runs: Vec::new(),
            next: 0,
            left: vec![0; pieces.len()],
            errors: Vec::new(),
        }
    }

    /// Splits a piece into its direct middle and its edges, and long parts into segments.
    fn cut(&mut self, piece: usize, offset: u64, span: MemorySpan) -> Result<(), MemoryError> {
        let division = self.file.divide(offset, span.address, span.bytes)?;
        let whole = PiecePart {
            piece,
            fd: self.file.as_fd(),
            is_direct: false,
            offset,
            span,
        };
        let TransferDivision::Direct {
            fd,
            head,
            middle,
            alignment,
        } = division
        else {
            self.chop(whole, self.segment);
            return Ok(());
        };
        self.chop(whole.of(0, head), self.segment);
        let direct = PiecePart {
            fd,
            is_direct: true,
            ..whole.of(head, middle)
        };
        self.chop(direct, self.segment.next_multiple_of(alignment.max(1)));
        let tail = head + middle;
        self.chop(whole.of(tail, span.bytes - tail), self.segment);
        Ok(())
    }

    fn chop(&mut self, part: PiecePart<'a>, bytes: usize) {
        for from in (0..part.span.bytes).step_by(bytes) {
            self.parts
                .push(part.of(from, bytes.min(part.span.bytes - from)));
            if let Some(left) = self.left.get_mut(part.piece) {
                *left += 1;
            }
        }
    }

    /// Sorts the parts by file offset and merges adjacent ones. Buffered parts come first.
    fn join(&mut self) {
        self.parts
            .sort_unstable_by_key(|part| (part.is_direct, part.offset, part.piece));
        let mut before: Option<PiecePart<'a>> = None;
        for (index, part) in self.parts.iter().enumerate() {
            let run = self.runs.last_mut();
            let joined = run.zip(before).filter(|(run, before)| {
                before.is_direct == part.is_direct
                    && before.end() == part.offset
                    && run.bytes + part.span.bytes <= RUN_BYTES
                    && run.spans.len() < SPANS_MAX
            });
            before = Some(*part);
            let Some((run, last)) = joined else {
                let first = self.spans.len();
                self.spans.push(part.span);
                self.runs.push(Run {
                    parts: index..index + 1,
                    spans: first..first + 1,
                    bytes: part.span.bytes,
                });
                continue;
            };
            run.parts.end = index + 1;
            run.bytes += part.span.bytes;
            let continues = last.span.address.wrapping_add(last.span.bytes) == part.span.address;
            match self.spans.last_mut() {
                Some(span) if continues => span.bytes += part.span.bytes,
                _ => {
                    self.spans.push(part.span);
                    run.spans.end = self.spans.len();
                }
            }
        }
    }

    /// Run `index` as an operation, with its direct flag; `None` if there is no such run.
    fn operation(&self, index: usize) -> Option<(FileOperation, bool)> {
        let run = self.runs.get(index)?;
        let first = self.parts.get(run.parts.start)?;
        let memory = match self.spans.get(run.spans.clone())? {
            [one] => OperationMemory::One(*one),
            many => OperationMemory::Many {
                first: many.as_ptr(),
                count: many.len(),
            },
        };
        let operation = FileOperation {
            direction: self.direction,
            fd: first.fd.as_raw_fd(),
            offset: first.offset,
            memory,
            token: index as u64,
        };
        Some((operation, first.is_direct))
    }

    /// Executes the next runs on this thread, while `is_meant` returns true for their direct flag.
    ///
    /// # Safety
    /// As for [`FileBatch::transfer`].
    unsafe fn run_here(&mut self, is_meant: impl Fn(bool) -> bool, landed: &mut PieceCallback<'_>) {
        while let Some((operation, is_direct)) = self.operation(self.next)
            && is_meant(is_direct)
        {
            // SAFETY: passed on to the caller; the file stays open, and `spans` unchanged.
            let result = unsafe { perform(operation) };
            let run = self.next;
            self.next += 1;
            // SAFETY: passed on to the caller; the run has ended.
            unsafe { self.ended(run, result.unwrap_or(0), landed) };
        }
    }

    /// Executes the remaining runs through `queue`, which is empty before and after.
    ///
    /// # Safety
    /// As for [`FileBatch::transfer`].
    unsafe fn fly(&mut self, queue: &mut FileQueue, landed: &mut PieceCallback<'_>) {
        let drained = DrainOnDrop(queue);
        let mut ended: Vec<FileCompletion> = Vec::new();
        loop {
            // Submits before it handles completions, so that the disk stays busy.
            while drained.0.has_room()
                && let Some((operation, _)) = self.operation(self.next)
            {
                // SAFETY: the descriptor is the file's, which `self` borrows. `spans` is not
                // changed before `self` is dropped, and the caller guarantees the bytes. Both
                // outlive the operations in flight: `drained` takes every completion before this
                // function returns or unwinds, and `self` and the caller's buffers live longer than
                // that.
                unsafe { drained.0.submit(operation) };
                self.next += 1;
            }
            drained.0.flush();
            for FileCompletion { token, result } in ended.drain(..) {
                let run = usize::try_from(token).unwrap_or(usize::MAX);
                // SAFETY: passed on to the caller; the completion of the run was taken.
                unsafe { self.ended(run, result.unwrap_or(0), landed) };
            }
            let Some(completion) = drained.0.next() else {
                return;
            };
            ended.push(completion);
            while let Some(completion) = drained.0.ready() {
                ended.push(completion);
            }
        }
    }

    /// Handles the end of run `index` after `done` bytes. Blocking calls transfer the missing
    /// bytes: they know which errors are retryable, and return an error for each part.
    ///
    /// # Safety
    /// As for [`FileBatch::transfer`], and the run is not in flight.
    unsafe fn ended(&mut self, index: usize, done: usize, landed: &mut PieceCallback<'_>) {
        let Some(run) = self.runs.get(index) else {
            broken(format_args!("run {index} of {}", self.runs.len()));
        };
        let mut before = 0;
        for index in run.parts.clone() {
            let Some(part) = self.parts.get(index).copied() else {
                broken(format_args!("part {index} of {}", self.parts.len()));
            };
            let here = done.saturating_sub(before).min(part.span.bytes);
            before += part.span.bytes;
            let outcome = match here == part.span.bytes {
                true => Ok(()),
                // SAFETY: passed on to the caller; the run is not in flight.
                false => unsafe { self.finish(part.of(here, part.span.bytes - here)) },
            };
            if let Err(error) = outcome {
                self.errors.push((part.piece, error));
            }
            self.part_ended(part.piece, landed);
        }
    }

    /// Transfers a part with blocking calls.
    ///
    /// # Safety
    /// As for [`FileBatch::transfer`], and no run with this part is in flight.
    unsafe fn finish(&self, part: PiecePart<'_>) -> Result<(), MemoryError> {
        let MemorySpan { address, bytes } = part.span;
        match self.direction {
            IoDirection::Read => {
                // SAFETY: the caller keeps the bytes mapped and initialised and excludes all other
                // access; the kernel no longer uses them.
                let bytes = unsafe { std::slice::from_raw_parts_mut(address, bytes) };
                self.file.read_exact_at(part.offset, bytes)
            }
            IoDirection::Write => {
                // SAFETY: the caller keeps the bytes mapped and initialised and writers away.
                let bytes = unsafe { std::slice::from_raw_parts(address.cast_const(), bytes) };
                self.file.write_all_at(part.offset, bytes)
            }
        }
    }

    fn part_ended(&mut self, piece: usize, landed: &mut PieceCallback<'_>) {
        let left = self.left.get(piece).and_then(|left| left.checked_sub(1));
        let (Some(left), Some(place)) = (left, self.left.get_mut(piece)) else {
            broken(format_args!("a part of piece {piece} ended twice"));
        };
        *place = left;
        if left > 0 {
            return;
        }
        let first = self.errors.iter().position(|(of, _)| *of == piece);
        let outcome = first.map(|index| self.errors.swap_remove(index).1);
        // Only the first error of a piece is reported.
        self.errors.retain(|(of, _)| *of != piece);
        landed(piece, outcome.map_or(Ok(()), Err));
    }
}

impl<'a> PiecePart<'a> {
    /// The `bytes` bytes from offset `from` on.
    fn of(self, from: usize, bytes: usize) -> PiecePart<'a> {
        PiecePart {
            offset: self.offset + from as u64,
            span: MemorySpan {
                address: self.span.address.wrapping_add(from),
                bytes,
            },
            ..self
        }
    }

    fn end(&self) -> u64 {
        self.offset + self.span.bytes as u64
    }
}
