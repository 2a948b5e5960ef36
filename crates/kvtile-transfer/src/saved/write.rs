//! Saving: copies blocks of a registered layout to a new file.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use kvtile_layout::{
    StridedLayout, Word,
    identity::{Identity, LayoutIdentity},
    tradition::LayoutSpec,
};
use kvtile_memory::{FileMemory, OwnedMemoryRegion, RegionView};

use super::{
    format::{
        BLOCKS_MAX, DATA_ALIGNMENT, HEADER_BYTES_MAX, PREAMBLE_BYTES, SavedHeader, SavedPreamble,
        SavedRegion, check_structure, check_tokens, digest,
    },
    partial::PartialFile,
};
use crate::{
    error::{RegisterError, SavedError, TransferError},
    execute::TransferReport,
    lease::{LayoutHandle, LeaseMode},
    manager::{TransferManager, TransferOptions},
    physical::PhysicalLayout,
};

/// Options of a save.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SaveOptions {
    /// The logical identity of the blocks.
    pub identity: Identity,
    /// The storage order.
    pub word: Word,
    /// Alignment of blocks in the file, in bytes; 4096 suits direct I/O.
    pub alignment: u64,
    /// Number of tokens in the blocks; the last block may be partly filled.
    pub tokens: u64,
    /// Notes that the file stores.
    pub notes: BTreeMap<String, String>,
    /// Whether to replace an existing file of that name.
    pub replace: bool,
    /// Whether to compare the file with the source before the rename.
    pub verify: bool,
}

impl SaveOptions {
    /// Block-contiguous storage (`BHLKNC`), aligned for direct I/O; no replacement of an existing
    /// file.
    ///
    /// # Errors
    /// None: the default word is valid.
    pub fn new(identity: Identity, tokens: u64) -> Result<SaveOptions, TransferError> {
        Ok(SaveOptions {
            identity,
            word: Word::parse("BHLKNC").map_err(kvtile_layout::LayoutError::from)?,
            alignment: DATA_ALIGNMENT,
            tokens,
            notes: BTreeMap::new(),
            replace: false,
            verify: false,
        })
    }

    /// Sets [`word`](Self::word).
    #[must_use]
    pub fn word(mut self, word: Word) -> SaveOptions {
        self.word = word;
        self
    }

    /// Sets [`alignment`](Self::alignment).
    #[must_use]
    pub fn alignment(mut self, alignment: u64) -> SaveOptions {
        self.alignment = alignment;
        self
    }

    /// Sets [`notes`](Self::notes).
    #[must_use]
    pub fn notes(mut self, notes: BTreeMap<String, String>) -> SaveOptions {
        self.notes = notes;
        self
    }

    /// Sets [`replace`](Self::replace).
    #[must_use]
    pub fn replace(mut self, replace: bool) -> SaveOptions {
        self.replace = replace;
        self
    }

    /// Sets [`verify`](Self::verify).
    #[must_use]
    pub fn verify(mut self, verify: bool) -> SaveOptions {
        self.verify = verify;
        self
    }
}

/// Saves `block_ids` of a registered layout, in this order, to a new file at `path`.
///
/// # Errors
/// Blocks that are in use or out of range; an identity that does not match the shape, or that
/// differs from the source's, if it has one; more tokens than the blocks can hold; notes that
/// exceed the header limit; a word that does not fit; a file that exists (unless it may be
/// replaced) or cannot be written. On an error no new file of that name appears, and an existing
/// one stays unchanged.
pub fn save(
    manager: &TransferManager,
    source: LayoutHandle,
    block_ids: &[usize],
    path: &Path,
    options: &SaveOptions,
) -> Result<TransferReport, TransferError> {
    let shape = manager
        .layout(source)?
        .shape()
        .with_num_blocks(block_ids.len() as u64)?;
    if shape.num_blocks() > BLOCKS_MAX {
        let blocks = shape.num_blocks();
        return Err(TransferError::Register(RegisterError::TooManyBlocks {
            blocks,
        }));
    }
    check_structure(&options.identity, &shape)?;
    check_tokens(options.tokens, &shape)?;
    let layout = StridedLayout::resolve(&options.word, &shape, options.alignment)?;
    let (header, file_bytes) = header(&layout, options)?;
    let (partial, file) = PartialFile::next_to(path, file_bytes)?;
    let file = Arc::new(file);
    let regions = regions(&file, &header)?;
    let stored = PhysicalLayout::builder()
        .with_aligned_shape(shape, options.alignment)
        .with_logical_fingerprint(options.identity.fingerprint())
        .layout(LayoutSpec::Word(options.word.clone()))
        .with_memory_regions(regions)
        .build()?;
    let handle = manager.register(stored)?;
    let outcome = write(manager, source, block_ids, handle, options.verify);
    manager.unregister(handle)?;
    let (report, checksums) = outcome?;
    finish(&file, &header, &checksums)?;
    drop(file);
    partial.rename(path, options.replace)?;
    Ok(report)
}

/// The header, and the size of the file.
fn header(
    layout: &StridedLayout,
    options: &SaveOptions,
) -> Result<(SavedHeader, usize), TransferError> {
    let too_large = || {
        TransferError::Layout(kvtile_layout::LayoutError::Shape(
            kvtile_layout::ShapeError::TooLarge {
                what: "bytes of a saved cache",
            },
        ))
    };
    let align = |offset: u64| {
        let alignment = DATA_ALIGNMENT.max(layout.alignment());
        offset
            .checked_next_multiple_of(alignment)
            .ok_or_else(too_large)
    };
    let mut header = SavedHeader {
        identity: options.identity.clone(),
        block_layout: LayoutIdentity::of_block(layout),
        shape: layout.shape().clone(),
        word: options.word.clone(),
        alignment: options.alignment,
        tokens: options.tokens,
        regions: layout
            .region_bytes()
            .iter()
            .map(|&bytes| SavedRegion {
                offset: u64::MAX,
                bytes,
            })
            .collect(),
        notes: options.notes.clone(),
    };
    // The first serialisation uses the largest offsets, so that the final header is not longer.
    let longest = to_json(&header)?.len() as u64;
    // A header that readers refuse is not written.
    if longest > HEADER_BYTES_MAX {
        return Err(TransferError::Saved(SavedError::HeaderTooLong {
            bytes: longest,
            bytes_max: HEADER_BYTES_MAX,
        }));
    }
    let checksums = layout.shape().num_blocks().saturating_mul(8);
    let mut end = longest
        .saturating_add(checksums)
        .saturating_add(PREAMBLE_BYTES as u64);
    for region in &mut header.regions {
        region.offset = align(end)?;
        end = region
            .offset
            .checked_add(region.bytes)
            .ok_or_else(too_large)?;
    }
    let file_bytes = usize::try_from(align(end)?).map_err(|_| too_large())?;
    Ok((header, file_bytes))
}

fn to_json(header: &SavedHeader) -> Result<Vec<u8>, TransferError> {
    serde_json::to_vec(header).map_err(|error| {
        TransferError::Saved(SavedError::NotASavedCache {
            problem: error.to_string(),
        })
    })
}

/// The regions of a saved cache, as views of its file.
pub(super) fn regions(
    file: &Arc<FileMemory>,
    header: &SavedHeader,
) -> Result<Vec<OwnedMemoryRegion>, TransferError> {
    let file: OwnedMemoryRegion = Arc::clone(file) as OwnedMemoryRegion;
    let mut regions: Vec<OwnedMemoryRegion> = Vec::with_capacity(header.regions.len());
    for region in &header.regions {
        let (Ok(offset), Ok(bytes)) = (
            usize::try_from(region.offset),
            usize::try_from(region.bytes),
        ) else {
            return Err(super::format::damaged("a region does not fit the machine"));
        };
        regions.push(Arc::new(RegionView::new(Arc::clone(&file), offset, bytes)?));
    }
    Ok(regions)
}

/// Copies the blocks, and reads them back to compute their checksums.
fn write(
    manager: &TransferManager,
    source: LayoutHandle,
    block_ids: &[usize],
    stored: LayoutHandle,
    verify: bool,
) -> Result<(TransferReport, Vec<u64>), TransferError> {
    let ids: Vec<usize> = (0..block_ids.len()).collect();
    let options = TransferOptions::new().verify(verify).layer_by_layer(false);
    let report = manager
        .execute_transfer(source, block_ids, stored, &ids, options)?
        .wait()?;
    let lease = manager.lease(stored, &ids, LeaseMode::Read)?;
    let checksums: Result<Vec<u64>, TransferError> = ids
        .iter()
        .map(|&block| lease.checksum(block as u64))
        .collect();
    Ok((report, checksums?))
}

/// Writes checksums, header and preamble, and makes the file durable.
fn finish(file: &FileMemory, header: &SavedHeader, checksums: &[u64]) -> Result<(), TransferError> {
    let header = to_json(header)?;
    let checksums: Vec<u8> = checksums.iter().flat_map(|c| c.to_le_bytes()).collect();
    let preamble = SavedPreamble {
        header_bytes: header.len() as u64,
        blocks: (checksums.len() / 8) as u64,
        file_bytes: file.len(),
        digest: digest(&header, &checksums),
    };
    file.write_all_at(PREAMBLE_BYTES as u64, &header)?;
    file.write_all_at((PREAMBLE_BYTES + header.len()) as u64, &checksums)?;
    file.write_all_at(0, &preamble.to_bytes())?;
    file.sync_data()?;
    Ok(())
}
