//! A tier below host memory, and what the cache knows of it beside what the tier knows itself: when it is
//! written to, whether it works, and how long the cache waits for it.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId, pool::Claim};
use kvtile_transfer::completion::Completion;

use super::{
    health::Health,
    spill::{Pauses, Spill},
};
use crate::{
    clock::Clock,
    error::TierError,
    tier::{
        Abilities, Answer, BlockName, BlockRead, BlockWrite, GroupId, Hold, ReadReport, SyncReport,
        Tier, TierSettings, WriteReport,
    },
};

/// The group of a cache's blocks. There is one.
pub(super) const GROUP: GroupId = GroupId(0);

/// A tier of the cache.
pub(super) struct Below {
    pub(super) id: TierId,
    pub(super) tier: Arc<dyn Tier>,
    pub(super) settings: TierSettings,
    pub(super) abilities: Abilities,
    /// Whether it takes blocks.
    pub(super) writes: Health,
    /// Whether it syncs. Where it does not, nothing is written either; where writes fail, what was written
    /// is synced all the same.
    pub(super) syncs: Health,
    /// Whether it answers reads in time.
    pub(super) reads: Health,
    /// What is to be written and synced by the thread of the tier.
    pub(super) spill: Spill,
    /// Host memory of batches that did not end in time. The tier gets nothing more before it has let go of it,
    /// so a tier that never answers cannot take all host memory, a batch with each attempt.
    late: Mutex<Vec<Place>>,
}

/// What keeps host blocks from being given out while a tier has them.
pub(super) type Place = Weak<dyn Any + Send + Sync>;

impl Below {
    pub(super) fn new(tier: Arc<dyn Tier>, settings: TierSettings) -> Below {
        let id = tier.id();
        let abilities = tier.abilities();
        Below {
            id,
            abilities,
            tier,
            settings,
            writes: Health::new(format!("writes to the {id} tier")),
            syncs: Health::new(format!("syncs of the {id} tier")),
            reads: Health::new(format!("reads of the {id} tier")),
            spill: Spill::new(abilities.is_durable),
            late: Mutex::default(),
        }
    }

    /// The leading blocks of `keys` that it has, for a request; none while its reads are left alone.
    pub(super) fn find(
        &self,
        keys: &[BlockKey],
        claim: &Claim,
        now: Duration,
    ) -> Option<Box<dyn Hold>> {
        if self.has_late_memory() || !self.reads.allows(now) {
            return None;
        }
        self.tier.find(GROUP, keys, claim)
    }

    /// Whether it has a block.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.tier.has(GROUP, key)
    }

    /// Pins the leading blocks of `keys` that it has, without its policy hearing of it.
    pub(super) fn hold(&self, keys: &[BlockKey]) -> Option<Box<dyn Hold>> {
        self.tier.hold(GROUP, keys)
    }

    /// Pins one block.
    pub(super) fn hold_one(&self, key: &BlockKey) -> Option<Box<dyn Hold>> {
        self.hold(std::slice::from_ref(key))
    }

    /// Whether a block may be written now without being requested by a caller.
    pub(super) fn takes_blocks(&self, now: Duration) -> bool {
        let may_write = !self.has_late_memory() && self.syncs.paused_until().is_none();
        may_write && self.writes.allows(now)
    }

    fn late(&self) -> MutexGuard<'_, Vec<Place>> {
        // Nothing that holds the lock can leave it half changed.
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch did not end in time; these are its places in host memory.
    pub(super) fn is_late(&self, places: impl IntoIterator<Item = Place>) {
        self.late().extend(places);
    }

    /// Whether it has host memory of a batch that did not end in time.
    fn has_late_memory(&self) -> bool {
        let mut late = self.late();
        late.retain(|place| place.strong_count() > 0);
        !late.is_empty()
    }

    /// Until when writes and syncs are left alone.
    pub(super) fn pauses(&self) -> Pauses {
        let syncs = self.syncs.paused_until();
        Pauses {
            writes: self.writes.paused_until().max(syncs),
            syncs,
        }
    }

    /// Reads a batch, waiting for at most the time of the settings.
    pub(super) fn read(&self, blocks: Vec<BlockRead>) -> Result<ReadReport, TierError> {
        let wanted = blocks.len();
        self.end_read(&self.tier.read(blocks), wanted)
    }

    /// Waits for the end of a read of `wanted` blocks, for at most the time of the settings.
    pub(super) fn end_read(
        &self,
        read: &Completion<ReadReport>,
        wanted: usize,
    ) -> Result<ReadReport, TierError> {
        let report = self.wait("read", read)?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Writes a batch, waiting for at most the time of the settings.
    pub(super) fn write(&self, blocks: Vec<BlockWrite>) -> Result<WriteReport, TierError> {
        let wanted = blocks.len();
        let report = self.wait("write", &self.tier.write(blocks))?;
        self.check_outcomes(report.blocks.len(), wanted)?;
        Ok(report)
    }

    /// Waits until everything written before is durable, for at most the time of the settings.
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

    /// Waits for an answer, for at most the time of the settings.
    pub(super) fn answer(&self, answer: &Completion<Answer>) -> Result<Answer, TierError> {
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
            TierError::Late {
                tier: self.id,
                operation,
                within,
            }
        })
    }

    fn check_outcomes(&self, found: usize, wanted: usize) -> Result<(), TierError> {
        match found == wanted {
            true => Ok(()),
            false => Err(TierError::TierBroken {
                tier: self.id,
                what: "ended a batch with another number of outcomes than blocks",
            }),
        }
    }
}

/// The name of a block of the cache.
pub(super) fn name(key: BlockKey) -> BlockName {
    BlockName { group: GROUP, key }
}
