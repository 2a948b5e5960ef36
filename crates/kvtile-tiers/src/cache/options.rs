//! Options of lookups, loads and stores. Each starts from its defaults and is changed by the methods named
//! after its fields, so that a new option breaks no caller.

use std::time::Duration;

use kvtile_blocks::{
    policy::EvictionHints,
    pool::{OwnerId, TenantId},
};
use kvtile_transfer::{DeviceMark, LayoutHandle};

use super::LoadMarks;
pub use crate::queue::Priority;

/// Options of [`Cache::lookup_with`](super::Cache::lookup_with).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LookupOptions {
    /// The owner of the pins, named in reports of overdue pins.
    pub owner: OwnerId,
    /// How long the match may hold its pins (default: without limit).
    /// [`Cache::overdue`](super::Cache::overdue) reports pins that are held for longer.
    pub hold: Option<Duration>,
    /// Hints for the eviction policy.
    pub hints: EvictionHints,
    /// How long the blocks are worth keeping (default: for ever), to about a second. Expired blocks are
    /// evicted first. The longest lifetime of a block's users counts; a user without a lifetime counts
    /// as for ever. It replaces `hints.expires`, which counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
    /// Tokens per second at which the engine computes the KV of this request, a finite number above 0
    /// (default, and in place of any other number: that of the cache's settings). Blocks that take
    /// longer to load from the tiers below than to compute are misses.
    pub recompute_tokens_per_second: Option<f64>,
}

impl LookupOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> LookupOptions {
        LookupOptions::default()
    }

    /// Sets [`owner`](Self::owner).
    #[must_use]
    pub fn owner(mut self, owner: OwnerId) -> LookupOptions {
        self.owner = owner;
        self
    }

    /// Sets [`hold`](Self::hold).
    #[must_use]
    pub fn hold(mut self, time: impl Into<Option<Duration>>) -> LookupOptions {
        self.hold = time.into();
        self
    }

    /// Sets [`hints`](Self::hints).
    #[must_use]
    pub fn hints(mut self, hints: EvictionHints) -> LookupOptions {
        self.hints = hints;
        self
    }

    /// Sets [`lifetime`](Self::lifetime).
    #[must_use]
    pub fn lifetime(mut self, time: impl Into<Option<Duration>>) -> LookupOptions {
        self.lifetime = time.into();
        self
    }

    /// Sets [`recompute_tokens_per_second`](Self::recompute_tokens_per_second).
    #[must_use]
    pub fn recompute_tokens_per_second(mut self, rate: impl Into<Option<f64>>) -> LookupOptions {
        self.recompute_tokens_per_second = rate.into();
        self
    }

    /// The rate of computing, if it is one.
    pub(super) fn rate(&self) -> Option<f64> {
        let rate = self.recompute_tokens_per_second;
        rate.filter(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// Options of [`Cache::load_with`](super::Cache::load_with).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The priority in the queue.
    pub priority: Priority,
    /// The deadline, from now (default: none). Parts of the load that have not begun by then do not begin,
    /// and a load by layers ends before its next layers.
    pub within: Option<Duration>,
    /// The layout that the blocks are copied to (default: the engine's): one of the same shape and identity
    /// that is registered with the cache's transfer manager.
    pub layout: Option<LayoutHandle>,
    /// The work of devices that comes before the load, such as what still reads its blocks (default: none). The layout must
    /// be in memory of a device.
    pub after: Vec<DeviceMark>,
    /// Receives the marks of the layers of a load to a device (default: none), so that a stream can wait for a layer.
    pub marks: Option<LoadMarks>,
}

impl LoadOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> LoadOptions {
        LoadOptions::default()
    }

    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> LoadOptions {
        self.priority = priority;
        self
    }

    /// Sets [`within`](Self::within).
    #[must_use]
    pub fn within(mut self, time: impl Into<Option<Duration>>) -> LoadOptions {
        self.within = time.into();
        self
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn layout(mut self, layout: impl Into<Option<LayoutHandle>>) -> LoadOptions {
        self.layout = layout.into();
        self
    }

    /// Adds to [`after`](Self::after).
    #[must_use]
    pub fn after(mut self, mark: DeviceMark) -> LoadOptions {
        self.after.push(mark);
        self
    }

    /// Sets [`marks`](Self::marks).
    #[must_use]
    pub fn marks(mut self, marks: impl Into<Option<LoadMarks>>) -> LoadOptions {
        self.marks = marks.into();
        self
    }
}

/// Options of [`Cache::store_with`](super::Cache::store_with).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The index in `keys` of the first stored block (default 0).
    pub first: usize,
    /// The tenant whose quota the blocks count against.
    pub tenant: TenantId,
    /// The priority in the queue (default [`Priority::Low`]).
    pub priority: Priority,
    /// The deadline, from now (default: none). A store that has not begun by then does not begin.
    pub within: Option<Duration>,
    /// Hints for the eviction policy.
    pub hints: EvictionHints,
    /// How long the blocks are worth keeping, as [`LookupOptions::lifetime`].
    pub lifetime: Option<Duration>,
    /// The layout that the blocks are copied from (default: the engine's): one of the same shape and identity
    /// that is registered with the cache's transfer manager.
    pub layout: Option<LayoutHandle>,
    /// The work of devices that comes before the store, such as what writes the blocks (default: none). The layout must be
    /// in memory of a device.
    pub after: Vec<DeviceMark>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            first: 0,
            tenant: TenantId::default(),
            priority: Priority::Low,
            within: None,
            hints: EvictionHints::default(),
            lifetime: None,
            layout: None,
            after: Vec::new(),
        }
    }
}

impl StoreOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> StoreOptions {
        StoreOptions::default()
    }

    /// Sets [`first`](Self::first).
    #[must_use]
    pub fn first(mut self, index: usize) -> StoreOptions {
        self.first = index;
        self
    }

    /// Sets [`tenant`](Self::tenant).
    #[must_use]
    pub fn tenant(mut self, tenant: TenantId) -> StoreOptions {
        self.tenant = tenant;
        self
    }

    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> StoreOptions {
        self.priority = priority;
        self
    }

    /// Sets [`within`](Self::within).
    #[must_use]
    pub fn within(mut self, time: impl Into<Option<Duration>>) -> StoreOptions {
        self.within = time.into();
        self
    }

    /// Sets [`hints`](Self::hints).
    #[must_use]
    pub fn hints(mut self, hints: EvictionHints) -> StoreOptions {
        self.hints = hints;
        self
    }

    /// Sets [`lifetime`](Self::lifetime).
    #[must_use]
    pub fn lifetime(mut self, time: impl Into<Option<Duration>>) -> StoreOptions {
        self.lifetime = time.into();
        self
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn layout(mut self, layout: impl Into<Option<LayoutHandle>>) -> StoreOptions {
        self.layout = layout.into();
        self
    }

    /// Adds to [`after`](Self::after).
    #[must_use]
    pub fn after(mut self, mark: DeviceMark) -> StoreOptions {
        self.after.push(mark);
        self
    }
}
