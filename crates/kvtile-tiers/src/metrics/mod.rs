//! The metrics of a cache.
//!
//! A [`CacheMetrics`] counts for one cache and reports the same numbers to the `metrics` facade,
//! for the recorder that the program installed before it built the cache (Prometheus, or none). The
//! cache reads its own numbers back as [`CacheStats`]. This module decides nothing and reads no
//! clock.
//!
//! [`CATALOGUE`] lists every metric with its unit, its labels and its denominator, so that each
//! ratio can be computed. Two labels, `source` and `destination`, name the tiers of a transfer; no
//! label is a direction.
//!
//! ```
//! use kvtile_blocks::events::TierId;
//! use kvtile_tiers::metrics::{CacheMetrics, MissReason};
//!
//! let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
//! let page = recorder.handle();
//! metrics::with_local_recorder(&recorder, || {
//!     let metrics = CacheMetrics::new(&[TierId::HOST, TierId::DISK]);
//!     metrics.looked_up(&[(TierId::HOST, 3), (TierId::DISK, 1)], &[(MissReason::Absent, 4)]);
//!     metrics.moved(TierId::DISK, TierId::HOST, 1, 131_072, 80_000);
//!     assert_eq!(metrics.stats().hit_ratio(), Some(0.5));
//! });
//! assert!(page.render().contains("kvtile_lookup_hit_blocks_total{tier=\"disk\"} 1"));
//! ```

mod catalogue;
mod counter;
mod label;
mod observe;
mod recorder;
mod samples;
mod stats;
#[cfg(test)]
mod tests;

pub use catalogue::{CATALOGUE, Metric, MetricKind, MetricUnit};
pub(crate) use observe::observe_tier;

pub use label::{EvictionReason, MissReason, Queue};
pub use recorder::CacheMetrics;
pub use samples::MetricSample;
pub use stats::{CacheStats, MoveStats, QueueStats};
