//! The disk as a tier of several groups: each evicts its own blocks, reads its own pieces, and is
//! damaged alone.

use std::{fs, num::NonZeroUsize, os::unix::fs::FileExt, path::Path, sync::Arc};

use kvtile_blocks::{BlockKey, GroupId, Tick, events::EventLog, policy::PolicyKind};
use kvtile_testkit::tier::{HostMemory, content as bytes_of};
use kvtile_tiers::{
    BatchError, TierError,
    cache::SystemClock,
    disk::{DiskSettings, DiskTier},
    tier::{
        BlockName, BlockRead, BlockWrite, NotWritten, Tier, TierContext, TierGroup, TierMiss,
        WriteSuccess,
    },
};

/// Blocks of 4096 and of 1024 bytes.
const PAGE_SIZES: [u64; 2] = [16, 4];

/// Room for 20 blocks of each group.
const CAPACITY_BYTES: u64 = 52 * 4096;

struct GroupedTier {
    hosts: [HostMemory; 2],
    context: TierContext,
    tier: DiskTier,
}

fn key(chain: u32, number: u32) -> BlockKey {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&chain.to_le_bytes());
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn name(group: u32, chain: u32, number: u32) -> BlockName {
    BlockName {
        group: GroupId(group),
        key: key(chain, number),
    }
}

impl GroupedTier {
    fn open(folder: &Path) -> GroupedTier {
        let hosts = PAGE_SIZES.map(|tokens| HostMemory::with_page_size(64, tokens).unwrap());
        let groups = ["full", "swa"].into_iter().zip(&hosts);
        let groups = groups.map(|(name, host)| TierGroup::new(name, host.identity().clone()));
        let context = TierContext {
            groups: groups.collect(),
            events: Arc::new(EventLog::new(NonZeroUsize::new(1 << 12).unwrap()).unwrap()),
            clock: Arc::new(SystemClock::default()),
            threads: 0,
        };
        let settings = DiskSettings::new(folder, CAPACITY_BYTES).policy(PolicyKind::Lru);
        GroupedTier {
            tier: DiskTier::open(&settings, &context).unwrap(),
            hosts,
            context,
        }
    }

    fn host(&self, name: &BlockName) -> &HostMemory {
        &self.hosts[usize::try_from(name.group.0).unwrap().min(1)]
    }

    /// Writes blocks without parents.
    fn write(&self, names: &[BlockName]) -> Vec<Result<WriteSuccess, NotWritten>> {
        let block = |name: &BlockName| BlockWrite {
            name: *name,
            parent: None,
            position: 0,
            tenant: 0,
            from: self.host(name).filled(name).1,
        };
        let blocks = names.iter().map(block).collect();
        self.tier.write(blocks).wait().blocks.to_vec()
    }

    /// Reads blocks and compares their bytes.
    fn read(&self, names: &[BlockName]) -> Vec<Result<(), TierMiss>> {
        let hosts = names.iter().map(|name| self.host(name).empty());
        let (reserved, blocks): (Vec<_>, Vec<_>) = hosts
            .zip(names)
            .map(|((reserved, into), name)| (reserved, BlockRead { name: *name, into }))
            .unzip();
        let read = self.tier.read(blocks).wait();
        let pairs = read.blocks.iter().zip(names).zip(&reserved);
        pairs
            .map(|((read, name), reserved)| {
                read.clone()?;
                let host = self.host(name);
                let found = host.bytes(reserved);
                assert!(found == bytes_of(name, host.block_bytes()), "{name:?}");
                Ok(())
            })
            .collect()
    }

    fn present(&self) -> [u64; 2] {
        [0, 1].map(|group| self.tier.group_stats(GroupId(group)).unwrap().present)
    }
}

#[test]
fn a_full_group_evicts_its_own_blocks_only() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let capacity = rig.tier.group_stats(GroupId(0)).unwrap().capacity;
    assert_eq!(capacity, 20);
    assert_eq!(rig.tier.stats().capacity, 2 * capacity);
    let full: Vec<BlockName> = (0..5).map(|number| name(0, 1, number)).collect();
    assert!(rig.write(&full).iter().all(Result::is_ok));
    for chain in 0..4 {
        let count = u32::try_from(capacity).unwrap();
        let swa: Vec<BlockName> = (0..count).map(|number| name(1, chain, number)).collect();
        assert!(rig.write(&swa).iter().all(Result::is_ok));
        assert!(rig.read(&swa).iter().all(Result::is_ok));
        assert_eq!(rig.present(), [5, capacity]);
    }
    assert!(rig.read(&full).iter().all(Result::is_ok));
    let of = |group| {
        rig.tier
            .group_stats(GroupId(group))
            .unwrap()
            .evicted_for_room
    };
    assert_eq!((of(0), of(1)), (0, 3 * capacity));
    assert_eq!(rig.tier.stats().evicted_for_room, 3 * capacity);
    assert_eq!(rig.tier.stats().present, 5 + capacity);
    assert_eq!(rig.tier.store_stats().used, 5 + capacity);
    assert!(rig.tier.group_stats(GroupId(2)).is_none());
    rig.tier.check_integrity();
}

#[test]
fn a_group_without_room_and_a_missing_group_do_not_stop_the_others_in_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let capacity = u32::try_from(rig.tier.group_stats(GroupId(0)).unwrap().capacity).unwrap();
    let full: Vec<BlockName> = (0..capacity).map(|number| name(0, 1, number)).collect();
    assert!(rig.write(&full).iter().all(Result::is_ok));
    let holds = full
        .iter()
        .map(|name| rig.tier.hold(GroupId(0), &[name.key]));
    let holds: Vec<_> = holds.collect();
    let batch = [name(1, 9, 0), name(0, 9, 0), name(2, 9, 0), name(1, 9, 1)];
    let written = rig.write(&batch);
    assert!(matches!(written[0], Ok(WriteSuccess::New)));
    assert!(matches!(written[1], Err(NotWritten::NoRoom)));
    match &written[2] {
        Err(NotWritten::Failed(TierError::Batch(BatchError::NoSuchGroup { group: 2, .. }))) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(written[3], Ok(WriteSuccess::New)));
    let read = rig.read(&batch);
    let came: Vec<bool> = read.iter().map(Result::is_ok).collect();
    assert_eq!(came, [true, false, false, true]);
    drop(holds);
    assert!(matches!(rig.write(&batch)[1], Ok(WriteSuccess::New)));
}

#[test]
fn evictions_are_in_proportion_to_the_blocks_of_the_groups() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let names = |group, count| (0..count).map(move |number| name(group, 1, number));
    let all: Vec<BlockName> = names(0, 6).chain(names(1, 18)).collect();
    assert!(rig.write(&all).iter().all(Result::is_ok));
    assert_eq!(rig.tier.evict(8, Tick(0)), 8);
    assert_eq!(rig.present(), [4, 12]);
    // What one group cannot evict comes from the other.
    let held: Vec<_> = all
        .iter()
        .filter_map(|name| {
            rig.tier
                .hold(name.group, &[name.key])
                .filter(|_| name.group.0 == 1)
        })
        .collect();
    assert_eq!(held.len(), 12);
    assert_eq!(rig.tier.evict(4, Tick(0)), 4);
    assert_eq!(rig.present(), [0, 12]);
    drop(held);
    assert_eq!(rig.tier.clear(Tick(0)), 12);
    assert_eq!(rig.present(), [0, 0]);
}

#[test]
fn damage_in_one_group_is_a_miss_of_that_group() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let names = |group| (0..6).map(move |number| name(group, 1, number));
    let all: Vec<BlockName> = names(0).chain(names(1)).collect();
    assert!(rig.write(&all).iter().all(Result::is_ok));
    assert!(rig.tier.sync().wait().failure.is_none());
    for group in [0, 1] {
        let keys: Vec<BlockKey> = names(group).map(|name| name.key).collect();
        assert_eq!(rig.tier.durable(GroupId(group), &keys), [true; 6]);
    }
    let slots = fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("slots-1"))
        .unwrap();
    slots.write_all_at(&[0; 64], 2 * 4096).unwrap();
    let read = rig.read(&all);
    let bad: Vec<usize> = (0..12).filter(|&at| read[at].is_err()).collect();
    assert_eq!(bad, [8]);
    assert!(matches!(&read[8], Err(TierMiss::Damaged { .. })));
    let damaged = [0, 1].map(|group| rig.tier.group_stats(GroupId(group)).unwrap().damaged);
    assert_eq!((damaged, rig.tier.stats().damaged), ([0, 1], 1));
    assert!(!rig.tier.has(GroupId(1), &all[8].key));
    assert!(rig.tier.has(GroupId(0), &all[8].key));
    rig.tier.check_integrity();
}

#[test]
fn pieces_and_estimates_are_those_of_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let names = [name(0, 1, 0), name(1, 1, 0)];
    assert!(rig.write(&names).iter().all(Result::is_ok));
    assert_eq!(rig.tier.estimate(GroupId(1), 3), None);
    for (name, group) in names.iter().zip(&rig.context.groups) {
        let host = rig.host(name);
        let whole = bytes_of(name, host.block_bytes());
        for piece in 0..group.identity.pieces.count() {
            let (reserved, into) = host.empty_part(piece..piece + 1);
            let read = rig.tier.read(vec![BlockRead { name: *name, into }]).wait();
            assert!(read.blocks[0].is_ok(), "{read:?}");
            let at = group.identity.pieces.bytes(piece..piece + 1);
            let at = usize::try_from(at.start).unwrap()..usize::try_from(at.end).unwrap();
            assert!(host.bytes(&reserved)[at.clone()] == whole[at]);
        }
    }
    let of = |group, blocks| {
        rig.tier
            .estimate(GroupId(group), blocks)
            .unwrap()
            .as_secs_f64()
    };
    let ratio = of(0, 100_000) / of(1, 100_000);
    assert!((ratio - 4.0).abs() < 0.01, "{ratio}");
    assert_eq!(rig.tier.estimate(GroupId(2), 1), None);
}

#[test]
fn a_tier_opened_again_has_the_blocks_of_every_group() {
    let folder = tempfile::tempdir().unwrap();
    let rig = GroupedTier::open(folder.path());
    let names = |group| (0..6).map(move |number| name(group, 1, number));
    let all: Vec<BlockName> = names(0).chain(names(1)).collect();
    assert!(rig.write(&all).iter().all(Result::is_ok));
    assert_eq!(rig.tier.forget(GroupId(0), &[all[2].key]), 1);
    assert!(rig.tier.sync().wait().failure.is_none());
    drop(rig);
    let rig = GroupedTier::open(folder.path());
    assert_eq!(rig.present(), [5, 6]);
    let read = rig.read(&all);
    let missing: Vec<usize> = (0..12).filter(|&at| read[at].is_err()).collect();
    assert_eq!(missing, [2]);
    let mut listed = Vec::new();
    rig.tier.list(&mut listed);
    assert_eq!(
        listed
            .iter()
            .filter(|block| block.group == GroupId(1))
            .count(),
        6
    );
    rig.tier.check_integrity();
}
