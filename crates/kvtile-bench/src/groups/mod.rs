//! A cache over groups against a cache of one group with the same bytes, and against `memcpy`, in turns.
//!
//! The model has layers with full attention, layers with a window, and a state, with equal tokens in a
//! page. The one group has the bytes of a stop of this model, and as many pages as its full group, or a
//! page more. `docs/benchmarks/README.md` describes the method.

mod sides;
mod text;

use std::time::{Duration, Instant};

use serde::Serialize;

use self::sides::{GroupSide, OneSide};
use crate::{
    error::BenchError,
    machine::MachineFacts,
    times::{RoundTimes, seconds},
};

/// Settings of the measurement.
#[derive(Clone, Copy, Debug)]
pub struct GroupBenchSettings {
    /// Tokens of a prompt, a multiple of [`PAGE_TOKENS`].
    pub tokens: u64,
    /// Bytes of the state at a stop.
    pub state_bytes: u64,
    /// Number of rounds; results are their median.
    pub rounds: u32,
}

/// Tokens of a page of every group.
pub const PAGE_TOKENS: u64 = 16;

impl Default for GroupBenchSettings {
    fn default() -> GroupBenchSettings {
        GroupBenchSettings {
            tokens: 8192,
            state_bytes: 32 << 20,
            rounds: 9,
        }
    }
}

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct GroupBenchReport {
    /// The machine.
    pub machine: MachineFacts,
    /// Tokens of a prompt.
    pub tokens: u64,
    /// Bytes of a stop in each group: full, window, state.
    pub stop_bytes: [u64; 3],
    /// Number of rounds; results are their median.
    pub rounds: u32,
    /// The figures.
    pub rows: Vec<GroupBenchRow>,
}

/// One operation.
#[derive(Clone, Debug, Serialize)]
pub struct GroupBenchRow {
    /// The operation.
    pub operation: GroupOperationKind,
    /// Microseconds over groups, by the median.
    pub groups_us: f64,
    /// Longest round minus shortest, as a part of the median.
    pub spread: f64,
    /// Microseconds with one group, by the median.
    pub one_us: f64,
    /// 10^9 bytes per second over groups; none for lookups, which move nothing.
    pub gb_per_s: Option<f64>,
    /// The time of one group over that of groups: the median of the rounds, the lowest and the highest.
    pub of_one: [f64; 3],
    /// The time of `memcpy` over that of groups: the median of the rounds, the lowest and the highest.
    pub of_memcpy: Option<[f64; 3]>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupOperationKind {
    /// Finds the longest stop of a prompt, pins it, and releases it.
    Lookup,
    /// The same after the state was evicted: no stop is left.
    LookupLost,
    /// Stores a stop in host memory.
    Store,
    /// Loads a stop from host memory.
    Load,
}

/// The rounds of one operation.
#[derive(Default)]
struct GroupTurns {
    groups: RoundTimes,
    one: RoundTimes,
    of_one: Vec<f64>,
    of_memcpy: Vec<f64>,
}

impl GroupTurns {
    fn add(&mut self, (groups, one): (Duration, Duration), memcpy: Option<Duration>) {
        self.groups.add(groups);
        self.one.add(one);
        self.of_one.push(seconds(one) / seconds(groups));
        let memcpy = memcpy.map(|memcpy| seconds(memcpy) / seconds(groups));
        self.of_memcpy.extend(memcpy);
    }

    fn row(self, operation: GroupOperationKind, bytes: u64) -> GroupBenchRow {
        let moves = !self.of_memcpy.is_empty();
        GroupBenchRow {
            operation,
            groups_us: seconds(self.groups.median()) * 1e6,
            spread: self.groups.spread(),
            one_us: seconds(self.one.median()) * 1e6,
            gb_per_s: moves.then(|| self.groups.gb_per_s(bytes as f64)),
            of_one: range(self.of_one),
            of_memcpy: moves.then(|| range(self.of_memcpy)),
        }
    }
}

/// The median, the lowest and the highest.
fn range(mut ratios: Vec<f64>) -> [f64; 3] {
    ratios.sort_by(f64::total_cmp);
    let at = |index: usize| ratios.get(index).copied().unwrap_or(f64::NAN);
    [
        at(ratios.len() / 2),
        at(0),
        at(ratios.len().saturating_sub(1)),
    ]
}

/// Measures all operations.
///
/// # Errors
/// Memory that the system refuses; a cache that stores, finds or loads less than it should.
pub fn run(settings: &GroupBenchSettings) -> Result<GroupBenchReport, BenchError> {
    let mut groups = GroupSide::new(settings)?;
    let stop_bytes = groups.stop_bytes();
    let bytes = stop_bytes.iter().sum();
    let mut one = OneSide::new(settings, bytes)?;
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let (from, mut to) = (vec![1_u8; length], vec![2_u8; length]);
    let mut store = GroupTurns::default();
    let mut load = GroupTurns::default();
    let mut lookup = GroupTurns::default();
    let mut lost = GroupTurns::default();
    // The first round warms up.
    for round in 0..=settings.rounds {
        let mut memcpy = || {
            let begun = Instant::now();
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&mut to);
            begun.elapsed()
        };
        let stored = ((groups.store()?, one.store()?), Some(memcpy()));
        let loaded = ((groups.load()?, one.load()?), Some(memcpy()));
        if round == 0 {
            groups.compare()?;
        }
        let found = (groups.lookup(settings.tokens)?, one.lookup()?);
        let other = (groups.lookup_lost()?, one.lookup()?);
        if round > 0 {
            store.add(stored.0, stored.1);
            load.add(loaded.0, loaded.1);
            lookup.add(found, None);
            lost.add(other, None);
        }
    }
    Ok(GroupBenchReport {
        machine: MachineFacts::probe(),
        tokens: settings.tokens,
        stop_bytes,
        rounds: settings.rounds,
        rows: vec![
            lookup.row(GroupOperationKind::Lookup, bytes),
            lost.row(GroupOperationKind::LookupLost, bytes),
            store.row(GroupOperationKind::Store, bytes),
            load.row(GroupOperationKind::Load, bytes),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_measures_every_operation_with_the_bytes_of_its_stop() {
        let settings = GroupBenchSettings {
            tokens: 1536,
            state_bytes: 1 << 20,
            rounds: 1,
        };
        let report = run(&settings).unwrap();
        // 96 pages of 4 layers; 64 pages of 12; the state.
        let page = PAGE_TOKENS * 2 * 2 * 128 * 2;
        assert_eq!(report.stop_bytes, [96 * 4 * page, 64 * 12 * page, 1 << 20]);
        assert_eq!(report.rows.len(), 4);
        for row in &report.rows {
            assert!(row.groups_us > 0.0 && row.one_us > 0.0 && row.of_one[0] > 0.0);
        }
        let text = report.to_string();
        assert!(text.contains("state lost"), "{text}");
    }
}
