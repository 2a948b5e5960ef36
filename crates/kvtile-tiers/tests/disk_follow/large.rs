//! The cost of following a large folder.
//!
//! `KVTILE_FOLLOW_BLOCKS=1000000` measures a folder of that many blocks; it takes seconds, and 64
//! bytes of disk a block.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crc_fast::{CrcAlgorithm, Digest};
use kvtile_blocks::{BlockKey, pool::PinClaim};
use kvtile_layout::{
    Shape, StridedLayout, Unit,
    identity::{Fingerprint, Identity, LayoutIdentity},
};
use kvtile_random::{SplitMix64, mix};
use kvtile_tiers::{
    disk::{BlockPieces, DiskFollower, DiskSettings, SlotStore, SlotStoreSettings, StoreIdentity},
    tier::Tier,
};

use crate::{
    common::{GROUP, context_of},
    engine::number,
};

/// Bytes of a record of one piece.
const RECORD_BYTES: u64 = 64;

/// Small blocks: a slot of one page each, and records of 64 bytes.
fn identity() -> StoreIdentity {
    let unit = Unit::new("bf16", 2, 1).unwrap();
    let shape = Shape::key_value(1, 1, 1, 2, 8, &unit).unwrap();
    let layout = StridedLayout::resolve(&"BLHKNC".parse().unwrap(), &shape, 1).unwrap();
    StoreIdentity {
        logical: Identity::new("toy", "main", &shape).unwrap(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::whole(shape.block_bytes().unwrap()),
    }
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mix(number).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// A folder whose records are written by the test: no block has bytes.
struct RecordsOnly {
    folder: tempfile::TempDir,
    identity: StoreIdentity,
    /// The random number of the folder.
    store: Fingerprint,
    places: u32,
    blocks: u32,
}

impl RecordsOnly {
    /// A folder with room for `blocks` blocks.
    fn new(blocks: u32) -> RecordsOnly {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity();
        let bytes = (u64::from(blocks) + 1100) * (4096 + 64);
        let settings = SlotStoreSettings::new(bytes);
        let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
        let places = store.manifest().groups()[0].slots();
        assert!(places >= blocks);
        let manifest = fs::read(folder.path().join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let number = manifest["manifest"]["store"].clone();
        RecordsOnly {
            store: serde_json::from_value(number).unwrap(),
            places,
            folder,
            identity,
            blocks,
        }
    }

    /// Writes records to the places, each of block `first` and those after it.
    fn write(&self, places: &[u32], first: u64) {
        let path = self.folder.path().join("records");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        for (place, number) in places.iter().zip(first..) {
            let record = self.record(*place, number);
            let offset = u64::from(*place) * RECORD_BYTES;
            file.write_all_at(&record, offset).unwrap();
        }
        file.sync_data().unwrap();
    }

    /// The record of block `number`, as the store writes it.
    fn record(&self, place: u32, number: u64) -> Vec<u8> {
        let parent = number.checked_sub(1).map(key);
        let flags = 1 + 2 * u64::from(parent.is_some());
        let mut head = key(number).as_bytes().to_vec();
        head.extend(parent.map_or([0; 16], |parent| *parent.as_bytes()));
        head.extend(1_u32.to_le_bytes());
        head.extend(2_u32.to_le_bytes());
        head.extend(((number + 1) << 8 | flags).to_le_bytes());
        let sum = number.to_le_bytes();
        let mut seal = Digest::new(CrcAlgorithm::Crc64Nvme);
        let slot = place.to_le_bytes();
        for part in [&self.store.as_bytes()[..], &slot, &head, &sum] {
            seal.update(part);
        }
        let sealed = seal.finalize().to_le_bytes();
        [head, sealed.to_vec(), sum.to_vec()].concat()
    }

    fn follow(&self) -> DiskFollower {
        let context = context_of(self.identity.clone(), 0);
        let settings = DiskSettings::new(self.folder.path(), 0);
        DiskFollower::open(&settings.refresh_after(Duration::from_hours(1)), &context).unwrap()
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = fs::read_to_string(Path::new("/proc/self/statm")).unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn refresh(follower: &DiskFollower) -> Duration {
    let start = Instant::now();
    let answer = follower.ask(GROUP, &[]).wait();
    assert!(answer.failure.is_none(), "{answer:?}");
    start.elapsed()
}

/// Adds `added` records to a folder of `blocks`, and prints what following them costs.
fn follow_large(blocks: u32, added: u32) {
    let folder = RecordsOnly::new(blocks + added);
    let places: Vec<u32> = (0..blocks).collect();
    folder.write(&places, 0);
    // Old enough that a comparison can trust the time of the file.
    std::thread::sleep(Duration::from_millis(2100));
    let before = resident();
    let start = Instant::now();
    let follower = folder.follow();
    let opened = start.elapsed();
    let bytes = resident().saturating_sub(before) as f64 / f64::from(blocks);
    assert_eq!(follower.stats().present, u64::from(blocks));
    println!("{blocks} blocks: opened in {opened:?}, {bytes:.0} bytes a block");
    let compared = follower.follower_stats().compared_pages;
    println!("nothing written: {:?}", refresh(&follower));
    let again = follower.follower_stats().compared_pages;
    assert_eq!(again, compared, "a file that was not written is not read");
    let mut numbers = SplitMix64::new(1);
    let spread = u64::from(folder.places / added);
    // Each behind the blocks there or in place of one of them, on a page of its own.
    let places = (0..added).map(|at| {
        let place = u64::from(at) * spread + numbers.below(spread);
        u32::try_from(place).unwrap()
    });
    let places: Vec<u32> = places.collect();
    let counted = follower.follower_stats();
    folder.write(&places, u64::from(blocks));
    let refreshed = refresh(&follower);
    let now = follower.follower_stats();
    let pages = now.changed_pages - counted.changed_pages;
    println!("{added} blocks written: {refreshed:?}, {pages} pages decoded");
    assert!(pages <= u64::from(added), "{pages}");
    assert!(now.compared_pages - counted.compared_pages >= u64::from(folder.blocks / 64));
    for (place, number) in places.iter().zip(u64::from(blocks)..) {
        let found = follower.find(GROUP, &[key(number)], &PinClaim::default());
        assert!(found.is_some_and(|hold| hold.blocks() == 1), "{number}");
        let replaced = key(u64::from(*place));
        assert!(
            *place >= blocks || !follower.has(GROUP, &replaced),
            "{place}"
        );
    }
    follower.check_integrity();
    // Too many for the records that are loaded.
    assert!(bytes < 130.0 || blocks < 100_000, "{bytes} bytes a block");
}

#[test]
fn only_the_pages_of_new_records_are_decoded() {
    let blocks = number("KVTILE_FOLLOW_BLOCKS").unwrap_or(5000);
    follow_large(u32::try_from(blocks).unwrap(), 64);
}
