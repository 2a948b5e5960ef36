//! The rows of the report, from the rounds of all contenders.

use std::time::Duration;

use serde::Serialize;

use super::{ContenderOrder, MAINTAIN, ManagerLine, OPERATIONS};
use crate::times::{RoundTimes, seconds};

/// The goal against a rival: kvtile's pool with the same eviction order is this many times faster.
const FASTER: f64 = 10.0;

/// The goal of the default policy: at most this many times the cost of LRU when it registers and
/// matches.
const OVER_LRU: f64 = 1.5;

/// One operation of one manager.
#[derive(Clone, Debug, Serialize)]
pub struct ManagerRow {
    /// The project.
    pub manager: &'static str,
    /// The project's name of its eviction order.
    pub order: &'static str,
    /// The operation.
    pub operation: &'static str,
    /// Nanoseconds per block, the median.
    pub ns_per_block: f64,
    /// Longest round minus shortest, as a part of the median.
    pub spread: f64,
    /// Its time over that of each of kvtile's other pools.
    pub over: Vec<ManagerRatio>,
}

/// The time of one contender over that of another.
#[derive(Clone, Debug, Serialize)]
pub struct ManagerRatio {
    /// The policy of the kvtile pool it is compared with.
    pub policy: &'static str,
    /// The median of the ratios of all rounds.
    pub ratio: f64,
    /// The largest of these ratios minus the smallest, as a part of the median.
    pub spread: f64,
    /// The goal of the ratio: a minimum for a rival, a maximum for kvtile's default policy.
    pub goal: Option<f64>,
    /// Whether the goal is met.
    pub met: bool,
}

/// A row for each operation and contender. Rows with two threads state the time of both together.
pub(super) fn rows(lines: &[ManagerLine], blocks: usize) -> Vec<ManagerRow> {
    let mut rows = Vec::new();
    for (at, operation) in OPERATIONS.into_iter().enumerate() {
        // A contender without this operation has times of zero.
        let takes_time = |line: &&ManagerLine| of(line, at).any(|time| !time.is_zero());
        for line in lines.iter().filter(takes_time) {
            let mut times = RoundTimes::default();
            for time in of(line, at) {
                times.add(time);
            }
            let contender = &line.contender;
            let others = lines.iter().filter(takes_time).filter(|other| {
                let own = other.contender.manager() == "kvtile";
                own && !std::ptr::eq(*other, line)
            });
            rows.push(ManagerRow {
                manager: contender.manager(),
                order: contender.order_name(),
                operation,
                ns_per_block: times.median().as_secs_f64() * 1e9 / blocks.max(1) as f64,
                spread: times.spread(),
                over: others.map(|other| ratio(line, other, at)).collect(),
            });
        }
    }
    rows
}

fn of(line: &ManagerLine, operation: usize) -> impl Iterator<Item = Duration> + '_ {
    let rounds = line.rounds.iter();
    rounds.filter_map(move |round| round.get(operation).copied())
}

fn ratio(line: &ManagerLine, other: &ManagerLine, operation: usize) -> ManagerRatio {
    let pairs = of(line, operation).zip(of(other, operation));
    let mut ratios: Vec<f64> = pairs
        .map(|(time, other)| seconds(time) / seconds(other))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
    let ends = ratios.first().zip(ratios.last());
    let spread = ends.map_or(0.0, |(least, most)| (most - least) / median);
    let (goal, met) = goal(line, other, operation, median);
    ManagerRatio {
        policy: other.contender.order_name(),
        ratio: median,
        spread,
        goal,
        met,
    }
}

/// The goal of a ratio, if any, and whether it is met.
fn goal(
    line: &ManagerLine,
    other: &ManagerLine,
    operation: usize,
    ratio: f64,
) -> (Option<f64>, bool) {
    let (of, over) = (&line.contender, &other.contender);
    if of.manager() != over.manager() {
        let alike = of.order() == over.order();
        return match alike {
            true => (Some(FASTER), ratio >= FASTER),
            false => (None, true),
        };
    }
    let compared = OPERATIONS.iter().take_while(|other| **other != MAINTAIN);
    let compared = operation < compared.count();
    match (of.order(), over.order()) {
        (ContenderOrder::Default, ContenderOrder::Lru) if compared => {
            (Some(OVER_LRU), ratio <= OVER_LRU)
        }
        _ => (None, true),
    }
}
