//! A handful of runs of a plan: the first values of every loop, so that the order on both sides
//! can be seen.

use kvtile::layout::{CopyPlan, Location, Loop, Nest, PlanClass};

/// Most runs of a sample: one letter each.
const RUNS_MAX: usize = 24;

/// One run of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampledRun {
    /// Its number in the sample.
    pub(crate) index: usize,
    /// Its name.
    pub(crate) letter: char,
    /// Where it is read.
    pub(crate) source: Location,
    /// Where it is written.
    pub(crate) destination: Location,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

/// The first runs of the first class of `plan`, in the order of the destination.
pub(crate) fn sample(plan: &CopyPlan) -> Vec<SampledRun> {
    let Some(class) = plan.classes().first() else {
        return Vec::new();
    };
    let mut runs = Vec::new();
    let counts = budget(class);
    for pair in class.pairs.iter().take(counts.pairs) {
        for (nest, extents) in class.nests.iter().zip(&counts.nests) {
            let (source, destination) = plan.start(nest, pair);
            let loops: Vec<(&Loop, u64)> = nest.loops.iter().zip(extents.iter().copied()).collect();
            walk(&loops, (source, destination), &mut |source, destination| {
                runs.push((source, destination, nest.run_bytes));
            });
        }
    }
    runs.sort_by_key(|(_, destination, _)| *destination);
    runs.into_iter()
        .zip(('a'..='z').enumerate())
        .map(
            |((source, destination, bytes), (index, letter))| SampledRun {
                index,
                letter,
                source,
                destination,
                bytes,
            },
        )
        .collect()
}

/// How many values of each loop are shown.
struct SampleBudget {
    pairs: usize,
    nests: Vec<Vec<u64>>,
}

/// Two values of every loop where that is not too much, and more of the inner ones where it is
/// little.
fn budget(class: &PlanClass) -> SampleBudget {
    let share = (RUNS_MAX / class.nests.len().max(1)).max(1);
    let mut pairs = 1;
    let nests: Vec<Vec<u64>> = class
        .nests
        .iter()
        .map(|nest| extents(nest, share))
        .collect();
    let total = |nests: &[Vec<u64>]| -> u64 {
        let of_nest = |extents: &Vec<u64>| extents.iter().product::<u64>();
        nests.iter().map(of_nest).sum()
    };
    let total = usize::try_from(total(&nests)).unwrap_or(RUNS_MAX).max(1);
    while pairs < class.pairs.len() && (pairs + 1) * total <= RUNS_MAX.min(8 * total) {
        pairs += 1;
    }
    SampleBudget { pairs, nests }
}

fn extents(nest: &Nest, share: usize) -> Vec<u64> {
    let share = share as u64;
    let mut extents = vec![1u64; nest.loops.len()];
    let mut product = 1;
    for wanted in [2, 3, 4, 6, 8] {
        // From the innermost outwards: its neighbours are the ones that touch.
        for (extent, of) in extents.iter_mut().zip(&nest.loops).rev() {
            let more = of.extent.min(wanted);
            let grown = product / *extent * more;
            if more > *extent && grown <= share && (wanted == 2 || grown <= 16) {
                product = grown;
                *extent = more;
            }
        }
    }
    extents
}

fn walk(
    loops: &[(&Loop, u64)],
    (source, destination): (Location, Location),
    visit: &mut impl FnMut(Location, Location),
) {
    let Some(((outer, extent), inner)) = loops.split_first() else {
        return visit(source, destination);
    };
    for i in 0..*extent {
        let next = (
            Location {
                region: source.region + i * outer.source.regions,
                offset: source.offset + i * outer.source.bytes,
            },
            Location {
                region: destination.region + i * outer.destination.regions,
                offset: destination.offset + i * outer.destination.bytes,
            },
        );
        walk(inner, next, visit);
    }
}
