//! Random operations on a folder of one to three groups, on a disk that misbehaves, compared with a
//! naive model, for thousands of seeds.
//!
//! `KVTILE_DISK_SEED=n` runs one seed and prints each step; `KVTILE_DISK_SEEDS=n` sets the number
//! of seeds.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use crate::{
    common::key,
    groups::{groups, room},
};
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    FolderError, SlotError, TierError,
    disk::{
        RecoveredBlocks, SlotFolder, SlotMiss, SlotRead, SlotState, SlotStore, SlotStoreSettings,
        SlotSyncReport, SlotWrite, TierGroup,
    },
};

const SEEDS: u64 = 10_000;
const STEPS: u64 = 60;
/// Few, so that a block is often erased and written again to another slot.
const NUMBERS: u64 = 24;

/// One write of a block: its group, the block's number, and the number of the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BlockVersion {
    group: usize,
    number: u64,
    version: u64,
}

/// The naive model of the store of one group.
#[derive(Default)]
struct StoreModel {
    /// The write that each slot holds.
    slots: Vec<Option<BlockVersion>>,
    /// Writes that may be found after a crash.
    possible: HashSet<BlockVersion>,
    /// Writes erased since the last sync.
    erased: Vec<BlockVersion>,
    /// Flipped bits and truncated files since the last open.
    damage: u64,
}

struct StoreSimulation {
    numbers: SplitMix64,
    disk: SimulatedDisk,
    groups: Vec<TierGroup>,
    settings: SlotStoreSettings,
    faults: DiskFaults,
    damaging: bool,
    /// The model of each group.
    models: Vec<StoreModel>,
    versions: u64,
    /// Whether a file was removed or replaced under the open store.
    gone: bool,
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
        let mut numbers = SplitMix64::new(seed);
        let mut groups = groups([1, 1, 2, 3][numbers.index(4)]);
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
            settings: random_settings(&mut numbers, &mut groups),
            faults,
            damaging: seed % 4 == 3 || seed % 8 == 1,
            models: groups.iter().map(|_| StoreModel::default()).collect(),
            groups,
            versions: 0,
            gone: false,
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
        let mut store = self.open();
        for _ in 0..STEPS {
            let mut restart = None;
            let group = self.numbers.index(self.groups.len());
            let one = &store.stores()[group];
            match self.numbers.below(20) {
                0..7 => self.write(group, one),
                7..11 => self.erase(group, one),
                11 => {
                    let synced = one.sync();
                    self.synced(group, one, synced);
                }
                12..15 => self.sync(&store),
                15..17 => self.read(group, one),
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
        for (group, one) in store.stores().iter().enumerate() {
            self.read(group, one);
        }
    }

    /// Opens until it succeeds; a fault of the disk must be a typed error.
    fn open(&mut self) -> SlotFolder {
        self.disk.set_faults(self.faults);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let disk = Arc::new(self.disk.clone());
            let opened = SlotFolder::create_or_open_on(disk, &self.settings, &self.groups);
            match opened {
                Ok((store, recovered)) => {
                    store.check_integrity();
                    assert!(self.disk.total_bytes() <= self.settings.capacity_bytes);
                    self.disk.set_faults(DiskFaults::default());
                    // An open that failed late may have erased records that it could not read.
                    let unreadable = attempt > 1 && self.faults.read > 0;
                    for (group, recovered) in recovered.iter().enumerate() {
                        self.adopt((group, &store.stores()[group]), recovered, unreadable);
                    }
                    self.disk.set_faults(self.faults);
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

    /// The writes that a group holds; after a restart those that must be found.
    fn held(&self, group: usize) -> HashSet<BlockVersion> {
        let slots = self.models[group].slots.iter();
        slots.flatten().copied().collect()
    }

    /// Checks the recovered blocks of a group and makes them the model's state.
    /// `unreadable` is whether an earlier open may have found records that it could not read.
    fn adopt(
        &mut self,
        (group, store): (usize, &SlotStore),
        recovered: &RecoveredBlocks,
        unreadable: bool,
    ) {
        let mut places: HashMap<_, usize> = HashMap::new();
        let mut offered = HashSet::new();
        let slots = store.slots() as usize;
        // A group that has become smaller keeps what fits.
        let must = match slots >= self.models[group].slots.len() {
            true => self.held(group),
            false => HashSet::new(),
        };
        self.models[group].slots = vec![None; slots];
        let mut bad = 0;
        for (index, entry) in recovered.entries.iter().enumerate() {
            assert_eq!(entry.slot as usize, index);
            let number = u64::from(entry.tenant);
            assert_eq!(entry.key, key(number));
            assert_eq!(entry.parent, parent(number).map(key));
            assert_eq!(entry.position, position(number));
            assert!(places.insert(entry.key, index).is_none(), "offered twice");
            let mut bytes = vec![0; self.block_bytes(group)];
            match store.read(entry.slot, &entry.key, &mut bytes) {
                Ok(()) => {
                    let version = self.check_bytes((group, number), &bytes);
                    assert!(
                        self.models[group].possible.contains(&version),
                        "{version:?} must not be found"
                    );
                    self.models[group].slots[index] = Some(version);
                    offered.insert(version);
                }
                Err(SlotMiss::Checksum | SlotMiss::Truncated) if self.models[group].damage > 0 => {
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
                "opened group {group}: {} offered, {bad} bad, {missing} missing, created: {}, {dropped:?}",
                places.len(),
                recovered.created
            )
        });
        // Erasures that the disk refused leave more blocks than there are slots.
        let surplus = match self.faults == DiskFaults::default() {
            true => 0,
            false => recovered.dropped.over_capacity,
        };
        let excused = self.models[group].damage + u64::from(recovered.dropped.unreadable + surplus);
        assert!(
            missing <= excused || unreadable,
            "{missing} durable blocks are missing"
        );
        // Damaged blocks that were just erased, or whose erasure the disk refused, may be found
        // again.
        if bad + recovered.dropped.total() == 0 {
            self.models[group].damage = 0;
        }
        self.models[group].erased.clear();
    }

    fn block_bytes(&self, group: usize) -> usize {
        usize::try_from(self.groups[group].identity.block_bytes()).unwrap()
    }

    /// The write that these bytes belong to; all bytes must belong to it.
    fn check_bytes(&self, (group, number): (usize, u64), bytes: &[u8]) -> BlockVersion {
        let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let version = BlockVersion {
            group,
            number,
            version,
        };
        let written = content(version, self.block_bytes(group));
        assert!(bytes == written, "mixed bytes in {version:?}");
        version
    }

    fn write(&mut self, group: usize, store: &SlotStore) {
        let held: HashSet<u64> = self.held(group).iter().map(|v| v.number).collect();
        let empty = self.models[group]
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
            self.versions += 1;
            let version = BlockVersion {
                group,
                number,
                version: self.versions,
            };
            batch.push((slot, version));
        }
        let bytes = self.block_bytes(group);
        let contents = batch.iter().map(|(_, version)| content(*version, bytes));
        let contents: Vec<Vec<u8>> = contents.collect();
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
                    self.models[group].slots[slot as usize] = Some(version);
                    self.models[group].possible.insert(version);
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
        self.settle(group, store);
    }

    /// Whether any fault of the disk is possible.
    fn troubled(&self) -> bool {
        self.faults != DiskFaults::default() || self.disk.is_dead() || self.damaging
    }

    /// A failed sync, possibly inside a write, empties slots.
    fn settle(&mut self, group: usize, store: &SlotStore) {
        for (held, slot) in self.models[group].slots.iter_mut().zip(0..) {
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

    fn erase(&mut self, group: usize, store: &SlotStore) {
        let full = self.models[group]
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
            let version = self.models[group].slots[slot as usize].take();
            self.models[group].erased.extend(version);
        }
    }

    /// Syncs all groups together.
    fn sync(&mut self, store: &SlotFolder) {
        for (group, synced) in store.sync().into_iter().enumerate() {
            self.synced(group, &store.stores()[group], synced);
        }
    }

    /// Checks the report of a sync of a group.
    fn synced(&mut self, group: usize, store: &SlotStore, synced: SlotSyncReport) {
        self.tell(|| format!("sync of group {group}: {synced:?}"));
        for lost in &synced.lost {
            let version = self.models[group].slots[lost.slot as usize].take();
            assert_eq!(version.map(|version| key(version.number)), Some(lost.key));
        }
        self.settle(group, store);
        if let Some(failure) = synced.failure {
            assert!(self.troubled());
            if self.gone && !self.disk.is_dead() && self.faults.read == 0 {
                assert!(
                    matches!(failure, TierError::Folder(FolderError::FileGone { .. })),
                    "{failure}"
                );
            }
            return;
        }
        assert!(!self.gone, "durable in files that are missing");
        let model = &mut self.models[group];
        for version in model.erased.drain(..) {
            model.possible.remove(&version);
        }
        for (held, slot) in model.slots.iter().zip(0..) {
            let state = match held {
                Some(_) => SlotState::Durable,
                None => SlotState::Empty,
            };
            assert_eq!(store.state(slot), state, "slot {slot} after a sync");
        }
    }

    fn read(&mut self, group: usize, store: &SlotStore) {
        let slots = &self.models[group].slots;
        let mut bytes = vec![0; self.block_bytes(group)];
        let mut buffers = vec![bytes.clone(); slots.len()];
        let number = |held: &Option<BlockVersion>| held.map_or(0, |version| version.number);
        let mut reads: Vec<SlotRead<'_>> = (0..)
            .zip(slots)
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
        for ((held, slot), (read, arrived)) in slots.iter().zip(0..).zip(read) {
            match (read, held) {
                (Ok(()), Some(version)) => {
                    assert_eq!(
                        self.check_bytes((group, version.number), &arrived),
                        *version
                    );
                }
                (Err(SlotMiss::Empty), None) => {}
                (Err(SlotMiss::Io(_)), Some(_)) if self.faults.read > 0 || self.disk.is_dead() => {}
                (Err(SlotMiss::Checksum | SlotMiss::Truncated), Some(_))
                    if self.models[group].damage > 0 => {}
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
        let group = self.numbers.index(self.groups.len());
        let file = |of: &str| match group {
            0 => of.to_owned(),
            group => format!("{of}-{group}"),
        };
        match self.numbers.below(5) {
            0 => self.disk.set_read_only(true),
            1 => self.disk.set_read_only(false),
            2 => {
                let file = file(["slots", "records"][self.numbers.index(2)]);
                self.tell(|| format!("a bit of {file} flips"));
                self.models[group].damage += u64::from(self.disk.flip(&file));
            }
            3 => {
                let of = ["slots", "records", "manifest.json"][self.numbers.index(3)];
                let is_manifest = of == "manifest.json";
                let file = if is_manifest { of.to_owned() } else { file(of) };
                // An empty manifest would make the next open fail, which other tests cover.
                let replace = !is_manifest && self.numbers.once_in(2);
                self.tell(|| format!("{file} is lost, replaced: {replace}"));
                if self.disk.lose(&file, replace) {
                    self.gone = true;
                    for (of_group, model) in self.models.iter_mut().enumerate() {
                        if is_manifest || of_group == group {
                            model.damage += NUMBERS;
                        }
                    }
                }
            }
            _ => {
                let bytes = self.numbers.index(60_000);
                let file = file("slots");
                self.tell(|| format!("{file} is cut to {bytes} bytes"));
                self.disk.cut(&file, bytes);
                self.models[group].damage += NUMBERS;
            }
        }
    }

    /// A power loss, a kill, or an orderly end.
    fn restart(&mut self, store: SlotFolder, how: usize) -> SlotFolder {
        for (model, store) in self.models.iter_mut().zip(store.stores()) {
            for (held, slot) in model.slots.iter_mut().zip(0..) {
                if store.state(slot) != SlotState::Durable {
                    *held = None;
                }
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
        self.gone = false;
        drop(store);
        if self.numbers.once_in(4) {
            self.settings = random_settings(&mut self.numbers, &mut self.groups);
        }
        if self.numbers.once_in(6) {
            self.disk.set_fuse(1 + self.numbers.below(20));
        }
        self.open()
    }
}

/// A random capacity, and for several groups random shares, with room for every group.
fn random_settings(numbers: &mut SplitMix64, groups: &mut [TierGroup]) -> SlotStoreSettings {
    let is_shared = groups.len() > 1 && numbers.once_in(2);
    for group in groups.iter_mut() {
        group.share = match is_shared {
            true => [None, Some(0.5), Some(1.0), Some(2.0)][numbers.index(4)],
            false => None,
        };
    }
    let least = if is_shared { 20 } else { 2 };
    room(least + numbers.below(14), groups)
}

/// Blocks are chains of four.
fn parent(number: u64) -> Option<u64> {
    (!number.is_multiple_of(4)).then(|| number - 1)
}

fn position(number: u64) -> u32 {
    u32::try_from(number % 4).unwrap()
}

/// The bytes of one write: they contain its number and differ at every offset.
fn content(version: BlockVersion, bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; bytes];
    let group = (version.group as u64) << 60;
    crate::common::fill(group | version.number << 32 | version.version, &mut bytes);
    bytes[..8].copy_from_slice(&version.version.to_le_bytes());
    bytes
}
