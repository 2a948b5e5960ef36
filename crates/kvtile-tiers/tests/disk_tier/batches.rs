//! Compares batched writes and reads with the same operations block by block.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_memory::AlignedBuffer;
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    RequestError, TierError,
    disk::{
        FailedWrite, SlotMiss, SlotRead, SlotState, SlotStore, SlotStoreSettings, SlotWrite,
        StoreIdentity,
        medium::{BatchIo, FileIo, FileWay, FolderMedium},
    },
};

use crate::{
    common::{check_offered, content, held as held_in, key, room_for, sized, write},
    hooked::{HookedFolder, HookedOperation},
};

const BLOCK_BYTES: u64 = 1600;

/// A store on its own simulated disk, which writes and reads in batches or block by block.
struct ComparedStore {
    disk: SimulatedDisk,
    store: SlotStore,
    in_batches: bool,
}

impl ComparedStore {
    fn new(seed: u64, places: u64, identity: &StoreIdentity, in_batches: bool) -> ComparedStore {
        let disk = SimulatedDisk::new(seed);
        let settings = room_for(places, identity);
        let medium = Arc::new(disk.clone());
        let (store, _) = SlotStore::create_or_open_on(medium, &settings, identity).unwrap();
        ComparedStore {
            disk,
            store,
            in_batches,
        }
    }

    fn write(&self, batch: &[SlotWrite<'_>]) -> Vec<(u32, String)> {
        let failed: Vec<FailedWrite> = match self.in_batches {
            true => self.store.write(batch).failed,
            false => {
                let one = |write: &SlotWrite<'_>| self.store.write(&[*write]).failed;
                batch.iter().flat_map(one).collect()
            }
        };
        let told = failed.into_iter();
        told.map(|failed| (failed.slot, failed.error.to_string()))
            .collect()
    }

    /// The outcome of each read: the bytes, or the text of the miss.
    fn read(&self, wanted: &[(u32, u64)]) -> Vec<Result<Vec<u8>, String>> {
        let bytes = usize::try_from(self.store.block_bytes()).unwrap();
        let mut buffers = vec![vec![0; bytes]; wanted.len()];
        let outcomes: Vec<Result<(), SlotMiss>> = match self.in_batches {
            true => {
                let reads = wanted.iter().zip(&mut buffers);
                let mut reads: Vec<SlotRead<'_>> = reads
                    .map(|((slot, number), buffer)| SlotRead {
                        start: 0,
                        slot: *slot,
                        key: key(*number),
                        buffer,
                    })
                    .collect();
                self.store.read_many(&mut reads)
            }
            false => wanted
                .iter()
                .zip(&mut buffers)
                .map(|((slot, number), buffer)| self.store.read(*slot, &key(*number), buffer))
                .collect(),
        };
        let read = outcomes.into_iter().zip(buffers);
        read.map(|(outcome, buffer)| match outcome {
            Ok(()) => Ok(buffer),
            Err(miss) => Err(miss.to_string()),
        })
        .collect()
    }

    /// The state of each slot, and the number of its block, at most `last`; `held` is a guess.
    fn states(&self, last: u64, held: &[u64]) -> Vec<(SlotState, Option<u64>)> {
        let slots = (0..self.store.slots()).zip(held);
        slots
            .map(|(slot, guess)| {
                let numbers = std::iter::once(*guess).chain((1..=last).rev());
                let is_known = self.store.state(slot) != SlotState::Empty;
                let number = is_known.then(|| held_in(&self.store, slot, numbers));
                (self.store.state(slot), number.map(Option::unwrap))
            })
            .collect()
    }
}

/// A batch with every kind of misuse: repeated slots, occupied slots, slots out of range, and bytes
/// of a wrong length. `next` is the number of the last block.
fn random_batch(numbers: &mut SplitMix64, slots: u32, next: &mut u64) -> Vec<(u32, u64, usize)> {
    let most = [1, 4, 30][numbers.index(3)];
    let count = numbers.index(most + 1);
    let one = |_| {
        *next += 1;
        let bytes = match numbers.once_in(12) {
            true => numbers.index(3000),
            false => usize::try_from(BLOCK_BYTES).unwrap(),
        };
        let slot = u32::try_from(numbers.below(u64::from(slots) + 1)).unwrap();
        (slot, *next, bytes)
    };
    (0..count).map(one).collect()
}

fn contents(batch: &[(u32, u64, usize)], identity: &StoreIdentity) -> Vec<Vec<u8>> {
    let one = |(_, number, bytes): &(u32, u64, usize)| {
        let mut content = content(*number, identity);
        content.resize(*bytes, 7);
        content
    };
    batch.iter().map(one).collect()
}

fn writes<'b>(batch: &[(u32, u64, usize)], contents: &'b [Vec<u8>]) -> Vec<SlotWrite<'b>> {
    let batch = batch.iter().zip(contents);
    batch
        .map(|((slot, number, _), bytes)| write(*slot, *number, bytes))
        .collect()
}

/// Random operations on both stores; `faults` are active during writes only.
struct BatchComparison {
    seed: u64,
    faults: DiskFaults,
    identity: StoreIdentity,
    numbers: SplitMix64,
    sides: [ComparedStore; 2],
    /// The number of the last block.
    next: u64,
    /// The number of the block that each slot holds or held last.
    held: Vec<u64>,
}

impl BatchComparison {
    fn new(seed: u64, faults: DiskFaults) -> BatchComparison {
        let identity = sized(BLOCK_BYTES);
        let mut numbers = SplitMix64::new(seed);
        let places = 3 + numbers.below(30);
        let sides =
            [true, false].map(|in_batches| ComparedStore::new(seed, places, &identity, in_batches));
        BatchComparison {
            seed,
            faults,
            identity,
            numbers,
            held: vec![0; sides[0].store.slots() as usize],
            sides,
            next: 0,
        }
    }

    fn run(mut self) {
        for _ in 0..40 {
            match self.numbers.below(6) {
                0..3 => self.write(),
                3 => self.erase(),
                4 => self.sync(),
                _ => self.read(),
            }
            self.compare();
        }
        self.sync();
        self.reopen();
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap()
    }

    fn write(&mut self) {
        let slots = self.slots();
        let batch = random_batch(&mut self.numbers, slots, &mut self.next);
        let contents = contents(&batch, &self.identity);
        let writes = writes(&batch, &contents);
        let failed = self.sides.each_ref().map(|side| {
            side.disk.set_faults(self.faults);
            let failed = side.write(&writes);
            side.disk.set_faults(DiskFaults::default());
            failed
        });
        assert_eq!(failed[0], failed[1], "seed {}: {batch:?}", self.seed);
    }

    fn erase(&mut self) {
        let slots = u64::from(self.slots());
        let count = self.numbers.index(12);
        let slot = |_| u32::try_from(self.numbers.below(slots)).unwrap();
        let erased: Vec<u32> = (0..count).map(slot).collect();
        for side in &self.sides {
            side.store.erase(&erased).unwrap();
        }
        // A write that runs a sync for erasures would meet other faults in each store.
        if self.faults != DiskFaults::default() {
            self.sync();
        }
    }

    fn sync(&self) {
        for side in &self.sides {
            assert!(side.store.sync().failure.is_none());
        }
    }

    fn read(&self) {
        let held = self.held.iter().chain([&0]);
        let wanted: Vec<(u32, u64)> = (0..).zip(held.copied()).collect();
        let read = self.sides.each_ref().map(|side| side.read(&wanted));
        assert!(read[0] == read[1], "seed {}", self.seed);
        for ((_, number), read) in wanted.iter().zip(&read[0]) {
            if let Ok(bytes) = read {
                let expected = content(*number, &self.identity);
                assert!(*bytes == expected, "seed {}: {number}", self.seed);
            }
        }
    }

    fn compare(&mut self) {
        let seed = self.seed;
        let states = self.sides.each_ref();
        let states = states.map(|side| side.states(self.next, &self.held));
        assert_eq!(states[0], states[1], "seed {seed}");
        for (held, (_, of)) in self.held.iter_mut().zip(&states[0]) {
            *held = of.unwrap_or(*held);
        }
        let stats = self.sides.each_ref().map(|side| side.store.stats());
        assert_eq!(stats[0], stats[1], "seed {seed}");
        for side in &self.sides {
            side.store.check_integrity();
        }
    }

    /// Checks that both stores recover the same blocks after a crash.
    fn reopen(self) {
        let recovered = self.sides.map(|side| {
            let ComparedStore { disk, store, .. } = side;
            let settings = SlotStoreSettings::new(store.manifest().capacity_bytes());
            drop(store);
            disk.crash();
            let opened =
                SlotStore::create_or_open_on(Arc::new(disk), &settings, &self.identity).unwrap();
            check_offered(&opened.0, &opened.1, &self.identity);
            opened.1.entries
        });
        assert_eq!(recovered[0], recovered[1], "seed {}", self.seed);
    }
}

#[test]
fn a_batch_has_the_same_result_as_its_blocks_one_by_one() {
    for seed in 0..200 {
        BatchComparison::new(seed, DiskFaults::default()).run();
    }
}

#[test]
fn failed_and_short_writes_fail_alone_in_a_batch() {
    for seed in 0..200 {
        let faults = DiskFaults {
            write: 5,
            full: 9,
            ..DiskFaults::default()
        };
        BatchComparison::new(seed, faults).run();
    }
}

/// Each write panics in turn: its slots become empty, and every block not reported as failed can be
/// read.
#[test]
fn a_medium_that_panics_in_a_batch_leaves_no_slot_taken() {
    let identity = sized(4096);
    for at in 1..=20 {
        let folder = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let counted = Arc::clone(&left);
        let medium = HookedFolder::new(folder.path(), move |operation| {
            if operation == HookedOperation::Write && counted.fetch_sub(1, Ordering::Relaxed) == 1 {
                panic!("write {at} of the batch");
            }
        });
        let settings = room_for(24, &identity);
        let (store, _) =
            SlotStore::create_or_open_on(Arc::new(medium), &settings, &identity).unwrap();
        let contents: Vec<Vec<u8>> = (0..20).map(|number| content(number, &identity)).collect();
        let batch: Vec<SlotWrite<'_>> = (0..)
            .zip(&contents)
            .map(|(number, bytes)| write(u32::try_from(number).unwrap(), number, bytes))
            .collect();
        left.store(at, Ordering::Relaxed);
        let written = store.write(&batch);
        store.check_integrity();
        let failed: HashSet<u32> = written.failed.iter().map(|failed| failed.slot).collect();
        assert!(failed.contains(&u32::try_from(at - 1).unwrap()));
        for failed in &written.failed {
            assert!(matches!(
                failed.error,
                TierError::Request(RequestError::Panicked { .. })
            ));
        }
        let mut buffer = vec![0; 4096];
        for (slot, expected) in (0..).zip(&contents) {
            let read = store.read(slot, &key(u64::from(slot)), &mut buffer);
            match failed.contains(&slot) {
                true => assert!(matches!(read, Err(SlotMiss::Empty))),
                false => assert!(read.is_ok() && buffer == *expected),
            }
        }
        let again: Vec<SlotWrite<'_>> = batch
            .iter()
            .filter(|write| failed.contains(&write.slot))
            .copied()
            .collect();
        assert!(store.write(&again).failed.is_empty());
        assert!(store.sync().failure.is_none());
        store.check_integrity();
        assert_eq!(store.stats().used, 20);
    }
}

fn open_with(folder: &Path, way: FileWay, places: u64, identity: &StoreIdentity) -> SlotStore {
    let medium = Arc::new(FolderMedium::new(folder).with_way(way));
    let settings = room_for(places, identity);
    let opened = SlotStore::create_or_open_on(medium, &settings, identity);
    opened.unwrap().0
}

/// On a real folder, with io_uring where available and with worker threads.
#[test]
fn ten_thousand_blocks_are_one_batch_and_one_sync() {
    const BLOCKS: u64 = 10_000;
    let identity = sized(4096);
    for way in [FileWay::Best, FileWay::Threads] {
        let folder = tempfile::tempdir_in("/var/tmp")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let store = open_with(folder.path(), way, BLOCKS + BLOCKS / 32, &identity);
        match store.batch_io() {
            BatchIo::InFlight(FileIo::Threads { reason }) => println!("threads: {reason}"),
            through => assert!(way == FileWay::Best, "{through:?}"),
        }
        let mut bytes = AlignedBuffer::new(4096 * 10_000, 4096).unwrap();
        for (number, block) in (0..).zip(bytes.chunks_mut(4096)) {
            crate::common::fill(number, block);
        }
        let batch: Vec<SlotWrite<'_>> = (0..)
            .zip(bytes.chunks(4096))
            .map(|(number, block)| write(u32::try_from(number).unwrap(), number, block))
            .collect();
        let written = store.write(&batch);
        assert!(written.failed.is_empty(), "{:?}", written.failed.first());
        let synced = store.sync();
        assert!(synced.failure.is_none() && store.is_durable(written.ticket));
        assert_eq!(store.stats().syncs, 1);
        assert_eq!(store.stats().erasure_waits, 0);
        store.check_integrity();
        let mut arrived = AlignedBuffer::new(4096 * 10_000, 4096).unwrap();
        // In reverse, so that the caller's order is not that of the file.
        let mut reads: Vec<SlotRead<'_>> = (0..10_000_u32)
            .rev()
            .zip(arrived.chunks_mut(4096))
            .map(|(slot, buffer)| SlotRead {
                start: 0,
                slot,
                key: key(u64::from(slot)),
                buffer,
            })
            .collect();
        let outcomes = store.read_many(&mut reads);
        assert!(outcomes.iter().all(Result::is_ok));
        for (read, block) in reads.iter().rev().zip(bytes.chunks(4096)) {
            assert!(*read.buffer == *block, "block {}", read.slot);
        }
        drop(store);
        let settings = room_for(BLOCKS + BLOCKS / 32, &identity);
        let (store, recovered) =
            SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
        assert_eq!(recovered.entries.len(), 10_000);
        check_offered(&store, &recovered, &identity);
    }
}

/// A sync waits for the disk twice, independent of the number of blocks.
#[test]
fn a_thousand_small_blocks_wait_for_the_disk_as_often_as_one() {
    let identity = sized(4096);
    let folder = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    let medium = HookedFolder::new(folder.path(), move |operation| {
        counted.fetch_add(
            u64::from(operation == HookedOperation::Sync),
            Ordering::Relaxed,
        );
    });
    let settings = room_for(1100, &identity);
    let (store, _) = SlotStore::create_or_open_on(Arc::new(medium), &settings, &identity).unwrap();
    let contents: Vec<Vec<u8>> = (0..1000).map(|number| content(number, &identity)).collect();
    let batch: Vec<SlotWrite<'_>> = (0..)
        .zip(&contents)
        .map(|(number, bytes)| write(u32::try_from(number).unwrap(), number, bytes))
        .collect();
    syncs.store(0, Ordering::Relaxed);
    assert!(store.write(&batch).failed.is_empty());
    assert_eq!(store.sync().blocks, 1000);
    assert_eq!(syncs.load(Ordering::Relaxed), 2);
}

#[test]
fn the_blocks_of_a_batch_lie_side_by_side_where_there_is_room() {
    let identity = sized(4096);
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(folder.path(), FileWay::Best, 130, &identity);
    let write_all = |slots: &[u32], first: u64| {
        let contents: Vec<Vec<u8>> = (first..)
            .zip(slots)
            .map(|(number, _)| content(number, &identity))
            .collect();
        let batch: Vec<SlotWrite<'_>> = (first..)
            .zip(slots)
            .zip(&contents)
            .map(|((number, slot), bytes)| write(*slot, number, bytes))
            .collect();
        assert!(store.write(&batch).failed.is_empty());
    };
    let all: Vec<u32> = (0..store.slots()).collect();
    write_all(&all, 0);
    // Single gaps, and one run of 20.
    let gaps: Vec<u32> = (0..10).map(|index| 4 * index).chain(60..80).collect();
    store.erase(&gaps).unwrap();
    assert!(store.sync().failure.is_none());
    write_all(&gaps[10..], 1000);
    assert!(store.sync().failure.is_none());
    let file = fs::read(folder.path().join("slots")).unwrap();
    let blocks: Vec<&[u8]> = file.chunks(4096).collect();
    let place = |number| {
        let bytes = content(number, &identity);
        blocks.iter().position(|block| *block == bytes).unwrap()
    };
    let places: Vec<usize> = (1000..1020).map(place).collect();
    assert!(
        places.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{places:?}"
    );
}

#[test]
fn reads_of_a_batch_miss_alone_and_give_the_reason() {
    let identity = sized(4096);
    for way in [FileWay::Best, FileWay::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let store = open_with(folder.path(), way, 24, &identity);
        crate::common::store_chain(&store, &identity, 0, 16);
        assert!(store.read_many(&mut []).is_empty());
        // A new store writes blocks to ascending places.
        let path = folder.path().join("slots");
        let mut bytes = fs::read(&path).unwrap();
        bytes[3 * 4096 + 17] ^= 1;
        fs::write(&path, &bytes[..14 * 4096]).unwrap();
        store.erase(&[5]).unwrap();
        let mut buffers = vec![vec![0; 4096]; 20];
        buffers[7].truncate(4095);
        let mut reads: Vec<SlotRead<'_>> = (0..)
            .zip(&mut buffers)
            .map(|(index, buffer)| SlotRead {
                start: 0,
                // The last reads repeat blocks.
                slot: if index < 17 { index } else { index - 16 },
                key: key(u64::from(
                    if index < 17 { index } else { index - 16 } + u32::from(index == 9),
                )),
                buffer,
            })
            .collect();
        let outcomes = store.read_many(&mut reads);
        for (index, outcome) in outcomes.iter().enumerate() {
            match index {
                3 | 19 => assert!(
                    matches!(outcome, Err(SlotMiss::Checksum)),
                    "{index}: {outcome:?}"
                ),
                5 | 16 => assert!(
                    matches!(outcome, Err(SlotMiss::Empty)),
                    "{index}: {outcome:?}"
                ),
                7 => assert!(
                    matches!(outcome, Err(SlotMiss::Buffer(_))),
                    "{index}: {outcome:?}"
                ),
                9 => assert!(
                    matches!(outcome, Err(SlotMiss::WrongKey)),
                    "{index}: {outcome:?}"
                ),
                14 | 15 => assert!(
                    matches!(outcome, Err(SlotMiss::Truncated)),
                    "{index}: {outcome:?}"
                ),
                _ => {
                    assert!(outcome.is_ok(), "{index}: {outcome:?}");
                    let number = if index < 17 { index } else { index - 16 };
                    assert!(buffers[index] == content(number as u64, &identity));
                }
            }
        }
        let stats = store.stats();
        assert_eq!((stats.reads, stats.read_bytes), (20, 12 * 4096));
        assert_eq!((stats.misses_absent, stats.misses_checksum), (3, 2));
        assert_eq!((stats.misses_truncated, stats.misses_io), (2, 1));
    }
}
