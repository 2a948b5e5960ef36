//! The bytes that a part and the own block have in common.
//!
//! ```text
//! block of the part    [ layer 0: heads 0..4 ][ layer 1: heads 0..4 ]
//!                                   ▼                     ▼             runs
//! own block            [ layer 0: heads 2..6   ][ layer 1: heads 2..6   ]
//! ```

use std::{ops::Range, sync::Arc};

use kvtile_layout::{
    BlockPair, CopyPlanner, LayoutError, PlanSettings, RangePair, Shard, StridedLayout,
};

use crate::tier::BlockPieces;

/// Bytes of a part that go to the own block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SliceRun {
    /// Offset in the part's block.
    from: u64,
    /// Offset in the own block.
    to: u64,
    bytes: u64,
}

/// The runs of a part that go to the own block.
#[derive(Debug)]
pub(super) struct PartSlice {
    /// Sorted by their place in the own block.
    runs: Vec<SliceRun>,
}

/// A block or consecutive pieces of it: its bytes, and their place in the block.
pub(super) struct SlicedBytes<B> {
    pub(super) start: u64,
    pub(super) bytes: B,
}

impl PartSlice {
    /// The slice between blocks of `part` and of `own`, which have these shards; `None` if they have
    /// nothing in common.
    ///
    /// # Errors
    /// Layouts between which no plan exists.
    pub(super) fn between(
        (part, part_shard): (&Arc<StridedLayout>, &Shard),
        (own, own_shard): (&Arc<StridedLayout>, &Shard),
    ) -> Result<Option<PartSlice>, LayoutError> {
        let layers = RangePair::shared(part_shard.layers, own_shard.layers);
        let heads = RangePair::shared(part_shard.heads, own_shard.heads);
        let (Some(layers), Some(heads)) = (layers, heads) else {
            return Ok(None);
        };
        let settings = PlanSettings::new()
            .layers(layers)
            .heads(heads)
            .replicated_planes(true);
        let page_size = own.shape().page_size();
        let mut planner = CopyPlanner::new(Arc::clone(part), Arc::clone(own), settings)?;
        let plan = planner.plan([BlockPair::whole(0, 0, page_size)])?;
        let mut runs = Vec::new();
        plan.for_each_run(|from, to, bytes| {
            runs.push(SliceRun {
                from: from.offset,
                to: to.offset,
                bytes,
            });
        });
        runs.sort_unstable_by_key(|run| run.to);
        Ok(Some(PartSlice { runs }))
    }

    /// The parts of the runs that go to the bytes `wanted` of the own block.
    fn runs_in(&self, wanted: Range<u64>) -> impl Iterator<Item = SliceRun> {
        let clip = move |run: &SliceRun| {
            let start = run.to.max(wanted.start);
            let end = (run.to + run.bytes).min(wanted.end);
            (start < end).then(|| SliceRun {
                from: run.from + (start - run.to),
                to: start,
                bytes: end - start,
            })
        };
        self.runs.iter().filter_map(clip)
    }

    /// The pieces of the part's block with what goes to the bytes `wanted` of the own block, as whole
    /// layers, which are what is leased; `None` if the part has none of these.
    pub(super) fn pieces(&self, wanted: Range<u64>, of: &BlockPieces) -> Option<Range<usize>> {
        let needed = self
            .runs_in(wanted)
            .map(|run| (run.from, run.from + run.bytes));
        let (start, end) = needed.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
        let first = of
            .ends()
            .iter()
            .take_while(|&&piece| piece <= start)
            .count();
        let before = of.ends().iter().take_while(|&&piece| piece < end).count();
        Some(of.whole_layers(first..before + 1))
    }

    /// Copies what the part has of the own block. Returns the number of bytes; `None` if a run is not
    /// in `from` as a whole, and then the content of `to` is undefined.
    pub(super) fn copy(
        &self,
        from: &SlicedBytes<&[u8]>,
        to: &mut SlicedBytes<&mut [u8]>,
    ) -> Option<u64> {
        let mut copied = 0;
        for run in self.runs_in(to.start..to.start + to.bytes.len() as u64) {
            let source = from.bytes.get(place(run.from, from.start, run.bytes)?)?;
            let target = to.bytes.get_mut(place(run.to, to.start, run.bytes)?)?;
            target.copy_from_slice(source);
            copied += run.bytes;
        }
        Some(copied)
    }
}

/// The index range of `bytes` bytes at offset `at`, in a slice that begins at offset `start`.
fn place(at: u64, start: u64, bytes: u64) -> Option<Range<usize>> {
    let first = usize::try_from(at.checked_sub(start)?).ok()?;
    let end = first.checked_add(usize::try_from(bytes).ok()?)?;
    Some(first..end)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small blocks")]
mod tests {
    use kvtile_layout::{AxisRange, Shape};
    use kvtile_random::SplitMix64;

    use super::*;
    use crate::tier::STORAGE_WORD;

    fn layout(shard: Shard) -> Arc<StridedLayout> {
        // Layers of 16 KiB for each head, so that blocks of several heads have several pieces.
        let shape = Shape::key_value(1, 6, 16, 8, 128, "f32").unwrap();
        let shape = shape.of_shard(shard).unwrap();
        let word = STORAGE_WORD.parse().unwrap();
        Arc::new(StridedLayout::resolve(&word, &shape, 4096).unwrap())
    }

    fn shard(layers: (u64, u64), heads: (u64, u64)) -> Shard {
        let mut shard = Shard::whole(6, 8);
        shard.layers = AxisRange::new(layers.0, layers.1);
        shard.heads = AxisRange::new(heads.0, heads.1);
        shard
    }

    #[test]
    fn pieces_give_the_same_bytes_as_the_whole_block() {
        let mut random = SplitMix64::new(5);
        let mut several = 0;
        for (part, own) in [
            (shard((0, 6), (0, 4)), shard((0, 6), (0, 8))),
            (shard((0, 6), (0, 8)), shard((1, 4), (2, 4))),
            (shard((2, 4), (4, 4)), shard((0, 4), (2, 6))),
            (shard((0, 6), (1, 4)), shard((0, 6), (1, 4))),
        ] {
            let (of_part, of_own) = (layout(part), layout(own));
            let between = PartSlice::between((&of_part, &part), (&of_own, &own));
            let slice = between.unwrap().unwrap();
            let pieces = BlockPieces::of_layout(&of_part).unwrap();
            let length = of_own.shape().block_bytes().unwrap();
            let mut bytes = vec![0; of_part.shape().block_bytes().unwrap() as usize];
            random.fill(&mut bytes);
            let copy = |from: &SlicedBytes<&[u8]>, wanted: &Range<u64>| {
                let mut target = vec![7; (wanted.end - wanted.start) as usize];
                let mut to = SlicedBytes {
                    start: wanted.start,
                    bytes: target.as_mut_slice(),
                };
                slice.copy(from, &mut to).map(|copied| (copied, target))
            };
            let all = SlicedBytes {
                start: 0,
                bytes: bytes.as_slice(),
            };
            let (copied, expected) = copy(&all, &(0..length)).unwrap();
            let layers = part.layers.intersection(own.layers).unwrap().count;
            let heads = part.heads.intersection(own.heads).unwrap().count;
            assert_eq!(copied, layers * heads * (16 << 10));
            for _ in 0..200 {
                let start = random.below(length);
                let wanted = start..start + 1 + random.below(length - start);
                let Some(which) = slice.pieces(wanted.clone(), &pieces) else {
                    let target = &expected[wanted.start as usize..wanted.end as usize];
                    assert!(target.iter().all(|byte| *byte == 7), "{wanted:?}");
                    continue;
                };
                several += usize::from(which.len() < pieces.count());
                let range = pieces.bytes(which.clone());
                let some = SlicedBytes {
                    start: range.start,
                    bytes: &bytes[range.start as usize..range.end as usize],
                };
                let (_, target) = copy(&some, &wanted).unwrap();
                let of_expected = &expected[wanted.start as usize..wanted.end as usize];
                assert!(target == of_expected, "{which:?} for {wanted:?}");
                // Fewer pieces do not have all of it.
                if which.len() > 1 {
                    let range = pieces.bytes(which.start + 1..which.end);
                    let fewer = SlicedBytes {
                        start: range.start,
                        bytes: &bytes[range.start as usize..range.end as usize],
                    };
                    assert_eq!(copy(&fewer, &wanted), None);
                }
            }
        }
        assert!(several > 100, "{several} times some of the pieces");
    }

    #[test]
    fn parts_without_common_heads_or_layers_have_no_slice() {
        let (one, other) = (shard((0, 6), (0, 4)), shard((0, 6), (4, 4)));
        let slice = PartSlice::between((&layout(one), &one), (&layout(other), &other));
        assert!(slice.unwrap().is_none());
    }
}
