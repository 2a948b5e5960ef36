//! Every metric by name: what it counts, its unit, and its denominator.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A current value.
    Gauge,
    /// Single measurements, with their count and their sum.
    Histogram,
}

/// The unit of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricUnit {
    /// Requests, jobs, occurrences.
    Count,
    /// Blocks.
    Blocks,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// A metric of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, which ends in its unit, and in `_total` if it only grows.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: MetricUnit,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// The metric that it is a part of or relates to: the denominator of a ratio.
    pub denominator: Option<&'static str>,
    /// The help text for the recorder.
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
    unit: MetricUnit,
    labels: &'static [&'static str],
    denominator: Option<&'static str>,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: MetricKind::Counter,
        unit,
        labels,
        denominator,
        help,
    }
}

const fn gauge(
    name: &'static str,
    unit: MetricUnit,
    labels: &'static [&'static str],
    denominator: Option<&'static str>,
    help: &'static str,
) -> Metric {
    Metric {
        kind: MetricKind::Gauge,
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
    counter(LOOKUPS, MetricUnit::Count, &[], None, "Lookups of prefixes"),
    counter(LOOKUP_BLOCKS, MetricUnit::Blocks, &[], None, "Full blocks of the prefixes that were looked up: hits and misses together"),
    counter(HITS, MetricUnit::Blocks, TIER, Some(LOOKUP_BLOCKS), "Blocks that a lookup found, by the fastest tier that has them"),
    counter(MISSES, MetricUnit::Blocks, REASON, Some(LOOKUP_BLOCKS), "Blocks that a lookup did not offer, and why"),
    counter(LOST_HITS, MetricUnit::Blocks, REASON, Some(HITS), "Blocks that a lookup found and a load could not read, and why"),
    counter(MOVES, MetricUnit::Count, ROUTE, None, "Transfers between tiers, failed ones included"),
    counter(MOVE_FAILURES, MetricUnit::Count, ROUTE, Some(MOVES), "Failed transfers between tiers: whole batches, and single blocks of other batches"),
    counter(MOVED_BLOCKS, MetricUnit::Blocks, ROUTE, None, "Blocks that arrived"),
    counter(MOVED_BYTES, MetricUnit::Bytes, ROUTE, None, "Bytes of the blocks that arrived"),
    Metric { kind: MetricKind::Histogram, ..counter(MOVE_SECONDS, MetricUnit::Seconds, ROUTE, Some(MOVED_BYTES), "Duration of each completed transfer, without its time in queues") },
    gauge(QUEUE_DEPTH, MetricUnit::Count, QUEUE, Some(QUEUE_CAPACITY), "Jobs in the queue"),
    gauge(QUEUE_CAPACITY, MetricUnit::Count, QUEUE, None, "Capacity of the queue, in jobs"),
    counter(QUEUE_OFFERED, MetricUnit::Count, QUEUE, None, "Jobs offered to the queue, refused ones included"),
    counter(QUEUE_REFUSED, MetricUnit::Count, QUEUE, Some(QUEUE_OFFERED), "Jobs refused because the queue was full"),
    gauge(PINNED, MetricUnit::Blocks, TIER, Some(PRESENT), "Current pins on blocks; a block that is pinned twice counts twice"),
    counter(PINS, MetricUnit::Blocks, TIER, None, "Pins taken on blocks"),
    counter(PINS_OVERDUE, MetricUnit::Blocks, TIER, Some(PINS), "Pins that were held past their deadline and were reported"),
    counter(STORED, MetricUnit::Blocks, TIER, None, "Blocks that were stored"),
    counter(LEFT_OUT, MetricUnit::Blocks, TIER, Some(STORED), "Blocks that a tier did not store: no room, a failing tier, or ancestors in no tier"),
    gauge(PRESENT, MetricUnit::Blocks, TIER, Some(CAPACITY), "Blocks that a lookup can find"),
    gauge(CAPACITY, MetricUnit::Blocks, TIER, None, "Capacity of the tier, in blocks"),
    counter(EVICTED, MetricUnit::Blocks, &["tier", "reason"], Some(STORED), "Blocks that left a tier, and why"),
    counter(CHECKED, MetricUnit::Blocks, TIER, None, "Blocks whose checksum was compared"),
    counter(CHECKSUM_FAILURES, MetricUnit::Blocks, TIER, Some(CHECKED), "Blocks whose checksum did not match"),
];

/// Registers unit and help text of each metric with the recorder.
pub(super) fn describe() {
    for metric in CATALOGUE {
        let unit = match metric.unit {
            MetricUnit::Count | MetricUnit::Blocks => metrics::Unit::Count,
            MetricUnit::Bytes => metrics::Unit::Bytes,
            MetricUnit::Seconds => metrics::Unit::Seconds,
        };
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, unit, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, unit, metric.help),
            MetricKind::Histogram => describe_histogram!(metric.name, unit, metric.help),
        }
    }
}
