//! A tier with its owner's state for it: writes to do, health, and time limits. The tier itself does
//! not know these. The owner is a cache or a block store.

mod health;
mod spill;
mod tend;

use std::{
    any::Any,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId, pool::PinClaim};
use kvtile_transfer::completion::Completion;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

pub use health::OperationHealth;
pub(crate) use spill::SpillList;
pub use spill::{SYNC_BLOCKS, SYNC_WITHIN};
pub(crate) use tend::{serve_tier, step_tier};

use spill::TierPauses;

use crate::{
    clock::Clock,
    error::{BatchError, RequestError, TierError},
    tier::{
        BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities, TierHold,
        TierSettings, WriteReport,
    },
};

/// Which operations of a tier are in a backoff after failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TierHealth {
    /// Reads: lookups do not report the blocks of the tier.
    pub reads_paused: bool,
    /// Writes: blocks are left out.
    pub writes_paused: bool,
    /// Syncs: written blocks are not durable yet.
    pub syncs_paused: bool,
    /// A batch did not complete in time and still holds host memory: no reads and no writes begin.
    pub is_late: bool,
}

/// A tier of a cache or of a block store. `K` names a block in its spill list.
pub(crate) struct TendedTier<K> {
    pub(crate) id: TierId,
    pub(crate) tier: Arc<dyn Tier>,
    pub(crate) settings: TierSettings,
    pub(crate) abilities: TierAbilities,
    /// Whether writes succeed.
    pub(crate) writes: OperationHealth,
    /// Whether syncs succeed. While syncs fail, the cache writes nothing either. While writes fail,
    /// it still syncs earlier writes.
    pub(crate) syncs: OperationHealth,
    /// Whether reads complete in time.
    pub(crate) reads: OperationHealth,
    /// The writes and syncs that the tier's thread has to do.
    pub(crate) spill: SpillList<K>,
    /// Host memory of batches that did not complete in time. Until the tier releases it, the cache
    /// starts no read, and no write outside a flush. So a tier that hangs cannot take all of host
    /// memory.
    late: Mutex<Vec<HostMemoryRef>>,
    /// Damaged and lost blocks of the tier at the last [`take_lost`](TendedTier::take_lost).
    lost: Mutex<u64>,
}

/// Keeps host blocks from being reused while a tier holds them.
pub(crate) type HostMemoryRef = Weak<dyn Any + Send + Sync>;

impl<K> TendedTier<K> {
    pub(crate) fn new(tier: Arc<dyn Tier>, settings: TierSettings) -> TendedTier<K> {
        let id = tier.id();
        let abilities = tier.abilities();
        TendedTier {
            id,
            abilities,
            tier,
            settings,
            writes: OperationHealth::new(format!("writes to the {id} tier")),
            syncs: OperationHealth::new(format!("syncs of the {id} tier")),
            reads: OperationHealth::new(format!("reads of the {id} tier")),
            spill: SpillList::new(abilities.is_durable),
            late: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// The leading blocks of `keys` that it has, for a request; `None` during a backoff of its
    /// reads, and while it holds late memory.
    pub(crate) fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
        now: Duration,
    ) -> Option<Box<dyn TierHold>> {
        self.may_read(now).then_some(())?;
        self.tier.find(group, keys, claim)
    }

    /// Whether lookups may report its blocks: as [`may_read`](Self::may_read), without counting as an
    /// attempt after a backoff.
    pub(crate) fn may_look(&self, now: Duration) -> bool {
        let is_paused = self.reads.paused_until().is_some_and(|until| now < until);
        !self.has_late_memory() && !is_paused
    }

    /// Whether reads may begin: not during a backoff, nor while it holds late memory.
    pub(crate) fn may_read(&self, now: Duration) -> bool {
        !self.has_late_memory() && self.reads.allows(now)
    }

    /// Whether the cache may write a block now on its own initiative, outside a flush.
    pub(crate) fn takes_blocks(&self, now: Duration) -> bool {
        let may_write = !self.has_late_memory() && self.syncs.paused_until().is_none();
        may_write && self.writes.allows(now)
    }

    fn late(&self) -> MutexGuard<'_, Vec<HostMemoryRef>> {
        self.late.lock()
    }

    /// Records the host memory of a batch that did not complete in time.
    pub(crate) fn is_late(&self, places: impl IntoIterator<Item = HostMemoryRef>) {
        self.late().extend(places);
    }

    /// Whether the tier still holds host memory of a batch that did not complete in time.
    fn has_late_memory(&self) -> bool {
        let mut late = self.late();
        late.retain(|place| place.strong_count() > 0);
        !late.is_empty()
    }

    /// The ends of the backoffs of writes and syncs.
    pub(crate) fn pauses(&self) -> TierPauses {
        let syncs = self.syncs.paused_until();
        TierPauses {
            writes: self.writes.paused_until().max(syncs),
            syncs,
        }
    }

    /// What is in a backoff now.
    pub(crate) fn health(&self, now: Duration) -> TierHealth {
        let is_paused =
            |health: &OperationHealth| health.paused_until().is_some_and(|until| now < until);
        TierHealth {
            reads_paused: is_paused(&self.reads),
            writes_paused: is_paused(&self.writes),
            syncs_paused: is_paused(&self.syncs),
            is_late: self.has_late_memory(),
        }
    }

    /// Reads a batch, within the time limit of the settings.
    pub(crate) fn read(&self, blocks: Vec<BlockRead>) -> Result<ReadReport, TierError> {
        let wanted = blocks.len();
        self.end_read(&self.tier.read(blocks), wanted)
    }

    /// Waits for the read of a batch, within the time limit of the settings.
    pub(crate) fn end_read(
        &self,
        read: &Completion<ReadReport>,
        wanted: usize,
    ) -> Result<ReadReport, TierError> {
        let report = self.wait("read", read)?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Writes a batch, within the time limit of the settings.
    pub(crate) fn write(&self, blocks: Vec<BlockWrite>) -> Result<WriteReport, TierError> {
        let wanted = blocks.len();
        self.end_write(&self.tier.write(blocks), wanted)
    }

    /// Waits for the write of a batch, within the time limit of the settings.
    pub(crate) fn end_write(
        &self,
        write: &Completion<WriteReport>,
        wanted: usize,
    ) -> Result<WriteReport, TierError> {
        let report = self.wait("write", write)?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Waits until all earlier writes are durable, within the time limit of the settings.
    ///
    /// # Panics
    /// If the tier is not durable.
    pub(crate) fn sync(&self, clock: &dyn Clock) -> SyncReport {
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

    /// Number of written blocks that failed syncs lost since the previous call. What a read found damaged had
    /// been written.
    pub(crate) fn take_lost(&self) -> usize {
        let now = self.tier.stats().lost;
        let before = std::mem::replace(&mut *self.lost.lock(), now);
        usize::try_from(now.saturating_sub(before)).unwrap_or(usize::MAX)
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
