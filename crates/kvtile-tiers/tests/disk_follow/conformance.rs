//! The conformance suite of tiers on a writer and a follower together: writes and removals go to
//! the writer and are synced, everything else is what the follower answers after a refresh.

use std::{any::Any, path::PathBuf, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId},
    pool::PinClaim,
};
use kvtile_testkit::tier::conformance::{OpenTierAt, check_tier};
use kvtile_tiers::{
    disk::{DiskFollower, DiskSettings, DiskTier},
    tier::{
        BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities, TierAnswer,
        TierContext, TierHold, TierStats, WriteReport,
    },
};
use kvtile_transfer::completion::Completion;

use crate::common::{DISK_BYTES, GROUP, ended};

/// A writer and a follower of one folder, as one tier.
#[derive(Debug)]
struct WriterWithFollower {
    writer: DiskTier,
    follower: DiskFollower,
}

impl WriterWithFollower {
    fn open(folder: PathBuf, context: &TierContext) -> WriterWithFollower {
        let settings = DiskSettings::new(folder, DISK_BYTES).refresh_after(Duration::from_hours(1));
        let events = 1 << 16;
        let apart = TierContext {
            events: Arc::new(EventLog::new(events.try_into().unwrap()).unwrap()),
            ..context.clone()
        };
        WriterWithFollower {
            writer: DiskTier::open(&settings, &apart).unwrap(),
            follower: DiskFollower::open(&settings, context).unwrap(),
        }
    }

    /// Makes the writer's changes visible to the follower.
    fn publish(&self) {
        let synced = ended(&self.writer.sync());
        assert!(synced.failure.is_none() && synced.lost == 0, "{synced:?}");
        let answer = ended(&self.follower.ask(GROUP, &[]));
        assert!(answer.failure.is_none(), "{answer:?}");
    }
}

impl Tier for WriterWithFollower {
    fn id(&self) -> TierId {
        self.follower.id()
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: true,
            is_durable: true,
            ..self.follower.abilities()
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        // The writer's policy learns of the use, as if the block were found there.
        drop(self.writer.find(group, keys, claim));
        self.follower.find(group, keys, claim)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.follower.hold(group, keys)
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        self.follower.has(group, key)
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        self.follower.ask(group, keys)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        self.follower.read(blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let report = ended(&self.writer.write(blocks));
        self.publish();
        Completion::ended(0, report)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let removed = self.writer.forget(group, keys);
        self.publish();
        removed
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        let evicted = self.writer.evict(blocks, now);
        self.publish();
        evicted
    }

    fn clear(&self, now: Tick) -> usize {
        let evicted = self.writer.clear(now);
        self.publish();
        evicted
    }

    fn sync(&self) -> Completion<SyncReport> {
        self.writer.sync()
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.writer.durable(group, keys)
    }

    fn stats(&self) -> TierStats {
        let mut stats = self.writer.stats();
        stats.present = self.follower.stats().present;
        stats
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        self.follower.estimate(group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.follower.list(blocks);
    }

    fn maintain(&self) {
        self.writer.maintain();
        self.follower.maintain();
    }

    fn check_integrity(&self) {
        self.writer.check_integrity();
        self.follower.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn folder() -> OpenTierAt {
    let folder = tempfile::tempdir().unwrap();
    Box::new(move |context: &TierContext| {
        let tier = WriterWithFollower::open(folder.path().join("tier"), context);
        Arc::new(tier) as Arc<dyn Tier>
    })
}

#[test]
fn a_follower_without_threads_keeps_the_contract() {
    check_tier(0, &folder);
}

#[test]
fn a_follower_with_threads_keeps_the_contract() {
    check_tier(2, &folder);
}
