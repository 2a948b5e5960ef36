//! Creates, opens and resizes a folder, and recovers its blocks after a crash.

use std::{cmp::Reverse, path::Path, sync::Arc};

use kvtile_memory::ProcessMark;
use parking_lot::Mutex;

use super::{
    super::{
        capacity,
        capacity::SlotForm,
        folder,
        folder::{RECORDS_FILE, SLOTS_FILE},
        manifest::{MANIFEST_PARTIAL_FILE, Manifest, file_name},
        medium::{FolderMedium, Medium, MediumFile, MediumLock, OpenFile},
        record::{RecordForm, SEQUENCE_MAX, SlotRecord},
    },
    DroppedSlots, RecordScan, RecoveredBlocks, ScanScope, SlotStore, SlotStoreSettings, StoredSlot,
    commit::RecordChanges,
    standing::HeldManifest,
    stats::StoreCounters,
    table::SlotTable,
};
use crate::{
    error::{MismatchError, TierError},
    tier::{BlockPieces, StoreIdentity},
};

impl SlotStore {
    /// Opens the folder at `path`, or creates it, and reports the blocks that it holds.
    ///
    /// # Errors
    /// The folder is in use; contains foreign files; belongs to another identity, block layout,
    /// block size or version (the error names the first field that differs); its manifest is
    /// damaged; the capacity is too small for one block; the file system fails.
    pub fn create_or_open(
        path: &Path,
        settings: &SlotStoreSettings,
        identity: &StoreIdentity,
    ) -> Result<(SlotStore, RecoveredBlocks), TierError> {
        let medium = Arc::new(FolderMedium::new(path));
        SlotStore::create_or_open_on(medium, settings, identity)
    }

    /// As [`create_or_open`](SlotStore::create_or_open), on any medium.
    ///
    /// # Errors
    /// The same.
    pub fn create_or_open_on(
        medium: Arc<dyn Medium>,
        settings: &SlotStoreSettings,
        identity: &StoreIdentity,
    ) -> Result<(SlotStore, RecoveredBlocks), TierError> {
        capacity::slot_bytes(identity.block_bytes())?;
        let failed = |error| TierError::file("make", medium.name(), error);
        medium.create().map_err(failed)?;
        folder::check_ours(&*medium)?;
        let lock = folder::lock(&*medium)?;
        let opening = FolderOpening {
            medium: &medium,
            settings,
            form: SlotForm {
                block_bytes: identity.block_bytes(),
                record: RecordForm::of(&identity.pieces),
            },
        };
        let opened = match Manifest::read(&*medium)? {
            Some(manifest) => opening.open(manifest, identity)?,
            None => opening.create(identity)?,
        };
        let held_manifest = HeldManifest::open(&*medium)?;
        let parts = (Arc::clone(&medium), identity.pieces.clone());
        Ok(opened.into_store(parts, lock, held_manifest))
    }
}

struct FolderOpening<'a> {
    medium: &'a Arc<dyn Medium>,
    settings: &'a SlotStoreSettings,
    /// The form of the requested identity; a folder of another identity is refused.
    form: SlotForm,
}

/// The two data files.
struct DataFiles {
    slots: Box<dyn MediumFile>,
    records: Box<dyn MediumFile>,
}

struct OpenedFolder {
    manifest: Manifest,
    files: DataFiles,
    found: FoundRecords,
    created: bool,
}

/// The scanned records, sorted into blocks to offer and places to erase.
#[derive(Default)]
struct FoundRecords {
    stored: Vec<(u32, SlotRecord)>,
    /// Places whose records must be erased.
    stale: Vec<u32>,
    dropped: DroppedSlots,
    last_sequence: u64,
}

impl FolderOpening<'_> {
    fn create(&self, identity: &StoreIdentity) -> Result<OpenedFolder, TierError> {
        let capacity_bytes = self.settings.capacity_bytes;
        let manifest = Manifest::new(identity, capacity_bytes, 0)?;
        let places = self.places(&manifest)?;
        let manifest = manifest.resized(capacity_bytes, places);
        folder::remove_data(&**self.medium)?;
        let made = self.make_files(&manifest);
        if made.is_err() {
            // The caller needs the first error; the next attempt removes the remaining files.
            drop(folder::remove_data(&**self.medium));
        }
        Ok(OpenedFolder {
            files: made?,
            manifest,
            found: FoundRecords::default(),
            created: true,
        })
    }

    fn make_files(&self, manifest: &Manifest) -> Result<DataFiles, TierError> {
        let files = self.files(manifest)?;
        self.sync(&files)?;
        manifest.write(&**self.medium)?;
        Ok(files)
    }

    fn open(
        &self,
        manifest: Manifest,
        identity: &StoreIdentity,
    ) -> Result<OpenedFolder, TierError> {
        if let Some(difference) = manifest.first_difference(identity) {
            let folder = self.medium.name();
            return Err(TierError::Mismatch(MismatchError::FolderDiffers {
                folder,
                difference,
            }));
        }
        let failed = |error| TierError::file("clear", self.medium.name(), error);
        self.medium.remove(MANIFEST_PARTIAL_FILE).map_err(failed)?;
        let lengths = (self.length(SLOTS_FILE)?, self.length(RECORDS_FILE)?);
        let records = self.records_file(&manifest)?;
        let mut scan = RecordScan::read(
            &*records,
            ScanScope {
                store: manifest.store(),
                places: manifest.slots(),
                form: self.form.record,
                write_back: true,
            },
        );
        // A killed process may have left names, records and erasures that only the page cache
        // holds. The scan writes them back, and this sync makes them durable before the store
        // relies on them.
        let failed = |error| TierError::file("write", self.file_name(RECORDS_FILE), error);
        scan.failure.take().map_or(Ok(()), Err).map_err(failed)?;
        self.sync_file(&*records, RECORDS_FILE)?;
        let mut found = FoundRecords::of(scan, (&manifest, self.form.record), lengths);
        let places = self.places(&manifest)?;
        let resized = manifest.resized(self.settings.capacity_bytes, places);
        found.fit(&resized);
        // Before the files get their length back: otherwise the next open would offer truncated
        // blocks.
        found.erase((&*records, self.form.record), places);
        let files = match resized == manifest {
            true => DataFiles {
                slots: self.slots_file(&manifest)?,
                records,
            },
            false => self.resize(records, &manifest, &resized)?,
        };
        // Last: a missing file was created just now.
        self.medium.sync_folder().map_err(failed)?;
        Ok(OpenedFolder {
            manifest: resized,
            files,
            found,
            created: false,
        })
    }

    /// The number of places for the requested capacity.
    fn places(&self, manifest: &Manifest) -> Result<u32, TierError> {
        if self.settings.capacity_bytes == manifest.capacity_bytes() && manifest.slots() > 0 {
            return Ok(manifest.slots());
        }
        capacity::physical_slots(
            self.settings.capacity_bytes,
            self.form,
            manifest.bytes_max()?,
        )
    }

    /// A growing folder gets its space before the new manifest, a shrinking one loses it after.
    fn resize(
        &self,
        records: Box<dyn MediumFile>,
        before: &Manifest,
        after: &Manifest,
    ) -> Result<DataFiles, TierError> {
        // First, cut off what an earlier resize may have left behind the end of the files.
        drop((records, self.slots_file(before)?));
        if after.slots() <= before.slots() {
            after.write(&**self.medium)?;
            return self.files(after);
        }
        let files = self.files(after)?;
        self.erase_tail(&*files.records, before)?;
        self.sync(&files)?;
        after.write(&**self.medium)?;
        Ok(files)
    }

    /// Erases the remainder of the last record's page: files end at page boundaries, and a formerly
    /// larger folder may have left records there.
    fn erase_tail(&self, records: &dyn MediumFile, before: &Manifest) -> Result<(), TierError> {
        let used = u64::from(before.slots()) * self.form.record.stride();
        let tail = capacity::records_bytes(before.slots(), self.form.record) - used;
        let zeroes = vec![0; usize::try_from(tail).unwrap_or(0)];
        let failed = |error| TierError::file("write", self.file_name(RECORDS_FILE), error);
        records.write_all_at(used, &zeroes).map_err(failed)
    }

    fn files(&self, manifest: &Manifest) -> Result<DataFiles, TierError> {
        Ok(DataFiles {
            slots: self.slots_file(manifest)?,
            records: self.records_file(manifest)?,
        })
    }

    fn records_file(&self, manifest: &Manifest) -> Result<Box<dyn MediumFile>, TierError> {
        let how = OpenFile {
            length_bytes: capacity::records_bytes(manifest.slots(), self.form.record),
            writable: true,
            direct: false,
            // A record must not fail for lack of disk space after its block is durable.
            preallocate: true,
        };
        self.file(RECORDS_FILE, &how)
    }

    fn slots_file(&self, manifest: &Manifest) -> Result<Box<dyn MediumFile>, TierError> {
        let how = OpenFile {
            length_bytes: manifest.data_bytes(),
            writable: true,
            direct: self.settings.direct_io,
            preallocate: self.settings.preallocate,
        };
        self.file(SLOTS_FILE, &how)
    }

    fn file(&self, file: &str, how: &OpenFile) -> Result<Box<dyn MediumFile>, TierError> {
        let failed = |error| TierError::file("open", self.file_name(file), error);
        self.medium.open(file, how).map_err(failed)
    }

    fn file_name(&self, file: &str) -> String {
        file_name(&**self.medium, file)
    }

    fn length(&self, file: &str) -> Result<u64, TierError> {
        let failed = |error| TierError::file("look at", self.file_name(file), error);
        Ok(self.medium.length(file).map_err(failed)?.unwrap_or(0))
    }

    fn sync(&self, files: &DataFiles) -> Result<(), TierError> {
        self.sync_file(&*files.slots, SLOTS_FILE)?;
        self.sync_file(&*files.records, RECORDS_FILE)
    }

    fn sync_file(&self, opened: &dyn MediumFile, file: &str) -> Result<(), TierError> {
        let failed = |error| TierError::file("sync", self.file_name(file), error);
        opened.sync_data().map_err(failed)
    }
}

impl FoundRecords {
    /// Leaves out the blocks that cannot be offered. `lengths` are those of the files before this
    /// open.
    fn of(
        scan: RecordScan,
        (manifest, form): (&Manifest, RecordForm),
        lengths: (u64, u64),
    ) -> FoundRecords {
        let (slots_bytes, records_bytes) = lengths;
        let whole = u32::try_from(records_bytes / form.stride()).unwrap_or(u32::MAX);
        let mut dropped = DroppedSlots {
            torn: count(&scan.torn),
            unreadable: count(&scan.unreadable),
            truncated: manifest.slots().saturating_sub(whole),
            ..DroppedSlots::default()
        };
        let mut stale = scan.torn;
        stale.extend(scan.unreadable);
        let mut stored = scan.stored;
        let last = stored.iter().map(|(_, record)| record.sequence).max();
        stored.retain(|(place, _)| {
            let end = u64::from(*place) * manifest.slot_bytes() + manifest.block_bytes();
            if end > slots_bytes {
                dropped.truncated += 1;
                stale.push(*place);
            }
            end <= slots_bytes
        });
        stored.sort_unstable_by_key(|(_, record)| (record.key, Reverse(record.sequence)));
        stored.dedup_by(|later, first| {
            let same = later.1.key == first.1.key;
            if same {
                dropped.duplicate += 1;
                stale.push(later.0);
            }
            same
        });
        FoundRecords {
            stored,
            stale,
            dropped,
            last_sequence: last.unwrap_or(0),
        }
    }

    /// Leaves out the blocks that a folder of this size has no room for, and sorts the others.
    ///
    /// A crash during a sync can leave more blocks than there are slots: old blocks that the sync
    /// was to erase, and the new blocks that replace them. The blocks that were durable before fit
    /// the slots, so the newest are left out.
    fn fit(&mut self, after: &Manifest) {
        self.stored
            .sort_unstable_by_key(|(_, record)| record.sequence);
        let found = self.stored.len();
        let mut room = usize::try_from(after.blocks_max()).unwrap_or(usize::MAX);
        let stale = &mut self.stale;
        self.stored.retain(|(place, _)| {
            let fits = *place < after.slots() && room > 0;
            if fits {
                room -= 1;
            } else {
                stale.push(*place);
            }
            fits
        });
        let gone = found - self.stored.len();
        self.dropped.over_capacity += u32::try_from(gone).unwrap_or(u32::MAX);
        // The sort is stable, so older blocks stay before newer ones.
        self.stored.sort_by_key(|(_, record)| record.position);
    }

    /// Erases the records of the places left out. Later syncs retry the erasures that the disk
    /// refused.
    fn erase(&mut self, (records, form): (&dyn MediumFile, RecordForm), places: u32) {
        let mut changes = RecordChanges::new(form);
        self.stale.iter().for_each(|place| changes.erase(*place));
        let brought = changes.bring(records);
        self.stale.retain(|place| {
            let erased = brought.synced.is_ok() && brought.refused.binary_search(place).is_err();
            !erased && *place < places
        });
    }
}

fn count(places: &[u32]) -> u32 {
    u32::try_from(places.len()).unwrap_or(u32::MAX)
}

impl OpenedFolder {
    fn into_store(
        self,
        (medium, pieces): (Arc<dyn Medium>, BlockPieces),
        lock: Box<dyn MediumLock>,
        held_manifest: HeldManifest,
    ) -> (SlotStore, RecoveredBlocks) {
        let FoundRecords {
            stored,
            stale,
            dropped,
            last_sequence,
        } = self.found;
        let entry = |(slot, (_, record)): (u32, &(u32, SlotRecord))| StoredSlot {
            slot,
            key: record.key,
            parent: record.parent,
            position: record.position,
            tenant: record.tenant,
            sequence: record.sequence,
        };
        let recovered = RecoveredBlocks {
            entries: (0..).zip(&stored).map(entry).collect(),
            dropped,
            created: self.created,
        };
        let (slots, places) = (self.manifest.blocks_max(), self.manifest.slots());
        let next = last_sequence.saturating_add(1).min(SEQUENCE_MAX);
        let store = SlotStore {
            table: Mutex::new(SlotTable::new(
                (slots, places, &pieces),
                &stored,
                stale,
                next,
            )),
            record_form: RecordForm::of(&pieces),
            pieces,
            medium,
            manifest: self.manifest,
            held_manifest,
            slots: self.files.slots,
            records: self.files.records,
            commit: Mutex::new(()),
            unreported: Mutex::default(),
            counters: StoreCounters::default(),
            process: ProcessMark::now(),
            _lock: lock,
        };
        (store, recovered)
    }
}
