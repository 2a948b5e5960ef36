//! Where the bytes of a value go.

use std::{
    io::{self, Read},
    ops::Range,
};

/// Whether a sink takes more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// It takes the next bytes.
    Open,
    /// It needs no further bytes; the store stops reading.
    Full,
}

/// Takes the bytes of one value, from the first one on and in order.
///
/// A store that has the bytes in memory calls [`put`](ValueSink::put). A store that reads into
/// memory fills [`space`](ValueSink::space) and calls [`filled`](ValueSink::filled), so no byte is
/// copied twice.
pub trait ValueSink: Send {
    /// Memory for the next bytes; empty if the sink is full.
    fn space(&mut self) -> &mut [u8];

    /// The first `bytes` bytes of [`space`](ValueSink::space) are the next bytes of the value.
    ///
    /// # Panics
    /// More bytes than `space` has.
    fn filled(&mut self, bytes: usize) -> SinkState;

    /// Takes the next bytes of the value. Bytes after the end of a full sink are ignored.
    fn put(&mut self, mut bytes: &[u8]) -> SinkState {
        loop {
            let space = self.space();
            let some = space.len().min(bytes.len());
            let (now, rest) = bytes.split_at(some);
            if let Some(place) = space.get_mut(..some) {
                place.copy_from_slice(now);
            }
            if some == 0 {
                return match self.space().is_empty() {
                    true => SinkState::Full,
                    false => SinkState::Open,
                };
            }
            bytes = rest;
            if self.filled(some) == SinkState::Full {
                return SinkState::Full;
            }
        }
    }
}

/// Reads `from` into a sink until one of them ends. For stores that have a reader of the value.
///
/// # Errors
/// An error of the reader, except an interruption, after which it reads on.
pub fn fill_sink(sink: &mut dyn ValueSink, mut from: impl Read) -> io::Result<()> {
    loop {
        let space = sink.space();
        if space.is_empty() {
            return Ok(());
        }
        match from.read(space) {
            Ok(0) => return Ok(()),
            Ok(bytes) => {
                if sink.filled(bytes) == SinkState::Full {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes before a range that are skipped at a time.
const SKIPPED_BYTES: u64 = 64 << 10;

/// Passes a range of a value on.
pub(super) struct RangeSink<'a> {
    /// Bytes until the range begins.
    skip: u64,
    /// Bytes of the range that have not come.
    left: u64,
    sink: &'a mut dyn ValueSink,
    skipped: Vec<u8>,
}

impl<'a> RangeSink<'a> {
    pub(super) fn new(range: Range<u64>, sink: &'a mut dyn ValueSink) -> RangeSink<'a> {
        RangeSink {
            skip: range.start,
            left: range.end.saturating_sub(range.start),
            sink,
            skipped: Vec::new(),
        }
    }
}

impl ValueSink for RangeSink<'_> {
    fn space(&mut self) -> &mut [u8] {
        if self.left == 0 {
            return &mut [];
        }
        if self.skip > 0 {
            let bytes = usize::try_from(self.skip.min(SKIPPED_BYTES)).unwrap_or(0);
            self.skipped.resize(bytes, 0);
            return &mut self.skipped;
        }
        let space = self.sink.space();
        let bytes = usize::try_from(self.left).map_or(space.len(), |left| left.min(space.len()));
        let (space, _) = space.split_at_mut(bytes);
        space
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(bytes as u64);
            return SinkState::Open;
        }
        self.left = self.left.saturating_sub(bytes as u64);
        match (self.sink.filled(bytes), self.left) {
            (_, 0) | (SinkState::Full, _) => {
                self.left = 0;
                SinkState::Full
            }
            (SinkState::Open, _) => SinkState::Open,
        }
    }
}
