//! Copy plans: computes which bytes to copy to which offsets before a byte moves.
//!
//! ```text
//! for each class            block pairs with equal token phases and one progression
//!   for each pair           base = place of (block, first token), once per side
//!     for each piece        planes and cuts that did not join
//!       for each loop …     a small nest of (extent, source step, destination step)
//!         copy run_bytes
//! ```
//!
//! [`CopyPlanner`] plans the part that does not depend on blocks once. Binding a list of blocks to
//! it groups and compresses the pairs, and builds only nests that no earlier list needed.
//!
//! The plan stays a product: nothing multiplies out classes x pairs x pieces x loops. It knows
//! regions by index and bytes by offset. Executors know the addresses and choose how to move the
//! bytes.

mod build;
mod check;
mod class;
mod cut;
mod frame;
mod layers;
mod map;
mod nest;
mod pairs;
mod planner;
mod selection;

use std::{fmt, sync::Arc};

pub use class::{ClassNests, PlanClass};
pub use layers::LayerPlans;
pub use map::{BlockMap, MapPair};
pub use planner::CopyPlanner;
pub use selection::{BlockPair, PlanSettings, RangePair, Selection};

use crate::{
    axis::Axis,
    broken::broken,
    strided::{AddressStep, Location},
};

/// A set of axes, to print which axes a loop or a run covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AxisSet(u32);

impl AxisSet {
    /// The set with one axis.
    #[must_use]
    pub fn of(axis: Axis) -> AxisSet {
        AxisSet(1 << ((axis.letter() as u32) - ('A' as u32)))
    }

    /// Both sets.
    #[must_use]
    pub fn with(self, other: AxisSet) -> AxisSet {
        AxisSet(self.0 | other.0)
    }

    /// The axes, the standard ones in the order B L K N H C, then the others by letter.
    pub fn iter(self) -> impl Iterator<Item = Axis> {
        let standard = [Axis::B, Axis::L, Axis::K, Axis::N, Axis::H, Axis::C];
        let others = ('A'..='Z')
            .filter_map(Axis::new)
            .filter(|a| !a.is_standard());
        standard
            .into_iter()
            .chain(others)
            .filter(move |axis| self.0 & AxisSet::of(*axis).0 != 0)
    }
}

impl fmt::Display for AxisSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|axis| write!(f, "{axis}"))
    }
}

/// One loop of a nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Number of iterations, at least 2.
    pub extent: u64,
    /// The source step of one iteration.
    pub source: AddressStep,
    /// The destination step of one iteration.
    pub destination: AddressStep,
    /// The axes it covers.
    pub axes: AxisSet,
}

/// A loop nest, outermost loop first, whose innermost element is a run of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nest {
    /// Where the first run starts in the source, relative to the base of a block pair.
    pub source: AddressStep,
    /// Where the first run starts in the destination, relative to the base of a block pair.
    pub destination: AddressStep,
    /// The loops, outermost first.
    pub loops: Vec<Loop>,
    /// Bytes of one run.
    pub run_bytes: u64,
    /// The axes that the run covers.
    pub run_axes: AxisSet,
    /// Index into [`CopyPlan::maps`]: the map from blocks and tokens to bases.
    pub map: usize,
}

impl Nest {
    /// Number of runs in one execution of the nest.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.loops
            .iter()
            .fold(1, |runs, l| runs.saturating_mul(l.extent))
    }

    /// Bytes that one execution of the nest moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs().saturating_mul(self.run_bytes)
    }
}

/// A block pair, or the first of a progression of them, reduced to the fields that its class does
/// not fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairBase {
    /// Source block.
    pub source_block: u64,
    /// First source token, rounded down to the source's largest modulus of N.
    pub source_token: u64,
    /// Destination block.
    pub destination_block: u64,
    /// First destination token, rounded down to the destination's largest modulus of N.
    pub destination_token: u64,
}

/// A finished plan, as the module's drawing shows it. A clone shares all data with its original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    classes: Arc<[PlanClass]>,
    maps: Arc<[MapPair]>,
    bytes: u64,
}

impl CopyPlan {
    /// The classes.
    #[must_use]
    pub fn classes(&self) -> &[PlanClass] {
        &self.classes
    }

    /// The block maps that nests refer to.
    #[must_use]
    pub fn maps(&self) -> &[MapPair] {
        &self.maps
    }

    /// Bytes that the plan moves: the same number on both sides.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of runs of the plan.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.classes.iter().fold(0, |sum: u64, class| {
            let each = class
                .nests
                .iter()
                .fold(0u64, |runs, nest| runs.saturating_add(nest.runs()));
            sum.saturating_add(each.saturating_mul(class.pairs.len() as u64))
        })
    }

    /// Bytes of the longest and of the shortest run.
    #[must_use]
    pub fn run_bytes(&self) -> (u64, u64) {
        let nests = || self.classes.iter().flat_map(|class| class.nests.iter());
        (
            nests().map(|n| n.run_bytes).max().unwrap_or(0),
            nests().map(|n| n.run_bytes).min().unwrap_or(0),
        )
    }

    /// The bases of one pair for one nest, on both sides, the nest's own start included.
    ///
    /// # Panics
    /// A nest of another plan, whose map this plan does not have.
    #[inline]
    #[must_use]
    pub fn start(&self, nest: &Nest, pair: &PairBase) -> (Location, Location) {
        let Some(map) = self.maps.get(nest.map) else {
            broken(format_args!(
                "map {} of a plan of {} maps",
                nest.map,
                self.maps.len()
            ))
        };
        let source = map.source.base(pair.source_block, pair.source_token);
        let destination = map
            .destination
            .base(pair.destination_block, pair.destination_token);
        (at(source, nest.source), at(destination, nest.destination))
    }

    /// Calls `visit` with source, destination and length of every run, in the order of the plan.
    /// For tests, drawings and small plans: it multiplies the product out.
    pub fn for_each_run(&self, mut visit: impl FnMut(Location, Location, u64)) {
        for class in self.classes.iter() {
            for pair in &class.pairs {
                for nest in class.nests.iter() {
                    let (source, destination) = self.start(nest, pair);
                    walk(&nest.loops, source, destination, &mut |s, d| {
                        visit(s, d, nest.run_bytes);
                    });
                }
            }
        }
    }
}

/// The location `start` further than `base`.
#[inline]
fn at(base: AddressStep, start: AddressStep) -> Location {
    Location {
        region: base.regions.wrapping_add(start.regions),
        offset: base.bytes.wrapping_add(start.bytes),
    }
}

/// Calls `visit` with the offsets of every iteration of `loops`.
pub(crate) fn walk(
    loops: &[Loop],
    source: Location,
    destination: Location,
    visit: &mut impl FnMut(Location, Location),
) {
    let Some((outer, inner)) = loops.split_first() else {
        return visit(source, destination);
    };
    for i in 0..outer.extent {
        let further = |from: Location, step: AddressStep| Location {
            region: from.region + i * step.regions,
            offset: from.offset + i * step.bytes,
        };
        walk(
            inner,
            further(source, outer.source),
            further(destination, outer.destination),
            visit,
        );
    }
}

impl fmt::Display for CopyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} bytes in {} runs of {} bytes at most",
            self.bytes,
            self.runs(),
            self.run_bytes().0
        )?;
        for class in self.classes.iter() {
            write!(f, "for each of {} block pairs", class.pairs.len())?;
            match class.blocks_per_pair {
                1 => writeln!(f, ":")?,
                blocks => writeln!(f, " (each {blocks} blocks long):")?,
            }
            for nest in class.nests.iter() {
                writeln!(f, "{nest}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Nest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  ")?;
        for l in &self.loops {
            let step = |step: AddressStep| match step {
                AddressStep { regions: 0, bytes } => format!("+{bytes}"),
                AddressStep { regions, bytes: 0 } => format!("+{regions} regions"),
                AddressStep { regions, bytes } => format!("+{regions} regions +{bytes}"),
            };
            let (source, destination) = (step(l.source), step(l.destination));
            write!(f, "{}:{} ({source} → {destination})  ", l.axes, l.extent)?;
        }
        write!(f, "run {} bytes [{}]", self.run_bytes, self.run_axes)
    }
}
