//! Stores out of staging memory.

use crate::{
    FrameError, FrameHeader, FrameKind, KeyBytes, StopFrame,
    cursor::{FieldReader, put_keys, put_numbers},
};

/// Stores blocks that the client wrote to its staging memory.
///
/// ```text
/// first u32, tenant u32, within ms u64, lifetime ms u64, expires tick u64, output tokens u32,
/// priority u8, hint i8, partial tail u8, slots, keys
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFrame {
    /// Index in `keys` of the first stored block.
    pub first: u32,
    /// The tenant of the blocks.
    pub tenant: u32,
    /// The deadline in milliseconds, or [`NO_TIME`](crate::NO_TIME).
    pub within_ms: u64,
    /// How long the blocks are worth keeping, in milliseconds, or [`NO_TIME`](crate::NO_TIME).
    pub lifetime_ms: u64,
    /// The hint on the end of the blocks' worth, or [`NO_TIME`](crate::NO_TIME).
    pub expires: u64,
    /// The hint on the generated tokens.
    pub output_tokens: u32,
    /// The priority in the queue, from 0 (the lowest) to 3.
    pub priority: u8,
    /// The hint on the worth of the blocks.
    pub hint: i8,
    /// The hint on a partial tail.
    pub partial_tail: bool,
    /// The blocks of staging memory.
    pub slots: Vec<u32>,
    /// The chain from its first block on.
    pub keys: Vec<KeyBytes>,
}

impl StoreFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no store; more than [`BLOCKS_MAX`](crate::BLOCKS_MAX) blocks or
    /// [`KEYS_MAX`](crate::KEYS_MAX) keys.
    pub fn decode(payload: &[u8]) -> Result<StoreFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = StoreFrame {
            first: reader.u32()?,
            tenant: reader.u32()?,
            within_ms: reader.u64()?,
            lifetime_ms: reader.u64()?,
            expires: reader.u64()?,
            output_tokens: reader.u32()?,
            priority: reader.u8()?,
            hint: reader.i8()?,
            partial_tail: reader.flag("the hint on a partial tail")?,
            slots: reader.numbers()?,
            keys: reader.keys()?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Store, request, |out| {
            out.extend_from_slice(&self.first.to_le_bytes());
            out.extend_from_slice(&self.tenant.to_le_bytes());
            for number in [self.within_ms, self.lifetime_ms, self.expires] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&self.output_tokens.to_le_bytes());
            out.push(self.priority);
            out.extend_from_slice(&self.hint.to_le_bytes());
            out.push(self.partial_tail.into());
            put_numbers(out, &self.slots);
            put_keys(out, &self.keys);
        })
    }
}

/// The outcome of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredFrame {
    /// Blocks that were copied.
    pub stored: u32,
    /// Blocks that were stored already.
    pub present: u32,
    /// Blocks that were not stored.
    pub dropped: u32,
    /// Payload bytes copied.
    pub bytes: u64,
    /// Why blocks were dropped.
    pub stop: StopFrame,
}

impl StoredFrame {
    /// Reads a payload.
    ///
    /// # Errors
    /// Bytes that are no such reply.
    pub fn decode(payload: &[u8]) -> Result<StoredFrame, FrameError> {
        let mut reader = FieldReader::new(payload);
        let frame = StoredFrame {
            stored: reader.u32()?,
            present: reader.u32()?,
            dropped: reader.u32()?,
            bytes: reader.u64()?,
            stop: StopFrame::read(&mut reader)?,
        };
        reader.end()?;
        Ok(frame)
    }

    /// A whole frame.
    #[must_use]
    pub fn encode(&self, request: u64) -> Vec<u8> {
        FrameHeader::frame(FrameKind::Stored, request, |out| {
            for number in [self.stored, self.present, self.dropped] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&self.bytes.to_le_bytes());
            self.stop.put(out);
        })
    }
}
