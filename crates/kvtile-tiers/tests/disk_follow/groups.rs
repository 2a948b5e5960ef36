//! Folders of several groups: a follower has the blocks of each, by themselves.

use std::{collections::BTreeSet, fs};

use kvtile_blocks::{BlockKey, GroupId, Tick, events::StoredBlock};

use kvtile_testkit::{
    disk::SplitMix64,
    tier::{HostMemory, content},
};
use kvtile_tiers::{
    MismatchError, TierError,
    disk::{DiskFollower, DiskTier},
    tier::{BlockName, BlockRead, BlockWrite, Tier, TierContext, TierGroup, TierMiss},
};

use crate::common::{FollowRig, chain, ended, keys};

/// Blocks of 4096 and of 1024 bytes.
const PAGE_SIZES: [u64; 2] = [16, 4];

const DISK_BYTES: u64 = 52 * 4096;

/// A folder of two groups, its writer, and a follower.
struct GroupsRig {
    rig: FollowRig,
    hosts: [HostMemory; 2],
    context: TierContext,
}

impl GroupsRig {
    fn new(threads: usize) -> GroupsRig {
        let rig = FollowRig::new(threads);
        let hosts = PAGE_SIZES.map(|tokens| HostMemory::with_page_size(64, tokens).unwrap());
        let mut context = rig.context();
        context.groups = ["full", "swa"]
            .into_iter()
            .zip(&hosts)
            .map(|(name, host)| TierGroup::new(name, host.identity().clone()))
            .collect();
        GroupsRig {
            rig,
            hosts,
            context,
        }
    }

    fn writer(&self, bytes: u64) -> DiskTier {
        DiskTier::open(&self.rig.settings(bytes), &self.context).unwrap()
    }

    fn follower(&self) -> DiskFollower {
        self.follower_of(&self.context).unwrap()
    }

    fn follower_of(&self, context: &TierContext) -> Result<DiskFollower, TierError> {
        DiskFollower::open(&self.rig.settings(DISK_BYTES), context)
    }

    fn host(&self, name: &BlockName) -> &HostMemory {
        &self.hosts[usize::try_from(name.group.0).unwrap()]
    }

    fn write(&self, tier: &DiskTier, names: &[BlockName]) {
        let write = |name: &BlockName| BlockWrite {
            name: *name,
            parent: None,
            position: 0,
            tenant: 0,
            from: self.host(name).filled(name).1,
        };
        ended(&tier.write(names.iter().map(write).collect()));
        assert!(ended(&tier.sync()).failure.is_none());
    }

    /// Reads blocks in one batch, and compares every byte of those that come.
    fn read(&self, tier: &DiskFollower, names: &[BlockName]) -> Vec<Result<(), TierMiss>> {
        let read = |name: &BlockName| {
            let (reserved, into) = self.host(name).empty();
            (reserved, BlockRead { name: *name, into })
        };
        let (reserved, batch): (Vec<_>, Vec<_>) = names.iter().map(read).unzip();
        let report = ended(&tier.read(batch));
        let each = report.blocks.iter().zip(names).zip(&reserved);
        each.map(|((outcome, name), reserved)| {
            outcome.clone()?;
            let host = self.host(name);
            assert!(
                host.bytes(reserved) == content(name, host.block_bytes()),
                "{name:?}"
            );
            Ok(())
        })
        .collect()
    }
}

fn name(group: u32, number: u64) -> BlockName {
    let key = keys(&chain(number, 1))[0];
    BlockName {
        group: GroupId(group),
        key,
    }
}

fn listed(tier: &dyn Tier) -> BTreeSet<(GroupId, BlockKey)> {
    let mut blocks: Vec<StoredBlock> = Vec::new();
    tier.list(&mut blocks);
    blocks
        .iter()
        .map(|block| (block.group, block.key))
        .collect()
}

/// Refreshes both groups.
fn refresh(reader: &DiskFollower) {
    for group in [GroupId(0), GroupId(1)] {
        let answer = ended(&reader.ask(group, &[]));
        assert!(answer.failure.is_none(), "{answer:?}");
    }
    reader.check_integrity();
}

#[test]
fn equal_keys_of_two_groups_are_two_blocks() {
    for threads in [0, 2] {
        let rig = GroupsRig::new(threads);
        let writer = rig.writer(DISK_BYTES);
        let reader = rig.follower();
        let both = [name(0, 1), name(1, 1), name(1, 2)];
        rig.write(&writer, &both);
        let asked =
            |group: u32, name: &BlockName| ended(&reader.ask(GroupId(group), &[name.key])).leading;
        assert_eq!(
            [asked(0, &both[0]), asked(1, &both[1]), asked(1, &both[2])],
            [1; 3]
        );
        assert_eq!([asked(0, &both[2]), asked(2, &both[0])], [0; 2]);
        assert!(rig.read(&reader, &both).iter().all(Result::is_ok));
        assert_eq!(
            [0, 1, 2].map(|group| reader.stats_of(GroupId(group)).present),
            [1, 2, 0]
        );
        assert_eq!(reader.stats().present, 3);
        assert!(reader.hold(GroupId(0), &[both[2].key]).is_none());
        assert!(reader.estimate(GroupId(1), 4) < reader.estimate(GroupId(0), 4));
    }
}

/// Any sequence of writes, removals, evictions and changes of the capacity: the follower has what
/// the writer has.
#[test]
fn a_follower_has_what_the_writer_has() {
    for seed in 0..12 {
        let mut random = SplitMix64::new(seed);
        let rig = GroupsRig::new(0);
        let mut writer = Some(rig.writer(DISK_BYTES));
        let reader = rig.follower();
        for step in 0..40 {
            let tier = writer.as_ref().unwrap();
            let some: Vec<BlockName> = (0..6)
                .map(|_| name(u32::try_from(random.below(2)).unwrap(), random.below(30)))
                .collect();
            match random.below(8) {
                0..=3 => rig.write(tier, &some),
                4 => {
                    tier.forget(some[0].group, &[some[0].key]);
                }
                5 => {
                    tier.evict_of(some[0].group, 3, Tick(step));
                }
                6 if step % 5 == 0 => {
                    tier.clear(Tick(step));
                }
                _ => {
                    let bytes = DISK_BYTES / 2 * (1 + random.below(3));
                    drop(writer.take());
                    writer = Some(rig.writer(bytes));
                }
            }
            let tier = writer.as_ref().unwrap();
            assert!(ended(&tier.sync()).failure.is_none());
            refresh(&reader);
            assert_eq!(listed(&reader), listed(tier), "seed {seed}, step {step}");
            for (outcome, name) in rig.read(&reader, &some).iter().zip(&some) {
                let has = tier.has(name.group, &name.key);
                assert_eq!(outcome.is_ok(), has, "seed {seed}, step {step}: {name:?}");
            }
        }
    }
}

#[test]
fn damage_of_one_group_leaves_the_other() {
    let rig = GroupsRig::new(0);
    let writer = rig.writer(DISK_BYTES);
    let (full, swa): (Vec<_>, Vec<_>) = (0..8)
        .map(|number| (name(0, number), name(1, number)))
        .unzip();
    rig.write(&writer, &full);
    rig.write(&writer, &swa);
    drop(writer);
    let reader = rig.follower();
    let slots = rig.rig.path().join("slots-1");
    let damaged: Vec<u8> = fs::read(&slots)
        .unwrap()
        .iter()
        .map(|byte| byte ^ 1)
        .collect();
    fs::write(&slots, damaged).unwrap();
    refresh(&reader);
    assert!(rig.read(&reader, &full).iter().all(Result::is_ok));
    let lost = rig.read(&reader, &swa);
    assert!(
        lost.iter()
            .all(|read| matches!(read, Err(TierMiss::Damaged { .. }))),
        "{lost:?}"
    );
    assert_eq!(
        [0, 1].map(|group| reader.stats_of(GroupId(group)).damaged),
        [0, 8]
    );
    // A file that disappears takes the blocks of its group.
    fs::remove_file(rig.rig.path().join("records-1")).unwrap();
    refresh(&reader);
    assert_eq!(
        [0, 1].map(|group| reader.stats_of(GroupId(group)).present),
        [8, 0]
    );
    assert!(rig.read(&reader, &full).iter().all(Result::is_ok));
}

#[test]
fn exchanged_files_of_two_groups_have_no_blocks() {
    let rig = GroupsRig::new(0);
    let writer = rig.writer(DISK_BYTES);
    rig.write(&writer, &[name(0, 1), name(1, 1)]);
    drop(writer);
    let file = |file: &str| rig.rig.path().join(file);
    for [one, other] in [["records", "records-1"], ["slots", "slots-1"]] {
        fs::rename(file(one), file("aside")).unwrap();
        fs::rename(file(other), file(one)).unwrap();
        fs::rename(file("aside"), file(other)).unwrap();
    }
    let reader = rig.follower();
    assert_eq!(listed(&reader), BTreeSet::new());
}

#[test]
fn other_groups_are_refused_by_name() {
    let rig = GroupsRig::new(0);
    drop(rig.writer(DISK_BYTES));
    let mut other = rig.context.clone();
    other.groups.reverse();
    let refused = rig.follower_of(&other).unwrap_err();
    let TierError::Mismatch(MismatchError::GroupsDiffer { ours, theirs, .. }) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(
        (ours.join(" "), theirs.join(" ")),
        ("swa full".to_owned(), "full swa".to_owned())
    );
    other.groups.truncate(1);
    assert!(rig.follower_of(&other).is_err());
    assert!(
        rig.follower()
            .find(GroupId(2), &[], &Default::default())
            .is_none()
    );
}
