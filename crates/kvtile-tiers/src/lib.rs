//! A cache of KV blocks over tiers.
//!
//! | module | contents |
//! | --- | --- |
//! | `cache` | the cache: lookups, loads, stores, and transfers between its tiers |
//! | `clock` | the clock of a cache |
//! | `directory` | the blocks of other caches, from their events |
//! | `disk` | the disk tier: slots in a folder, their records, crash consistency |
//! | `keys` | block keys for one identity |
//! | `medium` | the file-system operations that the disk tier needs, and their implementation on a folder |
//! | `metrics` | the counters of a cache: names, units, labels |
//! | `replay` | replay of request traces through a cache, and upper bounds on the hit rate of any cache |
//! | `rate` | the measured throughput of a tier |
//! | `room` | allocation of blocks for a chain, shared by the cache and the dry replay |
//! | `tier` | the contract of the tiers below host memory |
//!
//! The policies of `kvtile-blocks` decide which blocks to keep. `kvtile-transfer` moves and
//! permutes the bytes.

#![forbid(unsafe_code)]

pub mod cache;
mod clock;
mod directory;
pub mod disk;
mod error;
mod keys;
pub mod medium;
pub mod metrics;
mod rate;
pub mod replay;
mod room;
pub mod tier;

pub use directory::{DIRECTORY_TIERS_MAX, TierDirectory};
pub use error::{
    BatchError, ConvertError, FileChange, FolderError, MismatchError, RequestError, SettingsError,
    SlotError, TierError,
};
pub use keys::{HasherOptions, TokenHasher};
pub use rate::reading_pays;
