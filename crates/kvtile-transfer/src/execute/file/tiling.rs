//! The split of a nest into tiles: pieces that are dense in the file and at most one round long.

use kvtile_layout::{AddressStep, AxisSet, Location, Loop, Nest};

use super::super::{
    bound::{BoundLayout, RegionBacking},
    nest::LocalNest,
    place::split,
};
use crate::error::TransferError;

/// Alignment that direct I/O needs.
const PAGE_BYTES: u64 = 4096;

/// Which sides of a transfer are files, and the size of a round.
#[derive(Clone, Copy)]
pub(super) struct FileSides {
    pub(super) source: bool,
    pub(super) destination: bool,
    /// Maximum bytes of a tile.
    pub(super) round_bytes: u64,
}

impl FileSides {
    pub(super) fn of(
        source: &BoundLayout,
        destination: &BoundLayout,
        round_bytes: u64,
    ) -> FileSides {
        let is_file = |layout: &BoundLayout| matches!(layout.backing(), RegionBacking::File);
        FileSides {
            source: is_file(source),
            destination: is_file(destination),
            round_bytes,
        }
    }

    /// The loop that extends `bytes` dense bytes in every file of the transfer. So far they have
    /// `source_span` bytes of the source.
    fn next_dense(self, loops: &[Loop], bytes: u64, source_span: u64) -> Option<usize> {
        let step = AddressStep::bytes(bytes);
        loops.iter().position(|l| {
            // Between two files, the source may be read in any order from its window, as long as
            // the window stays small.
            let window = l.source.bytes.checked_mul(l.extent);
            let near = self.destination
                && l.source.is_local()
                && window
                    .and_then(|window| window.checked_add(source_span))
                    .is_some_and(|window| window <= self.round_bytes);
            let source = !self.source || l.source == step || near;
            let destination = !self.destination || l.destination == step;
            source && destination
        })
    }
}

/// Outer loops, one loop that tiles may split, and inner loops that are dense in the file.
pub(super) struct NestTiling {
    outer: Vec<Loop>,
    split: Loop,
    /// Iterations of the split loop in a tile; the last tile has the remainder.
    chunk: u64,
    whole: TileNest,
    rest: Option<TileNest>,
}

/// The loops of one tile.
pub(super) struct TileNest {
    pub(super) far: Vec<Loop>,
    pub(super) local: LocalNest,
    /// Bytes that it copies.
    pub(super) bytes: u64,
    /// Distance from the first to the last byte that it reads, inclusive; meaningful only for a
    /// file.
    pub(super) source_span: u64,
    /// Distance from the first to the last byte that it writes, inclusive; meaningful only for a
    /// file.
    pub(super) destination_span: u64,
    /// Whether it is a single run.
    pub(super) is_run: bool,
}

impl TileNest {
    fn new(loops: &[Loop], run_bytes: u64) -> Result<TileNest, TransferError> {
        let loops: Vec<Loop> = loops.iter().filter(|l| l.extent > 1).copied().collect();
        let (far, local) = split(&loops, run_bytes)?;
        // On the side of a file, every loop of a tile stays in its region.
        let span = |step: fn(&Loop) -> AddressStep| {
            let each = loops
                .iter()
                .map(|l| (l.extent - 1).saturating_mul(step(l).bytes));
            each.fold(run_bytes, u64::saturating_add)
        };
        Ok(TileNest {
            far,
            local,
            bytes: loops
                .iter()
                .fold(run_bytes, |b, l| b.saturating_mul(l.extent)),
            source_span: span(|l| l.source),
            destination_span: span(|l| l.destination),
            is_run: loops.is_empty(),
        })
    }
}

/// One tile: its start, and whether it has the remainder of the split loop.
pub(super) struct FileTile {
    pub(super) source: Location,
    pub(super) destination: Location,
    pub(super) is_rest: bool,
}

impl NestTiling {
    pub(super) fn new(nest: &Nest, files: FileSides) -> Result<NestTiling, TransferError> {
        let round_bytes = files.round_bytes.max(1);
        if nest.run_bytes > round_bytes {
            return NestTiling::of_long_run(nest, round_bytes);
        }
        let mut loops = nest.loops.clone();
        let mut inner: Vec<Loop> = Vec::new();
        let (mut bytes, mut span) = (nest.run_bytes, nest.run_bytes);
        let mut cut = None;
        while let Some(next) = files.next_dense(&loops, bytes, span) {
            let candidate = loops.remove(next);
            let chunk = whole_pages((round_bytes / bytes).max(1), bytes);
            if chunk < candidate.extent {
                cut = Some((candidate, chunk));
                break;
            }
            span = span.saturating_add((candidate.extent - 1) * candidate.source.bytes);
            bytes *= candidate.extent;
            inner.insert(0, candidate);
        }
        let (cut, chunk) = cut.unwrap_or((single(), 1));
        let tile = |extent| {
            let mut loops = vec![Loop { extent, ..cut }];
            loops.extend(&inner);
            TileNest::new(&loops, nest.run_bytes)
        };
        let rest = cut.extent % chunk;
        Ok(NestTiling {
            whole: tile(chunk)?,
            rest: (rest > 0).then(|| tile(rest)).transpose()?,
            outer: loops,
            split: cut,
            chunk,
        })
    }

    /// A run longer than a round becomes a loop over its bytes.
    fn of_long_run(nest: &Nest, round_bytes: u64) -> Result<NestTiling, TransferError> {
        let rest = nest.run_bytes % round_bytes;
        Ok(NestTiling {
            outer: nest.loops.clone(),
            split: Loop {
                extent: nest.run_bytes,
                source: AddressStep::bytes(1),
                destination: AddressStep::bytes(1),
                axes: nest.run_axes,
            },
            chunk: round_bytes,
            whole: TileNest::new(&[], round_bytes)?,
            rest: (rest > 0).then(|| TileNest::new(&[], rest)).transpose()?,
        })
    }

    /// The loops of `tile`.
    pub(super) fn nest(&self, tile: &FileTile) -> &TileNest {
        match &self.rest {
            Some(rest) if tile.is_rest => rest,
            _ => &self.whole,
        }
    }

    /// All tiles of the nest whose two sides start at `start`.
    pub(super) fn tiles(&self, start: (Location, Location)) -> impl Iterator<Item = FileTile> {
        let outer: u64 = self.outer.iter().map(|l| l.extent).product();
        (0..outer).flat_map(move |mut index| {
            let (mut source, mut destination) = start;
            for l in self.outer.iter().rev() {
                let i = index % l.extent;
                index /= l.extent;
                source = further(source, l.source, i);
                destination = further(destination, l.destination, i);
            }
            (0..self.split.extent.div_ceil(self.chunk)).map(move |part| {
                let first = part * self.chunk;
                FileTile {
                    source: further(source, self.split.source, first),
                    destination: further(destination, self.split.destination, first),
                    is_rest: self.split.extent - first < self.chunk,
                }
            })
        })
    }
}

/// At most `count` pieces of `bytes` bytes each. The number is chosen so that they are whole pages,
/// if possible: the next tile then starts at a page boundary where this one does.
fn whole_pages(count: u64, bytes: u64) -> u64 {
    let step = PAGE_BYTES >> bytes.trailing_zeros().min(PAGE_BYTES.trailing_zeros());
    match count / step {
        0 => count,
        steps => steps * step,
    }
}

/// A loop of one iteration.
fn single() -> Loop {
    Loop {
        extent: 1,
        source: AddressStep::default(),
        destination: AddressStep::default(),
        axes: AxisSet::default(),
    }
}

fn further(from: Location, step: AddressStep, count: u64) -> Location {
    Location {
        region: from.region + count * step.regions,
        offset: from.offset + count * step.bytes,
    }
}
