//! Contiguous copies between two buffers, checked once.

use kvtile_device::CopyBatch;

use super::RigBuffer;
use crate::error::GpuCheckError;

/// One copy: offsets in both buffers, and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyRange {
    pub(crate) to: usize,
    pub(crate) from: usize,
    pub(crate) bytes: usize,
}

/// Copies from one buffer to another one, inside both, with disjoint destinations.
#[derive(Debug)]
pub(crate) struct PreparedCopies {
    to: RigBuffer,
    from: RigBuffer,
    batch: CopyBatch,
}

impl PreparedCopies {
    pub(crate) fn new(
        to: &RigBuffer,
        from: &RigBuffer,
        copies: &[CopyRange],
    ) -> Result<PreparedCopies, GpuCheckError> {
        if to.is(from) {
            return Err(GpuCheckError::OverlappingCopies);
        }
        let mut batch = CopyBatch::with_capacity(copies.len());
        for copy in copies {
            let destination = to.check(&(copy.to..copy.to.saturating_add(copy.bytes)))?;
            let source = from.check(&(copy.from..copy.from.saturating_add(copy.bytes)))?;
            batch.push(destination, source, copy.bytes);
        }
        let mut ends: Vec<(usize, usize)> = copies
            .iter()
            .filter(|copy| copy.bytes > 0)
            .map(|copy| (copy.to, copy.to + copy.bytes))
            .collect();
        ends.sort_unstable();
        let mut pairs = ends.iter().zip(ends.iter().skip(1));
        if pairs.any(|(before, next)| next.0 < before.1) {
            return Err(GpuCheckError::OverlappingCopies);
        }
        Ok(PreparedCopies {
            to: to.clone(),
            from: from.clone(),
            batch,
        })
    }

    /// One copy of the first `bytes` bytes.
    pub(crate) fn whole(
        to: &RigBuffer,
        from: &RigBuffer,
        bytes: usize,
    ) -> Result<PreparedCopies, GpuCheckError> {
        let copy = CopyRange {
            to: 0,
            from: 0,
            bytes,
        };
        PreparedCopies::new(to, from, &[copy])
    }

    pub(super) fn to(&self) -> &RigBuffer {
        &self.to
    }

    pub(super) fn from(&self) -> &RigBuffer {
        &self.from
    }

    pub(super) fn batch(&self) -> &CopyBatch {
        &self.batch
    }

    pub(super) fn batch_mut(&mut self) -> &mut CopyBatch {
        &mut self.batch
    }
}
