//! The place of every byte of a block on both sides, from the digits of the layouts alone.
//!
//! The walk is what a careful user would write by hand: loops over layers and planes, and inside
//! them over tokens, heads and elements, with the longest pieces that are contiguous on both sides
//! of one plane of one layer. It does not use copy plans, so it can verify them.

use std::ops::Range;

use kvtile::layout::{
    AddressStep, Axis, Digit, Location, Plane, PlanePiece, RangePair, StridedLayout,
};

use crate::arena::ArenaPacking;

/// The walk over the blocks of a pair of layouts.
#[derive(Debug)]
pub(crate) struct BlockWalk {
    planes: Vec<PlaneWalk>,
    source_regions: Vec<usize>,
    destination_regions: Vec<usize>,
}

/// One plane.
#[derive(Debug)]
pub(crate) struct PlaneWalk {
    start: (Location, Location),
    blocks: OffsetTable<AddressStep>,
    /// Layers, and axes that cross regions.
    outer: Vec<OffsetTable<AddressStep>>,
    /// The other axes, the destination's slowest first.
    inner: Vec<OffsetTable<usize>>,
    /// Bytes of one piece.
    run_bytes: usize,
}

/// The offset of each index of an axis, on both sides.
#[derive(Clone, Debug)]
struct OffsetTable<T> {
    source: Vec<T>,
    destination: Vec<T>,
}

impl BlockWalk {
    /// The walk between two layouts with this packing in memory, over all heads or those that both
    /// sides have.
    pub(crate) fn new(
        (source, from): (&StridedLayout, &ArenaPacking),
        (destination, to): (&StridedLayout, &ArenaPacking),
        heads: Option<RangePair>,
    ) -> BlockWalk {
        let mut planes = Vec::new();
        for (plane, piece) in source.planes() {
            let other = destination.planes().find(|(p, _)| p.name() == plane.name());
            if let Some((_, other)) = other {
                planes.push(PlaneWalk::new(source, plane, (piece, other), heads));
            }
        }
        BlockWalk {
            planes,
            source_regions: from.starts(),
            destination_regions: to.starts(),
        }
    }

    /// The shortest piece, in bytes.
    #[cfg(test)]
    pub(crate) fn run_bytes_min(&self) -> usize {
        let runs = self.planes.iter().map(|plane| plane.run_bytes);
        runs.min().unwrap_or(0)
    }

    /// Copies one block from memory to memory.
    pub(crate) fn copy(&self, blocks: (usize, usize), source: &[u8], destination: &mut [u8]) {
        for plane in &self.planes {
            match plane.run_bytes {
                1 => self.copy_elements::<1>(plane, blocks, source, destination),
                2 => self.copy_elements::<2>(plane, blocks, source, destination),
                4 => self.copy_elements::<4>(plane, blocks, source, destination),
                8 => self.copy_elements::<8>(plane, blocks, source, destination),
                16 => self.copy_elements::<16>(plane, blocks, source, destination),
                bytes => self.pieces(plane, blocks, &mut |from, to| {
                    let from = source.get(from..from + bytes);
                    let to = destination.get_mut(to..to + bytes);
                    if let (Some(from), Some(to)) = (from, to) {
                        to.copy_from_slice(from);
                    }
                }),
            }
        }
    }

    /// Copies elements of a size that the compiler knows, like a user's loop over `u16` or `f32`.
    fn copy_elements<const N: usize>(
        &self,
        plane: &PlaneWalk,
        blocks: (usize, usize),
        source: &[u8],
        destination: &mut [u8],
    ) {
        self.pieces(plane, blocks, &mut |from, to| {
            let from = source
                .get(from..from + N)
                .and_then(<[u8]>::first_chunk::<N>);
            let to = destination.get_mut(to..to + N);
            if let (Some(from), Some(to)) = (from, to.and_then(<[u8]>::first_chunk_mut::<N>)) {
                *to = *from;
            }
        });
    }

    /// Whether the destination equals the source.
    pub(crate) fn is_equal(
        &self,
        blocks: (usize, usize),
        source: &[u8],
        destination: &[u8],
    ) -> bool {
        self.planes.iter().all(|plane| match plane.run_bytes {
            1 => self.are_equal::<1>(plane, blocks, source, destination),
            2 => self.are_equal::<2>(plane, blocks, source, destination),
            4 => self.are_equal::<4>(plane, blocks, source, destination),
            8 => self.are_equal::<8>(plane, blocks, source, destination),
            16 => self.are_equal::<16>(plane, blocks, source, destination),
            bytes => {
                let mut equal = true;
                self.pieces(plane, blocks, &mut |from, to| {
                    let from = source.get(from..from + bytes);
                    equal &= from.is_some() && from == destination.get(to..to + bytes);
                });
                equal
            }
        })
    }

    /// Compares elements of a size that the compiler knows.
    fn are_equal<const N: usize>(
        &self,
        plane: &PlaneWalk,
        blocks: (usize, usize),
        source: &[u8],
        destination: &[u8],
    ) -> bool {
        let mut equal = true;
        self.pieces(plane, blocks, &mut |from, to| {
            let from = source.get(from..).and_then(<[u8]>::first_chunk::<N>);
            let to = destination.get(to..).and_then(<[u8]>::first_chunk::<N>);
            equal &= from.is_some() && from == to;
        });
        equal
    }

    /// Calls `visit` with the place of each piece of a block.
    fn pieces(
        &self,
        plane: &PlaneWalk,
        (from, to): (usize, usize),
        visit: &mut impl FnMut(usize, usize),
    ) {
        let (mut source, mut destination) = plane.start;
        if let (Some(a), Some(b)) = (
            plane.blocks.source.get(from),
            plane.blocks.destination.get(to),
        ) {
            source = further(source, *a);
            destination = further(destination, *b);
            self.outer(plane, &plane.outer, (source, destination), visit);
        }
    }

    fn outer(
        &self,
        plane: &PlaneWalk,
        tables: &[OffsetTable<AddressStep>],
        (source, destination): (Location, Location),
        visit: &mut impl FnMut(usize, usize),
    ) {
        let Some((table, rest)) = tables.split_first() else {
            let place = |starts: &[usize], at: Location| {
                let start = usize::try_from(at.region).ok();
                let start = start.and_then(|region| starts.get(region))?;
                Some(start + usize::try_from(at.offset).ok()?)
            };
            let source = place(&self.source_regions, source);
            let destination = place(&self.destination_regions, destination);
            if let (Some(source), Some(destination)) = (source, destination) {
                inner(&plane.inner, source, destination, visit);
            }
            return;
        };
        for (a, b) in table.source.iter().zip(&table.destination) {
            let places = (further(source, *a), further(destination, *b));
            self.outer(plane, rest, places, visit);
        }
    }
}

fn further(from: Location, step: AddressStep) -> Location {
    Location {
        region: from.region + step.regions,
        offset: from.offset + step.bytes,
    }
}

fn inner(
    tables: &[OffsetTable<usize>],
    source: usize,
    destination: usize,
    visit: &mut impl FnMut(usize, usize),
) {
    match tables {
        [] => visit(source, destination),
        [last] => {
            for (a, b) in last.source.iter().zip(&last.destination) {
                visit(source + a, destination + b);
            }
        }
        [table, rest @ ..] => {
            for (a, b) in table.source.iter().zip(&table.destination) {
                inner(rest, source + a, destination + b, visit);
            }
        }
    }
}

impl PlaneWalk {
    fn new(
        layout: &StridedLayout,
        plane: &Plane,
        (source, destination): (&PlanePiece, &PlanePiece),
        heads: Option<RangePair>,
    ) -> PlaneWalk {
        let shape = layout.shape();
        let table = |axis: Axis| {
            let all = RangePair::same(0, shape.extent(plane, axis));
            let range = heads.filter(|_| axis == Axis::H).unwrap_or(all);
            let (from, to) = (range.source, range.destination);
            OffsetTable {
                source: steps(source.digits(), axis, from..from + range.count),
                destination: steps(destination.digits(), axis, to..to + range.count),
            }
        };
        let declared = plane.extents().iter().map(|(axis, _)| *axis);
        let (mut outer, mut local) = (vec![table(Axis::L)], Vec::new());
        for axis in [Axis::N].into_iter().chain(declared) {
            let table = table(axis);
            match table.local() {
                Some(table) => local.push(table),
                None => outer.push(table),
            }
        }
        let unit = usize::try_from(plane.unit().bytes()).unwrap_or(usize::MAX);
        let run_bytes = merge(&mut local, unit);
        // An axis of one entry may still have an offset.
        local.retain(|table| table.source != [0] || table.destination != [0]);
        let slowest = |table: &OffsetTable<usize>| match table.destination.as_slice() {
            [first, second, ..] => second.abs_diff(*first),
            _ => 0,
        };
        local.sort_by_key(|table| std::cmp::Reverse(slowest(table)));
        let start = |piece: &PlanePiece| Location {
            region: piece.region(),
            offset: piece.offset(),
        };
        PlaneWalk {
            start: (start(source), start(destination)),
            blocks: table(Axis::B),
            outer,
            inner: local,
            run_bytes,
        }
    }
}

impl OffsetTable<AddressStep> {
    /// The table in bytes, where no step leaves its region.
    fn local(&self) -> Option<OffsetTable<usize>> {
        let bytes = |steps: &[AddressStep]| -> Option<Vec<usize>> {
            let local = |step: &AddressStep| step.is_local().then_some(step.bytes);
            let mut steps = steps.iter().map(local);
            steps.try_fold(Vec::new(), |mut all, bytes| {
                all.push(usize::try_from(bytes?).ok()?);
                Some(all)
            })
        };
        Some(OffsetTable {
            source: bytes(&self.source)?,
            destination: bytes(&self.destination)?,
        })
    }
}

/// The offset of each index of an axis.
fn steps(digits: &[Digit], axis: Axis, indices: Range<u64>) -> Vec<AddressStep> {
    indices
        .map(|index| axis_step(digits, axis, index))
        .collect()
}

/// The position of entry `index` of an axis relative to entry 0.
pub(crate) fn axis_step(digits: &[Digit], axis: Axis, index: u64) -> AddressStep {
    let mine = digits.iter().filter(|digit| digit.axis == axis);
    mine.fold(AddressStep::default(), |sum, digit| {
        let value = (index / digit.low) % digit.extent;
        AddressStep {
            regions: sum.regions + value * digit.step.regions,
            bytes: sum.bytes + value * digit.step.bytes,
        }
    })
}

/// Removes the axes that are contiguous on both sides from the tables, and returns their length in
/// bytes.
fn merge(tables: &mut [OffsetTable<usize>], unit_bytes: usize) -> usize {
    let mut run = unit_bytes;
    loop {
        let mut grown = false;
        for table in tables.iter_mut() {
            let group = contiguous(table, run);
            if group > 1 {
                run *= group;
                table.source = table.source.iter().copied().step_by(group).collect();
                table.destination = table.destination.iter().copied().step_by(group).collect();
                grown = true;
            }
        }
        if !grown {
            return run;
        }
    }
}

/// The longest groups of consecutive indices with a stride of `run` bytes, on both sides.
fn contiguous(table: &OffsetTable<usize>, run: usize) -> usize {
    let extent = table.source.len();
    let follows = |places: &[usize], group: usize| {
        places.chunks(group).all(|chunk| {
            let first = chunk.first().copied().unwrap_or(0);
            let mut expected = (first..).step_by(run.max(1));
            chunk.iter().all(|place| Some(*place) == expected.next())
        })
    };
    let divisors = (1..=extent).rev().filter(|g| extent.is_multiple_of(*g));
    let both =
        |group: &usize| follows(&table.source, *group) && follows(&table.destination, *group);
    divisors.into_iter().find(both).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use kvtile::layout::{Shape, Unit, UnitIndex};

    use super::*;

    /// Checks every byte of every block against `locate`.
    fn check(from: &str, to: &str, run_bytes: usize) {
        let shape = Shape::key_value(3, 2, 32, 4, 16, Unit::named("bf16").unwrap()).unwrap();
        let layout =
            |word: &str| StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
        let (source, destination) = (layout(from), layout(to));
        let packing = (
            ArenaPacking::new(&source).unwrap(),
            ArenaPacking::new(&destination).unwrap(),
        );
        let walk = BlockWalk::new((&source, &packing.0), (&destination, &packing.1), None);
        assert_eq!(walk.run_bytes_min(), run_bytes, "{from} {to}");
        let bytes: Vec<u8> = (0..packing.0.bytes())
            .map(|i| u8::try_from((i * 31 + i / 251) % 251).unwrap())
            .collect();
        let mut copied = vec![0xff; packing.1.bytes()];
        for (a, b) in [(0, 2), (1, 0), (2, 1)] {
            walk.copy((a, b), &bytes, &mut copied);
            assert!(walk.is_equal((a, b), &bytes, &copied));
        }
        let place =
            |layout: &StridedLayout, packing: &ArenaPacking, plane: &str, index: &UnitIndex| {
                let at = layout.locate(plane, index).unwrap();
                let region = usize::try_from(at.region).unwrap();
                packing.starts()[region] + usize::try_from(at.offset).unwrap()
            };
        for plane in ["k", "v"] {
            for (l, n, h, c) in [(0, 0, 0, 0), (1, 31, 3, 15), (0, 17, 2, 9), (1, 5, 1, 1)] {
                let index = UnitIndex::new().at(Axis::L, l).at(Axis::N, n);
                let index = index.at(Axis::H, h).at(Axis::C, c);
                let a = place(&source, &packing.0, plane, &index.clone().at(Axis::B, 1));
                let b = place(&destination, &packing.1, plane, &index.at(Axis::B, 0));
                assert_eq!(bytes[a..a + 2], copied[b..b + 2], "{from} {to}");
            }
        }
        let last = packing.1.bytes() - 1;
        copied[last] ^= 1;
        let blocks = [(0, 2), (1, 0), (2, 1)];
        assert!(!blocks.iter().all(|&b| walk.is_equal(b, &bytes, &copied)));
    }

    #[test]
    fn the_walk_visits_blocks_as_their_words_describe() {
        check("L|KBNHC", "BLKNHC", 4096);
        check("L|KBNHC", "BHLKNC", 32);
        check("L|BH(kCN,vNC)", "BHLKNC", 2);
        check("L|BH(kNCN16C2,vCNC16N2)", "L|BKNHC", 2);
        check("LK|BHNC", "BHLKNC", 1024);
        check("LKH|BNC", "BNLKHC", 32);
    }
}
