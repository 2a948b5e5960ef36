//! Random operations on a disk that misbehaves, compared with a naive model, for thousands of
//! seeds.
//!
//! `KVTILE_DISK_SEED=n` runs one seed and prints each step; `KVTILE_DISK_SEEDS=n` sets the number
//! of seeds.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use crate::common::{key, room_for, sized};
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    FolderError, SlotError, TierError,
    disk::{
        RecoveredBlocks, SlotMiss, SlotRead, SlotState, SlotStore, SlotStoreSettings, SlotWrite,
        StoreIdentity,
    },
};

/// Three sectors and part of a fourth.
const BLOCK_BYTES: u64 = 1600;
const SEEDS: u64 = 10_000;
const STEPS: u64 = 60;
/// Few, so that a block is often erased and written again to another slot.
const NUMBERS: u64 = 24;

/// One write of a block: the block's number, and the number of the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BlockVersion {
    number: u64,
    version: u64,
}

/// The naive model of a store.
struct StoreModel {
    /// The write that each slot holds.
    slots: Vec<Option<BlockVersion>>,
    /// Writes that may be found after a crash.
    possible: HashSet<BlockVersion>,
    /// Writes erased since the last sync.
    erased: Vec<BlockVersion>,
    versions: u64,
    /// Flipped bits and truncated files since the last open.
    damage: u64,
    /// Whether a file was removed or replaced under the open store.
    gone: bool,
}

struct StoreSimulation {
    numbers: SplitMix64,
    disk: SimulatedDisk,
    identity: StoreIdentity,
    settings: SlotStoreSettings,
    faults: DiskFaults,
    damaging: bool,
    model: StoreModel,
    tell: bool,
}

#[test]
fn no_crash_no_fault_and_no_damage_makes_the_store_lie() {
    let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = variable("KVTILE_DISK_SEED") {
        StoreSimulation::new(seed, true).run();
        return;
    }
    for seed in 0..variable("KVTILE_DISK_SEEDS").unwrap_or(SEEDS) {
        let run = || StoreSimulation::new(seed, false).run();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            println!("seed {seed} failed; KVTILE_DISK_SEED={seed} runs it alone, step by step");
            resume_unwind(panic);
        }
    }
}

impl StoreSimulation {
    fn new(seed: u64, tell: bool) -> StoreSimulation {
        let identity = sized(BLOCK_BYTES);
        let mut numbers = SplitMix64::new(seed);
        // Half of the seeds have crashes only.
        let faults = match seed % 4 {
            0 | 1 => DiskFaults::default(),
            _ => DiskFaults {
                read: [0, 40][numbers.index(2)],
                write: [0, 20][numbers.index(2)],
                full: [0, 30][numbers.index(2)],
                sync: [0, 8][numbers.index(2)],
            },
        };
        StoreSimulation {
            disk: SimulatedDisk::new(numbers.any()),
            settings: room_for(2 + numbers.below(14), &identity),
            identity,
            faults,
            damaging: seed % 4 == 3 || seed % 8 == 1,
            model: StoreModel {
                slots: Vec::new(),
                possible: HashSet::new(),
                erased: Vec::new(),
                versions: 0,
                damage: 0,
                gone: false,
            },
            numbers,
            tell,
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tell {
            println!("{}", what());
        }
    }

    fn run(mut self) {
        let mut store = self.open(true);
        for _ in 0..STEPS {
            let mut restart = None;
            match self.numbers.below(20) {
                0..7 => self.write(&store),
                7..11 => self.erase(&store),
                11..15 => self.sync(&store),
                15..17 => self.read(&store),
                17 => restart = Some(self.numbers.index(3)),
                18 => self.disk.set_fuse(1 + self.numbers.below(12)),
                _ => self.harm(),
            }
            store.check_integrity();
            if self.disk.is_dead() {
                restart = Some(0);
            }
            if let Some(how) = restart {
                store = self.restart(store, how);
            }
        }
        let store = self.restart(store, 0);
        self.read(&store);
    }

    /// Opens until it succeeds; a fault of the disk must be a typed error.
    fn open(&mut self, must_keep: bool) -> SlotStore {
        let must = match must_keep {
            true => self.must(),
            false => HashSet::new(),
        };
        self.disk.set_faults(self.faults);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let disk = Arc::new(self.disk.clone());
            let opened = SlotStore::create_or_open_on(disk, &self.settings, &self.identity);
            match opened {
                Ok((store, recovered)) => {
                    self.adopt(&store, &recovered, &must);
                    return store;
                }
                Err(error) => {
                    self.tell(|| format!("cannot open: {error}"));
                    assert!(
                        matches!(
                            error,
                            TierError::Folder(FolderError::File { .. })
                                | TierError::Folder(FolderError::DiskFull { .. })
                        ),
                        "{error}"
                    );
                    assert!(attempt < 50, "the open never succeeds: {error}");
                    if attempt > 2 {
                        self.disk.set_faults(DiskFaults::default());
                    }
                    self.disk.set_read_only(false);
                    if self.disk.is_dead() {
                        self.disk.crash();
                    }
                }
            }
        }
    }

    /// The writes that must be found: the durable ones.
    fn must(&self) -> HashSet<BlockVersion> {
        self.model.slots.iter().flatten().copied().collect()
    }

    /// Checks the recovered blocks and makes them the model's state.
    fn adopt(
        &mut self,
        store: &SlotStore,
        recovered: &RecoveredBlocks,
        must: &HashSet<BlockVersion>,
    ) {
        store.check_integrity();
        assert!(self.disk.total_bytes() <= self.settings.capacity_bytes);
        self.disk.set_faults(DiskFaults::default());
        let mut places: HashMap<_, usize> = HashMap::new();
        let mut offered = HashSet::new();
        self.model.slots = vec![None; store.slots() as usize];
        let mut bad = 0;
        for (index, entry) in recovered.entries.iter().enumerate() {
            assert_eq!(entry.slot as usize, index);
            let number = u64::from(entry.tenant);
            assert_eq!(entry.key, key(number));
            assert_eq!(entry.parent, parent(number).map(key));
            assert_eq!(entry.position, position(number));
            assert!(places.insert(entry.key, index).is_none(), "offered twice");
            let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
            match store.read(entry.slot, &entry.key, &mut bytes) {
                Ok(()) => {
                    let version = self.check_bytes(number, &bytes);
                    assert!(
                        self.model.possible.contains(&version),
                        "{version:?} must not be found"
                    );
                    self.model.slots[index] = Some(version);
                    offered.insert(version);
                }
                Err(SlotMiss::Checksum | SlotMiss::Truncated) if self.model.damage > 0 => {
                    bad += 1;
                    store.erase(&[entry.slot]).unwrap();
                }
                Err(miss) => panic!("block {number} in slot {}: {miss}", entry.slot),
            }
        }
        for (index, entry) in recovered.entries.iter().enumerate() {
            let before = entry.parent.and_then(|parent| places.get(&parent));
            assert!(
                before.is_none_or(|before| *before < index),
                "a child comes before its parent"
            );
        }
        let missing = must.difference(&offered).count() as u64;
        self.tell(|| {
            let dropped = recovered.dropped;
            format!(
                "opened: {} offered, {bad} bad, {missing} missing, created: {}, {dropped:?}",
                places.len(),
                recovered.created
            )
        });
        // Erasures that the disk refused leave more blocks than there are slots.
        let surplus = match self.faults == DiskFaults::default() {
            true => 0,
            false => recovered.dropped.over_capacity,
        };
        let excused = self.model.damage + u64::from(recovered.dropped.unreadable + surplus);
        assert!(missing <= excused, "{missing} durable blocks are missing");
        // Damaged blocks that were just erased, or whose erasure the disk refused, may be found
        // again.
        if bad + recovered.dropped.total() == 0 {
            self.model.damage = 0;
        }
        self.model.erased.clear();
        self.disk.set_faults(self.faults);
    }

    /// The write that these bytes belong to; all bytes must belong to it.
    fn check_bytes(&self, number: u64, bytes: &[u8]) -> BlockVersion {
        let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let version = BlockVersion { number, version };
        assert!(bytes == content(version), "mixed bytes in {version:?}");
        version
    }

    fn write(&mut self, store: &SlotStore) {
        let held: HashSet<u64> = self.must().iter().map(|v| v.number).collect();
        let empty = self
            .model
            .slots
            .iter()
            .zip(0..)
            .filter(|(held, _)| held.is_none());
        let empty: Vec<u32> = empty.map(|(_, slot)| slot).collect();
        let mut batch = Vec::new();
        let most = [3, 16][self.numbers.index(2)];
        for slot in empty.into_iter().take(1 + self.numbers.index(most)) {
            let number = self.numbers.below(NUMBERS);
            let again = batch
                .iter()
                .any(|(_, version): &(u32, BlockVersion)| version.number == number);
            if held.contains(&number) || again {
                continue;
            }
            self.model.versions += 1;
            let version = self.model.versions;
            batch.push((slot, BlockVersion { number, version }));
        }
        let contents: Vec<Vec<u8>> = batch.iter().map(|(_, version)| content(*version)).collect();
        let writes: Vec<SlotWrite<'_>> = batch
            .iter()
            .zip(&contents)
            .map(|((slot, version), bytes)| SlotWrite {
                slot: *slot,
                key: key(version.number),
                parent: parent(version.number).map(key),
                position: position(version.number),
                tenant: u32::try_from(version.number).unwrap(),
                bytes,
            })
            .collect();
        let written = store.write(&writes);
        self.tell(|| format!("write {batch:?}: {:?}", written.failed));
        for (slot, version) in batch {
            let failed = written.failed.iter().find(|failed| failed.slot == slot);
            match failed {
                None => {
                    self.model.slots[slot as usize] = Some(version);
                    self.model.possible.insert(version);
                }
                Some(failed) => assert!(
                    self.troubled()
                        && !matches!(
                            failed.error,
                            TierError::Slot(SlotError::SlotOccupied { .. })
                        ),
                    "{}",
                    failed.error
                ),
            }
        }
        self.settle(store);
    }

    /// Whether any fault of the disk is possible.
    fn troubled(&self) -> bool {
        self.faults != DiskFaults::default() || self.disk.is_dead() || self.damaging
    }

    /// A failed sync, possibly inside a write, empties slots.
    fn settle(&mut self, store: &SlotStore) {
        for (held, slot) in self.model.slots.iter_mut().zip(0..) {
            if held.is_some() && store.state(slot) == SlotState::Empty {
                assert!(
                    self.faults.sync > 0
                        || self.faults.write > 0
                        || self.faults.full > 0
                        || self.disk.is_dead()
                        || self.damaging,
                    "slot {slot} lost its block"
                );
                *held = None;
            }
        }
    }

    fn erase(&mut self, store: &SlotStore) {
        let full = self
            .model
            .slots
            .iter()
            .zip(0..)
            .filter(|(held, _)| held.is_some());
        let full: Vec<u32> = full.map(|(_, slot)| slot).collect();
        let count = 1 + self.numbers.index(4);
        let from = self.numbers.index(full.len());
        let slots: Vec<u32> = full.into_iter().skip(from).take(count).collect();
        self.tell(|| format!("erase {slots:?}"));
        store.erase(&slots).unwrap();
        for slot in slots {
            let version = self.model.slots[slot as usize].take();
            self.model.erased.extend(version);
        }
    }

    fn sync(&mut self, store: &SlotStore) {
        let synced = store.sync();
        self.tell(|| format!("sync: {synced:?}"));
        for lost in &synced.lost {
            let version = self.model.slots[lost.slot as usize].take();
            assert_eq!(version.map(|version| key(version.number)), Some(lost.key));
        }
        self.settle(store);
        if let Some(failure) = synced.failure {
            assert!(self.troubled());
            if self.model.gone && !self.disk.is_dead() && self.faults.read == 0 {
                assert!(
                    matches!(failure, TierError::Folder(FolderError::FileGone { .. })),
                    "{failure}"
                );
            }
            return;
        }
        assert!(!self.model.gone, "durable in files that are missing");
        for version in self.model.erased.drain(..) {
            self.model.possible.remove(&version);
        }
        for (held, slot) in self.model.slots.iter().zip(0..) {
            let state = match held {
                Some(_) => SlotState::Durable,
                None => SlotState::Empty,
            };
            assert_eq!(store.state(slot), state, "slot {slot} after a sync");
        }
    }

    fn read(&mut self, store: &SlotStore) {
        let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
        let mut buffers = vec![bytes.clone(); self.model.slots.len()];
        let number = |held: &Option<BlockVersion>| held.map_or(0, |version| version.number);
        let mut reads: Vec<SlotRead<'_>> = (0..)
            .zip(&self.model.slots)
            .zip(&mut buffers)
            .map(|((slot, held), buffer)| SlotRead {
                start: 0,
                slot,
                key: key(number(held)),
                buffer,
            })
            .collect();
        let outcomes = store.read_many(&mut reads);
        let read = outcomes.into_iter().zip(buffers);
        for ((held, slot), (read, arrived)) in self.model.slots.iter().zip(0..).zip(read) {
            match (read, held) {
                (Ok(()), Some(version)) => {
                    assert_eq!(self.check_bytes(version.number, &arrived), *version);
                }
                (Err(SlotMiss::Empty), None) => {}
                (Err(SlotMiss::Io(_)), Some(_)) if self.faults.read > 0 || self.disk.is_dead() => {}
                (Err(SlotMiss::Checksum | SlotMiss::Truncated), Some(_))
                    if self.model.damage > 0 => {}
                (read, held) => panic!("slot {slot} holds {held:?}, read {read:?}"),
            }
            assert!(store.read(slot, &key(NUMBERS + 1), &mut bytes).is_err());
        }
    }

    /// Damage from outside the store.
    fn harm(&mut self) {
        if !self.damaging {
            return;
        }
        match self.numbers.below(5) {
            0 => self.disk.set_read_only(true),
            1 => self.disk.set_read_only(false),
            2 => {
                let file = ["slots", "records"][self.numbers.index(2)];
                self.tell(|| format!("a bit of {file} flips"));
                self.model.damage += u64::from(self.disk.flip(file));
            }
            3 => {
                let file = ["slots", "records", "manifest.json"][self.numbers.index(3)];
                // An empty manifest would make the next open fail, which other tests cover.
                let replace = file != "manifest.json" && self.numbers.once_in(2);
                self.tell(|| format!("{file} is lost, replaced: {replace}"));
                if self.disk.lose(file, replace) {
                    self.model.gone = true;
                    self.model.damage += NUMBERS;
                }
            }
            _ => {
                let bytes = self.numbers.index(60_000);
                self.tell(|| format!("slots is cut to {bytes} bytes"));
                self.disk.cut("slots", bytes);
                self.model.damage += NUMBERS;
            }
        }
    }

    /// A power loss, a kill, or an orderly end.
    fn restart(&mut self, store: SlotStore, how: usize) -> SlotStore {
        let durable = |slot: u32| store.state(slot) == SlotState::Durable;
        for (held, slot) in self.model.slots.iter_mut().zip(0..) {
            if !durable(slot) {
                *held = None;
            }
        }
        self.tell(|| {
            format!(
                "restart {}",
                ["after a crash", "after a kill", "in order"][how]
            )
        });
        match how {
            0 => self.disk.crash(),
            1 => self.disk.kill(),
            _ => {}
        }
        drop(store);
        self.model.gone = false;
        let before = self.settings;
        if self.numbers.once_in(4) {
            self.settings = room_for(2 + self.numbers.below(14), &self.identity);
        }
        if self.numbers.once_in(6) {
            self.disk.set_fuse(1 + self.numbers.below(20));
        }
        let keeps = self.settings.capacity_bytes >= before.capacity_bytes;
        self.open(keeps)
    }
}

/// Blocks are chains of four.
fn parent(number: u64) -> Option<u64> {
    (!number.is_multiple_of(4)).then(|| number - 1)
}

fn position(number: u64) -> u32 {
    u32::try_from(number % 4).unwrap()
}

/// The bytes of one write: they contain its number and differ at every offset.
fn content(version: BlockVersion) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
    crate::common::fill(version.number << 32 | version.version, &mut bytes);
    bytes[..8].copy_from_slice(&version.version.to_le_bytes());
    bytes
}
