//! The statistics of a cache as samples of the catalogue's metrics, for a page of one or more caches.
//! A recorder gets the same numbers, summed over all caches of the process.

use kvtile_blocks::events::TierId;

use super::{
    CacheStats, EvictionReason, MissReason,
    catalogue::{self as names, CATALOGUE, Metric},
};

/// One number of a metric.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MetricSample {
    /// Its metric.
    pub metric: &'static Metric,
    /// What follows the name of the metric: `_sum` or `_count` of a histogram, or nothing.
    pub suffix: &'static str,
    /// The values of the metric's labels, in the order of [`Metric::labels`].
    pub labels: Vec<String>,
    /// The number.
    pub value: f64,
}

/// Collects samples.
struct SampleList(Vec<MetricSample>);

impl SampleList {
    fn add(&mut self, name: &str, labels: &[&str], value: u64) {
        self.add_part((name, ""), labels, value as f64);
    }

    fn add_part(&mut self, (name, suffix): (&str, &'static str), labels: &[&str], value: f64) {
        let metric = CATALOGUE.iter().find(|metric| metric.name == name);
        let Some(metric) = metric else {
            kvtile_layout::broken(format_args!("{name} is not in the catalogue"))
        };
        self.0.push(MetricSample {
            metric,
            suffix,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            value,
        });
    }
}

impl CacheStats {
    /// The statistics as samples of the [catalogue](super::CATALOGUE)'s metrics, for a cache with the
    /// tiers `tiers`. Numbers that are zero are among them, except those of routes without a
    /// transfer.
    #[must_use]
    pub fn samples(&self, tiers: &[TierId]) -> Vec<MetricSample> {
        let mut list = SampleList(Vec::new());
        list.add(names::LOOKUPS, &[], self.lookups);
        list.add(names::LOOKUP_BLOCKS, &[], self.lookup_blocks);
        for &reason in MissReason::ALL {
            let of = |counts: &std::collections::BTreeMap<MissReason, u64>| {
                counts.get(&reason).copied().unwrap_or(0)
            };
            list.add(names::MISSES, &[reason.name()], of(&self.misses));
            list.add(names::LOST_HITS, &[reason.name()], of(&self.lost_hits));
        }
        for queue in &self.queues {
            let label = &[queue.queue.name()];
            list.add(names::QUEUE_DEPTH, label, queue.depth);
            list.add(names::QUEUE_CAPACITY, label, queue.capacity);
            list.add(names::QUEUE_OFFERED, label, queue.offered);
            list.add(names::QUEUE_REFUSED, label, queue.refused);
        }
        self.add_routes(&mut list);
        for tier in tiers {
            self.add_tier(*tier, &mut list);
        }
        list.0
    }

    fn add_routes(&self, list: &mut SampleList) {
        for route in &self.moves {
            let (source, destination) = (route.source.to_string(), route.destination.to_string());
            let labels: &[&str] = &[&source, &destination];
            list.add(names::MOVES, labels, route.moves);
            list.add(names::MOVE_FAILURES, labels, route.failures);
            list.add(names::MOVED_BLOCKS, labels, route.blocks);
            list.add(names::MOVED_BYTES, labels, route.bytes);
            let completed = route.moves.saturating_sub(route.failures);
            let seconds = route.nanoseconds as f64 * 1e-9;
            list.add_part((names::MOVE_SECONDS, "_sum"), labels, seconds);
            list.add_part((names::MOVE_SECONDS, "_count"), labels, completed as f64);
        }
    }

    fn add_tier(&self, tier: TierId, list: &mut SampleList) {
        let label = tier.to_string();
        for (name, counts) in [
            (names::HITS, &self.hits),
            (names::PINNED, &self.pinned),
            (names::PINS, &self.pins),
            (names::PINS_OVERDUE, &self.pins_overdue),
            (names::STORED, &self.stored),
            (names::LEFT_OUT, &self.left_out),
            (names::PRESENT, &self.present),
            (names::CAPACITY, &self.capacity),
            (names::CHECKED, &self.checked),
            (names::CHECKSUM_FAILURES, &self.checksum_failures),
        ] {
            list.add(name, &[&label], counts.get(&tier).copied().unwrap_or(0));
        }
        for &reason in EvictionReason::ALL {
            let counts = self.evicted.get(&tier);
            let count = counts.and_then(|counts| counts.get(&reason)).copied();
            let labels = &[label.as_str(), reason.name()];
            list.add(names::EVICTED, labels, count.unwrap_or(0));
        }
    }
}
