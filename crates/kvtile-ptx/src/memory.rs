//! Global memory as a launch sees it.

use std::collections::BTreeMap;

/// Global memory by address. Ranges that a launch reaches may change from launch to launch.
pub trait PtxMemory {
    /// Reads the bytes at `address`; false where one of them may not be read.
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool;

    /// Writes the bytes at `address`; false where one of them may not be written.
    fn write(&mut self, address: u64, from: &[u8]) -> bool;
}

/// Some ranges of bytes at chosen addresses, each with the number of writes of every byte.
#[derive(Clone, Debug, Default)]
pub struct PtxRanges {
    ranges: BTreeMap<u64, PtxRange>,
}

#[derive(Clone, Debug)]
struct PtxRange {
    bytes: Vec<u8>,
    /// Writes of each byte, up to 255; `None` where the range is read only.
    writes: Option<Vec<u8>>,
}

impl PtxRanges {
    /// No range.
    #[must_use]
    pub fn new() -> PtxRanges {
        PtxRanges::default()
    }

    /// With `bytes` at `address`, which a launch may read.
    #[must_use]
    pub fn readable(mut self, address: u64, bytes: Vec<u8>) -> PtxRanges {
        let writes = None;
        self.ranges.insert(address, PtxRange { bytes, writes });
        self
    }

    /// With `bytes` at `address`, which a launch may read and write.
    #[must_use]
    pub fn writable(mut self, address: u64, bytes: Vec<u8>) -> PtxRanges {
        let writes = Some(vec![0; bytes.len()]);
        self.ranges.insert(address, PtxRange { bytes, writes });
        self
    }

    /// The bytes of the range that starts at `address`.
    #[must_use]
    pub fn bytes(&self, address: u64) -> Option<&[u8]> {
        self.ranges
            .get(&address)
            .map(|range| range.bytes.as_slice())
    }

    /// The first byte that was written more than once.
    #[must_use]
    pub fn written_twice(&self) -> Option<u64> {
        self.ranges.iter().find_map(|(start, range)| {
            let mut writes = range.writes.iter().flatten();
            let at = writes.position(|&writes| writes > 1)?;
            Some(start + at as u64)
        })
    }

    /// Bytes that were written.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        let writes = self
            .ranges
            .values()
            .flat_map(|range| range.writes.iter().flatten());
        writes.filter(|&&writes| writes > 0).count() as u64
    }

    /// The range with all bytes, and the position of the first one in it.
    fn find(
        &mut self,
        address: u64,
        bytes: usize,
    ) -> Option<(&mut PtxRange, std::ops::Range<usize>)> {
        let (start, range) = self.ranges.range_mut(..=address).next_back()?;
        let at = usize::try_from(address - start).ok()?;
        let end = at
            .checked_add(bytes)
            .filter(|&end| end <= range.bytes.len())?;
        Some((range, at..end))
    }
}

impl PtxMemory for PtxRanges {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        let found = self.find(address, into.len());
        match found.and_then(|(range, at)| range.bytes.get(at)) {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn write(&mut self, address: u64, from: &[u8]) -> bool {
        let Some((range, at)) = self.find(address, from.len()) else {
            return false;
        };
        let writes = range
            .writes
            .as_mut()
            .and_then(|writes| writes.get_mut(at.clone()));
        let (Some(writes), Some(bytes)) = (writes, range.bytes.get_mut(at)) else {
            return false;
        };
        bytes.copy_from_slice(from);
        for count in writes {
            *count = count.saturating_add(1);
        }
        true
    }
}
