//! A cache of KV blocks over tiers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `cache` | the cache: lookups, loads, stores, and what moves between its tiers |
//! | `clock` | the time that a cache goes by |
//! | `disk` | blocks in a folder: slots, their records, what survives a crash |
//! | `keys` | keys of blocks for one identity |
//! | `medium` | what the disk tier needs of a file system, and the folder that has it |
//! | `metrics` | what a cache counts: names, units, labels, and the counters |
//! | `replay` | request traces through a cache, and the bounds that no cache beats |
//! | `rate` | how fast a tier is, from what it moved lately |
//! | `room` | how much room a chain gets, in the cache and in the dry replay alike |
//! | `tier` | the contract of places below host memory |
//!
//! Which block is worth keeping is decided by the policies of `kvtile-blocks`; how bytes are moved
//! and permuted is the business of `kvtile-transfer`.

#![forbid(unsafe_code)]

pub mod cache;
mod clock;
pub mod disk;
mod error;
mod keys;
pub mod medium;
pub mod metrics;
mod rate;
pub mod replay;
mod room;
pub mod tier;

pub use error::{FileChange, TierError};
pub use keys::{HasherOptions, TokenHasher};
