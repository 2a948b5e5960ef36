//! Every metric by name: what it counts, in what, and of what it is a part.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// What there is now.
    Gauge,
    /// Single measurements, with their number and their sum.
    Histogram,
}

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests, pieces of work, times that something happened.
    Count,
    /// Blocks.
    Blocks,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, ending in its unit, and in `_total` where it only grows.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// The metric that it is a part of, or relates to: what a ratio divides by.
    pub denominator: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
}

pub(super) const LOOKUPS: &str = "kvtile_lookups_total";
pub(super) const LOOKUP_BLOCKS: &str = "kvtile_lookup_blocks_total";
pub(super) const HITS: &str = "kvtile_lookup_hit_blocks_total";
pub(super) const MISSES: &str = "kvtile_lookup_miss_blocks_total";
pub(super) const LOST_HITS: &str = "kvtile_lost_hit_blocks_total";
pub(super) const MOVES: &str = "kvtile_moves_total";
pub(super) const MOVE_FAILURES: &str = "kvtile_move_failures_total";
pub(super) const MOVED_BLOCKS: &str = "kvtile_moved_blocks_total";
pub(super) const MOVED_BYTES: &str = "kvtile_moved_bytes_total";
pub(super) const MOVE_SECONDS: &str = "kvtile_move_duration_seconds";
pub(super) const QUEUE_DEPTH: &str = "kvtile_queue_depth";
pub(super) const QUEUE_CAPACITY: &str = "kvtile_queue_capacity";
pub(super) const QUEUE_OFFERED: &str = "kvtile_queue_offered_total";
pub(super) const QUEUE_REFUSED: &str = "kvtile_queue_refused_total";
pub(super) const PINNED: &str = "kvtile_pinned_blocks";
pub(super) const PINS: &str = "kvtile_pins_total";
pub(super) const PINS_OVERDUE: &str = "kvtile_pins_overdue_total";
pub(super) const STORED: &str = "kvtile_stored_blocks_total";
pub(super) const LEFT_OUT: &str = "kvtile_left_out_blocks_total";
pub(super) const PRESENT: &str = "kvtile_present_blocks";
pub(super) const CAPACITY: &str = "kvtile_capacity_blocks";
pub(super) const EVICTED: &str = "kvtile_evicted_blocks_total";
pub(super) const CHECKED: &str = "kvtile_checked_blocks_total";
pub(super) const CHECKSUM_FAILURES: &str = "kvtile_checksum_failures_total";

const fn counter(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    denominator: Option<&'static str>,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit,
        labels,
        denominator,
        help,
    }
}

const fn gauge(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    denominator: Option<&'static str>,
    help: &'static str,
) -> Metric {
    Metric {
        kind: Kind::Gauge,
        ..counter(name, unit, labels, denominator, help)
    }
}

const TIER: &[&str] = &["tier"];
const REASON: &[&str] = &["reason"];
const QUEUE: &[&str] = &["queue"];
const ROUTE: &[&str] = &["source", "destination"];

/// All metrics of a cache.
#[rustfmt::skip]
pub const CATALOGUE: &[Metric] = &[
    counter(LOOKUPS, Unit::Count, &[], None, "Lookups of prefixes"),
    counter(LOOKUP_BLOCKS, Unit::Blocks, &[], None, "Full blocks of the prefixes that were looked up: hits and misses together"),
    counter(HITS, Unit::Blocks, TIER, Some(LOOKUP_BLOCKS), "Blocks that a lookup found, by the fastest tier that has them"),
    counter(MISSES, Unit::Blocks, REASON, Some(LOOKUP_BLOCKS), "Blocks that a lookup did not offer, and why"),
    counter(LOST_HITS, Unit::Blocks, REASON, Some(HITS), "Blocks that a lookup found and a load could not bring, and why"),
    counter(MOVES, Unit::Count, ROUTE, None, "Transfers between tiers that were begun"),
    counter(MOVE_FAILURES, Unit::Count, ROUTE, Some(MOVES), "Transfers between tiers that failed"),
    counter(MOVED_BLOCKS, Unit::Blocks, ROUTE, None, "Blocks that arrived"),
    counter(MOVED_BYTES, Unit::Bytes, ROUTE, None, "Bytes of the blocks that arrived"),
    Metric { kind: Kind::Histogram, ..counter(MOVE_SECONDS, Unit::Seconds, ROUTE, Some(MOVED_BYTES), "How long each transfer took that arrived, without waiting in queues") },
    gauge(QUEUE_DEPTH, Unit::Count, QUEUE, Some(QUEUE_CAPACITY), "Pieces of work that wait"),
    gauge(QUEUE_CAPACITY, Unit::Count, QUEUE, None, "Pieces of work that may wait"),
    counter(QUEUE_OFFERED, Unit::Count, QUEUE, None, "Pieces of work that were to be queued, refused ones among them"),
    counter(QUEUE_REFUSED, Unit::Count, QUEUE, Some(QUEUE_OFFERED), "Pieces of work that were refused because the queue was full"),
    gauge(PINNED, Unit::Blocks, TIER, Some(PRESENT), "Pins on blocks; a block that is pinned twice counts twice"),
    counter(PINS, Unit::Blocks, TIER, None, "Blocks that were pinned, each time"),
    counter(PINS_OVERDUE, Unit::Blocks, TIER, Some(PINS), "Pins that outlived their deadline and were reported"),
    counter(STORED, Unit::Blocks, TIER, None, "Blocks that were stored"),
    counter(LEFT_OUT, Unit::Blocks, TIER, Some(STORED), "Blocks that were to be stored and were not: no room, a tier that fails, or ancestors in no tier"),
    gauge(PRESENT, Unit::Blocks, TIER, Some(CAPACITY), "Blocks that can be found"),
    gauge(CAPACITY, Unit::Blocks, TIER, None, "Blocks that have room"),
    counter(EVICTED, Unit::Blocks, &["tier", "reason"], Some(STORED), "Blocks that left a tier, and why"),
    counter(CHECKED, Unit::Blocks, TIER, None, "Blocks whose checksum was compared"),
    counter(CHECKSUM_FAILURES, Unit::Blocks, TIER, Some(CHECKED), "Blocks whose checksum did not match"),
];

/// Tells the recorder what each metric is.
pub(super) fn describe() {
    for metric in CATALOGUE {
        let unit = match metric.unit {
            Unit::Count | Unit::Blocks => metrics::Unit::Count,
            Unit::Bytes => metrics::Unit::Bytes,
            Unit::Seconds => metrics::Unit::Seconds,
        };
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, unit, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, unit, metric.help),
        }
    }
}
