//! The keeper of the caches under test: this process. `kvtile-daemon` runs the same scenarios over a daemon.

use std::{ops::Deref, sync::Arc};

use kvtile_tiers::{
    TierError,
    cache::FlushReport,
    disk::medium::Medium,
    groups::{GroupCache, GroupCacheSettings},
};
use kvtile_transfer::{LayoutHandle, TransferManager};

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 1;

/// A cache in this process.
#[derive(Debug)]
pub(crate) struct TestGroups(GroupCache);

impl TestGroups {
    /// Opens a cache, on another medium than the folder of its disk if one is given.
    pub(crate) fn open(
        settings: GroupCacheSettings,
        medium: Option<Arc<dyn Medium>>,
        (manager, handles): (Arc<TransferManager>, &[Option<LayoutHandle>]),
    ) -> Result<TestGroups, TierError> {
        let mut builder = GroupCache::builder(settings);
        if let Some(medium) = medium {
            builder = builder.medium(medium);
        }
        builder.open_registered(manager, handles).map(TestGroups)
    }

    pub(crate) fn close(self) -> Vec<(String, FlushReport)> {
        self.0.close()
    }
}

impl Deref for TestGroups {
    type Target = GroupCache;

    fn deref(&self) -> &GroupCache {
        &self.0
    }
}
