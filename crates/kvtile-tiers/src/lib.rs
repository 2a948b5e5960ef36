//! A cache of KV blocks over tiers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `cache` | the cache: lookups, loads, stores, and what moves between its tiers |
//! | `disk` | blocks in a folder: slots, their records, what survives a crash |
//! | `metrics` | what a cache counts: names, units, labels, and the counters |
//! | `replay` | request traces through a cache, and the bounds that no cache beats |
//! | `room` | how much room a chain gets, in the cache and in the dry replay alike |
//!
//! Which block is worth keeping is decided by the policies of `kvtile-blocks`; how bytes are moved
//! and permuted is the business of `kvtile-transfer`.

#![forbid(unsafe_code)]

pub mod cache;
pub mod disk;
mod error;
pub mod metrics;
pub mod replay;
mod room;

pub use error::{FileChange, TierError};
