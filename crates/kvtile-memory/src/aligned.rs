//! Staging buffers for direct I/O.

use crate::MemoryError;
use crate::mapping::Mapping;
use crate::region::check_size;
use std::ops::{Deref, DerefMut};

/// Zeroed bytes that start at a multiple of a given alignment.
///
/// It owns its pages and is not a region: no other code learns its address, so it can lend slices
/// safely.
#[derive(Debug)]
pub struct AlignedBuffer {
    mapping: Mapping,
    size: usize,
    alignment: usize,
}

impl AlignedBuffer {
    /// `size` zeroed bytes, the first at a multiple of `alignment` bytes.
    ///
    /// # Errors
    ///
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::InvalidAlignment`] for
    /// an alignment that is no power of two, [`MemoryError::AllocationFailed`].
    pub fn new(size: usize, alignment: usize) -> Result<Self, MemoryError> {
        check_size(size)?;
        if !alignment.is_power_of_two() {
            return Err(MemoryError::InvalidAlignment { alignment });
        }
        Ok(Self {
            mapping: Mapping::anonymous(size, alignment)?,
            size,
            alignment,
        })
    }

    /// The requested alignment, in bytes.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.alignment
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the address never leaves this type, so only `deref_mut` leads to writes, and that
        // needs `&mut self`, which does not exist while this slice lives.
        unsafe { self.mapping.as_slice(self.size) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the address never leaves this type, and `&mut self` excludes every other slice.
        unsafe { self.mapping.as_mut_slice(self.size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_of_exactly_the_requested_size() {
        for (size, alignment) in [(1, 1), (512, 512), (5000, 4096), (300_000, 1 << 21)] {
            let mut buffer = AlignedBuffer::new(size, alignment).unwrap();
            assert_eq!(buffer.len(), size);
            assert_eq!(buffer.as_ptr().addr() % alignment, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }

    /// Pitfall 11: a zero-size allocation shares its address with the next one.
    #[test]
    fn invalid_sizes_and_alignments_are_refused() {
        assert!(matches!(
            AlignedBuffer::new(0, 8),
            Err(MemoryError::ZeroSize)
        ));
        for alignment in [0, 3, 48, usize::MAX] {
            assert!(matches!(
                AlignedBuffer::new(8, alignment),
                Err(MemoryError::InvalidAlignment { .. })
            ));
        }
        assert!(AlignedBuffer::new(usize::MAX, 8).is_err());
        assert!(AlignedBuffer::new(8, 1 << 63).is_err());
    }
}
