//! The measure of all things: `memcpy` of as many bytes, flat and in chunks.

use std::{
    hint::black_box,
    ops::Range,
    time::{Duration, Instant},
};

/// Two pieces of memory of one size.
#[derive(Debug)]
pub(super) struct Reference {
    source: Vec<u8>,
    destination: Vec<u8>,
}

/// As many bytes as a transfer moves, in blocks and in chunks as long as its runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount {
    pub(super) blocks: usize,
    pub(super) block_bytes: usize,
    /// At most the bytes of a block.
    pub(super) chunk_bytes: usize,
}

impl Amount {
    fn bytes(self) -> usize {
        self.blocks.saturating_mul(self.block_bytes)
    }

    fn chunks_per_block(self) -> usize {
        self.block_bytes.div_ceil(self.chunk_bytes.max(1))
    }
}

impl Reference {
    pub(super) fn new() -> Reference {
        Reference {
            source: Vec::new(),
            destination: Vec::new(),
        }
    }

    /// Makes both pieces long enough, and touches all of them.
    pub(super) fn resize(&mut self, amount: Amount) {
        let whole_chunks = amount.chunks_per_block().saturating_mul(amount.chunk_bytes);
        let bytes = whole_chunks.saturating_mul(amount.blocks);
        self.source.resize(bytes, 0x5a);
        self.destination.resize(bytes, 0xa5);
    }

    /// One flat copy.
    pub(super) fn flat(&mut self, amount: Amount) -> Duration {
        let start = Instant::now();
        let source = self.source.get(..amount.bytes());
        let destination = self.destination.get_mut(..amount.bytes());
        if let (Some(source), Some(destination)) = (source, destination) {
            destination.copy_from_slice(source);
        }
        black_box(&mut self.destination);
        start.elapsed()
    }

    /// The same bytes in chunks. The destination is written block by block; the chunks of a source
    /// block lie apart, as those of a layout with a region for each layer do: first the first
    /// chunks of all blocks, then the second ones. A chunk as long as a block is a whole block.
    pub(super) fn chunked(&mut self, amount: Amount, (from, to): (&[usize], &[usize])) -> Duration {
        let chunk = amount.chunk_bytes;
        let start = Instant::now();
        for (&from, &to) in from.iter().zip(to) {
            let block = range(to, amount.block_bytes, amount.block_bytes);
            let Some(block) = self.destination.get_mut(block) else {
                continue;
            };
            for (index, destination) in block.chunks_mut(chunk).enumerate() {
                let place = range(index * amount.blocks + from, chunk, destination.len());
                if let Some(source) = self.source.get(place) {
                    destination.copy_from_slice(source);
                }
            }
        }
        black_box(&mut self.destination);
        start.elapsed()
    }
}

fn range(index: usize, stride: usize, length: usize) -> Range<usize> {
    let start = index * stride;
    start..start + length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flat_reference_copies_everything() {
        let amount = Amount {
            blocks: 4,
            block_bytes: 16,
            chunk_bytes: 16,
        };
        let mut reference = Reference::new();
        reference.resize(amount);
        reference.source = (0..64).collect();
        reference.flat(amount);
        assert_eq!(reference.destination, reference.source);
    }

    #[test]
    fn the_chunked_reference_copies_every_chunk_once() {
        for chunk_bytes in [1, 3, 4, 16] {
            let amount = Amount {
                blocks: 4,
                block_bytes: 16,
                chunk_bytes,
            };
            let mut reference = Reference::new();
            reference.resize(amount);
            for (index, chunk) in (0u8..).zip(reference.source.chunks_mut(chunk_bytes)) {
                chunk.fill(index);
            }
            let order = [2, 0, 3, 1];
            reference.chunked(amount, (&order, &order));
            for block in 0..4 {
                let written = &reference.destination[block * 16..(block + 1) * 16];
                for (index, chunk) in written.chunks(chunk_bytes).enumerate() {
                    let expected = u8::try_from(index * 4 + block).unwrap();
                    assert!(chunk.iter().all(|byte| *byte == expected), "{written:?}");
                }
            }
        }
    }
}
