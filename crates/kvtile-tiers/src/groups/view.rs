//! One group of a shared tier, as the tier of that group's cache.
//!
//! The cache of a group knows one group, number 0. The view gives it the number that the group has in
//! the tier, and counts and evicts blocks of that group alone.

use std::{any::Any, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, GroupId, Tick,
    events::{StoredBlock, TierId},
    pool::{PinClaim, PinReport},
};
use kvtile_transfer::completion::Completion;

use crate::tier::{
    BlockRead, BlockWrite, ReadReport, SyncReport, Tier, TierAbilities, TierAnswer, TierHold,
    TierStats, WriteReport,
};

/// One group of a tier.
#[derive(Debug)]
pub(super) struct TierOfGroup {
    pub(super) tier: Arc<dyn Tier>,
    /// The number of the group in the tier.
    pub(super) group: GroupId,
}

impl Tier for TierOfGroup {
    fn id(&self) -> TierId {
        self.tier.id()
    }

    fn abilities(&self) -> TierAbilities {
        self.tier.abilities()
    }

    fn find(&self, _: GroupId, keys: &[BlockKey], claim: &PinClaim) -> Option<Box<dyn TierHold>> {
        self.tier.find(self.group, keys, claim)
    }

    fn hold(&self, _: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.tier.hold(self.group, keys)
    }

    fn has(&self, _: GroupId, key: &BlockKey) -> bool {
        self.tier.has(self.group, key)
    }

    fn ask(&self, _: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        self.tier.ask(self.group, keys)
    }

    fn read(&self, mut blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        blocks
            .iter_mut()
            .for_each(|block| block.name.group = self.group);
        self.tier.read(blocks)
    }

    fn write(&self, mut blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        blocks
            .iter_mut()
            .for_each(|block| block.name.group = self.group);
        self.tier.write(blocks)
    }

    fn forget(&self, _: GroupId, keys: &[BlockKey]) -> usize {
        self.tier.forget(self.group, keys)
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        self.tier.evict_of(self.group, blocks, now)
    }

    /// Clears all groups: the cache over groups clears the caches of all groups.
    fn clear(&self, now: Tick) -> usize {
        self.tier.clear(now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        self.tier.sync()
    }

    fn durable(&self, _: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.tier.durable(self.group, keys)
    }

    fn stats(&self) -> TierStats {
        self.tier.stats_of(self.group)
    }

    fn estimate(&self, _: GroupId, blocks: usize) -> Option<Duration> {
        self.tier.estimate(self.group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        let before = blocks.len();
        self.tier.list(blocks);
        let mut at = 0;
        blocks.retain(|block| {
            at += 1;
            at <= before || block.group == self.group
        });
    }

    fn overdue(&self, now: Tick) -> Vec<PinReport> {
        self.tier.overdue(now)
    }

    fn maintain(&self) {
        self.tier.maintain();
    }

    fn check_integrity(&self) {
        self.tier.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self.tier.as_any()
    }
}
