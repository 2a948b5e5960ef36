//! Writes of staged blocks to a tier, on the tier's thread.

use std::{
    any::Any,
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use kvtile_blocks::{BlockKey, GroupId, events::TierId};
use kvtile_transfer::LeaseMode;

use super::{
    load::lend,
    parts::{BlockStoreParts, StoreTier},
    staging::StagedBlock,
};
use crate::{
    error::TierError,
    metrics::Queue,
    tier::{BlockName, BlockWrite, NotWritten, WriteReport, WriteSuccess},
};

/// Marks blocks as handled by one tier when it is dropped, also after a panic.
struct HandledBlocks<'a> {
    parts: &'a BlockStoreParts,
    blocks: Vec<Arc<StagedBlock>>,
}

impl Drop for HandledBlocks<'_> {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            self.parts.metrics.unqueued(Queue::Spill);
            self.parts.group(block.group).staging.handled(&block);
        }
    }
}

/// Writes staged blocks to a tier, unless its writes pause after a failure. A block that cannot be
/// written is dropped and counted.
pub(super) fn write(parts: &BlockStoreParts, below: &StoreTier, blocks: Vec<Arc<StagedBlock>>) {
    let handled = HandledBlocks { parts, blocks };
    if below.takes_blocks(parts.clock.now()) {
        write_all(parts, below, &handled);
        return;
    }
    let blocks = handled.blocks.len();
    below.writes.left_out(blocks as u64);
    drop_blocks(parts, below, blocks);
}

/// Writes the blocks that wait for a tier, on the caller's thread, even while its writes pause. It
/// begins no batch after `end`.
pub(super) fn write_waiting(parts: &BlockStoreParts, below: &StoreTier, end: Option<Instant>) {
    while end.is_none_or(|end| Instant::now() < end) {
        let blocks = below.spill.take();
        if blocks.is_empty() {
            return;
        }
        write_all(parts, below, &HandledBlocks { parts, blocks });
    }
}

fn write_all(parts: &BlockStoreParts, below: &StoreTier, handled: &HandledBlocks<'_>) {
    let wanted: Vec<&Arc<StagedBlock>> = handled.blocks.iter().collect();
    // A parent is a hint for the eviction policy: a block whose parent was not stored, or was
    // evicted before this write, begins a chain.
    let orphans = write_batch(parts, below, &wanted, true);
    if !orphans.is_empty() {
        write_batch(parts, below, &orphans, false);
    }
}

/// Writes a batch, and returns the blocks that the tier refused without their parent.
fn write_batch<'a>(
    parts: &BlockStoreParts,
    below: &StoreTier,
    blocks: &[&'a Arc<StagedBlock>],
    with_parents: bool,
) -> Vec<&'a Arc<StagedBlock>> {
    let mut begun: Vec<&'a Arc<StagedBlock>> = Vec::with_capacity(blocks.len());
    let mut writes = Vec::with_capacity(blocks.len());
    let mut before: HashSet<(GroupId, BlockKey)> = HashSet::new();
    // A removal comes before all of these lines, or finds the blocks at the tier.
    let removing = parts.removing.read();
    for &block in blocks.iter().filter(|block| !block.is_forgotten()) {
        let group = block.group;
        let is_there = |parent: &BlockKey| {
            with_parents && (before.contains(&(group, *parent)) || below.tier.has(group, parent))
        };
        let parent = block.parent.filter(is_there);
        let place = Arc::clone(block) as Arc<dyn Any + Send + Sync>;
        let staging = parts.group(group).staging.handle;
        let lent = (staging, block.place.block);
        match lend(parts, lent, LeaseMode::Read, place) {
            Ok(from) => {
                writes.push(BlockWrite {
                    name: BlockName {
                        group,
                        key: block.key,
                    },
                    parent,
                    position: block.position,
                    tenant: block.tenant,
                    from,
                });
                before.insert((group, block.key));
                begun.push(block);
            }
            Err(error) => {
                log::warn!("block {} cannot be written: {error}", block.key);
                drop_blocks(parts, below, 1);
            }
        }
    }
    if writes.is_empty() {
        return Vec::new();
    }
    let wanted = writes.len();
    let write = below.tier.write(writes);
    drop(removing);
    match below.end_write(&write, wanted) {
        Ok(report) => settle(parts, below, begun, &report),
        Err(error) => {
            is_late(parts, below, &begun, &error);
            Vec::new()
        }
    }
}

/// Counts the outcomes of a batch, and returns the blocks that need another write without their
/// parent.
fn settle<'a>(
    parts: &BlockStoreParts,
    below: &StoreTier,
    begun: Vec<&'a Arc<StagedBlock>>,
    report: &WriteReport,
) -> Vec<&'a Arc<StagedBlock>> {
    let now = parts.clock.now();
    let (mut written, mut bytes) = (0, 0);
    let mut orphans = Vec::new();
    let mut failure: Option<TierError> = None;
    for (block, outcome) in begun.into_iter().zip(report.blocks.iter()) {
        match outcome {
            Ok(WriteSuccess::New) => {
                written += 1;
                bytes += parts.group(block.group).block_bytes;
            }
            Ok(WriteSuccess::Present) => {}
            Err(NotWritten::NoParent) => orphans.push(block),
            Err(NotWritten::NoRoom) => drop_blocks(parts, below, 1),
            Err(NotWritten::Removed) => {}
            Err(NotWritten::Failed(error)) => {
                parts.metrics.move_failed(TierId::HOST, below.id);
                drop_blocks(parts, below, 1);
                failure = Some(error.clone());
            }
        }
    }
    if written > 0 {
        let route = (TierId::HOST, below.id);
        parts.moved(route, written, bytes, report.elapsed);
        parts.metrics.stored(below.id, written as u64);
        below.spill.wrote(written, now);
    }
    match failure {
        Some(error) => below.writes.failed(now, &error),
        None if written > 0 => below.writes.succeeded(now),
        None => {}
    }
    orphans
}

/// Handles a batch that the tier did not complete in time. It holds the staging memory until then.
fn is_late(
    parts: &BlockStoreParts,
    below: &StoreTier,
    blocks: &[&Arc<StagedBlock>],
    error: &TierError,
) {
    let places = blocks.iter().map(|block| {
        let place: Arc<dyn Any + Send + Sync> = Arc::clone(block) as Arc<_>;
        Arc::downgrade(&place)
    });
    below.is_late(places);
    let now = parts.clock.now();
    below.writes.failed(now, error);
    // The late writes need a sync too.
    below.spill.touched(now);
    parts.metrics.move_failed(TierId::HOST, below.id);
    drop_blocks(parts, below, blocks.len());
}

/// Counts blocks that a tier does not get.
fn drop_blocks(parts: &BlockStoreParts, below: &StoreTier, blocks: usize) {
    parts.metrics.left_out(below.id, blocks as u64);
    parts.failed.fetch_add(blocks, Ordering::SeqCst);
}
