//! Blocks that are longer than a piece may be: written, read and verified piece by piece.
//!
//! `KVTILE_LONG_FOLDER=DIR` also measures reads of a block of 147 MiB there, in turns with a block of one
//! piece.

use std::{
    fs::OpenOptions, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc, time::Instant,
};

use kvtile_layout::{
    Axis, Plane, Shape, StridedLayout, Unit,
    identity::{Identity, LayoutIdentity},
};
use kvtile_memory::AlignedBuffer;
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    MismatchError, TierError,
    disk::{Inspection, SlotMiss, SlotRead, SlotStore, SlotStoreSettings, StoreIdentity},
    tier::{BlockPieces, STORAGE_WORD},
};

use crate::common::{check_offered, content, key, room_for, store_chain, usual, write};

const MIB: u64 = 1 << 20;

/// Three pieces of 3 MiB: more bytes than one piece may have.
fn long() -> StoreIdentity {
    StoreIdentity {
        pieces: BlockPieces::ending_at(&[3 * MIB, 6 * MIB, 9 * MIB]).unwrap(),
        ..usual()
    }
}

/// A read of some pieces of a block.
struct LongRead {
    number: u64,
    pieces: Range<usize>,
    buffer: Vec<u8>,
}

impl LongRead {
    /// A read of one of 4 blocks.
    fn random(numbers: &mut SplitMix64) -> LongRead {
        let start = numbers.index(3);
        let pieces = start..start + 1 + numbers.index(3 - start);
        LongRead {
            number: numbers.below(4),
            buffer: vec![0; 3 * usize::try_from(MIB).unwrap() * pieces.len()],
            pieces,
        }
    }
}

/// The places of the blocks in the file, found by their bytes.
fn starts_of(blocks: &[Vec<u8>], slots: &std::fs::File) -> [u64; 4] {
    let mut starts = [0; 4];
    let mut word = [0; 16];
    for place in 0..6 {
        let at = place * 9 * MIB;
        if slots.read_exact_at(&mut word, at).is_ok() {
            let found = blocks.iter().position(|block| block[..16] == word);
            found.into_iter().for_each(|block| starts[block] = at);
        }
    }
    starts
}

/// Reads with every number of threads are compared with what a read of single bytes gives.
#[test]
fn exactly_the_reads_with_a_damaged_piece_fail_whatever_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let identity = long();
    let settings = room_for(6, &identity);
    let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
    let blocks: Vec<Vec<u8>> = (0..4).map(|number| content(number, &identity)).collect();
    let writes: Vec<_> = (0..4)
        .map(|slot| write(slot, u64::from(slot), &blocks[slot as usize]))
        .collect();
    assert!(store.write(&writes).failed.is_empty());
    assert!(store.sync().failure.is_none());
    let file = folder.path().join("slots");
    let slots = OpenOptions::new().read(true).write(true).open(file);
    let slots = slots.unwrap();
    let mut numbers = SplitMix64::new(5);
    let starts = starts_of(&blocks, &slots);
    for round in 0..12 {
        let mut flipped = Vec::new();
        for _ in 0..round % 3 {
            let (block, at) = (numbers.index(4), numbers.below(9 * MIB));
            let mut byte = [0];
            slots.read_exact_at(&mut byte, starts[block] + at).unwrap();
            slots.write_all_at(&[!byte[0]], starts[block] + at).unwrap();
            flipped.push((block, at, byte));
        }
        let threads = 1 + numbers.index(5);
        let reads = 0..1 + numbers.index(5);
        let mut reads: Vec<LongRead> = reads.map(|_| LongRead::random(&mut numbers)).collect();
        let mut batch: Vec<SlotRead<'_>> = reads
            .iter_mut()
            .map(|read| SlotRead {
                slot: u32::try_from(read.number).unwrap(),
                key: key(read.number),
                start: identity.pieces.bytes(read.pieces.clone()).start,
                buffer: &mut read.buffer,
            })
            .collect();
        let outcomes = store.read_with(threads, &mut batch);
        for (read, outcome) in reads.iter().zip(outcomes) {
            let bytes = identity.pieces.bytes(read.pieces.clone());
            let is_hit = |(block, at, _): &(usize, u64, [u8; 1])| {
                *block as u64 == read.number && bytes.contains(at)
            };
            let damaged = flipped.iter().any(is_hit);
            match outcome {
                Err(SlotMiss::Checksum) => assert!(damaged, "{threads} threads"),
                Ok(()) => {
                    assert!(!damaged, "{threads} threads");
                    let range =
                        usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
                    let whole = &blocks[usize::try_from(read.number).unwrap()];
                    assert!(read.buffer == whole[range]);
                }
                other => panic!("{other:?}"),
            }
        }
        for (block, at, byte) in flipped.iter().rev() {
            slots.write_all_at(byte, starts[*block] + at).unwrap();
        }
    }
    let stats = store.stats();
    assert!(stats.misses_checksum > 0 && stats.misses_checksum < stats.reads);
    store.check_integrity();
}

/// The disk loses power after any operation of a write, of which each piece is one.
#[test]
fn a_torn_write_of_a_long_block_is_no_block() {
    let identity = long();
    let settings = room_for(4, &identity);
    for fuse in 0..8 {
        let disk = SimulatedDisk::new(fuse);
        let open = || {
            let medium = Arc::new(disk.clone());
            SlotStore::create_or_open_on(medium, &settings, &identity).unwrap()
        };
        let (store, _) = open();
        store_chain(&store, &identity, 0, 1);
        let bytes = content(1, &identity);
        disk.set_fuse(fuse);
        let written = store.write(&[write(1, 1, &bytes)]);
        let synced = store.sync();
        let is_durable = written.failed.is_empty() && synced.failure.is_none();
        disk.crash();
        drop(store);
        let (store, recovered) = open();
        check_offered(&store, &recovered, &identity);
        let count = recovered.entries.len();
        assert!(count == 2 || (count == 1 && !is_durable), "fuse {fuse}");
        store.check_integrity();
    }
}

#[test]
fn a_piece_that_cannot_be_written_fails_its_block_alone() {
    let identity = long();
    let settings = room_for(4, &identity);
    let disk = SimulatedDisk::new(3);
    let medium = Arc::new(disk.clone());
    let (store, _) = SlotStore::create_or_open_on(medium, &settings, &identity).unwrap();
    let bytes: Vec<Vec<u8>> = (0..2).map(|number| content(number, &identity)).collect();
    let mut failures = 0;
    for _ in 0..6 {
        disk.set_faults(DiskFaults {
            write: 4,
            ..DiskFaults::default()
        });
        let written = store.write(&[write(0, 0, &bytes[0]), write(1, 1, &bytes[1])]);
        disk.set_faults(DiskFaults::default());
        failures += written.failed.len();
        for (slot, bytes) in (0..2).zip(&bytes) {
            let mut buffer = vec![0; bytes.len()];
            let read = store.read(slot, &key(u64::from(slot)), &mut buffer);
            let failed = written.failed.iter().any(|failed| failed.slot == slot);
            assert_eq!(read.is_err(), failed);
            assert!(failed || buffer == *bytes);
        }
        store.erase(&[0, 1]).unwrap();
        assert!(store.sync().failure.is_none());
    }
    assert!(failures > 0 && failures < 12, "{failures}");
}

/// Two layers of a state of 9 MiB each.
fn state() -> (StoreIdentity, StoreIdentity) {
    let unit = Unit::new("f32", 4, 1).unwrap();
    let plane = Plane::new("state", unit).unwrap().extent(Axis::C, 9 << 18);
    let shape = Shape::new(1, 2, 16, vec![plane.per_page()]).unwrap();
    let word = STORAGE_WORD.parse().unwrap();
    let layout = StridedLayout::resolve(&word, &shape, 4096).unwrap();
    let new = StoreIdentity {
        logical: Identity::new("toy", "main", &shape).unwrap(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::of_layout(&layout).unwrap(),
    };
    // What programs made of the layout that cut between layers only.
    let old = StoreIdentity {
        pieces: BlockPieces::ending_at(&[9 * MIB, 18 * MIB]).unwrap(),
        ..new.clone()
    };
    (old, new)
}

fn ends(path: &Path) -> Vec<u64> {
    let inspection = Inspection::open(path).unwrap();
    let manifest = serde_json::to_value(inspection.manifest()).unwrap();
    let ends = manifest["groups"][0]["piece_ends"].as_array().unwrap();
    ends.iter().map(|end| end.as_u64().unwrap()).collect()
}

#[test]
fn folders_keep_the_pieces_that_they_were_created_with() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = state();
    assert_eq!(new.pieces.count(), 4);
    let settings = room_for(4, &old);
    let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &old).unwrap();
    store_chain(&store, &old, 0, 2);
    drop(store);
    let (store, recovered) = SlotStore::create_or_open(folder.path(), &settings, &new).unwrap();
    assert_eq!(recovered.entries.len(), 2);
    check_offered(&store, &recovered, &new);
    store_chain(&store, &new, 2, 1);
    // A layer alone is read from old folders and from new ones.
    let mut buffer = vec![0; usize::try_from(9 * MIB).unwrap()];
    let layer = new.pieces.bytes(2..4);
    let read = SlotRead {
        slot: 1,
        key: key(1),
        start: layer.start,
        buffer: &mut buffer,
    };
    assert!(store.read_with(2, &mut [read])[0].is_ok());
    assert!(buffer[..] == content(1, &new)[usize::try_from(layer.start).unwrap()..]);
    drop(store);
    assert_eq!(ends(folder.path()), old.pieces.ends());
}

/// A program that knows no cuts within layers refuses the folder and changes nothing.
#[test]
fn a_program_without_cuts_within_layers_refuses_a_folder_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = state();
    let settings = room_for(4, &new);
    let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &new).unwrap();
    store_chain(&store, &new, 0, 2);
    drop(store);
    let refused = SlotStore::create_or_open(folder.path(), &settings, &old);
    let Err(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(difference.field, "piece_ends");
    assert_eq!(ends(folder.path()), new.pieces.ends());
    let (store, recovered) = SlotStore::create_or_open(folder.path(), &settings, &new).unwrap();
    assert_eq!(recovered.entries.len(), 2);
    check_offered(&store, &recovered, &new);
}

/// The time of a read by several threads beside that of one piece, which is read by one and verified when
/// all of it has come.
#[test]
fn reads_of_147_mib_in_turns() {
    let Some(folder) = std::env::var_os("KVTILE_LONG_FOLDER") else {
        return;
    };
    let folder = tempfile::tempdir_in(folder).unwrap();
    let bytes = 147 * MIB;
    let ends: Vec<u64> = (1..=48)
        .map(|layer| layer * (3 * MIB + 64 * 1024))
        .collect();
    assert_eq!(ends.last(), Some(&bytes));
    let of = |pieces| StoreIdentity { pieces, ..usual() };
    let cuts = [
        ("one piece", of(BlockPieces::whole(bytes)), 1),
        (
            "pieces, 1 thread",
            of(BlockPieces::ending_at(&ends).unwrap()),
            1,
        ),
        (
            "pieces, 2 threads",
            of(BlockPieces::ending_at(&ends).unwrap()),
            2,
        ),
    ];
    let mut buffer = AlignedBuffer::new(usize::try_from(bytes).unwrap(), 4096).unwrap();
    crate::common::fill(0, &mut buffer);
    for direct_io in [true, false] {
        let stores: Vec<(&str, SlotStore, usize)> = cuts
            .iter()
            .map(|(name, identity, threads)| {
                let path = folder.path().join(format!("{name} {direct_io}"));
                // Longer records than those of three pieces.
                let capacity = room_for(3, identity).capacity_bytes + (64 << 10);
                let settings = SlotStoreSettings::new(capacity).direct_io(direct_io);
                let (store, _) = SlotStore::create_or_open(&path, &settings, identity).unwrap();
                assert!(store.write(&[write(0, 0, &buffer)]).failed.is_empty());
                assert!(store.sync().failure.is_none());
                (*name, store, *threads)
            })
            .collect();
        let mut times = vec![Vec::new(); stores.len()];
        for _ in 0..9 {
            for ((_, store, threads), times) in stores.iter().zip(&mut times) {
                let read = SlotRead {
                    slot: 0,
                    key: key(0),
                    start: 0,
                    buffer: &mut buffer,
                };
                let begin = Instant::now();
                let outcome = store.read_with(*threads, &mut [read]).pop().unwrap();
                times.push(begin.elapsed());
                outcome.unwrap();
            }
        }
        for ((name, store, _), times) in stores.iter().zip(&mut times) {
            times.sort();
            let (is_direct, middle) = (store.is_direct(), times[4]);
            println!(
                "{name}, direct {is_direct}: {middle:?} ({:?} to {:?})",
                times[0], times[8]
            );
        }
    }
}
