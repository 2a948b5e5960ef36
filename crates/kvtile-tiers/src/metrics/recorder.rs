//! The functions that a cache calls for each event. All of them are thread-safe, and none blocks.

use super::catalogue as names;
use super::counter::{MetricCounter, MetricGauge, PerLabel};
use super::label::MetricLabel;
use super::{CacheStats, EvictionReason, MissReason, MoveStats, Queue, QueueStats};
use kvtile_blocks::events::TierId;
use metrics::{counter, gauge, histogram};
use std::fmt;

type CounterPerLabel<L> = PerLabel<L, MetricCounter>;

/// The counters of one cache. At the recorder, the counters of several caches in one process add
/// up, and their gauges overwrite each other.
pub struct CacheMetrics {
    lookups: MetricCounter,
    lookup_blocks: MetricCounter,
    hits: CounterPerLabel<TierId>,
    misses: CounterPerLabel<MissReason>,
    lost_hits: CounterPerLabel<MissReason>,
    routes: PerLabel<TierId, PerLabel<TierId, RouteMeters>>,
    queues: PerLabel<Queue, QueueMeters>,
    tiers: PerLabel<TierId, TierMeters>,
}

/// The metrics of transfers from one tier to another.
struct RouteMeters {
    moves: MetricCounter,
    failures: MetricCounter,
    blocks: MetricCounter,
    bytes: MetricCounter,
    nanoseconds: MetricCounter,
    seconds: metrics::Histogram,
}

/// The metrics of a queue.
struct QueueMeters {
    depth: MetricGauge,
    capacity: MetricGauge,
    offered: MetricCounter,
    refused: MetricCounter,
}

/// The metrics of a tier.
struct TierMeters {
    pinned: MetricGauge,
    pins: MetricCounter,
    overdue: MetricCounter,
    stored: MetricCounter,
    left_out: MetricCounter,
    present: MetricGauge,
    capacity: MetricGauge,
    evicted: CounterPerLabel<EvictionReason>,
    checked: MetricCounter,
    checksum_failures: MetricCounter,
}

fn count_by<L: MetricLabel>(name: &'static str, label: &'static str) -> CounterPerLabel<L> {
    PerLabel::all(|value: L| MetricCounter::new(counter!(name, label => value.name())))
}

fn count_by_tier(name: &'static str, tiers: &[TierId]) -> CounterPerLabel<TierId> {
    PerLabel::of(tiers, |tier| {
        MetricCounter::new(counter!(name, "tier" => tier.to_string()))
    })
}

impl RouteMeters {
    fn new(source: TierId, destination: TierId) -> RouteMeters {
        let of = |name: &'static str| {
            MetricCounter::new(counter!(
                name, "source" => source.to_string(), "destination" => destination.to_string()
            ))
        };
        RouteMeters {
            moves: of(names::MOVES),
            failures: of(names::MOVE_FAILURES),
            blocks: of(names::MOVED_BLOCKS),
            bytes: of(names::MOVED_BYTES),
            // The recorder has this number as the sum of the histogram.
            nanoseconds: MetricCounter::new(metrics::Counter::noop()),
            seconds: histogram!(
                names::MOVE_SECONDS,
                "source" => source.to_string(), "destination" => destination.to_string()
            ),
        }
    }

    fn stats(&self, source: TierId, destination: TierId) -> MoveStats {
        MoveStats {
            source,
            destination,
            moves: self.moves.value(),
            failures: self.failures.value(),
            blocks: self.blocks.value(),
            bytes: self.bytes.value(),
            nanoseconds: self.nanoseconds.value(),
        }
    }
}

impl QueueMeters {
    fn new(queue: Queue) -> QueueMeters {
        let name = queue.name();
        QueueMeters {
            depth: MetricGauge::new(gauge!(names::QUEUE_DEPTH, "queue" => name)),
            capacity: MetricGauge::new(gauge!(names::QUEUE_CAPACITY, "queue" => name)),
            offered: MetricCounter::new(counter!(names::QUEUE_OFFERED, "queue" => name)),
            refused: MetricCounter::new(counter!(names::QUEUE_REFUSED, "queue" => name)),
        }
    }
}

impl TierMeters {
    fn new(tier: TierId) -> TierMeters {
        let count =
            |name: &'static str| MetricCounter::new(counter!(name, "tier" => tier.to_string()));
        let gauge = |name: &'static str| MetricGauge::new(gauge!(name, "tier" => tier.to_string()));
        TierMeters {
            pinned: gauge(names::PINNED),
            pins: count(names::PINS),
            overdue: count(names::PINS_OVERDUE),
            stored: count(names::STORED),
            left_out: count(names::LEFT_OUT),
            present: gauge(names::PRESENT),
            capacity: gauge(names::CAPACITY),
            evicted: PerLabel::all(|reason: EvictionReason| {
                let labels = [
                    ("tier", tier.to_string()),
                    ("reason", reason.name().to_owned()),
                ];
                MetricCounter::new(counter!(names::EVICTED, &labels))
            }),
            checked: count(names::CHECKED),
            checksum_failures: count(names::CHECKSUM_FAILURES),
        }
    }
}

impl CacheMetrics {
    /// Counters at zero for `tiers`, with handles of the recorder that is installed now. Events of
    /// other tiers are not counted.
    #[must_use]
    pub fn new(tiers: &[TierId]) -> CacheMetrics {
        names::describe();
        CacheMetrics {
            lookups: MetricCounter::new(counter!(names::LOOKUPS)),
            lookup_blocks: MetricCounter::new(counter!(names::LOOKUP_BLOCKS)),
            hits: count_by_tier(names::HITS, tiers),
            misses: count_by(names::MISSES, "reason"),
            lost_hits: count_by(names::LOST_HITS, "reason"),
            routes: PerLabel::of(tiers, |source| {
                PerLabel::of(tiers, |destination| RouteMeters::new(source, destination))
            }),
            queues: PerLabel::all(QueueMeters::new),
            tiers: PerLabel::of(tiers, TierMeters::new),
        }
    }

    /// Counts a lookup: each of its blocks is a hit in one tier, or a miss with one reason.
    pub fn looked_up(&self, hits: &[(TierId, u64)], misses: &[(MissReason, u64)]) {
        self.lookups.add(1);
        for &(tier, blocks) in hits {
            self.lookup_blocks.add(blocks);
            self.hits.with(tier, |counter| counter.add(blocks));
        }
        for &(reason, blocks) in misses {
            self.lookup_blocks.add(blocks);
            self.misses.with(reason, |counter| counter.add(blocks));
        }
    }

    /// Counts blocks that a lookup found and that could not be loaded.
    pub fn lost(&self, reason: MissReason, blocks: u64) {
        self.lost_hits.with(reason, |counter| counter.add(blocks));
    }

    /// Counts a completed transfer.
    pub fn moved(
        &self,
        source: TierId,
        destination: TierId,
        blocks: u64,
        bytes: u64,
        nanoseconds: u64,
    ) {
        self.route(source, destination, |route| {
            route.moves.add(1);
            route.blocks.add(blocks);
            route.bytes.add(bytes);
            route.nanoseconds.add(nanoseconds);
            route.seconds.record(nanoseconds as f64 * 1e-9);
        });
    }

    /// Counts a failed transfer: a batch that failed as a whole, or one block of a batch.
    pub fn move_failed(&self, source: TierId, destination: TierId) {
        self.route(source, destination, |route| {
            route.moves.add(1);
            route.failures.add(1);
        });
    }

    /// Sets the capacity of a queue.
    pub fn queue_capacity(&self, queue: Queue, capacity: u64) {
        self.queues
            .with(queue, |waiting| waiting.capacity.set(capacity));
    }

    /// Counts a job that entered a queue.
    pub fn queued(&self, queue: Queue) {
        self.queues.with(queue, |waiting| {
            waiting.offered.add(1);
            waiting.depth.add(1);
        });
    }

    /// Counts a job that left a queue, for any reason.
    pub fn unqueued(&self, queue: Queue) {
        self.queues.with(queue, |waiting| waiting.depth.subtract(1));
    }

    /// Counts a job that a full queue refused.
    pub fn refused(&self, queue: Queue) {
        self.queues.with(queue, |waiting| {
            waiting.offered.add(1);
            waiting.refused.add(1);
        });
    }

    /// Counts pinned blocks.
    pub fn pinned(&self, tier: TierId, blocks: u64) {
        self.tiers.with(tier, |place| {
            place.pins.add(blocks);
            place.pinned.add(blocks);
        });
    }

    /// Counts released pins.
    pub fn unpinned(&self, tier: TierId, blocks: u64) {
        self.tiers.with(tier, |place| place.pinned.subtract(blocks));
    }

    /// Counts pins that were held past their deadline and were reported, each once.
    pub fn overdue(&self, tier: TierId, pins: u64) {
        self.tiers.with(tier, |place| place.overdue.add(pins));
    }

    /// Counts stored blocks.
    pub fn stored(&self, tier: TierId, blocks: u64) {
        self.tiers.with(tier, |place| place.stored.add(blocks));
    }

    /// Counts blocks that a tier did not store.
    pub fn left_out(&self, tier: TierId, blocks: u64) {
        self.tiers.with(tier, |place| place.left_out.add(blocks));
    }

    /// Counts blocks that left a tier.
    pub fn evicted(&self, tier: TierId, reason: EvictionReason, blocks: u64) {
        self.tiers.with(tier, |place| {
            place.evicted.with(reason, |counter| counter.add(blocks));
        });
    }

    /// Sets how many blocks a tier holds, and its capacity.
    pub fn filled(&self, tier: TierId, present: u64, capacity: u64) {
        self.tiers.with(tier, |place| {
            place.present.set(present);
            place.capacity.set(capacity);
        });
    }

    /// Counts compared checksums, and how many of them did not match.
    pub fn checked(&self, tier: TierId, blocks: u64, failures: u64) {
        self.tiers.with(tier, |place| {
            place.checked.add(blocks);
            place.checksum_failures.add(failures);
        });
    }

    /// The current numbers. Under concurrent counting they may be of slightly different moments.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let routes = self.routes.iter().flat_map(|(source, to)| {
            let stats = move |(destination, route): (TierId, &RouteMeters)| {
                route.stats(source, destination)
            };
            to.iter().map(stats)
        });
        let queues = self.queues.iter().map(|(queue, waiting)| QueueStats {
            queue,
            depth: waiting.depth.value(),
            capacity: waiting.capacity.value(),
            offered: waiting.offered.value(),
            refused: waiting.refused.value(),
        });
        let tiers = |value: fn(&TierMeters) -> u64| self.tiers.values(value);
        let evicted = self.tiers.iter().map(|(tier, place)| {
            let by_reason = place.evicted.values(MetricCounter::value);
            (tier, by_reason)
        });
        CacheStats {
            lookups: self.lookups.value(),
            lookup_blocks: self.lookup_blocks.value(),
            hits: self.hits.values(MetricCounter::value),
            misses: self.misses.values(MetricCounter::value),
            lost_hits: self.lost_hits.values(MetricCounter::value),
            moves: routes.filter(|route| route.moves > 0).collect(),
            queues: queues
                .filter(|queue| queue.capacity > 0 || queue.offered > 0)
                .collect(),
            pinned: tiers(|place| place.pinned.value()),
            pins: tiers(|place| place.pins.value()),
            pins_overdue: tiers(|place| place.overdue.value()),
            stored: tiers(|place| place.stored.value()),
            left_out: tiers(|place| place.left_out.value()),
            present: tiers(|place| place.present.value()),
            capacity: tiers(|place| place.capacity.value()),
            evicted: evicted.filter(|(_, reasons)| !reasons.is_empty()).collect(),
            checked: tiers(|place| place.checked.value()),
            checksum_failures: tiers(|place| place.checksum_failures.value()),
        }
    }

    fn route(&self, source: TierId, destination: TierId, count: impl FnOnce(&RouteMeters)) {
        self.routes.with(source, |to| to.with(destination, count));
    }
}

impl fmt::Debug for CacheMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CacheMetrics").field(&self.stats()).finish()
    }
}
