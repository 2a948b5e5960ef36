//! All groups of a folder: one store for each, opened and synced together.

use std::{path::Path, sync::Arc};

use kvtile_blocks::GroupId;
use kvtile_layout::broken;

use super::{
    super::{
        manifest::Manifest,
        medium::{FolderMedium, Medium},
    },
    RecoveredBlocks, SlotStore, SlotStoreSettings, SlotSyncReport, commit, open,
};
use crate::{
    error::TierError,
    tier::{StoreIdentity, TierGroup},
};

/// The stores of all groups of one folder, under one capacity, one manifest and one lock.
#[derive(Debug)]
pub struct SlotFolder {
    /// At least one, in the order of the groups.
    stores: Vec<Arc<SlotStore>>,
}

impl SlotFolder {
    /// Opens the folder at `path`, or creates it, and reports the blocks that each group holds.
    ///
    /// The capacity of the settings bounds the files of all groups together. The groups divide it by
    /// their shares ([`TierGroup::share`]); opening the folder with another capacity or with other
    /// shares resizes each group.
    ///
    /// # Errors
    /// The folder is in use; contains foreign files; has other groups, or the same under other names
    /// or in another order; a group belongs to another identity, block layout, block size or version
    /// (the error names the group and the first field that differs); the manifest is damaged; the
    /// capacity is too small for two slots of each group; no groups, too many, or two with one name;
    /// the file system fails.
    pub fn create_or_open(
        path: &Path,
        settings: &SlotStoreSettings,
        groups: &[TierGroup],
    ) -> Result<(SlotFolder, Vec<RecoveredBlocks>), TierError> {
        let medium = Arc::new(FolderMedium::new(path));
        SlotFolder::create_or_open_on(medium, settings, groups)
    }

    /// As [`create_or_open`](SlotFolder::create_or_open), on any medium.
    ///
    /// # Errors
    /// The same.
    pub fn create_or_open_on(
        medium: Arc<dyn Medium>,
        settings: &SlotStoreSettings,
        groups: &[TierGroup],
    ) -> Result<(SlotFolder, Vec<RecoveredBlocks>), TierError> {
        let opened = open::open_groups(medium, settings, groups)?;
        let (stores, recovered) = opened
            .into_iter()
            .map(|(store, recovered)| (Arc::new(store), recovered))
            .unzip();
        Ok((SlotFolder { stores }, recovered))
    }

    /// The store of each group, in the order of the groups.
    #[must_use]
    pub fn stores(&self) -> &[Arc<SlotStore>] {
        &self.stores
    }

    /// The store of a group; `None` if the folder does not have the group.
    #[must_use]
    pub fn store(&self, group: GroupId) -> Option<&Arc<SlotStore>> {
        self.stores.get(usize::try_from(group.0).ok()?)
    }

    /// The manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        match self.stores.first() {
            Some(store) => store.manifest(),
            None => broken(format_args!("a folder without groups")),
        }
    }

    /// Syncs all groups together: waits for the bytes of all of them, then writes their records and
    /// waits for these. Each group has a report of its own, as of [`SlotStore::sync`]. If the bytes
    /// of a group cannot be made durable, only its blocks are lost.
    #[must_use = "blocks may have been lost"]
    pub fn sync(&self) -> Vec<SlotSyncReport> {
        let stores: Vec<&SlotStore> = self.stores.iter().map(Arc::as_ref).collect();
        commit::sync_all(&stores)
    }

    /// Asserts the invariants of each store; for tests.
    ///
    /// # Panics
    /// An invariant is broken.
    pub fn check_integrity(&self) {
        let groups = self.manifest().groups().len();
        assert_eq!(self.stores.len(), groups, "stores and groups");
        for store in &self.stores {
            store.check_integrity();
        }
    }
}

/// The name of the only group of a store; the folder does not keep it.
const ONLY_GROUP: &str = "kv";

impl SlotStore {
    /// Opens the folder at `path`, or creates it, and reports the blocks that it holds. The folder
    /// has one group; [`SlotFolder`] opens folders of several.
    ///
    /// # Errors
    /// The folder is in use; contains foreign files; has several groups; belongs to another
    /// identity, block layout, block size or version (the error names the first field that differs);
    /// its manifest is damaged; the capacity is too small for one block; the file system fails.
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
        let group = TierGroup::new(ONLY_GROUP, identity.clone());
        let mut opened = open::open_groups(medium, settings, &[group])?;
        match opened.pop() {
            Some(store) if opened.is_empty() => Ok(store),
            _ => broken(format_args!("a folder of one group has others")),
        }
    }
}
