//! Groups of a disk tier that lend room to each other, within one capacity.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    num::NonZeroUsize,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use kvtile_blocks::{BlockKey, GroupId, events::EventLog, policy::PolicyKind, pool::PinClaim};
use kvtile_random::SplitMix64;
use kvtile_testkit::{
    disk::SimulatedDisk,
    tier::{HostMemory, content},
};
use kvtile_tiers::{
    TierError,
    cache::SystemClock,
    disk::{
        DiskSettings, DiskTier,
        medium::{FolderMedium, Medium},
    },
    tier::{BlockName, BlockRead, BlockWrite, NotWritten, Tier, TierContext, TierGroup, TierMiss},
};

/// Blocks of 16, 64 and 10 KiB.
const LENT_PAGES: [u64; 3] = [64, 256, 40];

/// Bytes of a slot of each group.
const SLOT_BYTES: [u64; 3] = [16_384, 65_536, 12_288];

const LENT_BYTES: u64 = 8 << 20;

/// Blocks of a batch.
const BATCH: u32 = 16;

struct LendingTier {
    hosts: Vec<HostMemory>,
    tier: DiskTier,
}

fn block(group: u32, number: u32) -> BlockName {
    let mut bytes = [9; 16];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    BlockName {
        group: GroupId(group),
        key: BlockKey::from_bytes(bytes),
    }
}

impl LendingTier {
    fn open_on(medium: Arc<dyn Medium>, bytes: u64) -> Result<LendingTier, TierError> {
        let hosts = LENT_PAGES.map(|tokens| HostMemory::with_page_size(40, tokens).unwrap());
        let groups = ["a", "b", "c"].into_iter().zip(&hosts);
        let groups = groups.map(|(name, host)| TierGroup::new(name, host.identity().clone()));
        let context = TierContext {
            groups: groups.collect(),
            events: Arc::new(EventLog::new(NonZeroUsize::new(1 << 10).unwrap()).unwrap()),
            clock: Arc::new(SystemClock::default()),
            threads: 0,
        };
        let settings = DiskSettings::new("unused", bytes).policy(PolicyKind::Lru);
        Ok(LendingTier {
            tier: DiskTier::open_on(medium, &settings, &context)?,
            hosts: hosts.into(),
        })
    }

    fn open(folder: &Path, bytes: u64) -> LendingTier {
        LendingTier::open_on(Arc::new(FolderMedium::new(folder)), bytes).unwrap()
    }

    fn host(&self, name: &BlockName) -> &HostMemory {
        &self.hosts[usize::try_from(name.group.0).unwrap()]
    }

    fn write(&self, names: &[BlockName]) -> Vec<Result<(), NotWritten>> {
        let block = |name: &BlockName| BlockWrite {
            name: *name,
            parent: None,
            position: 0,
            tenant: 0,
            from: self.host(name).filled(name).1,
        };
        let written = self.tier.write(names.iter().map(block).collect()).wait();
        let outcomes = written.blocks.iter().cloned();
        outcomes.map(|outcome| outcome.map(drop)).collect()
    }

    /// Writes blocks of a group, in batches.
    fn fill(&self, group: u32, numbers: std::ops::Range<u32>) {
        let names: Vec<BlockName> = numbers.map(|number| block(group, number)).collect();
        for batch in names.chunks(BATCH as usize) {
            let written = self.write(batch);
            assert!(written.iter().all(Result::is_ok), "{written:?}");
        }
    }

    /// Reads a block and compares its bytes.
    fn read(&self, name: &BlockName) -> Result<(), TierMiss> {
        let host = self.host(name);
        let (reserved, into) = host.empty();
        let read = self.tier.read(vec![BlockRead { name: *name, into }]).wait();
        read.blocks[0].clone()?;
        let right = host.bytes(&reserved) == content(name, host.block_bytes());
        assert!(right, "{name:?} has other bytes");
        Ok(())
    }

    /// The numbers of the blocks of a group, without reading them.
    fn listed(&self, group: u32) -> BTreeSet<u32> {
        let mut listed = Vec::new();
        self.tier.list(&mut listed);
        let ours = listed
            .iter()
            .filter(|stored| stored.group == GroupId(group));
        ours.map(|stored| u32::from_le_bytes(stored.key.as_bytes()[..4].try_into().unwrap()))
            .collect()
    }

    /// The blocks of a group, each with the right bytes.
    fn present(&self, group: u32) -> BTreeSet<u32> {
        let numbers = self.listed(group);
        for number in &numbers {
            self.read(&block(group, *number)).unwrap();
        }
        numbers
    }

    /// Bytes of the slots of the blocks of each group.
    fn bytes(&self) -> [u64; 3] {
        [0, 1, 2].map(|group: u32| {
            let stats = self.tier.group_stats(GroupId(group)).unwrap();
            stats.present * SLOT_BYTES[usize::try_from(group).unwrap()]
        })
    }

    fn find(&self, name: &BlockName) -> bool {
        let found = self
            .tier
            .find(name.group, &[name.key], &PinClaim::default());
        found.is_some()
    }

    fn sync(&self) {
        let synced = self.tier.sync().wait();
        assert!(synced.failure.is_none(), "{:?}", synced.failure);
        self.tier.check_integrity();
    }
}

/// Bytes that the files of a folder take on the disk.
fn kept(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    files
        .map(|file| file.metadata().unwrap().blocks() * 512)
        .sum()
}

#[test]
fn a_group_takes_what_no_other_uses_and_gives_back_what_exceeds_its_share() {
    let folder = tempfile::tempdir().unwrap();
    let rig = LendingTier::open(folder.path(), LENT_BYTES);
    rig.fill(1, 0..110);
    rig.sync();
    let [_, alone, _] = rig.bytes();
    assert!(alone > LENT_BYTES * 8 / 10, "{alone}");
    assert!(kept(folder.path()) <= LENT_BYTES);
    // Groups without a share have the same number of blocks, here a little more than 80.
    rig.fill(0, 0..80);
    rig.fill(2, 0..80);
    rig.sync();
    let [a, b, c] = rig.bytes();
    assert_eq!((a, c), (80 * SLOT_BYTES[0], 80 * SLOT_BYTES[2]));
    assert!(b > LENT_BYTES / 2 && a + b + c > LENT_BYTES * 8 / 10, "{b}");
    assert!(kept(folder.path()) <= LENT_BYTES);
    // The newest blocks stay, with their bytes.
    let count = u32::try_from(b / SLOT_BYTES[1]).unwrap();
    assert_eq!(rig.present(1), (110 - count..110).collect());
    assert_eq!(rig.present(0), (0..80).collect());
    assert_eq!(rig.present(2), (0..80).collect());
    let stats = rig.tier.stats();
    assert_eq!(stats.evicted_for_room + stats.present, 270);
    assert_eq!(stats.removed, 0);
    assert!(stats.capacity >= stats.present);
}

#[test]
fn idle_blocks_give_way_to_another_group_and_used_ones_do_not() {
    for used in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let rig = LendingTier::open(folder.path(), LENT_BYTES);
        rig.fill(1, 0..60);
        let before = rig.bytes()[1];
        for first in (0..1500).step_by(60) {
            rig.fill(0, first..first + 60);
            for number in 0..60 {
                assert!(!used || rig.find(&block(1, number)), "{first}");
            }
        }
        rig.sync();
        let [a, b, _] = rig.bytes();
        match used {
            true => assert_eq!(b, before),
            false => assert!(b < before / 4 && a > LENT_BYTES * 7 / 10, "{a}, {b}"),
        }
        assert!(kept(folder.path()) <= LENT_BYTES);
        rig.present(0);
        rig.present(1);
    }
}

#[test]
fn what_a_group_has_taken_is_there_after_a_restart_and_fits_a_smaller_capacity() {
    for (after, most_lost) in [
        (LENT_BYTES, 0),
        (2 * LENT_BYTES, 0),
        (LENT_BYTES / 2, u32::MAX),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let rig = LendingTier::open(folder.path(), LENT_BYTES);
        rig.fill(1, 0..130);
        rig.fill(0, 0..10);
        rig.sync();
        let before: Vec<BTreeSet<u32>> = (0..3).map(|group| rig.present(group)).collect();
        drop(rig);
        let rig = LendingTier::open(folder.path(), after);
        rig.tier.check_integrity();
        // The group within its share keeps all of its blocks.
        assert_eq!(rig.present(0), before[0]);
        let there = rig.present(1);
        assert!(there.is_subset(&before[1]));
        let lost = before[1].len() - there.len();
        assert!(lost <= most_lost as usize, "{lost} lost with {after}");
        let all: u64 = rig.bytes().iter().sum();
        assert!(all > after.min(LENT_BYTES) * 7 / 10, "{all} of {after}");
        assert!(
            kept(folder.path()) <= after,
            "{} of {after}",
            kept(folder.path())
        );
        // Less than what makes the other blocks idle.
        rig.fill(1, 300..310);
        rig.sync();
        assert!(kept(folder.path()) <= after);
        assert_eq!(rig.present(0), before[0]);
    }
}

#[test]
fn a_batch_of_more_blocks_than_the_folder_holds_and_pinned_blocks_of_others_leave_all_right() {
    let folder = tempfile::tempdir().unwrap();
    let rig = LendingTier::open(folder.path(), LENT_BYTES);
    rig.fill(1, 0..130);
    let held: Vec<_> = rig.present(1).into_iter().collect();
    let holds: Vec<_> = held
        .iter()
        .map(|number| rig.tier.hold(GroupId(1), &[block(1, *number).key]).unwrap())
        .collect();
    // Nothing can be evicted: the group has the places that it always has.
    let batch: Vec<BlockName> = (0..40).map(|number| block(0, number)).collect();
    let written = rig.write(&batch);
    let refused = written.iter().filter(|outcome| outcome.is_err()).count();
    assert!(refused > 20, "{refused}");
    assert_eq!(rig.present(1).len(), held.len());
    drop(holds);
    assert!(rig.write(&batch).iter().all(Result::is_ok));
    rig.sync();
    assert!(kept(folder.path()) <= LENT_BYTES);
}

/// Random writes, lookups, removals and restarts with other capacities.
#[test]
fn random_use_stays_within_the_capacity_with_the_right_bytes() {
    for seed in 0..2 {
        let mut numbers = SplitMix64::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = LENT_BYTES / 2;
        let mut rig = LendingTier::open(folder.path(), bytes);
        let mut hot = 0;
        for step in 0..60 {
            if numbers.once_in(10) {
                hot = u32::try_from(numbers.below(3)).unwrap();
            }
            let group = match numbers.once_in(4) {
                true => u32::try_from(numbers.below(3)).unwrap(),
                false => hot,
            };
            let first = u32::try_from(numbers.below(500)).unwrap();
            match numbers.index(12) {
                0 => {
                    let keys: Vec<BlockKey> = (0..500).map(|at| block(group, at).key).collect();
                    rig.tier.forget(GroupId(group), &keys[..numbers.index(500)]);
                }
                1 => {
                    rig.sync();
                    drop(rig);
                    bytes = LENT_BYTES / 4 + numbers.below(LENT_BYTES);
                    rig = LendingTier::open(folder.path(), bytes);
                    (0..3).for_each(|group| drop(rig.present(group)));
                }
                2..5 => (first..first + 50).for_each(|at| {
                    rig.find(&block(group, at));
                }),
                _ => rig.fill(group, first..first + 30),
            }
            rig.tier.check_integrity();
            let kept = kept(folder.path());
            assert!(kept <= bytes, "seed {seed}, step {step}: {kept} of {bytes}");
        }
        (0..3).for_each(|group| drop(rig.present(group)));
    }
}

/// A loss of power at any moment, also while room moves between groups.
#[test]
fn after_a_loss_of_power_the_blocks_fit_and_durable_ones_are_there() {
    for seed in 0..24 {
        let mut numbers = SplitMix64::new(1000 + seed);
        let disk = SimulatedDisk::new(seed);
        let medium = || Arc::new(disk.clone()) as Arc<dyn Medium>;
        let bytes = LENT_BYTES / 4;
        let rig = LendingTier::open_on(medium(), bytes).unwrap();
        disk.set_fuse(20 + numbers.below(700));
        let mut durable: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        let mut next = 0;
        while !disk.is_dead() {
            let group = u32::try_from(numbers.below(6)).unwrap().min(2);
            let names: Vec<BlockName> = (next..next + 8).map(|at| block(group, at)).collect();
            next += 8;
            drop(rig.write(&names));
            if numbers.once_in(3) && rig.tier.sync().wait().failure.is_none() {
                durable = (0..3).map(|group| (group, rig.listed(group))).collect();
            }
        }
        // What is still in the pools was not evicted.
        let kept: Vec<BTreeSet<u32>> = (0..3)
            .map(|group| {
                let durable = durable.remove(&group).unwrap_or_default();
                durable.intersection(&rig.listed(group)).copied().collect()
            })
            .collect();
        disk.crash();
        drop(rig);
        let rig = LendingTier::open_on(medium(), bytes).unwrap();
        rig.tier.check_integrity();
        let all: u64 = rig.bytes().iter().sum();
        assert!(all <= bytes, "seed {seed}: {all}");
        for (group, kept) in (0..3).zip(kept) {
            assert!(
                kept.is_subset(&rig.present(group)),
                "seed {seed}, group {group}"
            );
        }
        rig.fill(0, 100_000..100_100);
        rig.fill(2, 100_000..100_100);
        rig.sync();
    }
}
