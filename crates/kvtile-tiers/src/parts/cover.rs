//! Which parts together have all of a rectangle of layers and heads.

use kvtile_layout::{AxisRange, Shard};

/// A rectangle of layers and heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartRectangle {
    layers: AxisRange,
    heads: AxisRange,
}

impl PartRectangle {
    pub(super) fn of(shard: &Shard) -> PartRectangle {
        PartRectangle {
            layers: shard.layers,
            heads: shard.heads,
        }
    }

    fn shared(&self, other: &PartRectangle) -> Option<PartRectangle> {
        Some(PartRectangle {
            layers: self.layers.intersection(other.layers)?,
            heads: self.heads.intersection(other.heads)?,
        })
    }

    /// Whether both have a layer of a head in common.
    pub(super) fn touches(&self, other: &PartRectangle) -> bool {
        self.shared(other).is_some()
    }

    /// How much of the rectangle is in `other`, and how much there is; `None` if nothing is.
    pub(super) fn shared_part(&self, other: &PartRectangle) -> Option<(u128, u128)> {
        Some((self.shared(other)?.area(), self.area()))
    }

    fn area(&self) -> u128 {
        u128::from(self.layers.count) * u128::from(self.heads.count)
    }

    /// The rest without `hole`, as at most four rectangles.
    fn without(self, hole: &PartRectangle, rest: &mut Vec<PartRectangle>) {
        let Some(hole) = self.shared(hole) else {
            rest.push(self);
            return;
        };
        let [before, after] = around(self.layers, hole.layers);
        for layers in [before, after] {
            let heads = self.heads;
            rest.push(PartRectangle { layers, heads });
        }
        for heads in around(self.heads, hole.heads) {
            let layers = hole.layers;
            rest.push(PartRectangle { layers, heads });
        }
        rest.retain(|rest| rest.area() > 0);
    }
}

/// The entries before and after `hole`, which lies in `range`.
fn around(range: AxisRange, hole: AxisRange) -> [AxisRange; 2] {
    let before = hole.start - range.start;
    let end = hole.start + hole.count;
    [
        AxisRange::new(range.start, before),
        AxisRange::new(end, range.count - before - hole.count),
    ]
}

/// The rectangles of `open` without `hole`.
fn without(open: Vec<PartRectangle>, hole: &PartRectangle) -> Vec<PartRectangle> {
    let mut rest = Vec::new();
    for one in open {
        one.without(hole, &mut rest);
    }
    rest
}

/// Numbers of parts that together cover `wanted`; `None` if all of them do not. Each time it takes
/// the part that covers most of what is left, and then drops the parts that the others make
/// superfluous.
pub(super) fn cover(
    wanted: &PartRectangle,
    parts: &[(usize, PartRectangle)],
) -> Option<Vec<usize>> {
    let mut chosen: Vec<(usize, PartRectangle)> = Vec::new();
    let mut open = vec![*wanted];
    while !open.is_empty() {
        let covered = |part: &PartRectangle| -> u128 {
            let shared = open.iter().filter_map(|open| open.shared(part));
            shared.map(|shared| shared.area()).sum()
        };
        // The first one of those that cover as much.
        let best = parts.iter().rev().max_by_key(|(_, part)| covered(part))?;
        if covered(&best.1) == 0 {
            return None;
        }
        open = without(open, &best.1);
        chosen.push(*best);
    }
    let mut at = 0;
    while at < chosen.len() {
        let others = chosen.iter().enumerate().filter(|(other, _)| *other != at);
        let rest = others.fold(vec![*wanted], |open, (_, (_, part))| without(open, part));
        match rest.is_empty() {
            true => drop(chosen.remove(at)),
            false => at += 1,
        }
    }
    Some(chosen.into_iter().map(|(number, _)| number).collect())
}

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    fn rectangle(layers: std::ops::Range<u64>, heads: std::ops::Range<u64>) -> PartRectangle {
        let range =
            |range: std::ops::Range<u64>| AxisRange::new(range.start, range.end - range.start);
        PartRectangle {
            layers: range(layers),
            heads: range(heads),
        }
    }

    fn has(part: &PartRectangle, layer: u64, head: u64) -> bool {
        let in_range = |range: AxisRange, at| range.start <= at && at < range.start + range.count;
        in_range(part.layers, layer) && in_range(part.heads, head)
    }

    /// Whether each layer of each head of `wanted` is in one of the parts.
    fn covers(wanted: &PartRectangle, parts: &[&PartRectangle]) -> bool {
        let cells = (0..8).flat_map(|layer| (0..8).map(move |head| (layer, head)));
        let mut wanted = cells.filter(|&(layer, head)| has(wanted, layer, head));
        wanted.all(|(layer, head)| parts.iter().any(|part| has(part, layer, head)))
    }

    /// Compares with all subsets of the parts.
    fn check(wanted: PartRectangle, parts: &[PartRectangle]) {
        let numbered: Vec<_> = parts.iter().copied().enumerate().collect();
        let found = cover(&wanted, &numbered);
        let subsets = 0..1_u32 << parts.len();
        let possible = subsets.into_iter().any(|subset| {
            let chosen = parts.iter().enumerate();
            let chosen = chosen.filter(|(at, _)| subset >> at & 1 == 1);
            let chosen: Vec<_> = chosen.map(|(_, part)| part).collect();
            covers(&wanted, &chosen)
        });
        assert_eq!(found.is_some(), possible, "{wanted:?} of {parts:?}");
        let Some(found) = found else { return };
        for left_out in std::iter::once(None).chain(found.iter().map(Some)) {
            let chosen = found.iter().filter(|at| Some(*at) != left_out);
            let chosen: Vec<_> = chosen.map(|&at| &parts[at]).collect();
            // No part of a cover is superfluous.
            assert_eq!(
                covers(&wanted, &chosen),
                left_out.is_none(),
                "{found:?} of {parts:?}"
            );
        }
    }

    #[test]
    fn covers_are_those_of_the_naive_search() {
        let mut random = SplitMix64::new(11);
        for _ in 0..3000 {
            let mut range = || {
                let start = random.below(8);
                start..start + 1 + random.below(8 - start)
            };
            let wanted = rectangle(range(), range());
            let count = 1 + range().start;
            let parts: Vec<_> = (0..count).map(|_| rectangle(range(), range())).collect();
            check(wanted, &parts);
        }
    }

    #[test]
    fn partitions_of_all_numbers_of_ranks_cover_each_other() {
        for (writers, readers) in [(1, 2), (2, 1), (2, 4), (4, 2), (8, 1), (1, 8), (4, 8)] {
            let part = |ranks: u64, rank: u64| {
                let heads = 8 / ranks;
                rectangle(0..8, rank * heads..(rank + 1) * heads)
            };
            let written: Vec<_> = (0..writers).map(|rank| part(writers, rank)).collect();
            for rank in 0..readers {
                let wanted = part(readers, rank);
                check(wanted, &written);
                for missing in 0..written.len() {
                    let mut rest = written.clone();
                    rest.remove(missing);
                    check(wanted, &rest);
                }
            }
        }
    }
}
