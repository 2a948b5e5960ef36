//! The state that the threads of a block store share.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, GroupId, Tick,
    events::{EventLog, StoredBlock, TierId},
};
use kvtile_layout::{
    Shape, broken,
    identity::{Identity, LayoutIdentity},
};
use kvtile_transfer::TransferManager;
use parking_lot::{Mutex, RwLock};

use super::{
    BlockStoreSettings,
    count::JobCount,
    load::StoreLoadJob,
    staging::{GroupStaging, StagedBlock},
    store::RowStoreJob,
};
use crate::{
    below::TendedTier,
    clock::Clock,
    error::{RequestError, TierError},
    metrics::CacheMetrics,
    queue::JobQueue,
    source::ListStoredBlocks,
    tier::{Removals, TierStats},
};

/// A tier of a block store. Its spill list holds staged blocks.
pub(super) type StoreTier = TendedTier<Arc<StagedBlock>>;

/// One group of a block store.
pub(super) struct GroupParts {
    pub(super) name: String,
    pub(super) identity: Identity,
    pub(super) shape: Shape,
    /// The order of a stored block.
    pub(super) block_layout: LayoutIdentity,
    pub(super) block_bytes: u64,
    pub(super) staging: Arc<GroupStaging>,
}

/// The shared state of a block store.
pub(super) struct BlockStoreParts {
    /// Unique in this process.
    pub(super) number: u64,
    pub(super) manager: Arc<TransferManager>,
    pub(super) groups: Vec<GroupParts>,
    pub(super) names: HashMap<String, GroupId>,
    /// The tiers in lookup order; at least one.
    pub(super) below: Vec<StoreTier>,
    pub(super) loads: JobQueue<StoreLoadJob>,
    pub(super) stores: JobQueue<RowStoreJob>,
    /// Jobs that have not ended.
    pub(super) jobs: Arc<JobCount>,
    /// Staged blocks that are not on all tiers.
    pub(super) unwritten: Arc<JobCount>,
    /// Blocks whose write failed since the last flush.
    pub(super) failed: AtomicUsize,
    /// The removals of blocks whose stores are in flight.
    pub(super) removals: Arc<Removals>,
    /// Held during a removal, and read-locked while staged blocks are passed to a tier: the tier
    /// knows each block of staging memory that is removed, or never gets it.
    pub(super) removing: RwLock<()>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: BlockStoreSettings,
    pub(super) metrics: Arc<CacheMetrics>,
    /// The counters of the tiers at the last observation.
    pub(super) seen: Vec<Mutex<TierStats>>,
    pub(super) events: Arc<EventLog>,
}

impl std::fmt::Debug for BlockStoreParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStoreParts").finish_non_exhaustive()
    }
}

impl ListStoredBlocks for BlockStoreParts {
    fn list_stored(&self, blocks: &mut Vec<StoredBlock>) {
        for below in &self.below {
            below.tier.list(blocks);
        }
    }
}

impl BlockStoreParts {
    pub(super) fn tick(&self) -> Tick {
        let millis = self.clock.now().as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// A group that the store has.
    pub(super) fn group(&self, group: GroupId) -> &GroupParts {
        match usize::try_from(group.0).map(|at| self.groups.get(at)) {
            Ok(Some(parts)) => parts,
            _ => broken(format_args!("group {} of {}", group.0, self.groups.len())),
        }
    }

    /// Refuses a group that the store does not have.
    pub(super) fn check_group(&self, group: GroupId) -> Result<&GroupParts, TierError> {
        let parts = usize::try_from(group.0)
            .ok()
            .and_then(|at| self.groups.get(at));
        parts.ok_or_else(|| self.unknown_group(&group.0.to_string()))
    }

    pub(super) fn unknown_group(&self, group: &str) -> TierError {
        let names = self.groups.iter().map(|group| group.name.clone());
        TierError::Request(RequestError::NoSuchStoreGroup {
            group: group.to_owned(),
            groups: names.collect::<Vec<String>>().join(", "),
        })
    }

    /// Whether all tiers are in a backoff after failed writes.
    pub(super) fn writes_are_paused(&self) -> bool {
        let now = self.clock.now();
        let is_paused = |below: &StoreTier| below.pauses().writes.is_some_and(|until| now < until);
        self.below.iter().all(is_paused)
    }

    /// Whether all tiers have the block, or will have it.
    pub(super) fn has_everywhere(&self, group: GroupId, key: &BlockKey) -> bool {
        self.below.iter().all(|below| below.tier.has(group, key))
            || self.group(group).staging.has(key)
    }

    /// Whether a load would find the block.
    pub(super) fn has(&self, group: GroupId, key: &BlockKey, now: Duration) -> bool {
        let has = |below: &StoreTier| below.may_look(now) && below.tier.has(group, key);
        self.below.iter().any(has) || self.group(group).staging.has(key)
    }

    /// Counts a completed transfer.
    pub(super) fn moved(
        &self,
        (from, to): (TierId, TierId),
        blocks: usize,
        bytes: u64,
        time: Duration,
    ) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.metrics
            .moved(from, to, blocks as u64, bytes, nanoseconds);
    }
}
