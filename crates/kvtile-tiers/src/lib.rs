//! A cache of KV blocks over tiers.
//!
//! | module | contents |
//! | --- | --- |
//! | `below` | a tier with its owner's state: health, write-behind, syncs |
//! | `block_store` | blocks in memory that the caller owns, over the tiers of a cache |
//! | `cache` | the cache: lookups, loads, stores, and transfers between its tiers |
//! | `clock` | the clock of a cache |
//! | `directory` | the blocks of other caches, from their events |
//! | `disk` | the disk tier: slots in a folder, their records, crash consistency |
//! | `groups` | the cache over groups of layers: stops, and loads that are all or nothing |
//! | `ids` | checks of block ids |
//! | `keys` | block keys for one identity |
//! | `medium` | the file-system operations that the disk tier needs, and their implementation on a folder |
//! | `metrics` | the counters of a cache: names, units, labels |
//! | `opening` | what a cache and a block store open alike |
//! | `parts` | a tier that assembles blocks from the parts that other ranks wrote |
//! | `queue` | the bounded queue of jobs |
//! | `replay` | replay of request traces through a cache, and upper bounds on the hit rate of any cache |
//! | `rate` | the measured throughput of a tier |
//! | `room` | allocation of blocks for a chain, shared by the cache and the dry replay |
//! | `source` | the events of a cache or a block store, without keeping it open |
//! | `tier` | the contract of the tiers below host memory |
//!
//! The policies of `kvtile-blocks` decide which blocks to keep. `kvtile-transfer` moves and
//! permutes the bytes.

#![forbid(unsafe_code)]

mod below;
pub mod block_store;
pub mod cache;
mod clock;
mod directory;
pub mod disk;
mod error;
pub mod groups;
mod ids;
mod keys;
pub mod medium;
pub mod metrics;
mod opening;
pub mod parts;
mod queue;
mod rate;
pub mod replay;
mod room;
mod source;
pub mod tier;

pub use below::{OperationHealth, TierHealth};
pub use directory::{DIRECTORY_TIERS_MAX, TierDirectory};
pub use error::{
    BatchError, ConvertError, FileChange, FolderError, MismatchError, RequestError, SettingsError,
    SlotError, TierError,
};
pub use keys::{HasherOptions, TokenHasher};
pub use rate::reading_pays;
pub use source::EventSource;
