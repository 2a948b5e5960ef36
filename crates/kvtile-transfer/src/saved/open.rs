//! Opening and loading saved caches. The contents of the file are untrusted.

use std::{path::Path, path::PathBuf, sync::Arc};

use kvtile_layout::{
    LayoutError, PlanError, StridedLayout,
    identity::{Identity, LayoutIdentity},
    tradition::LayoutSpec,
};
use kvtile_memory::FileMemory;

use super::{
    format::{
        PREAMBLE_BYTES, SavedHeader, SavedPreamble, check_structure, check_tokens, damaged, digest,
        not_one,
    },
    stage::LoadStage,
    write::regions,
};
use crate::{
    error::{CopyError, SavedError, TransferError},
    lease::{LayoutHandle, LeaseMode},
    manager::TransferManager,
    physical::PhysicalLayout,
};

/// The result of the check of one block.
#[derive(Clone, Debug)]
pub struct BlockCheck {
    /// The block in the file.
    pub block: usize,
    /// `Ok` if its bytes match the checksum, else the mismatch or the read error.
    pub result: Result<(), TransferError>,
}

/// A saved cache with a verified header and checksum table.
#[derive(Debug)]
pub struct SavedCache {
    path: PathBuf,
    header: SavedHeader,
    checksums: Vec<u64>,
    file_bytes: u64,
}

impl SavedCache {
    /// Opens a saved cache and checks its identity against `identity`, before any block can be
    /// loaded.
    ///
    /// # Errors
    /// As for [`SavedCache::inspect`]; a different identity, with the first field that differs.
    pub fn open(path: &Path, identity: &Identity) -> Result<SavedCache, TransferError> {
        let cache = SavedCache::inspect(path)?;
        cache.check_identity(identity)?;
        Ok(cache)
    }

    /// Opens a saved cache of any identity for inspection.
    ///
    /// # Errors
    /// A file that cannot be read, that is not a saved cache, or whose header or checksum table is
    /// damaged.
    pub fn inspect(path: &Path) -> Result<SavedCache, TransferError> {
        let file = FileMemory::options().read_only(true).open_whole(path)?;
        if file.len() < PREAMBLE_BYTES as u64 {
            return Err(not_one("it is shorter than a preamble"));
        }
        let mut bytes = [0; PREAMBLE_BYTES];
        file.read_exact_at(0, &mut bytes)?;
        let preamble = SavedPreamble::from_bytes(&bytes, file.len())?;
        let (header_bytes, checksum_bytes) = preamble.tables()?;
        let mut header = vec![0; header_bytes];
        file.read_exact_at(PREAMBLE_BYTES as u64, &mut header)?;
        let mut checksums = vec![0; checksum_bytes];
        file.read_exact_at((PREAMBLE_BYTES + header_bytes) as u64, &mut checksums)?;
        if digest(&header, &checksums) != preamble.digest {
            return Err(damaged("the header or checksum table fails its digest"));
        }
        let header: SavedHeader = serde_json::from_slice(&header)
            .map_err(|error| damaged(&format!("the header: {error}")))?;
        let cache = SavedCache {
            path: path.to_owned(),
            header,
            checksums: checksums
                .chunks_exact(8)
                .filter_map(|chunk| Some(u64::from_le_bytes(chunk.try_into().ok()?)))
                .collect(),
            file_bytes: file.len(),
        };
        cache.check()?;
        Ok(cache)
    }

    /// Checks that the header agrees with the layout, and that the regions lie in the file after
    /// the tables.
    fn check(&self) -> Result<(), TransferError> {
        let header = &self.header;
        let layout = StridedLayout::resolve(&header.word, &header.shape, header.alignment)?;
        if self.checksums.len() as u64 != header.shape.num_blocks() {
            return Err(damaged(
                "the number of checksums differs from that of blocks",
            ));
        }
        if LayoutIdentity::of_block(&layout) != header.block_layout {
            return Err(damaged("the word does not give the stored layout"));
        }
        check_structure(&header.identity, &header.shape)
            .map_err(|error| damaged(&format!("identity and shape: {error}")))?;
        check_tokens(header.tokens, &header.shape).map_err(|error| damaged(&error.to_string()))?;
        let given: Vec<u64> = header.regions.iter().map(|region| region.bytes).collect();
        if given != layout.region_bytes() {
            return Err(damaged("the regions are not those of the layout"));
        }
        let outside = |region: &&super::SavedRegion| {
            let end = region.offset.checked_add(region.bytes);
            end.is_none_or(|end| end > self.file_bytes)
        };
        if header.regions.iter().any(|region| outside(&region)) {
            return Err(damaged("a region lies outside the file"));
        }
        Ok(())
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SavedHeader {
        &self.header
    }

    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.checksums.len()
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Refuses a cache of another model, or of another shard.
    ///
    /// # Errors
    /// The first field that differs, with both values.
    pub fn check_identity(&self, identity: &Identity) -> Result<(), TransferError> {
        match identity.first_difference(&self.header.identity) {
            None => Ok(()),
            Some(difference) => Err(TransferError::Saved(SavedError::IdentityDiffers(
                difference,
            ))),
        }
    }

    /// Reads every block and compares its checksum. Calls `progress` with the number of checked
    /// blocks.
    ///
    /// # Errors
    /// A file that can no longer be opened. The list contains the errors of single blocks.
    pub fn check_blocks(
        &self,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<BlockCheck>, TransferError> {
        let manager = TransferManager::new();
        let handle = manager.register(self.layout()?)?;
        let ids: Vec<usize> = (0..self.num_blocks()).collect();
        let lease = manager.lease(handle, &ids, LeaseMode::Read)?;
        let mut checks = Vec::with_capacity(ids.len());
        for (block, &stored) in self.checksums.iter().enumerate() {
            let result = lease
                .checksum(block as u64)
                .and_then(|computed| same(block, stored, computed));
            checks.push(BlockCheck { block, result });
            progress(block + 1);
        }
        Ok(checks)
    }

    /// Loads blocks into a registered layout of any order. `blocks` are pairs of a block in the
    /// file and a destination block. The loader stages each block in memory and compares its
    /// checksum before it writes the destination. A block that fails is reported, and its
    /// destination stays unchanged.
    ///
    /// # Errors
    /// A destination of another identity or shape; blocks out of range, duplicate destinations or
    /// blocks in use; a failed allocation. Then no byte was written. The list contains the errors
    /// of single blocks.
    pub fn load(
        &self,
        manager: &TransferManager,
        destination: LayoutHandle,
        blocks: &[(usize, usize)],
    ) -> Result<Vec<BlockCheck>, TransferError> {
        let target = manager.layout(destination)?;
        let ours = self.header.identity.fingerprint();
        if let Some(theirs) = target.logical_fingerprint().filter(|f| *f != ours) {
            return Err(TransferError::Copy(CopyError::LogicalDiffers {
                from: ours,
                to: theirs,
            }));
        }
        check_blocks(
            "saved",
            blocks.iter().map(|b| b.0),
            self.num_blocks() as u64,
        )?;
        let targets = blocks.iter().map(|b| b.1);
        check_blocks("destination", targets.clone(), target.shape().num_blocks())?;
        check_distinct(targets.collect())?;
        LoadStage::new(self, manager, destination, blocks.len())?.load_all(blocks)
    }

    /// The stored checksum of a block.
    pub(super) fn stored_checksum(&self, block: usize) -> Option<u64> {
        self.checksums.get(block).copied()
    }

    /// The file as a layout. Each call reopens it.
    pub(super) fn layout(&self) -> Result<PhysicalLayout, TransferError> {
        let size = usize::try_from(self.file_bytes)
            .map_err(|_| damaged("the file does not fit the machine"))?;
        let options = FileMemory::options().read_only(true);
        let file = Arc::new(options.open(&self.path, size)?);
        PhysicalLayout::builder()
            .with_aligned_shape(self.header.shape.clone(), self.header.alignment)
            .layout(LayoutSpec::Word(self.header.word.clone()))
            .with_memory_regions(regions(&file, &self.header)?)
            .build()
    }
}

pub(super) fn same(block: usize, stored: u64, computed: u64) -> Result<(), TransferError> {
    if stored == computed {
        return Ok(());
    }
    Err(TransferError::Saved(SavedError::ChecksumMismatch {
        block: block as u64,
        stored,
        computed,
    }))
}

fn check_blocks(
    side: &'static str,
    mut blocks: impl Iterator<Item = usize>,
    num_blocks: u64,
) -> Result<(), TransferError> {
    match blocks.find(|&block| block as u64 >= num_blocks) {
        None => Ok(()),
        Some(block) => Err(TransferError::Layout(LayoutError::Plan(
            PlanError::BlockOutOfRange {
                side,
                block: block as u64,
                num_blocks,
            },
        ))),
    }
}

fn check_distinct(mut blocks: Vec<usize>) -> Result<(), TransferError> {
    blocks.sort_unstable();
    let twice = blocks
        .iter()
        .zip(blocks.iter().skip(1))
        .find(|(a, b)| a == b);
    match twice {
        None => Ok(()),
        Some((&block, _)) => Err(TransferError::Layout(LayoutError::Plan(
            PlanError::DuplicateDestination {
                block: block as u64,
                token: 0,
            },
        ))),
    }
}
