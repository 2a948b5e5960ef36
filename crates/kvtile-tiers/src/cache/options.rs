//! What callers may say of lookups, loads and stores beside their blocks.

use std::time::Duration;

use kvtile_blocks::{
    policy::Hints,
    pool::{OwnerId, TenantId},
};
use kvtile_transfer::LayoutHandle;

/// How urgent a job is; later ones of the list come first. One turn in eight goes to the job that waits for
/// the longest time, whatever its priority, so that none waits for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// When there is nothing else: prefetching.
    Background,
    /// Storing, unless something else is said.
    Low,
    /// Loading, unless something else is said.
    #[default]
    Normal,
    /// Before everything else.
    Urgent,
}

/// What is said of a lookup beside its keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupOptions {
    /// Who looks; reports of pins name it.
    pub owner: OwnerId,
    /// The match should be used or dropped within this time; one that is held for longer is
    /// reported by [`Cache::overdue`](super::Cache::overdue).
    pub hold: Option<Duration>,
    /// What the caller knows of the request.
    pub hints: Hints,
    /// After this time the blocks are worth nothing and leave first, to about a second. The longest time that
    /// any of their users gave counts, and none is the longest. It stands for `hints.expires`, which
    /// counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
}

/// What is said of a load beside its blocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// When it is its turn.
    pub priority: Priority,
    /// Parts that have not begun after this time do not begin.
    pub within: Option<Duration>,
    /// Where the blocks go: another layout of the cache's transfer manager that holds the same, or the
    /// engine's.
    pub layout: Option<LayoutHandle>,
}

/// What is said of a store beside its blocks.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Whose blocks they are.
    pub tenant: TenantId,
    /// When it is its turn.
    pub priority: Priority,
    /// If it has not begun after this time, it does not begin.
    pub within: Option<Duration>,
    /// What the caller knows of the blocks.
    pub hints: Hints,
    /// After this time the blocks are worth nothing and leave first, to about a second. The longest time that
    /// any of their users gave counts, and none is the longest. It stands for `hints.expires`, which
    /// counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
    /// Where the blocks are: another layout of the cache's transfer manager that holds the same, or
    /// the engine's.
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
