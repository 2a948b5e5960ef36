//! Folders of several groups: blocks of unequal sizes under one capacity, one manifest, one lock.

mod crash;
mod lend;
mod refusals;
mod store;
mod tier;

use std::{path::Path, sync::Arc};

use kvtile_blocks::GroupId;
use kvtile_tiers::{
    TierError,
    disk::{RecoveredBlocks, SlotFolder, SlotStore, SlotStoreSettings, SlotWrite, TierGroup},
};

use crate::common::{content, key, sized};

/// Unequal sizes: three pages, part of one page, and more than one page.
const SIZES: [(&str, u64); 3] = [("full", 12_288), ("state", 1600), ("swa", 5000)];

/// The first `count` groups.
pub(crate) fn groups(count: usize) -> Vec<TierGroup> {
    let group = |(name, bytes): &(&str, u64)| TierGroup::new(*name, sized(*bytes));
    SIZES.iter().take(count).map(group).collect()
}

/// Settings with room for `places` places of each group.
pub(crate) fn room(places: u64, groups: &[TierGroup]) -> SlotStoreSettings {
    let of_group = |group: &TierGroup| {
        let slot = group.identity.block_bytes().next_multiple_of(4096);
        places * slot + (places * 128).next_multiple_of(4096)
    };
    // Folder and lock, and two manifests.
    let manifest = 4096 * (1 + groups.len() as u64);
    let data: u64 = groups.iter().map(of_group).sum();
    SlotStoreSettings::new(2 * 4096 + 2 * manifest + data)
}

fn open(
    path: &Path,
    places: u64,
    groups: &[TierGroup],
) -> Result<(SlotFolder, Vec<RecoveredBlocks>), TierError> {
    SlotFolder::create_or_open(path, &room(places, groups), groups)
}

fn group(folder: &SlotFolder, group: usize) -> &Arc<SlotStore> {
    let group = GroupId(u32::try_from(group).unwrap());
    folder.store(group).unwrap()
}

/// The number that the bytes of block `number` of a group are made of. Its key is the same in all
/// groups.
fn seed(group: usize, number: u64) -> u64 {
    number + 1000 * group as u64
}

/// Writes blocks `first..first + count` of a chain to the slots of the same numbers of every group.
fn write_chains(folder: &SlotFolder, groups: &[TierGroup], first: u64, count: u64) {
    for (index, (store, group)) in folder.stores().iter().zip(groups).enumerate() {
        for number in first..first + count {
            let bytes = content(seed(index, number), &group.identity);
            let slot = u32::try_from(number).unwrap();
            let written = store.write(&[write(slot, number, &bytes)]);
            assert!(written.failed.is_empty(), "{:?}", written.failed);
        }
    }
}

/// A write of block `number` of one chain to `slot`.
fn write(slot: u32, number: u64, bytes: &[u8]) -> SlotWrite<'_> {
    crate::common::write(slot, number, bytes)
}

fn sync(folder: &SlotFolder) {
    for synced in folder.sync() {
        assert!(synced.failure.is_none(), "{:?}", synced.failure);
        assert!(synced.lost.is_empty());
    }
    folder.check_integrity();
}

/// Reads every recovered block of a group and compares all of its bytes; returns their numbers.
fn check_group(
    store: &SlotStore,
    recovered: &RecoveredBlocks,
    (index, group): (usize, &TierGroup),
) -> Vec<u64> {
    let mut buffer = vec![0; usize::try_from(store.block_bytes()).unwrap()];
    let check = |entry: &kvtile_tiers::disk::StoredSlot| {
        let number = u64::from(entry.position);
        assert_eq!(entry.key, key(number));
        assert_eq!(entry.parent, number.checked_sub(1).map(key));
        store.read(entry.slot, &entry.key, &mut buffer).unwrap();
        let expected = content(seed(index, number), &group.identity);
        assert!(buffer == expected, "block {number} of group {index}");
        number
    };
    recovered.entries.iter().map(check).collect()
}

/// Opens the folder and checks that every group has the blocks `numbers`, with their bytes.
fn check_folder(path: &Path, places: u64, groups: &[TierGroup], numbers: &[u64]) -> SlotFolder {
    let (folder, recovered) = open(path, places, groups).unwrap();
    folder.check_integrity();
    for (index, (store, recovered)) in folder.stores().iter().zip(&recovered).enumerate() {
        let found = check_group(store, recovered, (index, &groups[index]));
        assert_eq!(found, numbers, "group {index}");
        assert_eq!(recovered.dropped.total(), 0, "group {index}");
    }
    folder
}
