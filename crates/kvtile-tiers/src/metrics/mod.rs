//! What a cache counts.
//!
//! A [`CacheMetrics`] counts for one cache, and tells the `metrics` facade the same numbers, whatever
//! recorder the program installed there before the cache was built (Prometheus, or none). The cache
//! reads its own back as [`CacheStats`]. This module decides nothing and reads no clock.
//!
//! [`CATALOGUE`] has every name with its unit, its labels, and what it is a part of, so that each
//! ratio has its denominator. Where bytes go from and to are two labels, `source` and `destination`,
//! each of them a tier: no label stands for a direction.
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
mod recorder;
mod stats;
#[cfg(test)]
mod tests;

pub use catalogue::{CATALOGUE, Kind, Metric, Unit};
pub use label::{EvictionReason, MissReason, Queue};
pub use recorder::CacheMetrics;
pub use stats::{CacheStats, MoveStats, QueueStats};
