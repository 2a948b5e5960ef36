//! The measure of all things: `memcpy` of as many bytes, flat and in chunks.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Two pieces of memory of one size.
#[derive(Debug)]
pub(super) struct Reference {
    source: Vec<u8>,
    destination: Vec<u8>,
}

impl Reference {
    pub(super) fn new() -> Reference {
        Reference {
            source: Vec::new(),
            destination: Vec::new(),
        }
    }

    /// Makes both pieces this long, and touches all of them.
    pub(super) fn resize(&mut self, bytes: usize) {
        self.source.resize(bytes, 0x5a);
        self.destination.resize(bytes, 0xa5);
    }

    /// One flat copy.
    pub(super) fn flat(&mut self) -> Duration {
        let start = Instant::now();
        self.destination.copy_from_slice(&self.source);
        black_box(&mut self.destination);
        start.elapsed()
    }

    /// The same bytes in chunks: blocks in the given orders, each in chunks of `chunk_bytes`.
    pub(super) fn chunked(
        &mut self,
        block_bytes: usize,
        chunk_bytes: usize,
        (from, to): (&[usize], &[usize]),
    ) -> Duration {
        let start = Instant::now();
        for (&from, &to) in from.iter().zip(to) {
            let blocks = (
                block_of(from, block_bytes).and_then(|range| self.source.get(range)),
                block_of(to, block_bytes).and_then(|range| self.destination.get_mut(range)),
            );
            if let (Some(source), Some(destination)) = blocks {
                let chunks = source.chunks(chunk_bytes);
                for (source, destination) in chunks.zip(destination.chunks_mut(chunk_bytes)) {
                    destination.copy_from_slice(source);
                }
            }
        }
        black_box(&mut self.destination);
        start.elapsed()
    }
}

fn block_of(block: usize, block_bytes: usize) -> Option<std::ops::Range<usize>> {
    let start = block.checked_mul(block_bytes)?;
    Some(start..start.checked_add(block_bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_references_copy_everything() {
        for chunk in [1, 3, 16, 64] {
            let mut reference = Reference::new();
            reference.resize(64);
            reference.source = (0..64).collect();
            let order = [2, 0, 3, 1];
            reference.chunked(16, chunk, (&order, &order));
            assert_eq!(reference.destination, reference.source, "chunks of {chunk}");
            reference.destination.fill(0);
            reference.flat();
            assert_eq!(reference.destination, reference.source);
        }
    }
}
