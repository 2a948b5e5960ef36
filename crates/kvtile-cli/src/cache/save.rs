//! Blocks in one file: the saved form (`kvtile::saved`).
//!
//! A saved cache has no keys of its own. Its note `blocks` has, for each block in the order of the
//! file, the key, the parent, the position and the tenant as JSON.
//!
//! The header of a saved cache states the number of blocks before the first of them. So an export
//! first verifies the blocks into an unnamed file beside the target and saves from there. It needs
//! twice the space of the blocks while it runs, and little memory.

use std::{path::Path, sync::Arc};

use kvtile::{
    identity::LayoutIdentity,
    layout::{Axis, LayoutSpec, OwnedMemoryRegion, PhysicalLayout, Shape, StridedLayout, Word},
    memory::{FileMemory, RegionView},
    saved::{SaveOptions, save},
    tiers::disk::{InspectedGroup, ManifestGroup, StoredSlot},
    transfer::TransferManager,
};

use super::export::{BlockExport, facts, newest, read_whole};
use crate::error::CliError;

/// The option with the order of the stored blocks.
pub(super) const STORE_LAYOUT: &str = "--store-layout";

/// Writes every whole block to a new saved cache. After an error, or without a whole block, no file
/// exists.
pub(super) fn export(
    group: &InspectedGroup,
    path: &Path,
    word: &Word,
) -> Result<BlockExport, CliError> {
    let manifest = group.manifest();
    let all = newest(group);
    if all.is_empty() {
        return read_whole(group, |_, _| Ok(()));
    }
    // Checked before the first byte is read, so that a wrong word fails at once.
    let _ = layout(manifest, all.len(), word)?;
    let block_bytes = manifest.block_bytes();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let staged = FileMemory::options().scratch(folder, bytes_of(block_bytes, all.len())?)?;
    let mut end = 0;
    let exported = read_whole(group, |_, bytes| {
        staged.write_all_at(end, bytes)?;
        end += block_bytes;
        Ok(())
    })?;
    if !exported.whole.is_empty() {
        save_staged(manifest, staged, &exported.whole, path, word)?;
    }
    Ok(exported)
}

/// Saves the consecutive blocks of `staged`.
fn save_staged(
    manifest: &ManifestGroup,
    staged: FileMemory,
    whole: &[StoredSlot],
    path: &Path,
    word: &Word,
) -> Result<(), CliError> {
    let layout = layout(manifest, whole.len(), word)?;
    let staged: OwnedMemoryRegion = Arc::new(staged);
    let bytes = bytes_of(manifest.block_bytes(), whole.len())?;
    let region: OwnedMemoryRegion = Arc::new(RegionView::new(staged, 0, bytes)?);
    let source = PhysicalLayout::builder()
        .with_shape(layout.shape().clone())
        .with_logical_fingerprint(manifest.identity().fingerprint())
        .layout(LayoutSpec::Word(word.clone()))
        .with_memory_regions(vec![region])
        .build()?;
    let manager = TransferManager::new();
    let source = manager.register(source)?;
    let ids: Vec<usize> = (0..whole.len()).collect();
    let tokens = manifest.identity().page_size() * whole.len() as u64;
    let mut options = SaveOptions::new(manifest.identity().clone(), tokens)?;
    options.word = word.clone();
    let blocks = serde_json::to_string(&facts(whole))?;
    options.notes.insert("blocks".to_owned(), blocks);
    save(&manager, source, &ids, path, &options)?;
    Ok(())
}

/// The layout of consecutive blocks.
fn layout(manifest: &ManifestGroup, blocks: usize, word: &Word) -> Result<StridedLayout, CliError> {
    let refused = |problem: String| CliError::Option {
        option: STORE_LAYOUT,
        value: word.to_string(),
        problem,
    };
    let identity = manifest.identity();
    let shard = identity.shard();
    let planes = identity.planes().to_vec();
    let layers = shard.layers.count;
    let shape = Shape::new(blocks as u64, layers, identity.page_size(), planes)?;
    let layout = StridedLayout::resolve(word, &shape.with_shard(shard)?, 1)?;
    let block = LayoutIdentity::of_block(&layout);
    if let Some(difference) = block.first_difference(manifest.block_layout()) {
        return Err(refused(format!(
            "the blocks of the folder lie otherwise: {}: {} with this word, {} in the folder; give \
             the order in which the cache stores its blocks",
            difference.field, difference.ours, difference.theirs
        )));
    }
    if !one_behind_the_other(&layout, manifest.block_bytes()) {
        return Err(refused(
            "its blocks are not contiguous; give a word that begins with B".to_owned(),
        ));
    }
    Ok(layout)
}

/// Whether block `i` of the layout is the bytes that start at `i × block_bytes`.
fn one_behind_the_other(layout: &StridedLayout, block_bytes: u64) -> bool {
    let blocks = layout.shape().num_blocks();
    layout.region_bytes() == [block_bytes * blocks]
        && layout.pieces().iter().all(|piece| {
            let digits = StridedLayout::canonical_digits(piece);
            let mut of_blocks = digits.iter().filter(|digit| digit.axis == Axis::B);
            let slowest = of_blocks.next();
            of_blocks.next().is_none()
                && slowest.is_none_or(|digit| digit.low == 1 && digit.step.bytes == block_bytes)
        })
}

fn bytes_of(block_bytes: u64, blocks: usize) -> Result<usize, CliError> {
    let bytes = block_bytes.checked_mul(blocks as u64);
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        let what = "bytes of a saved cache";
        kvtile::layout::LayoutError::Shape(kvtile::layout::ShapeError::TooLarge { what }).into()
    })
}
