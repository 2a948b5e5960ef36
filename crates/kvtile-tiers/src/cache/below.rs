//! A tier below host memory with the cache's state for it: writes to do, health, and time limits.
//! The tier itself does not know these.

use std::{
    any::Any,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId, pool::PinClaim};
use kvtile_transfer::completion::Completion;
use parking_lot::{Mutex, MutexGuard};

use super::{
    health::OperationHealth,
    spill::{SpillList, TierPauses},
};
use crate::{
    clock::Clock,
    error::{BatchError, RequestError, TierError},
    tier::{
        BlockName, BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities,
        TierAnswer, TierHold, TierSettings, WriteReport,
    },
};

/// The group of a cache's blocks. There is one.
pub(super) const GROUP: GroupId = GroupId(0);

/// A tier of the cache, below host memory.
pub(super) struct CacheTier {
    pub(super) id: TierId,
    pub(super) tier: Arc<dyn Tier>,
    pub(super) settings: TierSettings,
    pub(super) abilities: TierAbilities,
    /// Whether writes succeed.
    pub(super) writes: OperationHealth,
    /// Whether syncs succeed. While syncs fail, the cache writes nothing either. While writes fail,
    /// it still syncs earlier writes.
    pub(super) syncs: OperationHealth,
    /// Whether reads complete in time.
    pub(super) reads: OperationHealth,
    /// The writes and syncs that the tier's thread has to do.
    pub(super) spill: SpillList,
    /// Host memory of batches that did not complete in time. Until the tier releases it, the cache
    /// starts no read, and no write outside a flush. So a tier that hangs cannot take all of host
    /// memory.
    late: Mutex<Vec<HostMemoryRef>>,
}

/// Keeps host blocks from being reused while a tier holds them.
pub(super) type HostMemoryRef = Weak<dyn Any + Send + Sync>;

impl CacheTier {
    pub(super) fn new(tier: Arc<dyn Tier>, settings: TierSettings) -> CacheTier {
        let id = tier.id();
        let abilities = tier.abilities();
        CacheTier {
            id,
            abilities,
            tier,
            settings,
            writes: OperationHealth::new(format!("writes to the {id} tier")),
            syncs: OperationHealth::new(format!("syncs of the {id} tier")),
            reads: OperationHealth::new(format!("reads of the {id} tier")),
            spill: SpillList::new(abilities.is_durable),
            late: Mutex::default(),
        }
    }

    /// The leading blocks of `keys` that it has, for a request; `None` during a backoff of its
    /// reads, and while it holds late memory.
    pub(super) fn find(
        &self,
        keys: &[BlockKey],
        claim: &PinClaim,
        now: Duration,
    ) -> Option<Box<dyn TierHold>> {
        if self.has_late_memory() || !self.reads.allows(now) {
            return None;
        }
        self.tier.find(GROUP, keys, claim)
    }

    /// Whether it has the block.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.tier.has(GROUP, key)
    }

    /// Pins the leading blocks of `keys` that it has, without counting a use for its policy.
    pub(super) fn hold(&self, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.tier.hold(GROUP, keys)
    }

    /// Pins one block.
    pub(super) fn hold_one(&self, key: &BlockKey) -> Option<Box<dyn TierHold>> {
        self.hold(std::slice::from_ref(key))
    }

    /// Whether the cache may write a block now on its own initiative, outside a flush.
    pub(super) fn takes_blocks(&self, now: Duration) -> bool {
        let may_write = !self.has_late_memory() && self.syncs.paused_until().is_none();
        may_write && self.writes.allows(now)
    }

    fn late(&self) -> MutexGuard<'_, Vec<HostMemoryRef>> {
        self.late.lock()
    }

    /// Records the host memory of a batch that did not complete in time.
    pub(super) fn is_late(&self, places: impl IntoIterator<Item = HostMemoryRef>) {
        self.late().extend(places);
    }

    /// Whether the tier still holds host memory of a batch that did not complete in time.
    fn has_late_memory(&self) -> bool {
        let mut late = self.late();
        late.retain(|place| place.strong_count() > 0);
        !late.is_empty()
    }

    /// The ends of the backoffs of writes and syncs.
    pub(super) fn pauses(&self) -> TierPauses {
        let syncs = self.syncs.paused_until();
        TierPauses {
            writes: self.writes.paused_until().max(syncs),
            syncs,
        }
    }

    /// Reads a batch, within the time limit of the settings.
    pub(super) fn read(&self, blocks: Vec<BlockRead>) -> Result<ReadReport, TierError> {
        let wanted = blocks.len();
        self.end_read(&self.tier.read(blocks), wanted)
    }

    /// Waits for the read of a batch, within the time limit of the settings.
    pub(super) fn end_read(
        &self,
        read: &Completion<ReadReport>,
        wanted: usize,
    ) -> Result<ReadReport, TierError> {
        let report = self.wait("read", read)?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Writes a batch, within the time limit of the settings.
    pub(super) fn write(&self, blocks: Vec<BlockWrite>) -> Result<WriteReport, TierError> {
        let wanted = blocks.len();
        let report = self.wait("write", &self.tier.write(blocks))?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Waits until all earlier writes are durable, within the time limit of the settings.
    ///
    /// # Panics
    /// If the tier is not durable.
    pub(super) fn sync(&self, clock: &dyn Clock) -> SyncReport {
        assert!(
            self.abilities.is_durable,
            "a sync of the {} tier, which is not durable",
            self.id
        );
        self.spill.sync_begins();
        let synced = self.wait("sync", &self.tier.sync());
        let report = synced.unwrap_or_else(|error| SyncReport {
            lost: 0,
            failure: Some(error),
        });
        let now = clock.now();
        match &report.failure {
            Some(error) => {
                self.syncs.failed(now, error);
                self.spill.touched(now);
            }
            None => self.syncs.succeeded(now),
        }
        report
    }

    /// Waits for an answer, within the time limit of the settings.
    pub(super) fn answer(&self, answer: &Completion<TierAnswer>) -> Result<TierAnswer, TierError> {
        self.wait("answer", answer)
    }

    fn wait<T: Clone>(
        &self,
        operation: &'static str,
        completion: &Completion<T>,
    ) -> Result<T, TierError> {
        let within = self.settings.answer_within;
        completion.wait_timeout(within).ok_or_else(|| {
            completion.cancel();
            TierError::Request(RequestError::Late {
                tier: self.id,
                operation,
                within,
            })
        })
    }

    fn check_outcomes(&self, found: usize, wanted: usize) -> Result<(), TierError> {
        match found == wanted {
            true => Ok(()),
            false => Err(TierError::Batch(BatchError::TierBroken {
                tier: self.id,
                what: "ended a batch with another number of outcomes than blocks",
            })),
        }
    }
}

/// The name of a cache's block in a tier.
pub(super) fn name(key: BlockKey) -> BlockName {
    BlockName { group: GROUP, key }
}
