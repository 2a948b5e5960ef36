//! Lookups and their matches.

use crate::{
    FrameError, FrameHeader, FrameKind, KeyBytes, RUNS_MAX, TierRun,
    cursor::{FieldReader, put_count, put_keys},
};

/// A lookup or a seek.
///
/// ```text
/// owner u64, hold ms u64, lifetime ms u64, expires tick u64, within ms u64,
/// tokens per second f64, output tokens u32, priority i8, partial tail u8, keys
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LookupFrame {
    /// The owner of the pins.
    pub owner: u64,
    /// How long the match may hold its pins, in milliseconds, or [`NO_TIME`](crate::NO_TIME).
    pub hold_ms: u64,
    /// How long the blocks are worth keeping, in milliseconds, or [`NO_TIME`](crate::NO_TIME).
    pub lifetime_ms: u64,
    /// The hint on the end of the blocks' worth, or [`NO_TIME`](crate::NO_TIME).
    pub expires: u64,
    /// How long a seek waits, in milliseconds; 0 for a lookup.
    pub within_ms: u64,
    /// The client's rate of computing, above 0, or 0 where it is unknown.
    pub tokens_per_second: f64,
    /// The hint on the generated tokens.
    pub output_tokens: u32,
    /// The hint on the worth of the blocks.
    pub priority: i8,
    /// The hint on a partial tail.
    pub partial_tail: bool,
    /// The chain.
    pub keys: Vec<KeyBytes>,
}

impl LookupFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no lookup; a rate that is no number, or below 0; more than [`KEYS_MAX`](crate::KEYS_MAX) keys.
    pub fn decode(payload: &[u8]) -> Result<LookupFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = LookupFrame::read(&mut reader)?;
        reader.end()?;
        Ok(frame)
    }

    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<LookupFrame, FrameError> {
        Ok(LookupFrame {
            owner: reader.u64()?,
            hold_ms: reader.u64()?,
            lifetime_ms: reader.u64()?,
            expires: reader.u64()?,
            within_ms: reader.u64()?,
            tokens_per_second: reader.rate("a rate of computing")?,
            output_tokens: reader.u32()?,
            priority: reader.i8()?,
            partial_tail: reader.flag("the hint on a partial tail")?,
            keys: reader.keys()?,
        })
    }

    /// A whole frame of the kind [`FrameKind::Lookup`] or [`FrameKind::Seek`].
    #[must_use]
    pub fn encode(&self, kind: FrameKind, request: u64) -> Vec<u8> {
        FrameHeader::frame(kind, request, |out| self.put(out))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        for number in [
            self.owner,
            self.hold_ms,
            self.lifetime_ms,
            self.expires,
            self.within_ms,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.tokens_per_second.to_le_bytes());
        out.extend_from_slice(&self.output_tokens.to_le_bytes());
        out.extend_from_slice(&self.priority.to_le_bytes());
        out.push(self.partial_tail.into());
        put_keys(out, &self.keys);
    }
}

/// A match: its blocks by tier, in the order of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFrame {
    /// Consecutive blocks of one tier each.
    pub runs: Vec<TierRun>,
}

impl FoundFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no match; more than [`RUNS_MAX`] runs.
    pub fn decode(payload: &[u8]) -> Result<FoundFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let runs = TierRun::read_all(&mut reader)?;
        reader.end()?;
        Ok(FoundFrame { runs })
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Found, request, |out| {
            TierRun::put_all(out, &self.runs);
        })
    }
}

impl TierRun {
    pub(crate) fn read_all(reader: &mut FieldReader<'_>) -> Result<Vec<TierRun>, FrameError> {
        let count = reader.count("runs of a frame", RUNS_MAX, 6)?;
        let run = |_| {
            Ok(TierRun {
                tier: reader.u16()?,
                blocks: reader.u32()?,
            })
        };
        (0..count).map(run).collect()
    }

    pub(crate) fn put_all(out: &mut Vec<u8>, runs: &[TierRun]) {
        put_count(out, runs.len());
        for run in runs {
            out.extend_from_slice(&run.tier.to_le_bytes());
            out.extend_from_slice(&run.blocks.to_le_bytes());
        }
    }
}

/// Keeps a range of the blocks of a match and releases the rest; an empty range releases the match,
/// or ends the seek of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarrowFrame {
    /// The match.
    pub found: u64,
    /// Index of the first block to keep, in the match as it was found.
    pub first: u32,
    /// Number of blocks to keep.
    pub blocks: u32,
}

impl NarrowFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such request.
    pub fn decode(payload: &[u8]) -> Result<NarrowFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = NarrowFrame {
            found: reader.u64()?,
            first: reader.u32()?,
            blocks: reader.u32()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Narrow, request, |out| {
            out.extend_from_slice(&self.found.to_le_bytes());
            out.extend_from_slice(&self.first.to_le_bytes());
            out.extend_from_slice(&self.blocks.to_le_bytes());
        })
    }
}

/// Splits a match: its blocks from one on become a match of their own, in which they keep their indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitFrame {
    /// The match.
    pub found: u64,
    /// Index of the first block of the tail, in the match as it was found.
    pub first: u32,
}

impl SplitFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such request.
    pub fn decode(payload: &[u8]) -> Result<SplitFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = SplitFrame {
            found: reader.u64()?,
            first: reader.u32()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame, whose number is that of the tail.
    #[must_use]
    pub fn encode(&self, tail: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Split, tail, |out| {
            out.extend_from_slice(&self.found.to_le_bytes());
            out.extend_from_slice(&self.first.to_le_bytes());
        })
    }
}

/// Keys alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchFrame {
    /// The chain.
    pub keys: Vec<KeyBytes>,
}

impl PrefetchFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no keys; more than [`KEYS_MAX`](crate::KEYS_MAX) keys.
    pub fn decode(payload: &[u8]) -> Result<PrefetchFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let keys = reader.keys()?;
        reader.end()?;
        Ok(PrefetchFrame { keys })
    }

    /// A whole frame of the kind [`FrameKind::Prefetch`] or [`FrameKind::Peek`].
    #[must_use]
    pub fn encode(&self, kind: FrameKind, request: u64) -> Vec<u8> {
        FrameHeader::frame(kind, request, |out| put_keys(out, &self.keys))
    }
}
