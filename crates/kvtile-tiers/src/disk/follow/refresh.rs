//! Refreshes: they bring the index of a follower up to the folder.
//!
//! ```text
//! folder replaced? ─ manifest changed? ─ files replaced? ─ records written? ─ pages changed?
//! ```
//!
//! Each step is taken only if the one before requires it or has passed: a refresh of a folder
//! without changes costs a few lookups of names and the bytes of the manifest.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use kvtile_blocks::{BlockKey, GroupId, events::EventKind};

use super::{
    super::{
        capacity::PAGE,
        folder::records_file,
        manifest::{Manifest, file_name},
        medium::NameStanding,
        pace::{RefreshPace, RefreshedIndex},
        record::{RecordForm, StoreId},
        store::{RecordRun, each_run},
    },
    FollowerShared,
    folder::{
        ComparedRecords, FolderWatch, FollowCondition, FollowedFiles, FollowedGroup, FollowedView,
        judge, manifest_bytes,
    },
    index::{FollowedIndex, FollowedPage, digest, per_page},
};
use crate::{clock::Clock, error::TierError};

/// A write this long after a comparison changes the time of the file. Clocks of file systems tick
/// every few milliseconds.
const TICK: Duration = Duration::from_secs(2);

/// The age at which records are compared although their time did not change: a write that was
/// stalled for long sets the time before its bytes.
const COMPARE_AFTER: Duration = Duration::from_secs(5);

impl RefreshedIndex for FollowerShared {
    const WHAT: &'static str = "a refresh of a followed folder";

    fn pace(&self) -> &RefreshPace {
        &self.pace
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn refresh_after(&self) -> Duration {
        self.refresh_after
    }

    fn refresh(&self, _asked: &[&[BlockKey]]) -> Result<(), TierError> {
        self.refresh_folder()
    }

    fn leading(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let Some(group) = self.group(group) else {
            return 0;
        };
        let view = group.view.read();
        keys.iter().take_while(|key| view.index.has(key)).count()
    }
}

impl FollowerShared {
    /// Brings the index up to the folder. After a failure the index is that of an earlier refresh,
    /// or of a part of this one.
    pub(super) fn refresh_folder(&self) -> Result<(), TierError> {
        let mut watch = self.watch.lock();
        self.counters.refreshes.add(1);
        let refreshed = self.refresh_watched(&mut watch);
        if let Err(error) = &refreshed {
            self.counters.refresh_failures.add(1);
            // Nothing that this refresh has learnt counts for the next one.
            watch.compare_all();
            if !watch.is_failing {
                log::warn!("the {} tier cannot follow its folder: {error}", self.id);
            }
        }
        watch.is_failing = refreshed.is_err();
        refreshed
    }

    fn refresh_watched(&self, watch: &mut FolderWatch) -> Result<(), TierError> {
        self.find_folder()?;
        let bytes = manifest_bytes(&*self.medium)?;
        if bytes != watch.manifest_bytes {
            self.take_manifest(watch, bytes);
        }
        let Some(manifest) = watch.manifest.clone() else {
            // There is no folder to follow, and the index is empty.
            return Ok(());
        };
        let mut refreshed = Ok(());
        for group in &self.groups {
            // A group whose files cannot be read does not stop the others.
            let files = self.files(group, watch, &manifest);
            let compared = files.and_then(|files| self.compare_if_written(group, watch, &files));
            refreshed = refreshed.and(compared);
        }
        refreshed
    }

    /// Looks the folder's name up again if it no longer refers to the open folder.
    fn find_folder(&self) -> Result<(), TierError> {
        match self.medium.standing() {
            Ok(NameStanding::Same) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TierError::file("look at", self.medium.name(), error)),
        }
        self.medium.reopen();
        // The open files are those of the folder before, which may have an equal manifest.
        self.reset_all(true);
        Ok(())
    }

    /// Takes over a manifest that appeared, changed or disappeared.
    fn take_manifest(&self, watch: &mut FolderWatch, bytes: Option<Vec<u8>>) {
        let before = watch.manifest.take();
        let (condition, manifest) = match &bytes {
            None => (FollowCondition::Missing, None),
            Some(bytes) => {
                let groups = self.groups.iter().map(|group| group.of.clone());
                judge(bytes, &*self.medium, &groups.collect::<Vec<_>>())
            }
        };
        let is_same = |before: &Manifest| {
            let now = manifest.as_ref().map(|manifest| manifest.store(0));
            now == Some(before.store(0))
        };
        // After a resize the records are those of the same store, in the same places.
        let keeps = before.as_ref().is_some_and(is_same);
        self.reset_all(keeps);
        watch.compare_all();
        self.report(&condition);
        watch.condition = condition;
        watch.manifest = manifest;
        watch.manifest_bytes = bytes;
    }

    fn report(&self, condition: &FollowCondition) {
        let (id, folder) = (self.id, self.medium.name());
        match condition {
            FollowCondition::Missing => {}
            FollowCondition::Followed => self.counters.loads.add(1),
            FollowCondition::Differs { difference } => {
                self.counters.refusals.add(1);
                log::warn!(
                    "the {id} tier stays empty: {folder} belongs to another cache: {difference}"
                );
            }
            FollowCondition::Unusable { error } => {
                self.counters.refusals.add(1);
                log::warn!("the {id} tier stays empty: {error}");
            }
        }
    }

    fn reset_all(&self, keeps: bool) {
        for group in &self.groups {
            self.reset(group, keeps);
        }
    }

    /// Closes the files of a group, and drops its blocks unless `keeps`.
    fn reset(&self, group: &FollowedGroup, keeps: bool) {
        let mut view = group.view.write();
        view.files = None;
        if keeps {
            return;
        }
        if view.index.len() > 0 && self.is_open.load(Ordering::Relaxed) {
            self.events.cleared(self.id, group.id);
        }
        view.index = FollowedIndex::default();
    }

    /// The open files of a group; opens them again if they were replaced or resized.
    fn files(
        &self,
        group: &FollowedGroup,
        watch: &mut FolderWatch,
        manifest: &Manifest,
    ) -> Result<Arc<FollowedFiles>, TierError> {
        let opened = group.view.read().files.clone();
        if let Some(files) = opened
            && files.are_current(&*self.medium, manifest)
        {
            return Ok(files);
        }
        *watch.compared(group.number) = None;
        let opened = FollowedFiles::open(&*self.medium, manifest, group.number);
        if opened.is_err() {
            // Blocks that no read can get are not offered.
            self.reset(group, false);
        }
        let files = Arc::new(opened?);
        if !group.view.read().index.takes(files.form) {
            // A manifest that was changed in place.
            self.reset(group, false);
        }
        let mut view = group.view.write();
        view.index.expect(files.form);
        view.files = Some(Arc::clone(&files));
        Ok(files)
    }

    /// Compares the records, unless their file was not written since the last comparison.
    fn compare_if_written(
        &self,
        group: &FollowedGroup,
        watch: &mut FolderWatch,
        files: &FollowedFiles,
    ) -> Result<(), TierError> {
        let began = self.clock.now();
        let started = SystemTime::now();
        let failed = |operation, error| {
            TierError::file(
                operation,
                file_name(&*self.medium, &records_file(group.number)),
                error,
            )
        };
        let modified = match files.records.get() {
            None => None,
            Some(records) => records
                .modified()
                .map_err(|error| failed("look at", error))?,
        };
        let is_unchanged = |compared: ComparedRecords| {
            let is_recent = began.saturating_sub(compared.began) < COMPARE_AFTER;
            is_recent && compared.modified.is_some() && compared.modified == modified
        };
        if watch.compared(group.number).is_some_and(is_unchanged) {
            return Ok(());
        }
        let is_old = |at: &SystemTime| started.duration_since(*at).is_ok_and(|age| age > TICK);
        let unreadable = self.compare(group, files);
        if unreadable > 0 {
            let problem = format!("{unreadable} pages cannot be read");
            return Err(failed("read", io::Error::other(problem)));
        }
        *watch.compared(group.number) = Some(ComparedRecords {
            modified: modified.filter(is_old),
            began,
        });
        Ok(())
    }

    /// Decodes the pages of records that changed. Returns how many pages cannot be read; they have
    /// no blocks.
    fn compare(&self, group: &FollowedGroup, files: &FollowedFiles) -> usize {
        let scope = (files.places, files.form);
        let of_page = per_page(files.form).max(1);
        let (mut seen, mut unreadable) = (0, 0);
        if let Some(records) = files.records.get() {
            each_run(records, scope, &mut |first, run| {
                let page = (first / of_page) as usize;
                let changed = match run {
                    RecordRun::Read(bytes) => {
                        let of = (files.form, &files.store);
                        self.changed(group, of, (page, bytes))
                    }
                    RecordRun::Unreadable(_) => {
                        unreadable += 1;
                        vec![(page, FollowedPage::default())]
                    }
                };
                seen = page + run.pages();
                self.apply(group, changed);
            });
        }
        // Pages behind the end of the file have no blocks.
        let rest = seen..group.view.read().index.pages();
        let rest = rest.map(|page| (page, FollowedPage::default()));
        self.apply(group, rest.collect());
        unreadable
    }

    /// The pages among `bytes` whose digest differs from that of the last comparison, decoded.
    fn changed(
        &self,
        group: &FollowedGroup,
        of: (RecordForm, &StoreId),
        (first, bytes): (usize, &[u8]),
    ) -> Vec<(usize, FollowedPage)> {
        let digests: Vec<u64> = bytes.chunks(PAGE).map(digest).collect();
        let is_changed: Vec<bool> = {
            let view = group.view.read();
            let known = (first..).map(|page| view.index.digest(page));
            digests
                .iter()
                .zip(known)
                .map(|(now, known)| *now != known)
                .collect()
        };
        self.counters.compared_pages.add(digests.len() as u64);
        let pages = (first..)
            .zip(bytes.chunks(PAGE))
            .zip(digests)
            .zip(is_changed);
        let changed = pages.filter(|(_, is_changed)| *is_changed);
        changed
            .map(|(((page, bytes), digest), _)| {
                let place = u32::try_from(page)
                    .unwrap_or(u32::MAX)
                    .saturating_mul(per_page(of.0));
                (page, FollowedPage::decode(of, place, (digest, bytes)))
            })
            .collect()
    }

    /// Replaces pages of the index, and reports the blocks that appeared and disappeared.
    fn apply(&self, group: &FollowedGroup, pages: Vec<(usize, FollowedPage)>) {
        if pages.is_empty() {
            return;
        }
        self.counters.changed_pages.add(pages.len() as u64);
        let mut changes: Vec<EventKind> = Vec::new();
        let mut view = group.view.write();
        let FollowedView { index, .. } = &mut *view;
        for (page, content) in pages {
            index.replace(page, content, &mut changes);
        }
        // Blocks that are there when the tier is opened have no events.
        if self.is_open.load(Ordering::Relaxed) {
            self.events.append(self.id, group.id, changes);
        }
    }
}

impl RecordRun<'_> {
    /// The number of pages that the run touches.
    fn pages(&self) -> usize {
        match self {
            RecordRun::Read(bytes) => bytes.len().div_ceil(PAGE),
            RecordRun::Unreadable(_) => 1,
        }
    }
}
