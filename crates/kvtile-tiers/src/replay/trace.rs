//! Traces of requests: one JSON object a line, `timestamp` in milliseconds, `input_length` and
//! `output_length` in tokens, and `hash_ids`, one for each block of the input, the last of which may
//! be partial. The format is that of the traces published with Mooncake (FAST 2025). Timestamps may
//! have fractions, which are cut off; tokens and ids are whole numbers.
//!
//! Ids are chained: an id identifies a block and all blocks before it, so it always follows the same id. A
//! trace where an id follows two different ids is refused.

use std::{
    collections::HashMap,
    fmt,
    io::{self, BufRead},
    ops::Range,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Unexpected, Visitor},
};

/// Tokens of a block of the traces published with Mooncake.
const PAGE_SIZE: u32 = 512;

/// Limits of the memory that a trace takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceLimits {
    /// Tokens of a full block; `None` for those that the first request gives, or 512.
    pub page_size: Option<u32>,
    /// Bytes of one line.
    pub line_bytes_max: usize,
    /// References to blocks in all requests together.
    pub references_max: usize,
}

impl Default for TraceLimits {
    fn default() -> TraceLimits {
        TraceLimits {
            page_size: None,
            line_bytes_max: 4 << 20,
            references_max: 100_000_000,
        }
    }
}

/// Why a trace is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The source could not be read.
    #[error("line {line} cannot be read")]
    Read {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: io::Error,
    },
    /// A line is longer than any request.
    #[error("line {line} has more than {max} bytes; is this a trace of requests?")]
    LineTooLong {
        /// The line, from 1.
        line: usize,
        /// The limit.
        max: usize,
    },
    /// A line is no request.
    #[error(
        "line {line} is no request; a line is a JSON object with timestamp, input_length, \
         output_length and hash_ids"
    )]
    NotARequest {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// The ids do not fit the length of the input.
    #[error(
        "line {line}: {input_length} tokens in blocks of {page_size} are {expected} blocks, and \
         there are {found} hash_ids; give the page size that the trace was made for"
    )]
    BlockCount {
        /// The line, from 1.
        line: usize,
        /// Tokens of the request.
        input_length: u32,
        /// Tokens of a block.
        page_size: u32,
        /// Blocks of so many tokens.
        expected: usize,
        /// Ids on the line.
        found: usize,
    },
    /// An id follows two different ids.
    #[error(
        "line {line}: block {id} follows another block than before; hash_ids must stand for a \
         block with everything before it"
    )]
    NotChained {
        /// The line, from 1.
        line: usize,
        /// The id.
        id: u64,
    },
    /// The trace has more references than are allowed.
    #[error("line {line}: more than {max} references to blocks; replay a part of the trace")]
    TooLong {
        /// The line, from 1.
        line: usize,
        /// The limit.
        max: usize,
    },
    /// More requests than can be generated in memory.
    #[error("{requests} requests to make up; at most {max}")]
    TooManyRequests {
        /// The requested number.
        requests: usize,
        /// The limit.
        max: usize,
    },
    /// No request has a block.
    #[error("the trace has no request with blocks")]
    Empty,
    /// A request of blocks of another size.
    #[error(
        "line {line}: blocks of {found} tokens, and {page_size} were expected; leave the page size out to take \
         that of the trace"
    )]
    PageSizeDiffers {
        /// The line, from 1.
        line: usize,
        /// Tokens of a block of the request.
        found: u32,
        /// The expected tokens of a block: those of the limits, or of the first request.
        page_size: u32,
    },
    /// A block of no tokens.
    #[error("blocks have at least one token; the page size is 0")]
    PageSize,
}

/// A line of a trace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TraceRow {
    #[serde(deserialize_with = "milliseconds")]
    pub(super) timestamp: u64,
    pub(super) input_length: u32,
    pub(super) output_length: u32,
    pub(super) hash_ids: Vec<u64>,
    /// Tokens of a full block. Recorded traces have it, published ones do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) page_size: Option<u32>,
}

/// Whole milliseconds of a time of 0 or more.
fn milliseconds<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
    struct Milliseconds;

    impl Visitor<'_> for Milliseconds {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a timestamp of 0 milliseconds or more, below 2^53")
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
            Ok(value)
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<u64, E> {
            // Above 2^53 not every whole number is one of these.
            match (0.0..9_007_199_254_740_992.0).contains(&value) {
                true => Ok(Duration::from_secs_f64(value.trunc()).as_secs()),
                false => Err(E::invalid_value(Unexpected::Float(value), &self)),
            }
        }
    }

    source.deserialize_any(Milliseconds)
}

#[derive(Clone, Debug)]
struct TraceEntry {
    timestamp_ms: u64,
    input_tokens: u32,
    output_tokens: u32,
    blocks: Range<usize>,
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRequest<'a> {
    /// When it arrived, in milliseconds.
    pub timestamp_ms: u64,
    /// Tokens of its prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Its blocks in order, by numbers that count the trace's distinct blocks from 0 without gaps.
    pub blocks: &'a [u32],
    /// Whether the last block is not full.
    pub partial_tail: bool,
}

/// Requests, in the order of their arrival.
#[derive(Clone, Debug)]
pub struct Trace {
    requests: Vec<TraceEntry>,
    references: Vec<u32>,
    distinct: usize,
    page_size: u32,
}

impl Trace {
    /// Reads and checks a trace.
    ///
    /// # Errors
    /// [`TraceError`] with the line, for input that is no trace.
    pub fn read(mut source: impl BufRead, limits: &TraceLimits) -> Result<Trace, TraceError> {
        let mut builder = TraceBuilder::new(limits);
        let mut text = Vec::new();
        for line in 1_usize.. {
            text.clear();
            let longest = u64::try_from(limits.line_bytes_max).unwrap_or(u64::MAX);
            let bytes = io::Read::take(&mut source, longest.saturating_add(1))
                .read_until(b'\n', &mut text)
                .map_err(|source| TraceError::Read { line, source })?;
            if bytes == 0 {
                break;
            }
            if bytes > limits.line_bytes_max {
                let max = limits.line_bytes_max;
                return Err(TraceError::LineTooLong { line, max });
            }
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let row = serde_json::from_slice(&text)
                .map_err(|source| TraceError::NotARequest { line, source })?;
            builder.add(line, &row)?;
        }
        builder.finish()
    }

    /// A trace of generated rows.
    pub(super) fn of_rows(rows: &[TraceRow], page_size: u32) -> Result<Trace, TraceError> {
        let limits = TraceLimits {
            page_size: Some(page_size),
            ..TraceLimits::default()
        };
        let mut builder = TraceBuilder::new(&limits);
        for (line, row) in (1..).zip(rows) {
            builder.add(line, row)?;
        }
        builder.finish()
    }

    /// The requests.
    pub fn requests(&self) -> impl ExactSizeIterator<Item = TraceRequest<'_>> {
        self.requests.iter().map(|entry| TraceRequest {
            timestamp_ms: entry.timestamp_ms,
            input_tokens: entry.input_tokens,
            output_tokens: entry.output_tokens,
            blocks: self
                .references
                .get(entry.blocks.clone())
                .unwrap_or_default(),
            partial_tail: !entry.input_tokens.is_multiple_of(self.page_size),
        })
    }

    /// References to blocks in all requests.
    #[must_use]
    pub fn references(&self) -> usize {
        self.references.len()
    }

    /// Different blocks.
    #[must_use]
    pub fn distinct_blocks(&self) -> usize {
        self.distinct
    }

    /// Tokens of a full block.
    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.page_size
    }
}

struct TraceBuilder<'a> {
    limits: &'a TraceLimits,
    trace: Trace,
    /// Number and parent of each id.
    known: HashMap<u64, (u32, Option<u64>)>,
}

impl TraceBuilder<'_> {
    fn new(limits: &TraceLimits) -> TraceBuilder<'_> {
        let trace = Trace {
            requests: Vec::new(),
            references: Vec::new(),
            distinct: 0,
            page_size: limits.page_size.unwrap_or_default(),
        };
        TraceBuilder {
            limits,
            trace,
            known: HashMap::new(),
        }
    }

    /// Tokens of a full block, which the first request decides where the limits do not.
    fn page_size(&mut self, line: usize, row: &TraceRow) -> Result<u32, TraceError> {
        if self.trace.requests.is_empty() {
            let of_first = row.page_size.unwrap_or(PAGE_SIZE);
            self.trace.page_size = self.limits.page_size.unwrap_or(of_first);
        }
        let page_size = self.trace.page_size;
        if page_size == 0 {
            return Err(TraceError::PageSize);
        }
        match row.page_size {
            Some(found) if found != page_size => Err(TraceError::PageSizeDiffers {
                line,
                found,
                page_size,
            }),
            _ => Ok(page_size),
        }
    }

    fn add(&mut self, line: usize, row: &TraceRow) -> Result<(), TraceError> {
        let page_size = self.page_size(line, row)?;
        let expected = row.input_length.div_ceil(page_size) as usize;
        let found = row.hash_ids.len();
        if found != expected {
            return Err(TraceError::BlockCount {
                line,
                input_length: row.input_length,
                page_size,
                expected,
                found,
            });
        }
        let start = self.trace.references.len();
        let max = self.limits.references_max;
        if start + found > max {
            return Err(TraceError::TooLong { line, max });
        }
        let mut parent = None;
        for &id in &row.hash_ids {
            let fresh = u32::try_from(self.known.len());
            let fresh = fresh.map_err(|_| TraceError::TooLong { line, max })?;
            let (number, follows) = *self.known.entry(id).or_insert((fresh, parent));
            if follows != parent {
                return Err(TraceError::NotChained { line, id });
            }
            self.trace.references.push(number);
            parent = Some(id);
        }
        self.trace.requests.push(TraceEntry {
            timestamp_ms: row.timestamp,
            input_tokens: row.input_length,
            output_tokens: row.output_length,
            blocks: start..start + found,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Trace, TraceError> {
        if self.trace.references.is_empty() {
            return Err(TraceError::Empty);
        }
        self.trace.distinct = self.known.len();
        Ok(self.trace)
    }
}
