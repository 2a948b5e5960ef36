//! The pieces of a stored block: ranges that a tier can read and verify separately.
//!
//! ```text
//! layers   0   1   2   3   4   5   6         outermost in a block
//! bytes    |───┼───┼───┼───┼───┼───┼───|
//! pieces   |     0     |     1     | 2 |     whole layers, 64 KiB at least, cut at pages
//! ```
//!
//! A block whose layers are not contiguous in order is one piece. A piece longer than 8 MiB, in either
//! case, is cut further, within a layer: a state of hundreds of megabytes is read by several threads, each
//! piece with a checksum of its own.

use std::{ops::Range, sync::Arc};

use kvtile_layout::{LayoutError, StridedLayout, broken};

use crate::error::{SettingsError, TierError};

/// The smallest piece if a block has several: smaller reads do not use the disk's bandwidth.
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// Alignment of the start of a piece in its block, for direct I/O.
const CUT_BYTES: u64 = 4096;

/// A multiple of the cut that a piece of this length still is.
const _: () = assert!(BlockPieces::BYTES_MAX.is_multiple_of(CUT_BYTES));

/// The pieces of a stored block: the layers and the bytes of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPieces {
    /// The end of each piece, in bytes from the start of the block.
    ends: Arc<[u64]>,
    /// The layer at which each piece ends (exclusive), `None` if it ends within a layer; empty if the
    /// layers are unknown or not contiguous.
    layers: Arc<[Option<u64>]>,
}

impl BlockPieces {
    /// The largest number of pieces of a block.
    pub const MAX: usize = 121;

    /// The most bytes of a piece of [`of_layout`](Self::of_layout), unless the block would need more than
    /// [`MAX`](Self::MAX) of them: twice as many then, or four times, and so on.
    pub const BYTES_MAX: u64 = 8 << 20;

    /// One piece for a block of `block_bytes` bytes.
    #[must_use]
    pub fn whole(block_bytes: u64) -> BlockPieces {
        BlockPieces {
            ends: Arc::new([block_bytes]),
            layers: Arc::new([]),
        }
    }

    /// The pieces of a layout's blocks. Each block must be one contiguous range of bytes.
    ///
    /// # Errors
    /// A layout whose blocks are not contiguous.
    pub fn of_layout(layout: &StridedLayout) -> Result<BlockPieces, LayoutError> {
        let block = layout.block_span(0)?;
        let layers = (0..layout.shape().num_layers()).map(|layer| {
            // A layer that is not one range of bytes cannot be read separately.
            let span = layout.page_span(0, layer).ok()?;
            let start = span.start.offset.checked_sub(block.start.offset)?;
            Some(start..start + span.bytes)
        });
        let by_layers = match layers.collect::<Option<Vec<Range<u64>>>>() {
            Some(layers) => BlockPieces::of_layers(&layers, block.bytes),
            None => BlockPieces::whole(block.bytes),
        };
        Ok(by_layers.cut_long())
    }

    /// The pieces of a block of `block_bytes` bytes with its layers at the given ranges. The block
    /// is one piece unless the layers follow each other without gaps.
    fn of_layers(layers: &[Range<u64>], block_bytes: u64) -> BlockPieces {
        let starts: Vec<u64> = layers.iter().map(|layer| layer.start).collect();
        let follow = layers.windows(2).all(|pair| match pair {
            [before, after] => before.start < before.end && before.end == after.start,
            _ => true,
        });
        let ends_with_it = layers.last().is_some_and(|layer| layer.end == block_bytes);
        let fit = starts.first() == Some(&0) && ends_with_it;
        if !follow || !fit {
            return BlockPieces::whole(block_bytes);
        }
        let least = block_bytes
            .div_ceil(BlockPieces::MAX as u64)
            .max(PIECE_BYTES_MIN);
        let (mut ends, mut until) = (Vec::new(), Vec::new());
        let mut start = 0;
        for (&cut, layer) in starts.iter().zip(0..).skip(1) {
            let is_cut = cut % CUT_BYTES == 0 && cut - start >= least && block_bytes - cut >= least;
            if is_cut {
                ends.push(cut);
                until.push(Some(layer));
                start = cut;
            }
        }
        ends.push(block_bytes);
        until.push(Some(layers.len() as u64));
        BlockPieces {
            ends: ends.into(),
            layers: until.into(),
        }
    }

    /// Cuts the pieces that are longer than [`BYTES_MAX`](Self::BYTES_MAX).
    fn cut_long(self) -> BlockPieces {
        let lengths = || {
            let starts = [0].iter().chain(self.ends.iter());
            self.ends.iter().zip(starts).map(|(end, start)| end - start)
        };
        let mut most = BlockPieces::BYTES_MAX;
        let count = |most: u64| lengths().map(|bytes| bytes.div_ceil(most)).sum::<u64>();
        while count(most) > (BlockPieces::MAX as u64).max(self.count() as u64) {
            most = most.saturating_mul(2);
        }
        let (mut ends, mut until) = (Vec::new(), Vec::new());
        for (at, (&end, bytes)) in self.ends.iter().zip(lengths()).enumerate() {
            let each = bytes.div_ceil(bytes.div_ceil(most).max(1));
            let each = each.next_multiple_of(CUT_BYTES);
            let mut cut = (end - bytes).saturating_add(each);
            while cut < end {
                ends.push(cut);
                until.push(None);
                cut = cut.saturating_add(each);
            }
            ends.push(end);
            until.push(self.layers.get(at).copied().flatten());
        }
        match ends.len() == self.count() {
            true => self,
            false => BlockPieces {
                ends: ends.into(),
                layers: until.into(),
            },
        }
    }

    /// The pieces without the cuts within layers, as folders have them that were created before such
    /// cuts.
    pub(crate) fn by_layers(&self) -> BlockPieces {
        let count = self.count();
        let cuts = self.ends.iter().zip(self.layers.iter()).enumerate();
        let cuts = cuts.filter(|(at, (_, layer))| layer.is_some() || at + 1 == count);
        let (ends, layers): (Vec<u64>, Vec<Option<u64>>) =
            cuts.map(|(_, (end, layer))| (*end, *layer)).unzip();
        match ends.len() {
            // Nothing is known of the layers.
            0 => self.clone(),
            _ => BlockPieces {
                ends: ends.into(),
                // A block whose layers are not contiguous was one piece without layers.
                layers: match layers.iter().any(Option::is_some) {
                    true => layers.into(),
                    false => Arc::new([]),
                },
            },
        }
    }

    /// Whether a piece ends where a layer ends.
    fn ends_layer(&self, piece: usize) -> bool {
        matches!(self.layers.get(piece), Some(Some(_)))
    }

    /// The numbers of leading pieces that are whole layers, in ascending order; empty if the layers are
    /// unknown or not contiguous.
    #[must_use]
    pub fn layer_cuts(&self) -> Vec<usize> {
        let cuts = (0..self.count()).filter(|piece| self.ends_layer(*piece));
        cuts.map(|piece| piece + 1).collect()
    }

    /// The fewest pieces that are whole layers and contain the pieces `which`; all pieces if the layers are
    /// unknown.
    #[must_use]
    pub fn whole_layers(&self, which: Range<usize>) -> Range<usize> {
        let before = (0..which.start).rev().find(|piece| self.ends_layer(*piece));
        let last = which.end.saturating_sub(1)..self.count();
        let end = last.into_iter().find(|piece| self.ends_layer(*piece));
        before.map_or(0, |piece| piece + 1)..end.map_or(self.count(), |piece| piece + 1)
    }

    /// Pieces with the given ends, in bytes; their layers are unknown.
    ///
    /// # Errors
    /// No ends, more than [`BlockPieces::MAX`], an empty piece, or ends that do not ascend.
    pub fn ending_at(ends: &[u64]) -> Result<BlockPieces, TierError> {
        let starts = [0].iter().chain(ends);
        let ascend = starts.zip(ends).all(|(start, end)| start < end);
        if ends.is_empty() || ends.len() > BlockPieces::MAX || !ascend {
            return Err(TierError::Settings(SettingsError::Pieces {
                ends: ends.into(),
                most: BlockPieces::MAX,
            }));
        }
        Ok(BlockPieces {
            ends: ends.into(),
            layers: Arc::new([]),
        })
    }

    /// Number of pieces; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The end of each piece, in bytes from the start of the block; the last one is the end of the
    /// block.
    #[must_use]
    pub fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        match self.ends.last() {
            Some(&end) => end,
            None => broken(format_args!("a block of no piece")),
        }
    }

    /// The byte range of the pieces `which`, from the start of the block.
    ///
    /// # Panics
    /// If `which` is empty or out of range.
    #[must_use]
    pub fn bytes(&self, which: Range<usize>) -> Range<u64> {
        assert!(
            which.start < which.end && which.end <= self.count(),
            "pieces {which:?} of {}",
            self.count()
        );
        self.end(which.start)..self.end(which.end)
    }

    /// The end of the first `pieces` pieces.
    fn end(&self, pieces: usize) -> u64 {
        match pieces.checked_sub(1).map(|last| self.ends.get(last)) {
            None => 0,
            Some(Some(&end)) => end,
            Some(None) => broken(format_args!("{pieces} pieces of {}", self.count())),
        }
    }

    /// The layers of the pieces `which`; `None` if the layers are unknown or not contiguous, or if the
    /// pieces are not whole layers.
    ///
    /// # Panics
    /// If `which` is empty or out of range.
    #[must_use]
    pub fn layers(&self, which: Range<usize>) -> Option<Range<u64>> {
        assert!(
            which.start < which.end && which.end <= self.count(),
            "pieces {which:?} of {}",
            self.count()
        );
        let end = (*self.layers.get(which.end - 1)?)?;
        match which.start.checked_sub(1) {
            None => Some(0..end),
            Some(before) => (*self.layers.get(before)?).map(|start| start..end),
        }
    }

    /// The pieces with exactly this byte range of a block.
    #[must_use]
    pub fn at(&self, bytes: &Range<u64>) -> Option<Range<usize>> {
        let end = self.ends.binary_search(&bytes.end).ok()? + 1;
        let start = match bytes.start {
            0 => 0,
            start => self.ends.binary_search(&start).ok()? + 1,
        };
        (start < end).then_some(start..end)
    }

    /// Splits the bytes of the pieces `which` into the pieces.
    ///
    /// # Panics
    /// If `which` is empty or out of range, or if `bytes` has another length than these pieces.
    #[must_use]
    pub fn split<'a>(&self, which: Range<usize>, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let all = self.bytes(which.clone());
        assert_eq!(
            bytes.len() as u64,
            all.end - all.start,
            "bytes of pieces {which:?}"
        );
        let mut rest = bytes;
        let mut pieces = Vec::with_capacity(which.len());
        for piece in which {
            let Range { start, end } = self.bytes(piece..piece + 1);
            let length = usize::try_from(end - start).ok();
            let Some((one, after)) = length.and_then(|length| rest.split_at_checked(length)) else {
                broken(format_args!("piece {piece} of {} bytes", rest.len()))
            };
            pieces.push(one);
            rest = after;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use kvtile_layout::{Shape, Unit};

    use super::*;

    fn layers(count: u64, bytes: u64, stride: u64) -> Vec<Range<u64>> {
        (0..count)
            .map(|layer| layer * stride..layer * stride + bytes)
            .collect()
    }

    #[test]
    fn a_piece_is_whole_layers_of_64_kib_at_least_cut_at_pages() {
        let kib = 1 << 10;
        for (count, bytes, expected) in [
            // One layer a piece.
            (4, 64 * kib, vec![(1, 64), (2, 128), (3, 192), (4, 256)]),
            (3, 100 * kib, vec![(1, 100), (2, 200), (3, 300)]),
            // Several layers a piece; the last piece takes the remaining layers.
            (24, 8 * kib, vec![(8, 64), (16, 128), (24, 192)]),
            (7, 32 * kib, vec![(2, 64), (4, 128), (7, 224)]),
            // Too small for two pieces.
            (3, 32 * kib, vec![(3, 96)]),
            (1, 1024 * kib, vec![(1, 1024)]),
            // Only every fourth layer begins at a page boundary.
            (16, 17 * kib, vec![(4, 68), (8, 136), (12, 204), (16, 272)]),
        ] {
            let pieces = BlockPieces::of_layers(&layers(count, bytes, bytes), count * bytes);
            let found: Vec<(u64, u64)> = (0..pieces.count())
                .map(|piece| {
                    (
                        pieces.layers(piece..piece + 1).unwrap().end,
                        pieces.bytes(piece..piece + 1).end / kib,
                    )
                })
                .collect();
            assert_eq!(found, expected, "{count} layers of {bytes}");
            assert_eq!(pieces.block_bytes(), count * bytes);
        }
    }

    #[test]
    fn there_are_no_more_pieces_than_a_record_has_room_for() {
        let bytes = 1 << 20;
        let pieces = BlockPieces::of_layers(&layers(400, bytes, bytes), 400 * bytes);
        assert!(pieces.count() <= BlockPieces::MAX, "{}", pieces.count());
        assert_eq!(pieces.layers(0..pieces.count()), Some(0..400));
        assert_eq!(
            pieces.layers(1..3).unwrap().start,
            pieces.layers(0..1).unwrap().end
        );
    }

    /// The cuts of a long block, from their rules: at most 8 MiB a piece, cut at pages, and every end of
    /// the pieces by layers is an end.
    #[test]
    fn long_pieces_are_cut_within_layers() {
        let mib = 1 << 20;
        let long = |count: u64, bytes: u64| {
            BlockPieces::of_layers(&layers(count, bytes, bytes), count * bytes)
        };
        for (before, most) in [
            (long(48, 3 * mib + 4096), 8),
            (long(36, 12 * mib), 8),
            (long(1, 147 * mib + 512), 8),
            (long(5, 8 * mib), 8),
            (long(5, 8 * mib + 4096), 8),
            (BlockPieces::whole(500 * mib - 3), 8),
            (BlockPieces::whole(8 * mib), 8),
            // More than 121 pieces of 8 MiB.
            (long(100, 9 * mib), 16),
            (BlockPieces::whole(2000 * mib), 32),
        ] {
            let cut = before.clone().cut_long();
            assert!(cut.count() <= BlockPieces::MAX, "{cut:?}");
            assert_eq!(cut.block_bytes(), before.block_bytes());
            for piece in 0..cut.count() {
                let bytes = cut.bytes(piece..piece + 1);
                assert!(bytes.start.is_multiple_of(CUT_BYTES), "{bytes:?}");
                assert!(
                    bytes.end - bytes.start <= most * mib,
                    "{bytes:?} of {before:?}"
                );
            }
            assert!(before.ends().iter().all(|end| cut.ends().contains(end)));
            assert_eq!(cut.by_layers(), before);
            assert_eq!(before.by_layers(), before);
            // A run of pieces has layers exactly if it is a run of the pieces before.
            let mut starts = vec![0];
            starts.extend(cut.layer_cuts());
            for (at, &start) in starts.iter().enumerate() {
                for &end in &starts[at + 1..] {
                    let bytes = cut.bytes(start..end);
                    let which = before.at(&bytes).unwrap();
                    assert_eq!(cut.layers(start..end), before.layers(which));
                }
            }
            for start in 0..cut.count() {
                let end = (start + 2).min(cut.count());
                let grown = cut.whole_layers(start..end);
                assert!(grown.start <= start && end <= grown.end);
                let is_known = !before.layers.is_empty();
                assert_eq!(cut.layers(grown.clone()).is_some(), is_known);
                let tight = cut.layers(start..end).is_some();
                assert_eq!(tight, is_known && grown == (start..end), "{start}..{end}");
            }
        }
    }

    #[test]
    fn layouts_whose_layers_are_outermost_are_cut() {
        let unit = Unit::new("bf16", 2, 1).unwrap();
        let shape = Shape::key_value(3, 4, 16, 8, 128, &unit).unwrap();
        for (word, expected) in [
            ("BLHKNC", 4),
            ("BLKNHC", 4),
            ("BHLKNC", 1),
            ("BKLNHC", 1),
            ("BL@4096HKNC", 4),
        ] {
            let layout = StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
            let pieces = BlockPieces::of_layout(&layout).unwrap();
            assert_eq!(pieces.count(), expected, "{word}");
            assert_eq!(pieces.block_bytes(), shape.block_bytes().unwrap(), "{word}");
        }
        let layout = StridedLayout::resolve(&"L|BHKNC".parse().unwrap(), &shape, 1).unwrap();
        assert!(BlockPieces::of_layout(&layout).is_err());
    }

    #[test]
    fn blocks_whose_layers_do_not_follow_each_other_are_one_piece() {
        for layers in [
            vec![],
            vec![100_000..200_000, 0..100_000],
            vec![0..200_000, 100_000..200_000],
            vec![4096..100_000, 100_000..200_000],
            vec![0..100_000, 100_000..300_000],
            vec![0..90_000, 100_000..200_000],
            vec![0..100_000, 100_000..190_000],
        ] {
            let pieces = BlockPieces::of_layers(&layers, 200_000);
            assert_eq!(
                (pieces.count(), pieces.block_bytes()),
                (1, 200_000),
                "{layers:?}"
            );
            assert_eq!(pieces.layers(0..1), None);
        }
    }

    #[test]
    fn pieces_are_found_by_their_bytes_and_by_nothing_else() {
        let pieces = BlockPieces::ending_at(&[10, 30, 31]).unwrap();
        assert_eq!(pieces.at(&(0..10)), Some(0..1));
        assert_eq!(pieces.at(&(10..31)), Some(1..3));
        assert_eq!(pieces.at(&(0..31)), Some(0..3));
        for bytes in [0..0, 0..9, 1..10, 10..10, 10..32, 31..31, 31..40] {
            assert_eq!(pieces.at(&bytes), None, "{bytes:?}");
        }
        let bytes: Vec<u8> = (10..31).collect();
        assert_eq!(pieces.split(1..3, &bytes), [&bytes[..20], &bytes[20..]]);
    }

    #[test]
    fn invalid_ends_are_refused() {
        let many: Vec<u64> = (1..200).collect();
        for ends in [&[][..], &[0], &[5, 5], &[5, 4], &many] {
            assert!(
                matches!(
                    BlockPieces::ending_at(ends),
                    Err(TierError::Settings(SettingsError::Pieces { .. }))
                ),
                "{ends:?}"
            );
        }
        assert_eq!(BlockPieces::ending_at(&[1, 2]).unwrap().count(), 2);
    }
}
