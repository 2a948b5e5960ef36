//! Event counts, and the survival estimator that turns them into scores.
//!
//! For each class and age bucket there are counts of blocks that were used at that age (hits), and
//! of blocks whose observation ended there without a use (censored: they were dropped, or changed
//! their class). Together with the blocks still under observation they give a hazard: the
//! probability that a block which reached a bucket is used in it. Sparse classes shrink towards
//! their kind, and kinds towards the pooled data.
//!
//! A block's worth at an age is its Gittins index: the best ratio, over all later ages at which it
//! might be given up, of expected uses to expected time until then.

use super::{
    age::{self, BUCKETS},
    class::{BlockClass, CLASSES, KINDS, OUTPUTS, PASSES},
};

/// The prior hazard of a bucket without data.
const HAZARD_PRIOR: f32 = 0.03;

/// The maximum hazard.
const HAZARD_MAX: f32 = 0.95;

/// The prior's weight for class and kind hazards, in blocks.
const CLASS_WEIGHT: f32 = 100.0;

/// The prior's weight for factors, in uses.
const FACTOR_WEIGHT: f32 = 120.0;

/// The fraction of a count that remains after each lesson.
const DECAY: f32 = 0.98;

/// One number for each bucket of each of `N` rows.
pub(super) type AgeTable<const N: usize> = Box<[[f32; BUCKETS]; N]>;

/// A table of zeros.
pub(super) fn table<const N: usize>() -> AgeTable<N> {
    Box::new([[0.0; BUCKETS]; N])
}

/// Counts of events.
#[derive(Clone, Debug)]
pub(super) struct Observations {
    /// Blocks that were used.
    hits: AgeTable<CLASSES>,
    /// Blocks whose observation ended without a use.
    ends: AgeTable<CLASSES>,
    /// Blocks whose observation began at an age above 0.
    entries: AgeTable<CLASSES>,
}

impl Observations {
    pub(super) fn new() -> Observations {
        Observations {
            hits: table(),
            ends: table(),
            entries: table(),
        }
    }

    /// Counts `blocks` blocks of a class that were used at an age.
    #[inline]
    pub(super) fn hit(&mut self, class: BlockClass, age: u64, blocks: f32) {
        add(&mut self.hits, class, age, blocks);
    }

    /// Counts `blocks` blocks of a class whose observation ended at an age.
    #[inline]
    pub(super) fn end(&mut self, class: BlockClass, age: u64, blocks: f32) {
        add(&mut self.ends, class, age, blocks);
    }

    /// Counts `blocks` blocks that entered a class at an age.
    #[inline]
    pub(super) fn enter(&mut self, class: BlockClass, age: u64, blocks: f32) {
        add(&mut self.entries, class, age, blocks);
    }

    /// Returns the counts so far, with the blocks still under observation, and then decays the
    /// counts.
    pub(super) fn lesson(&mut self, live: AgeTable<CLASSES>) -> PolicyLesson {
        let lesson = PolicyLesson {
            observed: self.clone(),
            live,
        };
        for table in [&mut self.hits, &mut self.ends, &mut self.entries] {
            for count in table.iter_mut().flatten() {
                *count *= DECAY;
            }
        }
        lesson
    }
}

/// Adds to a count of a table.
#[inline]
pub(super) fn add(table: &mut AgeTable<CLASSES>, class: BlockClass, age: u64, blocks: f32) {
    let count = table.get_mut(class.index());
    if let Some(count) = count.and_then(|row| row.get_mut(age::bucket(age))) {
        *count += blocks;
    }
}

/// Counts to be studied.
#[derive(Clone, Debug)]
pub struct PolicyLesson {
    observed: Observations,
    live: AgeTable<CLASSES>,
}

/// The worth of blocks of each class at each age.
#[derive(Clone, Debug)]
pub struct LearnedScores {
    scores: AgeTable<CLASSES>,
}

impl LearnedScores {
    /// The prior, before any event: all classes are alike, and worth decreases with age.
    pub(super) fn nothing() -> LearnedScores {
        Observations::new().lesson(table()).study()
    }

    /// The worth of a block of a class at an age: expected uses per reference, interpolated between
    /// buckets.
    #[inline]
    pub(super) fn score(&self, class: BlockClass, age: u64) -> f32 {
        let bucket = age::bucket(age);
        let Some(row) = self.scores.get(class.index()) else {
            return 0.0;
        };
        let here = row.get(bucket).copied().unwrap_or(0.0);
        let next = row.get(bucket + 1).copied().unwrap_or(here);
        here + (next - here) * age::progress(age, bucket)
    }
}

/// Hits, and blocks at risk, for each bucket.
#[derive(Clone, Copy)]
struct HazardExposure {
    hits: [f32; BUCKETS],
    risk: [f32; BUCKETS],
}

impl HazardExposure {
    const NONE: HazardExposure = HazardExposure {
        hits: [0.0; BUCKETS],
        risk: [0.0; BUCKETS],
    };

    fn add(&mut self, other: &HazardExposure) {
        let pairs = self.hits.iter_mut().zip(other.hits);
        pairs.for_each(|(sum, more)| *sum += more);
        let pairs = self.risk.iter_mut().zip(other.risk);
        pairs.for_each(|(sum, more)| *sum += more);
    }

    /// The hazards, shrunk towards `towards`, the prior means, with a prior weight of `weight`
    /// blocks.
    fn hazards(&self, weight: f32, towards: &[f32; BUCKETS]) -> [f32; BUCKETS] {
        let mut hazards = *towards;
        let counts = self.hits.iter().zip(&self.risk);
        for (hazard, (hits, risk)) in hazards.iter_mut().zip(counts) {
            *hazard = ((hits + weight * *hazard) / (risk + weight)).min(HAZARD_MAX);
        }
        hazards
    }

    /// The number of uses that these hazards predict.
    fn expected(&self, hazards: &[f32; BUCKETS]) -> f32 {
        self.risk
            .iter()
            .zip(hazards)
            .map(|(risk, q)| risk * q)
            .sum()
    }
}

impl PolicyLesson {
    /// Turns the counts into scores. It takes part of a millisecond and is deterministic.
    #[must_use]
    pub fn study(self) -> LearnedScores {
        let exposures: Vec<HazardExposure> =
            (0..CLASSES).map(|class| self.exposure(class)).collect();
        let classes: Vec<BlockClass> = (0..CLASSES).map(BlockClass::from_index).collect();
        let mut all = HazardExposure::NONE;
        let mut of_kind = [HazardExposure::NONE; KINDS];
        for (class, exposure) in classes.iter().zip(&exposures) {
            all.add(exposure);
            if let Some(kind) = of_kind.get_mut(usize::from(class.kind())) {
                kind.add(exposure);
            }
        }
        let pooled = all.hazards(CLASS_WEIGHT, &[HAZARD_PRIOR; BUCKETS]);
        let of_kind = of_kind.map(|kind| kind.hazards(CLASS_WEIGHT, &pooled));
        let factors = HazardFactors::fit(&classes, &exposures, &of_kind);

        let mut scores = table();
        let rows = scores.iter_mut().zip(classes.iter().zip(&exposures));
        for (row, (class, exposure)) in rows {
            let mut expected = kind_hazards(&of_kind, *class);
            let factor = factors.of(*class);
            for hazard in &mut expected {
                *hazard = (*hazard * factor).min(HAZARD_MAX);
            }
            *row = indices(&exposure.hazards(CLASS_WEIGHT, &expected));
        }
        LearnedScores { scores }
    }

    /// The actuarial assumption: a block that leaves within a bucket was at risk for half of it.
    fn exposure(&self, class: usize) -> HazardExposure {
        let row = |table: &AgeTable<CLASSES>| table.get(class).copied().unwrap_or([0.0; BUCKETS]);
        let hits = row(&self.observed.hits);
        let (ends, entries, live) = (
            row(&self.observed.ends),
            row(&self.observed.entries),
            row(&self.live),
        );
        let mut risk = [0.0; BUCKETS];
        let mut later = 0.0_f32;
        let counts = hits.iter().zip(ends).zip(live).zip(entries);
        for (risk, (((hits, ends), live), entries)) in risk.iter_mut().zip(counts).rev() {
            let withdrawn = ends + live;
            *risk = (later + hits + (withdrawn - entries) * 0.5).max(*hits);
            later = (later + hits + withdrawn - entries).max(0.0);
        }
        HazardExposure { hits, risk }
    }
}

fn kind_hazards(of_kind: &[[f32; BUCKETS]; KINDS], class: BlockClass) -> [f32; BUCKETS] {
    let kind = of_kind.get(usize::from(class.kind()));
    kind.copied().unwrap_or([HAZARD_PRIOR; BUCKETS])
}

/// Multipliers of the hazard for blocks that were passed over, and for answer lengths.
struct HazardFactors {
    passes: [f32; PASSES],
    outputs: [f32; OUTPUTS],
}

impl HazardFactors {
    fn fit(
        classes: &[BlockClass],
        exposures: &[HazardExposure],
        of_kind: &[[f32; BUCKETS]; KINDS],
    ) -> HazardFactors {
        let mut factors = HazardFactors {
            passes: [1.0; PASSES],
            outputs: [1.0; OUTPUTS],
        };
        let prior = FACTOR_WEIGHT;
        let totals: Vec<(BlockClass, f32, f32)> = classes
            .iter()
            .zip(exposures)
            .map(|(class, exposure)| {
                let expected = exposure.expected(&kind_hazards(of_kind, *class));
                (*class, exposure.hits.iter().sum(), expected)
            })
            .collect();
        for _ in 0..2 {
            let mut seen = [(prior, prior); PASSES];
            for (class, hits, expected) in &totals {
                if let Some(seen) = seen.get_mut(usize::from(class.passes())) {
                    seen.0 += hits;
                    seen.1 += expected * factors.output(*class);
                }
            }
            factors.passes = seen.map(|(hits, expected)| hits / expected);
            let mut seen = [(prior, prior); OUTPUTS];
            for (class, hits, expected) in &totals {
                if let Some(seen) = seen.get_mut(usize::from(class.output())) {
                    seen.0 += hits;
                    seen.1 += expected * factors.pass(*class);
                }
            }
            factors.outputs = seen.map(|(hits, expected)| hits / expected);
        }
        factors
    }

    fn pass(&self, class: BlockClass) -> f32 {
        let factor = self.passes.get(usize::from(class.passes()));
        factor.copied().unwrap_or(1.0)
    }

    fn output(&self, class: BlockClass) -> f32 {
        let factor = self.outputs.get(usize::from(class.output()));
        factor.copied().unwrap_or(1.0)
    }

    fn of(&self, class: BlockClass) -> f32 {
        self.pass(class) * self.output(class)
    }
}

/// The Gittins index at the start of each bucket: the largest, over all later buckets, of the uses
/// expected until its end over the references expected until then.
///
/// The sums of all starting buckets advance together, one later bucket at a time, so that the compiler
/// computes several at once. Each of them is summed in the same order as it would be alone.
fn indices(hazards: &[f32; BUCKETS]) -> [f32; BUCKETS] {
    let mut indices = [0.0_f32; BUCKETS];
    let mut survivals = [1.0_f32; BUCKETS];
    let mut uses = [0.0_f32; BUCKETS];
    let mut times = [0.0_f32; BUCKETS];
    for (bucket, (hazard, width)) in hazards.iter().zip(age::widths()).enumerate() {
        let (left, spent) = (1.0 - hazard, 1.0 - hazard * 0.5);
        let starts = survivals.iter_mut().zip(&mut uses).zip(&mut times);
        let starts = starts.zip(&mut indices).take(bucket + 1);
        for (((survival, uses), time), index) in starts {
            *uses += *survival * hazard;
            *time += *survival * width * spent;
            let rate = *uses / *time;
            *index = if rate > *index { rate } else { *index };
            *survival *= left;
        }
    }
    indices
}

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    /// The index of one bucket after the other, as its definition reads.
    fn indices_one_by_one(hazards: &[f32; BUCKETS]) -> [f32; BUCKETS] {
        let mut indices = [0.0; BUCKETS];
        for (from, index) in indices.iter_mut().enumerate() {
            let (mut survival, mut uses, mut time) = (1.0_f32, 0.0_f32, 0.0_f32);
            for (bucket, hazard) in hazards.iter().enumerate().skip(from) {
                uses += survival * hazard;
                time += survival * age::width(bucket) * (1.0 - hazard * 0.5);
                *index = f32::max(*index, uses / time);
                survival *= 1.0 - hazard;
            }
        }
        indices
    }

    #[test]
    fn indices_are_those_of_the_definition_to_the_bit() {
        let mut random = SplitMix64::new(11);
        for round in 0..2000 {
            let mut hazards = [0.0_f32; BUCKETS];
            for hazard in &mut hazards {
                let drawn = random.below(1 << 20) as f32 / (1 << 20) as f32;
                *hazard = match round % 3 {
                    0 => drawn * HAZARD_MAX,
                    1 => drawn * drawn * drawn * drawn,
                    _ if drawn < 0.5 => 0.0,
                    _ => HAZARD_MAX,
                };
            }
            let bits = |indices: [f32; BUCKETS]| indices.map(f32::to_bits);
            let expected = bits(indices_one_by_one(&hazards));
            assert_eq!(bits(indices(&hazards)), expected, "{hazards:?}");
        }
    }
}
