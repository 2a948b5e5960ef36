//! Creates, opens and resizes a folder, and recovers the blocks of its groups after a crash.

use std::sync::Arc;

use kvtile_layout::broken;
use kvtile_memory::ProcessMark;
use parking_lot::Mutex;

use super::{
    super::{
        capacity,
        capacity::SlotForm,
        folder::{self, LOCK_FILE},
        lent::LentCapacity,
        manifest::{MANIFEST_PARTIAL_FILE, Manifest, ManifestGroup, file_name},
        medium::{Medium, MediumFile, MediumLock, OpenFile},
        record::{RecordForm, SEQUENCE_MAX},
        share,
    },
    RecordScan, RecoveredBlocks, ScanScope, SlotStore, SlotStoreSettings,
    found::FoundRecords,
    lend::FolderLending,
    standing::{DataFiles, HeldFolder, HeldManifest},
    stats::StoreCounters,
    table::SlotTable,
};
use crate::{error::TierError, tier::TierGroup};

/// Opens a folder with these groups, or creates it. Returns the store of each group, with the blocks
/// that it holds.
pub(super) fn open_groups(
    medium: Arc<dyn Medium>,
    settings: &SlotStoreSettings,
    groups: &[TierGroup],
) -> Result<Vec<(SlotStore, RecoveredBlocks)>, TierError> {
    share::check_groups(groups)?;
    let failed = |error| TierError::file("make", medium.name(), error);
    medium.create().map_err(failed)?;
    folder::check_ours(&*medium)?;
    let lock = folder::lock(&*medium)?;
    let manifest = Manifest::read(&*medium)?;
    let groups = match &manifest {
        Some(manifest) => manifest.cut_as_stored(groups),
        None => groups.to_vec(),
    };
    let opening = FolderOpening {
        medium: &medium,
        settings,
        groups: &groups,
    };
    let opened = match manifest {
        Some(manifest) => opening.open(manifest)?,
        None => opening.create()?,
    };
    let held_manifest = HeldManifest::open(&*medium)?;
    opened.into_stores(&groups, Arc::clone(&medium), (lock, held_manifest))
}

struct FolderOpening<'a> {
    medium: &'a Arc<dyn Medium>,
    settings: &'a SlotStoreSettings,
    /// The requested groups; a folder of others is refused.
    groups: &'a [TierGroup],
}

struct OpenedFolder {
    manifest: Manifest,
    /// The files of each group.
    files: Vec<DataFiles>,
    /// The records of each group.
    found: Vec<FoundRecords>,
    /// How the groups lend room to each other, if they do.
    lent: Option<LentCapacity>,
    created: bool,
}

/// A group of the folder that is being opened.
#[derive(Clone, Copy)]
struct OpeningGroup<'a> {
    index: usize,
    form: SlotForm,
    manifest: &'a ManifestGroup,
}

impl FolderOpening<'_> {
    fn create(&self) -> Result<OpenedFolder, TierError> {
        let capacity_bytes = self.settings.capacity_bytes;
        let manifest = Manifest::new(self.groups, capacity_bytes)?;
        let lent = self.lent(&manifest)?;
        let places = self.places(&manifest, lent.as_ref())?;
        let manifest = manifest.resized(capacity_bytes, &places);
        folder::remove_data(&**self.medium)?;
        let made = self.make_files(&manifest);
        if made.is_err() {
            // The caller needs the first error; the next attempt removes the remaining files.
            drop(folder::remove_data(&**self.medium));
        }
        Ok(OpenedFolder {
            files: made?,
            manifest,
            found: self
                .groups
                .iter()
                .map(|_| FoundRecords::default())
                .collect(),
            lent,
            created: true,
        })
    }

    fn make_files(&self, manifest: &Manifest) -> Result<Vec<DataFiles>, TierError> {
        let files = self.files(manifest)?;
        self.sync(&files)?;
        manifest.write(&**self.medium)?;
        Ok(files)
    }

    fn open(&self, manifest: Manifest) -> Result<OpenedFolder, TierError> {
        manifest.check(self.groups, &**self.medium)?;
        let failed = |error| TierError::file("clear", self.medium.name(), error);
        self.medium.remove(MANIFEST_PARTIAL_FILE).map_err(failed)?;
        let lent = self.lent(&manifest)?;
        let places = self.places(&manifest, lent.as_ref())?;
        let resized = manifest.resized(self.settings.capacity_bytes, &places);
        let mut found = Vec::new();
        let mut records = Vec::new();
        for before in self.groups_of(&manifest) {
            let (file, of_group) = self.recover(before, &manifest)?;
            records.push(file);
            found.push(of_group);
        }
        self.fit((&mut found, &records), &resized, lent.as_ref());
        let files = match resized == manifest {
            true => self
                .groups_of(&manifest)
                .zip(records)
                .map(|(group, records)| self.with_slots(group, records))
                .collect::<Result<_, _>>()?,
            false => self.resize(records, &manifest, &resized)?,
        };
        // Last: a missing file was created just now.
        self.medium.sync_folder().map_err(failed)?;
        Ok(OpenedFolder {
            manifest: resized,
            files,
            found,
            lent,
            created: false,
        })
    }

    /// Scans the records of a group.
    fn recover(
        &self,
        group: OpeningGroup<'_>,
        manifest: &Manifest,
    ) -> Result<(Box<dyn MediumFile>, FoundRecords), TierError> {
        let (slots_name, records_name) = (
            folder::slots_file(group.index),
            folder::records_file(group.index),
        );
        let lengths = (self.length(&slots_name)?, self.length(&records_name)?);
        let form = group.form.record;
        let records = self.open_records(group)?;
        let mut scan = RecordScan::read(
            &*records,
            ScanScope {
                store: &manifest.store(group.index),
                places: group.manifest.slots(),
                form,
                write_back: true,
            },
        );
        // A killed process may have left names, records and erasures that only the page cache
        // holds. The scan writes them back, and this sync makes them durable before the store
        // relies on them.
        let failed = |error| TierError::file("write", self.file_name(&records_name), error);
        scan.failure.take().map_or(Ok(()), Err).map_err(failed)?;
        self.sync_file(&*records, &records_name)?;
        let found = FoundRecords::of(scan, (group.manifest, form), lengths);
        Ok((records, found))
    }

    /// Leaves out the blocks that the groups of `resized` have no room for, and erases the records of
    /// all that are not offered. This comes before the files get their length back: otherwise the
    /// next open would offer truncated blocks.
    fn fit(
        &self,
        (found, records): (&mut [FoundRecords], &[Box<dyn MediumFile>]),
        resized: &Manifest,
        lent: Option<&LentCapacity>,
    ) {
        for (found, after) in found.iter_mut().zip(resized.groups()) {
            found.fit(after.slots(), after.blocks_max());
        }
        let count = |found: &FoundRecords| u32::try_from(found.stored.len()).unwrap_or(u32::MAX);
        let counts: Vec<u32> = found.iter().map(count).collect();
        let stay = lent.map_or(counts.clone(), |lent| lent.fit(&counts));
        let groups = self.groups_of(resized).zip(records);
        for (((group, records), found), stay) in groups.zip(found).zip(stay) {
            found.fit(group.manifest.slots(), stay);
            found.erase((&**records, group.form.record), group.manifest.slots());
        }
    }

    /// How the groups lend room to each other; `None` if each has its share alone.
    fn lent(&self, manifest: &Manifest) -> Result<Option<LentCapacity>, TierError> {
        let settings = self.settings;
        let wanted = settings.lends && !settings.preallocate && self.groups.len() > 1;
        if !wanted || !self.medium.punches(LOCK_FILE) {
            return Ok(None);
        }
        let manifest_bytes = manifest.bytes_max()?;
        Ok(LentCapacity::divide(
            settings.capacity_bytes,
            self.groups,
            manifest_bytes,
        ))
    }

    /// The number of places of each group for the requested capacity and shares.
    fn places(
        &self,
        manifest: &Manifest,
        lent: Option<&LentCapacity>,
    ) -> Result<Vec<u32>, TierError> {
        if let Some(lent) = lent {
            return Ok(lent.places());
        }
        // The only group keeps its places, even if its manifest would be longer today.
        if let [group] = manifest.groups()
            && self.settings.capacity_bytes == manifest.capacity_bytes()
            && group.slots() > 0
        {
            return Ok(vec![group.slots()]);
        }
        let capacity_bytes = self.settings.capacity_bytes;
        share::divide(capacity_bytes, self.groups, manifest.bytes_max()?)
    }

    /// Resizes all groups. Growing groups get their space before the new manifest, shrinking ones
    /// lose it after. Where some grow and others shrink, the shrinking ones come first, with a
    /// manifest of their own, so that the files never exceed the capacity.
    fn resize(
        &self,
        records: Vec<Box<dyn MediumFile>>,
        before: &Manifest,
        after: &Manifest,
    ) -> Result<Vec<DataFiles>, TierError> {
        // First, cut off what an earlier resize may have left behind the end of the files.
        drop(records);
        for group in self.groups_of(before) {
            drop(self.open_slots(group)?);
        }
        let (was, will) = (before.slots(), after.slots());
        let pairs = || was.iter().zip(&will);
        let smaller: Vec<u32> = pairs().map(|(was, will)| *was.min(will)).collect();
        let grows = smaller != will;
        let between = after.resized(after.capacity_bytes(), &smaller);
        if smaller != was || !grows {
            between.write(&**self.medium)?;
            let files = self.files(&between)?;
            if !grows {
                return Ok(files);
            }
        }
        let files = self.files(after)?;
        for ((group, files), will) in self.groups_of(&between).zip(&files).zip(will) {
            if group.manifest.slots() < will {
                self.erase_tail(files, group)?;
            }
        }
        self.sync(&files)?;
        after.write(&**self.medium)?;
        Ok(files)
    }

    /// Erases the remainder of the last record's page: files end at page boundaries, and a formerly
    /// larger group may have left records there.
    fn erase_tail(&self, files: &DataFiles, group: OpeningGroup<'_>) -> Result<(), TierError> {
        let (slots, form) = (group.manifest.slots(), group.form.record);
        let used = u64::from(slots) * form.stride();
        let tail = capacity::records_bytes(slots, form) - used;
        let zeroes = vec![0; usize::try_from(tail).unwrap_or(0)];
        let failed = |error| TierError::file("write", self.file_name(&files.records_name), error);
        files.records.write_all_at(used, &zeroes).map_err(failed)
    }

    /// The groups with their numbers, and with the sizes of a manifest.
    fn groups_of<'m>(&self, manifest: &'m Manifest) -> impl Iterator<Item = OpeningGroup<'m>> {
        let forms: Vec<SlotForm> = self.groups.iter().map(share::form).collect();
        let groups = manifest.groups().iter().zip(forms).enumerate();
        groups.map(|(index, (manifest, form))| OpeningGroup {
            index,
            form,
            manifest,
        })
    }

    fn files(&self, manifest: &Manifest) -> Result<Vec<DataFiles>, TierError> {
        self.groups_of(manifest)
            .map(|group| {
                let slots = self.open_slots(group)?;
                let records = self.open_records(group)?;
                Ok(data_files(group.index, slots, records))
            })
            .collect()
    }

    fn with_slots(
        &self,
        group: OpeningGroup<'_>,
        records: Box<dyn MediumFile>,
    ) -> Result<DataFiles, TierError> {
        Ok(data_files(group.index, self.open_slots(group)?, records))
    }

    fn open_records(&self, group: OpeningGroup<'_>) -> Result<Box<dyn MediumFile>, TierError> {
        let how = OpenFile {
            length_bytes: capacity::records_bytes(group.manifest.slots(), group.form.record),
            writable: true,
            direct: false,
            // A record must not fail for lack of disk space after its block is durable.
            preallocate: true,
        };
        self.file(&folder::records_file(group.index), &how)
    }

    fn open_slots(&self, group: OpeningGroup<'_>) -> Result<Box<dyn MediumFile>, TierError> {
        let how = OpenFile {
            length_bytes: group.manifest.data_bytes(),
            writable: true,
            direct: self.settings.direct_io,
            preallocate: self.settings.preallocate,
        };
        self.file(&folder::slots_file(group.index), &how)
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

    fn sync(&self, files: &[DataFiles]) -> Result<(), TierError> {
        for files in files {
            self.sync_file(&*files.slots, &files.slots_name)?;
            self.sync_file(&*files.records, &files.records_name)?;
        }
        Ok(())
    }

    fn sync_file(&self, opened: &dyn MediumFile, file: &str) -> Result<(), TierError> {
        let failed = |error| TierError::file("sync", self.file_name(file), error);
        opened.sync_data().map_err(failed)
    }
}

fn data_files(group: usize, slots: Box<dyn MediumFile>, records: Box<dyn MediumFile>) -> DataFiles {
    DataFiles {
        slots,
        slots_name: folder::slots_file(group),
        records,
        records_name: folder::records_file(group),
    }
}

impl OpenedFolder {
    fn into_stores(
        self,
        groups: &[TierGroup],
        medium: Arc<dyn Medium>,
        (lock, held_manifest): (Box<dyn MediumLock>, HeldManifest),
    ) -> Result<Vec<(SlotStore, RecoveredBlocks)>, TierError> {
        let folder = Arc::new(HeldFolder {
            medium,
            manifest: self.manifest,
            held_manifest,
            files: self.files.into_iter().map(Arc::new).collect(),
            lending: self.lent.map(FolderLending::new),
            process: ProcessMark::now(),
            _lock: lock,
        });
        let parts = groups.iter().zip(self.found).enumerate();
        parts
            .map(|(index, (group, found))| {
                let recovered = found.recovered(self.created);
                let store = group_store(&folder, (index, group), found);
                store.own_held();
                if !self.created {
                    store.punch_holes()?;
                }
                Ok((store, recovered))
            })
            .collect()
    }
}

/// The store of one group of an open folder.
fn group_store(
    folder: &Arc<HeldFolder>,
    (index, group): (usize, &TierGroup),
    found: FoundRecords,
) -> SlotStore {
    let of_manifest = folder.manifest.groups().get(index);
    let (Some(of_manifest), Some(files)) = (of_manifest, folder.files.get(index)) else {
        broken(format_args!("group {index} of {}", folder.files.len()))
    };
    let pieces = group.identity.pieces.clone();
    let (slots, places) = (of_manifest.blocks_max(), of_manifest.slots());
    let next = found.last_sequence.saturating_add(1).min(SEQUENCE_MAX);
    let lends = folder.lending.is_some();
    let sizes = (slots, places, &pieces);
    let table = SlotTable::new(sizes, &found.stored, found.stale, (next, lends));
    SlotStore {
        folder: Arc::clone(folder),
        group: of_manifest.clone(),
        index,
        files: Arc::clone(files),
        id: folder.manifest.store(index),
        record_form: RecordForm::of(&pieces),
        pieces,
        table: Mutex::new(table),
        commit: Mutex::new(()),
        unreported: Mutex::default(),
        counters: StoreCounters::default(),
    }
}
