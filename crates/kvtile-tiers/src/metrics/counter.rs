//! Counters and gauges by the values of a label, kept here and reported to the recorder. Their
//! handles are created once: counting is two atomic additions, without a lookup in the recorder.

use super::label::MetricLabel;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
pub(super) struct MetricCounter {
    value: AtomicU64,
    handle: metrics::Counter,
}

impl MetricCounter {
    pub(super) fn new(handle: metrics::Counter) -> MetricCounter {
        MetricCounter {
            value: AtomicU64::new(0),
            handle,
        }
    }

    pub(super) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        self.handle.increment(count);
    }

    pub(super) fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A current value.
pub(super) struct MetricGauge {
    value: AtomicU64,
    handle: metrics::Gauge,
}

impl MetricGauge {
    pub(super) fn new(handle: metrics::Gauge) -> MetricGauge {
        MetricGauge {
            value: AtomicU64::new(0),
            handle,
        }
    }

    pub(super) fn set(&self, count: u64) {
        self.value.store(count, Ordering::Relaxed);
        self.handle.set(count as f64);
    }

    pub(super) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        self.handle.increment(count as f64);
    }

    /// Subtracts what was added before.
    pub(super) fn subtract(&self, count: u64) {
        let before = self.value.fetch_sub(count, Ordering::Relaxed);
        assert!(before >= count, "{count} taken from a gauge of {before}");
        self.handle.decrement(count as f64);
    }

    pub(super) fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// One counter or gauge for each value of a label.
pub(super) struct PerLabel<L, C> {
    cells: Vec<(L, C)>,
}

impl<L: MetricLabel, C> PerLabel<L, C> {
    /// One for each value of a closed label.
    pub(super) fn all(make: impl FnMut(L) -> C) -> PerLabel<L, C> {
        PerLabel::of(L::ALL, make)
    }
}

impl<L: Copy + Ord, C> PerLabel<L, C> {
    /// One for each of these values.
    pub(super) fn of(labels: &[L], mut make: impl FnMut(L) -> C) -> PerLabel<L, C> {
        let cells = labels.iter().map(|label| (*label, make(*label)));
        PerLabel {
            cells: cells.collect(),
        }
    }

    /// Calls `use_it` with the cell of a value; does nothing for a value without a cell.
    pub(super) fn with<R>(&self, label: L, use_it: impl FnOnce(&C) -> R) -> Option<R> {
        let cell = self.cells.iter().find(|(one, _)| *one == label);
        cell.map(|(_, cell)| use_it(cell))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (L, &C)> {
        self.cells.iter().map(|(label, cell)| (*label, cell))
    }

    /// The values that are not zero.
    pub(super) fn values(&self, value: impl Fn(&C) -> u64) -> BTreeMap<L, u64> {
        let values = self.iter().map(|(label, cell)| (label, value(cell)));
        values.filter(|&(_, value)| value > 0).collect()
    }
}
