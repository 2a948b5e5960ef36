//! Bundles that are not whole yet. Blocks of a chain come one after the other; each bundle waits
//! for its last block, and is then written.
//!
//! A chain that leaves another one in the middle of a bundle shares the first blocks of it. Staged
//! ones are shared in memory; those of a written bundle are read back before the new bundle is
//! written.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use kvtile_blocks::BlockKey;
use kvtile_tiers::tier::{BlockName, BlockWrite, NotWritten, RemovalTicket, WriteSuccess};
use parking_lot::Mutex;

use super::{
    counts::count,
    known::{BlockPlace, ChainedBlock, StagedAs},
    parts::{GroupBundles, SharedTierParts},
    staged::StagedBytes,
    upload,
};
use crate::bundle::BundleForm;

/// A block of a bundle, with the place of its bytes.
#[derive(Clone, Debug)]
pub(super) struct AssembledBlock {
    pub(super) chained: ChainedBlock,
    pub(super) place: BlockPlace,
}

/// A bundle whose first blocks came.
#[derive(Debug)]
struct OpenBundle {
    blocks: Vec<AssembledBlock>,
    touched: Instant,
}

/// The bundles that wait for their next block, by their last block so far.
#[derive(Debug, Default)]
pub(super) struct OpenBundles(Mutex<HashMap<BlockName, OpenBundle>>);

/// Stages a block, waiting for room until `until`. The last block of a bundle starts the write of
/// the bundle.
pub(super) fn stage(
    parts: &Arc<SharedTierParts>,
    block: &BlockWrite,
    (group, until, ticket): (&GroupBundles, Instant, &RemovalTicket),
) -> Result<WriteSuccess, NotWritten> {
    let name = block.name;
    if parts.known.has(&name) {
        return Ok(WriteSuccess::Present);
    }
    let parent = block.parent.map(|key| BlockName { key, ..name });
    if parent.is_some_and(|parent| !parts.known.has(&parent)) {
        return Err(NotWritten::NoParent);
    }
    if parts.is_closing.load(Ordering::Relaxed) {
        return Err(NotWritten::Failed(SharedTierParts::closed()));
    }
    if parts.writes.is_open(parts.clock.now()) {
        parts.writes.left_out(1);
        return Err(NotWritten::Failed(parts.paused()));
    }
    let bytes = block.from.bytes();
    let bytes = bytes.map_err(|error| NotWritten::Failed(error.into()))?;
    let staged = copy(parts, block, bytes, (parent, until)).ok_or(NotWritten::NoRoom)?;
    let chained = ChainedBlock {
        name,
        parent: block.parent,
        tenant: block.tenant,
        position: block.position,
    };
    let removals = ticket.lock();
    if removals.is_removed(&name) {
        return Err(NotWritten::Removed);
    }
    let mut open = parts.open.0.lock();
    let blocks = with_those_before(parts, &mut open, (chained, staged), &group.form)?;
    drop(removals);
    let Some(blocks) = blocks else {
        return Ok(WriteSuccess::Present);
    };
    if blocks.len() as u64 == u64::from(group.form.blocks) {
        drop(open);
        upload::start(parts, blocks);
    } else {
        let touched = Instant::now();
        open.insert(name, OpenBundle { blocks, touched });
    }
    Ok(WriteSuccess::New)
}

/// Adds a staged block to the index. Returns the blocks of its bundle up to it, from the open bundle that it continues or
/// from the index; `None` if the index has the block already.
fn with_those_before(
    parts: &SharedTierParts,
    open: &mut HashMap<BlockName, OpenBundle>,
    (chained, staged): (ChainedBlock, Arc<StagedBytes>),
    form: &BundleForm,
) -> Result<Option<Vec<AssembledBlock>>, NotWritten> {
    let index = form.index_of(chained.position);
    let parent = chained.parent.map(|key| BlockName {
        key,
        ..chained.name
    });
    let is_next = |bundle: &OpenBundle| bundle.blocks.len() as u64 == u64::from(index);
    let continued = parent.filter(|parent| index > 0 && open.get(parent).is_some_and(is_next));
    let mut before = match (index, parent) {
        (0, _) => Vec::new(),
        _ if continued.is_some() => Vec::new(),
        (_, Some(parent)) => shared(parts, parent, chained.position, index)?,
        (_, None) => return Err(NotWritten::NoParent),
    };
    match parts.known.add_staged(chained, &staged) {
        StagedAs::New => {}
        StagedAs::Present => return Ok(None),
        StagedAs::NoParent => return Err(NotWritten::NoParent),
    }
    if let Some(bundle) = continued.and_then(|parent| open.remove(&parent)) {
        before = bundle.blocks;
    }
    before.push(AssembledBlock {
        chained,
        place: BlockPlace::Staged(staged),
    });
    Ok(Some(before))
}

/// The first `count` blocks of the bundle, whose last one is `parent`, from the index.
fn shared(
    parts: &SharedTierParts,
    parent: BlockName,
    position: u32,
    count: u32,
) -> Result<Vec<AssembledBlock>, NotWritten> {
    let mut blocks = Vec::new();
    let mut next = Some(parent);
    let mut expected = position;
    while (blocks.len() as u64) < u64::from(count) {
        let found = next.and_then(|name| parts.known.place(&name));
        let (chained, place) = found.ok_or(NotWritten::NoParent)?;
        expected = expected.wrapping_sub(1);
        if chained.position != expected {
            return Err(NotWritten::NoParent);
        }
        let BlockName { group, .. } = chained.name;
        next = chained.parent.map(|key: BlockKey| BlockName { group, key });
        blocks.push(AssembledBlock { chained, place });
    }
    blocks.reverse();
    Ok(blocks)
}

/// Copies a block to staging memory. Without room it waits for bundles that are being written, and
/// drops the open bundle that waits longest, but not the one that this block continues.
fn copy(
    parts: &Arc<SharedTierParts>,
    block: &BlockWrite,
    bytes: &[u8],
    (parent, until): (Option<BlockName>, Instant),
) -> Option<Arc<StagedBytes>> {
    loop {
        let staged = parts.room.copy(&block.name.key, block.position, bytes);
        if staged.is_some() {
            return staged;
        }
        if parts.is_closing() {
            return None;
        }
        if parts.uploads.in_flight() > 0 {
            if !parts.room.wait(until) {
                return None;
            }
        } else if !drop_oldest(parts, parent) {
            return None;
        }
    }
}

/// Drops the open bundle that was continued longest ago; false if there is none but `kept`.
fn drop_oldest(parts: &SharedTierParts, kept: Option<BlockName>) -> bool {
    let mut open = parts.open.0.lock();
    let others = open.iter().filter(|(name, _)| Some(**name) != kept);
    let oldest = others.min_by_key(|(_, bundle)| bundle.touched);
    let Some(oldest) = oldest.map(|(name, _)| *name) else {
        return false;
    };
    let bundle = open.remove(&oldest);
    drop(open);
    drop_blocks(parts, bundle.into_iter());
    true
}

fn drop_blocks(parts: &SharedTierParts, bundles: impl Iterator<Item = OpenBundle>) {
    for bundle in bundles {
        let dropped = parts.known.drop_staged(&staged_of(&bundle.blocks), false);
        count(&parts.counts.incomplete_blocks, dropped as u64);
    }
}

/// The staged blocks of a bundle.
pub(super) fn staged_of(blocks: &[AssembledBlock]) -> Vec<(BlockName, Arc<StagedBytes>)> {
    let staged = |block: &AssembledBlock| match &block.place {
        BlockPlace::Staged(bytes) => Some((block.chained.name, Arc::clone(bytes))),
        BlockPlace::Stored(_) => None,
    };
    blocks.iter().filter_map(staged).collect()
}

/// Drops open bundles that no block continued for a time.
pub(super) fn drop_stale(parts: &SharedTierParts) {
    let within = parts.settings.stage_within;
    let mut open = parts.open.0.lock();
    let is_stale = |_: &BlockName, bundle: &mut OpenBundle| bundle.touched.elapsed() >= within;
    let stale: Vec<OpenBundle> = open
        .extract_if(is_stale)
        .map(|(_, bundle)| bundle)
        .collect();
    drop(open);
    drop_blocks(parts, stale.into_iter());
}

/// Drops all open bundles.
pub(super) fn drop_all(parts: &SharedTierParts) {
    let all = std::mem::take(&mut *parts.open.0.lock());
    drop_blocks(parts, all.into_values());
}
