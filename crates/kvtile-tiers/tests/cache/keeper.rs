//! The keeper of the caches under test: this process. `kvtile-daemon` runs the same scenarios with a
//! keeper of its own, a daemon to which each cache is connected.

use kvtile_tiers::{TierError, cache::CacheSettings};
use kvtile_transfer::{HasLayout, PhysicalLayout, PhysicalLayoutBuilder};

pub(crate) use kvtile_tiers::cache::{Cache as TestCache, CacheBuilder as TestBuilder};

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 1;

/// How often a process is killed.
pub(crate) const KILLS: u64 = 20;

/// Builds the engine's layout, in memory of this process.
pub(crate) fn engine(layout: PhysicalLayoutBuilder<HasLayout>) -> PhysicalLayout {
    layout.allocate_system().build().unwrap()
}

/// Opens a cache.
pub(crate) fn open(
    settings: CacheSettings,
    engine: PhysicalLayout,
) -> Result<TestCache, TierError> {
    TestCache::open(settings, engine)
}

/// A builder of a cache.
pub(crate) fn builder(settings: CacheSettings) -> TestBuilder {
    TestCache::builder(settings)
}
