//! Recording: the requests of a running engine as a trace that a replay reads.
//!
//! A line is formatted on the caller's thread and written by a thread of the recorder, through a bounded queue: a
//! slow disk costs lines, not time of the engine. The file has a limit. Whole lines are appended, so that an engine
//! that restarts goes on with its trace; what a crash left of a last line is cut off first.
//!
//! An id is 52 bits of the block's key, which is a keyed hash: the trace has no tokens, and one model and one salt
//! give the same ids in every process. The block that is not full has an id of its own, with the 53rd bit set.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;
use serde::{Serialize, de::IgnoredAny};

use super::trace::{Trace, TraceError, TraceLimits};

/// Lines that wait for the disk; more are dropped.
const QUEUE_LINES: usize = 1024;

/// The bits of an id that come from a key. With the bit above them an id is exact as a number of JSON.
const KEY_MASK: u64 = (1 << 52) - 1;

/// The first bytes of every line that a recorder writes.
const LINE_START: &[u8] = b"{\"timestamp\":";

/// Set in the ids of blocks that are not full.
const TAIL_BIT: u64 = 1 << 52;

/// Options of a [`TraceRecorder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordOptions {
    /// Bytes that the file may have (default 1 GiB). The recorder drops requests that do not fit.
    pub bytes_max: u64,
}

impl Default for RecordOptions {
    fn default() -> RecordOptions {
        RecordOptions { bytes_max: 1 << 30 }
    }
}

impl RecordOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> RecordOptions {
        RecordOptions::default()
    }

    /// Sets [`bytes_max`](Self::bytes_max).
    #[must_use]
    pub fn bytes_max(mut self, bytes: u64) -> RecordOptions {
        self.bytes_max = bytes;
        self
    }
}

/// A request to record.
#[derive(Clone, Copy, Debug)]
pub struct RecordedRequest<'a> {
    /// When it arrived; `None` for now.
    pub arrived: Option<SystemTime>,
    /// The keys of the full blocks of its prompt, the first one first.
    pub keys: &'a [BlockKey],
    /// Tokens of its prompt. Those after the keys are the block that is not full; more than that, for which the
    /// engine has no keys, are left out.
    pub input_tokens: u32,
    /// Tokens that were generated.
    pub output_tokens: u32,
}

/// What a [`TraceRecorder`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordReport {
    /// Requests in the file, without those of earlier runs.
    pub recorded: u64,
    /// Requests that were dropped: the disk was too slow, the file is full, or writing failed.
    pub dropped: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The error that ended the writing.
    pub error: Option<String>,
}

/// Why no trace can be recorded to a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file cannot be opened, read or cut.
    #[error("{} cannot be recorded to", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} exists and is no trace, or one of another page size; give a file that does not exist",
        path.display()
    )]
    NotATrace {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TraceError,
    },
    /// Another recorder writes to the file.
    #[error("{} is recorded to by another recorder; give each its own file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Blocks of no tokens.
    #[error("the page size is 0; blocks have at least one token")]
    PageSize,
    /// The thread that writes could not be started.
    #[error("the thread that writes the trace could not be started")]
    Thread {
        /// The cause.
        source: io::Error,
    },
}

#[derive(Debug, Default)]
struct RecordCounts {
    recorded: AtomicU64,
    dropped: AtomicU64,
    bytes: AtomicU64,
    error: parking_lot::Mutex<Option<String>>,
}

/// Appends the requests of a running engine to a trace file.
#[derive(Debug)]
pub struct TraceRecorder {
    page_size: u32,
    /// `None` once it is finished.
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    counts: Arc<RecordCounts>,
    /// Makes the ids of blocks that are not full.
    tails: AtomicU64,
}

/// A line, with the page size that a replay needs.
#[derive(Serialize)]
struct RecordedLine {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
    page_size: u32,
}

impl TraceRecorder {
    /// Opens a trace of blocks of `page_size` tokens, a new file or the trace of an earlier run.
    ///
    /// # Errors
    /// A page size of 0; a file that cannot be opened; a file that is no trace of blocks of this size; no thread.
    pub fn open(
        path: &Path,
        page_size: u32,
        options: &RecordOptions,
    ) -> Result<TraceRecorder, RecordError> {
        if page_size == 0 {
            return Err(RecordError::PageSize);
        }
        let (file, bytes) = open_file(path, page_size)?;
        let counts = Arc::new(RecordCounts::default());
        counts.bytes.store(bytes, Ordering::Relaxed);
        let (lines, received) = sync_channel(QUEUE_LINES);
        let (counted, bytes_max) = (Arc::clone(&counts), options.bytes_max);
        let thread = std::thread::Builder::new().name("kvtile-record".to_owned());
        let writer = thread
            .spawn(move || write_lines(file, &received, &counted, bytes_max))
            .map_err(|source| RecordError::Thread { source })?;
        Ok(TraceRecorder {
            page_size,
            lines: Some(lines),
            writer: Some(writer),
            counts,
            tails: AtomicU64::new(nanoseconds(SystemTime::now())),
        })
    }

    /// Records a request. It never waits for the disk; a request that finds no place in the queue is dropped and
    /// counted.
    pub fn record(&self, request: &RecordedRequest<'_>) {
        let mut line = self.line(request);
        line.push(b'\n');
        let sent = self
            .lines
            .as_ref()
            .is_some_and(|lines| lines.try_send(line).is_ok());
        if !sent {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was recorded so far. Requests that wait for the disk are not in it yet.
    #[must_use]
    pub fn report(&self) -> RecordReport {
        RecordReport {
            recorded: self.counts.recorded.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
            bytes: self.counts.bytes.load(Ordering::Relaxed),
            error: self.counts.error.lock().clone(),
        }
    }

    /// Writes the requests that wait for the disk, and ends.
    pub fn finish(mut self) -> RecordReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        drop(self.lines.take());
        if self
            .writer
            .take()
            .is_some_and(|writer| writer.join().is_err())
        {
            log::warn!("the thread that writes a trace has panicked");
        }
    }

    fn line(&self, request: &RecordedRequest<'_>) -> Vec<u8> {
        let page_size = self.page_size as usize;
        let input = request.input_tokens as usize;
        let full = request.keys.len().min(input / page_size);
        let mut hash_ids: Vec<u64> = request.keys.iter().take(full).map(id_of).collect();
        let tail = (input - full * page_size).min(page_size - 1);
        if tail > 0 {
            let number = self.tails.fetch_add(1, Ordering::Relaxed);
            hash_ids.push(TAIL_BIT | (number & KEY_MASK));
        }
        let input_length = full * page_size + tail;
        let arrived = request.arrived.unwrap_or_else(SystemTime::now);
        let line = RecordedLine {
            timestamp: nanoseconds(arrived) / 1_000_000,
            // Not above `input_tokens`.
            input_length: u32::try_from(input_length).unwrap_or(request.input_tokens),
            output_length: request.output_tokens,
            hash_ids,
            page_size: self.page_size,
        };
        match serde_json::to_vec(&line) {
            Ok(text) => text,
            Err(error) => broken(format_args!("a line of numbers cannot be written: {error}")),
        }
    }
}

impl Drop for TraceRecorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Nanoseconds since 1970, 0 before it.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The id of a full block.
fn id_of(key: &BlockKey) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) & KEY_MASK
}

/// Opens the file at its end, behind its last whole line, and returns its bytes.
fn open_file(path: &Path, page_size: u32) -> Result<(File, u64), RecordError> {
    let failed = |source| RecordError::File {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no plain file")));
    }
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => RecordError::InUse {
            path: path.to_owned(),
        },
        TryLockError::Error(source) => failed(source),
    })?;
    let limits = TraceLimits {
        page_size: Some(page_size),
        ..TraceLimits::default()
    };
    let not_a_trace = |source| RecordError::NotATrace {
        path: path.to_owned(),
        source,
    };
    let longest = limits.line_bytes_max as u64;
    let bytes = whole_lines(&mut file).map_err(failed)?;
    if bytes > 0 {
        let first = line_at(&mut file, 0, longest).map_err(failed)?;
        Trace::read(&*first, &limits).map_err(not_a_trace)?;
    }
    let last = line_at(&mut file, bytes, longest).map_err(failed)?;
    if last.is_empty() {
        return Ok((file, bytes));
    }
    match Trace::read(&*last, &limits) {
        // A whole request without a line break, as other tools leave it.
        Ok(_) => {
            file.write_all(b"\n").map_err(failed)?;
            Ok((file, bytes + last.len() as u64 + 1))
        }
        Err(_) if is_torn(&last, bytes > 0) => {
            file.set_len(bytes).map_err(failed)?;
            Ok((file, bytes))
        }
        Err(source) => Err(not_a_trace(source)),
    }
}

/// Whether a last line is the start of a line that a crash cut short. In a file without a whole line the start must be
/// recognisable.
fn is_torn(last: &[u8], has_lines: bool) -> bool {
    let starts = last.starts_with(LINE_START) || (has_lines && LINE_START.starts_with(last));
    starts && serde_json::from_slice::<IgnoredAny>(last).is_err()
}

/// The line at an offset, up to `longest` bytes of it.
fn line_at(file: &mut File, offset: u64, longest: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut line = Vec::new();
    BufReader::new(&*file)
        .take(longest)
        .read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Bytes of a file up to its last line break.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0_u8; 4096];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        file.seek(SeekFrom::Start(start))?;
        let count = usize::try_from(end - start).unwrap_or(piece.len());
        let (read, _) = piece.split_at_mut(count);
        file.read_exact(read)?;
        if let Some(at) = read.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The thread of a recorder: appends lines until the recorder ends. After an error it drops them.
fn write_lines(mut file: File, lines: &Receiver<Vec<u8>>, counts: &RecordCounts, bytes_max: u64) {
    let mut has_failed = false;
    for line in lines {
        let bytes = counts.bytes.load(Ordering::Relaxed);
        let after = bytes.saturating_add(line.len() as u64);
        if has_failed || after > bytes_max {
            counts.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if let Err(error) = file.write_all(&line) {
            has_failed = true;
            counts.dropped.fetch_add(1, Ordering::Relaxed);
            // A part of the line is no request. Where it stays, the next run cuts it off.
            let cut = file.set_len(bytes);
            let torn = if cut.is_err() {
                "; its last line is torn"
            } else {
                ""
            };
            *counts.error.lock() = Some(format!("{error}{torn}"));
            continue;
        }
        counts.bytes.store(after, Ordering::Relaxed);
        counts.recorded.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
