//! The state that the calls and the threads of a shared tier have in common.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_tiers::{
    BatchError, RequestError, TierError,
    cache::Clock,
    tier::{BlockName, GroupId, NotWritten, Removals},
};
use parking_lot::Mutex;

use super::{
    alarm::{DeadlineAlarm, TimedWork},
    assembly::OpenBundles,
    beside::ValueBeside,
    counts::{TierCounts, count},
    error::SharedTierError,
    fetch::BundleFetch,
    known::{KnownBlocks, KnownBundle},
    settings::SharedTierSettings,
    staged::StagingRoom,
    threads::{JobClass, StoreThreads},
    upload::UploadLedger,
};
use crate::{
    bundle::{BundleForm, BundleName, BundlePacking},
    guard::{StoreBreaker, StorePace},
    store::{Deadline, SharedStore, SharedStoreAbilities, SharedStoreError, ValueName},
};

/// How often a hit renews a value without a lifetime.
const RENEW_EVERY: Duration = Duration::from_hours(1);

/// The bundles of one group.
#[derive(Debug)]
pub(super) struct GroupBundles {
    pub(super) form: BundleForm,
    /// How blocks are compressed, where the settings say so.
    pub(super) packing: BundlePacking,
    pub(super) names: BundleName,
    pub(super) manifest: ValueBeside,
    /// Announces the part to readers of other layers and heads; `None` for blocks that are not cut into parts.
    pub(super) announcement: Option<ValueBeside>,
    /// Whether each block is a bundle of its own, because none has a parent.
    pub(super) is_rootless: bool,
}

/// The parts of a shared tier.
pub(super) struct SharedTierParts {
    pub(super) id: TierId,
    pub(super) store: Arc<dyn SharedStore>,
    pub(super) abilities: SharedStoreAbilities,
    pub(super) settings: SharedTierSettings,
    pub(super) groups: Vec<GroupBundles>,
    pub(super) known: KnownBlocks,
    pub(super) room: Arc<StagingRoom>,
    pub(super) open: OpenBundles,
    pub(super) uploads: UploadLedger,
    pub(super) removals: Arc<Removals>,
    /// Reads of bundles in flight, by the last block of the bundle.
    pub(super) fetches: Mutex<HashMap<BlockName, Arc<BundleFetch>>>,
    pub(super) threads: Arc<StoreThreads>,
    /// `None` in a tier without threads.
    pub(super) alarm: Option<Arc<DeadlineAlarm>>,
    pub(super) pace: Arc<StorePace>,
    pub(super) reads: Arc<StoreBreaker>,
    pub(super) writes: Arc<StoreBreaker>,
    pub(super) counts: Arc<TierCounts>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) is_closing: AtomicBool,
}

impl fmt::Debug for SharedTierParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTierParts")
            .field("id", &self.id)
            .field("store", &self.store)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl SharedTierParts {
    pub(super) fn group(&self, group: GroupId) -> Option<&GroupBundles> {
        self.groups.get(usize::try_from(group.0).ok()?)
    }

    /// The group of a block to write.
    pub(super) fn group_to_write(&self, group: GroupId) -> Result<&GroupBundles, NotWritten> {
        let unknown = BatchError::NoSuchGroup {
            tier: self.id,
            group: group.0,
        };
        let found = self.group(group);
        found.ok_or_else(|| NotWritten::Failed(TierError::Batch(unknown)))
    }

    /// The name of the bundle with this last block; `None` for a group that the tier does not have.
    pub(super) fn value_name(&self, bundle: &BlockName) -> Option<ValueName> {
        Some(self.group(bundle.group)?.names.of(&bundle.key))
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    pub(super) fn closed() -> TierError {
        TierError::Request(RequestError::Closed)
    }

    pub(super) fn late(&self, operation: &'static str, within: Duration) -> TierError {
        TierError::Request(RequestError::Late {
            tier: self.id,
            operation,
            within,
        })
    }

    pub(super) fn paused(&self) -> TierError {
        SharedTierError::Paused { tier: self.id }.into()
    }

    pub(super) fn store_error(&self, source: SharedStoreError) -> TierError {
        let store = self.store.name().to_owned();
        SharedTierError::Store { store, source }.into()
    }

    /// Calls `work` when its time is up, unless it has ended by then.
    pub(super) fn set_alarm(&self, within: Duration, work: &Arc<impl TimedWork + 'static>) {
        let at = Instant::now().checked_add(within);
        if let (Some(alarm), Some(at)) = (&self.alarm, at) {
            let work: Arc<dyn TimedWork> = Arc::clone(work) as _;
            let work: Weak<dyn TimedWork> = Arc::downgrade(&work);
            alarm.set(at, work);
        }
    }

    /// A call of the store for reads succeeded.
    pub(super) fn read_succeeded(&self, bytes: u64, time: Duration) {
        self.pace.measured(bytes, time);
        self.reads.succeeded(self.clock.now());
    }

    /// A call of the store for reads failed.
    pub(super) fn read_failed(&self, error: &SharedStoreError) {
        self.pace.failed();
        self.reads.failed(self.clock.now(), error);
    }

    /// A call of the store for reads did not return in time.
    pub(super) fn read_is_late(&self, error: &TierError) {
        self.pace.failed();
        self.reads.late(self.clock.now(), error);
    }

    /// A call of the store for reads did not begin in time, for lack of a thread. That is no failure
    /// of the store, unless it failed before: then calls that hang have taken the threads.
    pub(super) fn read_did_not_begin(&self, error: &TierError) {
        if self.reads.is_failing() {
            self.reads.late(self.clock.now(), error);
        }
    }

    /// Renews the lifetime of a bundle that was hit, if it is due.
    pub(super) fn renew(self: &Arc<Self>, bundle: &KnownBundle) {
        let every = self.settings.lifetime.map_or(RENEW_EVERY, |time| time / 4);
        let mut renewed = bundle.renewed.lock();
        if renewed.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        *renewed = Some(Instant::now());
        drop(renewed);
        let Some(name) = self.value_name(&bundle.name) else {
            return;
        };
        let parts = Arc::clone(self);
        let group = bundle.name.group;
        let touch = move || {
            let by = Deadline::within(parts.settings.write_within);
            let lifetime = parts.settings.lifetime;
            // A store may evict what nothing reads; readers of other parts still need it.
            let group = parts.group(group);
            if let Some(announcement) = group.and_then(|group| group.announcement.as_ref()) {
                announcement.write(&*parts.store, by);
            }
            match parts.store.touch(&[name], lifetime, by) {
                Ok(()) => count(&parts.counts.renewed, 1),
                Err(error) => {
                    log::debug!("a value of {} is not renewed: {error}", parts.store.name());
                }
            }
        };
        self.threads.push(JobClass::Write, Box::new(touch));
    }

    /// Removes a damaged value from the store, so that it can be written again.
    pub(super) fn remove_damaged(self: &Arc<Self>, bundle: &BlockName) {
        let Some(name) = self.value_name(bundle) else {
            return;
        };
        let parts = Arc::clone(self);
        let remove = move || {
            let by = Deadline::within(parts.settings.write_within);
            match parts.store.remove(std::slice::from_ref(&name), by) {
                Ok(_) => count(&parts.counts.removed, 1),
                Err(error) => log::warn!("the damaged value {name} stays: {error}"),
            }
        };
        self.threads.push(JobClass::Write, Box::new(remove));
    }

    /// The keys of whole bundles among the leading blocks of a chain: the index of each bundle's
    /// first block in `keys`. The first key is the first block of its chain unless the tier knows
    /// its position.
    pub(super) fn bundles_of<'a>(
        &self,
        group: GroupId,
        keys: &'a [BlockKey],
    ) -> Vec<(u32, Option<BlockKey>, &'a [BlockKey])> {
        let Some(of_group) = self.group(group) else {
            return Vec::new();
        };
        if of_group.is_rootless {
            let alone = |key| (0, None, std::slice::from_ref(key));
            return keys.iter().map(alone).collect();
        }
        let form = &of_group.form;
        let Some(&first) = keys.first() else {
            return Vec::new();
        };
        let known = self.known.place(&BlockName { group, key: first });
        let (position, parent) = match &known {
            Some((block, _)) => (block.position, block.parent),
            None => (0, None),
        };
        let skip = form.index_of(form.blocks - form.index_of(position));
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(keys.len());
        let (before, aligned) = keys.split_at(skip);
        let mut parent = before.last().copied().or(parent);
        let size = usize::try_from(form.blocks).unwrap_or(usize::MAX);
        let mut at = position.saturating_add(u32::try_from(skip).unwrap_or(u32::MAX));
        let mut bundles = Vec::new();
        for keys in aligned.chunks_exact(size) {
            bundles.push((at, parent, keys));
            at = at.saturating_add(form.blocks);
            parent = keys.last().copied();
        }
        bundles
    }
}
