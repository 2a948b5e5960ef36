//! Holds: blocks that are brought to host memory for a client to copy.

use crate::{
    FrameError, FrameHeader, FrameKind,
    cursor::{FieldReader, put_numbers, put_text},
};

/// Consecutive blocks of one tier, or the number of blocks that came from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierRun {
    /// Index of the tier in the daemon's list; 0 is host memory.
    pub tier: u16,
    /// Number of blocks.
    pub blocks: u32,
}

/// Brings blocks of a match to host memory and pins them there for the client. The blocks leave the
/// match; where host memory has no room for all of them, the rest comes back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldFrame {
    /// The match.
    pub found: u64,
    /// Index of the first block, in the match as it was found.
    pub first: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// The priority in the queue, from 0 (the lowest) to 3.
    pub priority: u8,
    /// The deadline in milliseconds, or [`NO_TIME`](crate::NO_TIME).
    pub within_ms: u64,
}

impl HoldFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such request.
    pub fn decode(payload: &[u8]) -> Result<HoldFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = HoldFrame {
            found: reader.u64()?,
            first: reader.u32()?,
            blocks: reader.u32()?,
            priority: reader.u8()?,
            within_ms: reader.u64()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Hold, request, |out| {
            out.extend_from_slice(&self.found.to_le_bytes());
            out.extend_from_slice(&self.first.to_le_bytes());
            out.extend_from_slice(&self.blocks.to_le_bytes());
            out.push(self.priority);
            out.extend_from_slice(&self.within_ms.to_le_bytes());
        })
    }
}

/// Why a load or a store ended early. The codes are the client's and the daemon's; 0 is "it did
/// not".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopFrame {
    /// The code.
    pub code: u8,
    /// The message of an error.
    pub text: String,
}

impl StopFrame {
    pub(crate) fn read(reader: &mut FieldReader<'_>) -> Result<StopFrame, FrameError> {
        Ok(StopFrame {
            code: reader.u8()?,
            text: reader.text()?,
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.code);
        put_text(out, &self.text);
    }
}

/// The outcome of a hold or of a prefetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadFrame {
    /// Blocks of the request.
    pub wanted: u32,
    /// Leading blocks that are in host memory now.
    pub blocks: u32,
    /// Of them: blocks that were there already.
    pub from_host: u32,
    /// Blocks that were read from other tiers.
    pub from_below: Vec<TierRun>,
    /// Why not all blocks came.
    pub stop: StopFrame,
    /// The numbers of the blocks in host memory; empty for a prefetch.
    pub ids: Vec<u32>,
}

impl LoadFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such reply; more than [`BLOCKS_MAX`](crate::BLOCKS_MAX) blocks.
    pub fn decode(payload: &[u8]) -> Result<LoadFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = LoadFrame {
            wanted: reader.u32()?,
            blocks: reader.u32()?,
            from_host: reader.u32()?,
            from_below: TierRun::read_all(&mut reader)?,
            stop: StopFrame::read(&mut reader)?,
            ids: reader.numbers()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Loaded, request, |out| {
            for number in [self.wanted, self.blocks, self.from_host] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            TierRun::put_all(out, &self.from_below);
            self.stop.put(out);
            put_numbers(out, &self.ids);
        })
    }
}

/// Releases a hold, and reports what the client copied out of it, for the daemon's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseFrame {
    /// The hold.
    pub hold: u64,
    /// Blocks that were copied.
    pub blocks: u32,
    /// Payload bytes that were copied.
    pub bytes: u64,
    /// The time of the copies.
    pub nanoseconds: u64,
}

impl ReleaseFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such request.
    pub fn decode(payload: &[u8]) -> Result<ReleaseFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = ReleaseFrame {
            hold: reader.u64()?,
            blocks: reader.u32()?,
            bytes: reader.u64()?,
            nanoseconds: reader.u64()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Release, request, |out| {
            out.extend_from_slice(&self.hold.to_le_bytes());
            out.extend_from_slice(&self.blocks.to_le_bytes());
            out.extend_from_slice(&self.bytes.to_le_bytes());
            out.extend_from_slice(&self.nanoseconds.to_le_bytes());
        })
    }
}
