//! Options of lookups, loads and stores.

use std::time::Duration;

use kvtile_blocks::{
    policy::Hints,
    pool::{OwnerId, TenantId},
};
use kvtile_transfer::LayoutHandle;

/// Priority of a job; a later variant runs before an earlier one. Every eighth job is the oldest in
/// the queue regardless of its priority, so that no job starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Runs if no other job waits: the priority of prefetches.
    Background,
    /// The default of stores.
    Low,
    /// The default of loads.
    #[default]
    Normal,
    /// Runs before all others.
    Urgent,
}

/// Options of a lookup.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupOptions {
    /// The owner of the pins; reports of pins name it.
    pub owner: OwnerId,
    /// The caller should load or drop the match within this time;
    /// [`Cache::overdue`](super::Cache::overdue) reports pins that are held longer.
    pub hold: Option<Duration>,
    /// The caller's hints about the request.
    pub hints: Hints,
    /// After this time, to about a second, the blocks are worthless and are evicted first. The
    /// longest lifetime among the users of a block counts; no lifetime is the longest. It overrides
    /// `hints.expires`, which counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
}

/// Options of a load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Priority of its jobs in the queue.
    pub priority: Priority,
    /// Time limit: parts that have not begun by then never begin, and a load that arrives layer by
    /// layer stops between two layers.
    pub within: Option<Duration>,
    /// The destination layout: another layout of the cache's transfer manager with the same
    /// identity; `None` for the engine's.
    pub layout: Option<LayoutHandle>,
}

/// Options of a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// The tenant of the blocks.
    pub tenant: TenantId,
    /// Priority of its job in the queue.
    pub priority: Priority,
    /// A store that has not begun within this time never begins.
    pub within: Option<Duration>,
    /// The caller's hints about the blocks.
    pub hints: Hints,
    /// After this time, to about a second, the blocks are worthless and are evicted first. The
    /// longest lifetime among the users of a block counts; no lifetime is the longest. It overrides
    /// `hints.expires`, which counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
    /// The source layout: another layout of the cache's transfer manager with the same identity;
    /// `None` for the engine's.
    pub layout: Option<LayoutHandle>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            tenant: TenantId::default(),
            priority: Priority::Low,
            within: None,
            hints: Hints::default(),
            lifetime: None,
            layout: None,
        }
    }
}
