//! The source folder of a conversion, of either version. A folder of several groups is refused.

use std::{collections::HashMap, sync::Arc};

use kvtile_blocks::BlockKey;
use kvtile_layout::identity::{Identity, LayoutIdentity};

use super::super::{
    InspectedGroup, Inspection, SlotMiss, StoredSlot,
    manifest::VERSION,
    medium::Medium,
    old::{OLD_VERSION, OldFolder},
};
use crate::error::{FolderError, TierError};

/// The source folder of a conversion.
#[derive(Debug)]
pub(super) struct ConvertSource {
    name: String,
    folder: SourceFolder,
    /// In the folder's own order, whose indices [`ConvertSource::read`] takes.
    blocks: Vec<StoredSlot>,
}

#[derive(Debug)]
enum SourceFolder {
    Old(OldFolder),
    /// A folder of the current version with one group.
    Current {
        group: InspectedGroup,
        capacity_bytes: u64,
    },
}

impl ConvertSource {
    /// Reads the manifest and the records.
    pub(super) fn open(medium: Arc<dyn Medium>) -> Result<ConvertSource, TierError> {
        let name = medium.name();
        let folder = match Inspection::open_on(Arc::clone(&medium)) {
            Err(TierError::Folder(FolderError::FolderVersion { found, .. }))
                if found == OLD_VERSION =>
            {
                SourceFolder::Old(OldFolder::open(medium)?)
            }
            opened => {
                let opened = opened?;
                let capacity_bytes = opened.manifest().capacity_bytes();
                let group = opened.into_only()?;
                SourceFolder::Current {
                    group,
                    capacity_bytes,
                }
            }
        };
        let blocks = match &folder {
            SourceFolder::Old(old) => old.blocks().collect(),
            SourceFolder::Current { group, .. } => group.blocks().collect(),
        };
        Ok(ConvertSource {
            name,
            folder,
            blocks,
        })
    }

    /// The folder, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn version(&self) -> u32 {
        match &self.folder {
            SourceFolder::Old(_) => OLD_VERSION,
            SourceFolder::Current { .. } => VERSION,
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        match &self.folder {
            SourceFolder::Old(old) => old.manifest().identity(),
            SourceFolder::Current { group, .. } => group.manifest().identity(),
        }
    }

    pub(super) fn block_layout(&self) -> &LayoutIdentity {
        match &self.folder {
            SourceFolder::Old(old) => old.manifest().block_layout(),
            SourceFolder::Current { group, .. } => group.manifest().block_layout(),
        }
    }

    pub(super) fn block_bytes(&self) -> u64 {
        match &self.folder {
            SourceFolder::Old(old) => old.manifest().block_bytes(),
            SourceFolder::Current { group, .. } => group.manifest().block_bytes(),
        }
    }

    pub(super) fn slots(&self) -> u32 {
        match &self.folder {
            SourceFolder::Old(old) => old.manifest().slots(),
            SourceFolder::Current { group, .. } => group.manifest().slots(),
        }
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        match &self.folder {
            SourceFolder::Old(old) => old.manifest().capacity_bytes(),
            SourceFolder::Current { capacity_bytes, .. } => *capacity_bytes,
        }
    }

    pub(super) fn torn(&self) -> &[u32] {
        match &self.folder {
            SourceFolder::Old(old) => old.torn(),
            SourceFolder::Current { group, .. } => group.torn(),
        }
    }

    pub(super) fn unreadable(&self) -> &[u32] {
        match &self.folder {
            SourceFolder::Old(old) => old.unreadable(),
            SourceFolder::Current { group, .. } => group.unreadable(),
        }
    }

    /// All blocks that have a valid record.
    pub(super) fn blocks(&self) -> &[StoredSlot] {
        &self.blocks
    }

    /// The newest copy of each key, with its index: smaller positions first, older ones first among
    /// equals.
    pub(super) fn newest(&self) -> Vec<(usize, StoredSlot)> {
        let mut newest: HashMap<BlockKey, (usize, StoredSlot)> = HashMap::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let known = newest.entry(block.key).or_insert((index, *block));
            if known.1.sequence < block.sequence {
                *known = (index, *block);
            }
        }
        let mut newest: Vec<(usize, StoredSlot)> = newest.into_values().collect();
        newest.sort_unstable_by_key(|(_, block)| (block.position, block.sequence, block.slot));
        newest
    }

    /// Reads a block by its index, and verifies it.
    pub(super) fn read(&self, index: usize, buffer: &mut [u8]) -> Result<(), SlotMiss> {
        match &self.folder {
            SourceFolder::Old(old) => old.read(index, buffer),
            SourceFolder::Current { group, .. } => group.read(index, buffer),
        }
    }
}
