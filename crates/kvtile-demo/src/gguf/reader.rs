//! A cursor over untrusted bytes: the remaining bytes bound every read.

use crate::DemoError;

/// Reads little-endian values from the front of a byte slice.
#[derive(Clone, Debug)]
pub(super) struct GgufReader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> GgufReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes left.
    pub(super) fn available(&self) -> usize {
        self.bytes.len()
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], DemoError> {
        let split = usize::try_from(count)
            .ok()
            .and_then(|count| self.bytes.split_at_checked(count));
        let Some((taken, rest)) = split else {
            return Err(DemoError::GgufTruncated {
                offset: self.offset,
                needed: count,
                available: self.available(),
            });
        };
        self.bytes = rest;
        self.offset += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DemoError> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(DemoError::GgufTruncated {
                offset: self.offset,
                needed: N as u64,
                available: self.available(),
            });
        };
        self.bytes = rest;
        self.offset += N;
        Ok(*taken)
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], DemoError> {
        self.array()
    }

    pub(super) fn byte(&mut self) -> Result<u8, DemoError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DemoError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DemoError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DemoError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string: its length in bytes (u64), then UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, DemoError> {
        let length = self.u64()?;
        let offset = self.offset;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| DemoError::GgufText { offset })
    }

    /// A count of items of at least `bytes_each` bytes each; it cannot exceed the remaining bytes.
    pub(super) fn count(
        &self,
        what: &'static str,
        count: u64,
        bytes_each: u64,
    ) -> Result<usize, DemoError> {
        let limit = self.available() as u64 / bytes_each.max(1);
        usize::try_from(count)
            .ok()
            .filter(|_| count <= limit)
            .ok_or(DemoError::GgufCount { what, count, limit })
    }
}
