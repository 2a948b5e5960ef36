//! The keeper of the caches under test: this process. `kvtile-daemon` runs the same scenarios over a daemon.

use std::sync::Arc;

pub(crate) use kvtile_tiers::groups::GroupCache as TestGroups;
use kvtile_tiers::{TierError, disk::medium::Medium, groups::GroupCacheSettings};
use kvtile_transfer::{LayoutHandle, TransferManager};

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 1;

/// Opens a cache, on another medium than the folder of its disk if one is given.
pub(crate) fn open(
    settings: GroupCacheSettings,
    medium: Option<Arc<dyn Medium>>,
    (manager, handles): (Arc<TransferManager>, &[Option<LayoutHandle>]),
) -> Result<TestGroups, TierError> {
    let mut builder = TestGroups::builder(settings);
    if let Some(medium) = medium {
        builder = builder.medium(medium);
    }
    builder.open_registered(manager, handles)
}
