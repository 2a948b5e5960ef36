//! Eviction from host memory: evicted blocks are demoted to the tiers below, as the settings state.
//!
//! The cache writes a block to a tier after its ancestors, and only if all of them are on that
//! tier. So a restart finds every written block. Lookups find an evicted block while its write is
//! in flight ([`super::departures`]).

use std::{any::Any, collections::HashMap, sync::Arc};

use kvtile_blocks::{
    BlockId, BlockKey, BlocksError,
    events::TierId,
    pool::{AllocateRequest, EvictedBlock, EvictedBlocks, MutableBlocks, PinClaim, PinnedBlocks},
};
use kvtile_layout::broken;
use kvtile_transfer::LeaseMode;

use super::{
    CacheParts,
    below::{CacheTier, name},
};
use crate::{
    below::{HostMemoryRef, SYNC_BLOCKS},
    error::{FolderError, RequestError, TierError},
    tier::{BlockWrite, NotWritten, TierWrites, WriteSuccess},
};

/// How often an allocation evicts before it fails, because other threads take the freed blocks.
const TRIES: usize = 8;

/// A host block to write to a tier.
struct LeavingBlock {
    block: BlockId,
    key: BlockKey,
    parent: Option<BlockKey>,
    /// Number of blocks before it in its chain.
    position: u32,
    tenant: u32,
    /// Keeps the host block from being reused.
    place: Arc<dyn Any + Send + Sync>,
    /// Further references to the place that the cache itself holds.
    others: usize,
}

/// Why a block was not written.
#[derive(Clone, Debug)]
pub(super) enum UnwrittenReason {
    /// An ancestor is neither in host memory nor on the tier, or the block itself is not in host
    /// memory, or it was removed during its write.
    NoAncestor,
    /// The tier's capacity is taken by the block's ancestors and by blocks in use.
    NoRoom,
    /// The write failed.
    Failed,
}

/// Allocates host blocks. It demotes the blocks that it evicts for them to the tiers below, as the
/// settings state.
pub(super) fn host_room(
    inner: &CacheParts,
    blocks: usize,
    request: &AllocateRequest,
) -> Result<MutableBlocks, BlocksError> {
    let pool = &inner.host.pool;
    if inner.below.is_empty() {
        return pool.allocate(blocks, request);
    }
    if pool.free_blocks() >= blocks
        && let Ok(room) = pool.allocate_free(blocks, request)
    {
        return Ok(room);
    }
    let _demoting = inner.demoting();
    let _turn = inner.turn();
    let mut tries = 0;
    loop {
        let evicted = take_out(inner, || pool.make_room(blocks, request));
        let is_end = evicted.leaving.is_empty();
        demote(inner, evicted);
        tries += 1;
        match pool.allocate_free(blocks, request) {
            Err(_) if !is_end && tries < TRIES => {}
            room => return room,
        }
    }
}

/// Evicts up to `blocks` blocks from a tier.
pub(super) fn evict(inner: &CacheParts, tier: TierId, blocks: usize) -> Result<usize, TierError> {
    if tier == TierId::HOST {
        let _demoting = inner.demoting();
        let _turn = inner.turn();
        let evicted = take_out(inner, || inner.host.pool.evict(blocks, inner.tick()));
        let count = evicted.leaving.len();
        demote(inner, evicted);
        return Ok(count);
    }
    let below = inner.below.iter().find(|below| below.id == tier);
    let below = below.ok_or(TierError::Request(RequestError::NoSuchTier { tier }))?;
    let count = below.tier.evict(blocks, inner.tick());
    below.spill.touched(inner.clock.now());
    Ok(count)
}

/// Whether the settings of a tier demote a host block to it.
pub(super) fn belongs_on(inner: &CacheParts, below: &CacheTier, block: BlockId) -> bool {
    match below.settings.writes {
        TierWrites::OnEviction | TierWrites::AtOnce => true,
        TierWrites::AfterUses(uses) => inner.host.uses(block) >= uses,
        TierWrites::Never => false,
    }
}

/// Removes all blocks except those of tiers that are in use.
pub(super) fn clear(inner: &CacheParts) -> Result<usize, TierError> {
    // The turn excludes concurrent demotions.
    let _turn = inner.turn();
    inner.removals.remove_all();
    let mut gone = inner.host.pool.clear().blocks;
    inner.host.weigh_all_anchors();
    let mut is_durable = true;
    for below in &inner.below {
        gone += below.tier.clear(inner.tick());
        if below.abilities.is_durable {
            below.spill.touched(inner.clock.now());
            is_durable &= below.sync(&*inner.clock).failure.is_none();
        }
    }
    match is_durable {
        true => Ok(gone),
        false => Err(TierError::Folder(FolderError::NotDurable)),
    }
}

/// Pins the parent of a newly registered host block in a tier below, if the parent is not in host
/// memory. So the tier does not evict a block whose child is in host memory. Shared tiers come
/// last, because they may evict it in spite of the pin.
pub(super) fn anchor(inner: &CacheParts, blocks: &PinnedBlocks, parent: Option<BlockKey>) {
    let Some(parent) = parent.filter(|_| !inner.below.is_empty()) else {
        return;
    };
    let Some(&first) = blocks.ids().first() else {
        broken(format_args!(
            "no block was registered behind parent {parent}"
        ))
    };
    if inner.host.pool.has(&parent) {
        return;
    }
    // A hold on a shared tier is only a promise; on another tier it is a pin.
    let hold_in = |is_shared: bool| {
        let mut tiers = inner.below.iter();
        tiers.find_map(|below| match below.abilities.is_shared == is_shared {
            true => below.hold_one(&parent),
            false => None,
        })
    };
    let hold = hold_in(false).or_else(|| hold_in(true));
    if let Some(hold) = hold {
        inner.host.anchor(first, hold);
    }
}

/// Writes host blocks that are missing on a tier, each after its ancestors, even during a backoff.
/// For each key, returns whether it wrote the block or why the block is not on the tier.
pub(super) fn write_keys(
    inner: &CacheParts,
    below: &CacheTier,
    keys: &[BlockKey],
) -> Vec<Result<WriteSuccess, UnwrittenReason>> {
    let mut wanted = Vec::new();
    let mut absent = Vec::new();
    for key in keys.iter().filter(|key| !below.has(key)) {
        match hold(inner, key) {
            Some(held) => wanted.push(held),
            None => absent.push(*key),
        }
    }
    let mut outcomes = write_all(inner, below, wanted);
    outcomes.extend(
        absent
            .into_iter()
            .map(|key| (key, Err(UnwrittenReason::NoAncestor))),
    );
    let outcome = |key: &BlockKey| match outcomes.get(key) {
        Some(outcome) => outcome.clone(),
        None => Ok(WriteSuccess::Present),
    };
    keys.iter().map(outcome).collect()
}

/// Evicts blocks from host memory and marks those to be written to a tier as departures.
fn take_out(inner: &CacheParts, evict: impl FnOnce() -> EvictedBlocks) -> EvictedBatch<'_> {
    let mut departures = inner.departures.lock();
    let evicted = evict();
    let leaving: Vec<EvictedBlock> = evicted.iter().collect();
    let now = inner.clock.now();
    let mut routes: Vec<(Vec<EvictedBlock>, u64)> = Vec::with_capacity(inner.below.len());
    for (at, below) in inner.below.iter().enumerate() {
        let wanted = leaving
            .iter()
            .filter(|evicted| belongs_on(inner, below, evicted.block) && !below.has(&evicted.key));
        let wanted: Vec<EvictedBlock> = wanted.copied().collect();
        if !wanted.is_empty() && !below.takes_blocks(now) {
            below.writes.left_out(wanted.len() as u64);
            routes.push((Vec::new(), wanted.len() as u64));
            continue;
        }
        for block in &wanted {
            let (_, tenant) = inner.host.facts(block.block);
            let goes_to = (at, below.abilities.is_durable);
            departures.depart(block.key, goes_to, (block.parent, tenant));
        }
        routes.push((wanted, 0));
    }
    // Dropping a `DemotionEnd` takes the lock again.
    drop(departures);
    let route = |(wanted, left_out): (Vec<EvictedBlock>, u64)| DemotionRoute {
        arrival: DemotionEnd {
            inner,
            keys: wanted.iter().map(|block| block.key).collect(),
        },
        wanted,
        left_out,
    };
    EvictedBatch {
        blocks: Arc::new(evicted),
        leaving,
        routes: routes.into_iter().map(route).collect(),
    }
}

/// Writes evicted blocks to their tiers, each after its parent.
fn demote(inner: &CacheParts, evicted: EvictedBatch<'_>) {
    let EvictedBatch {
        blocks: place,
        leaving,
        routes,
    } = evicted;
    for (below, route) in inner.below.iter().zip(routes) {
        let DemotionRoute {
            wanted,
            mut left_out,
            arrival,
        } = route;
        if !wanted.is_empty() {
            let blocks = wanted.iter().map(|evicted| {
                let (position, tenant) = inner.host.facts(evicted.block);
                LeavingBlock {
                    block: evicted.block,
                    key: evicted.key,
                    parent: evicted.parent,
                    position,
                    tenant,
                    place: Arc::clone(&place) as Arc<dyn Any + Send + Sync>,
                    others: 1,
                }
            });
            let outcomes = write_all(inner, below, blocks.collect());
            left_out += wanted
                .iter()
                .filter(|block| !matches!(outcomes.get(&block.key), Some(Ok(_))))
                .count() as u64;
        }
        inner.metrics.left_out(below.id, left_out);
        drop(arrival);
    }
    inner
        .host
        .weigh_anchors(leaving.iter().map(|evicted| evicted.block));
    drop(place);
    if inner.settings.workers == 0 {
        for below in &inner.below {
            if below.spill.written() >= SYNC_BLOCKS {
                below.sync(&*inner.clock);
            }
        }
    }
}

/// Pins a host block for the duration of its write.
fn hold(inner: &CacheParts, key: &BlockKey) -> Option<LeavingBlock> {
    let claim = PinClaim {
        now: inner.tick(),
        ..PinClaim::default()
    };
    let keys = std::slice::from_ref(key);
    let pin = inner.host.pool.pin(keys, &claim).blocks;
    let block = pin.ids().first().copied()?;
    let parent = pin.parents().next()?;
    let (position, tenant) = inner.host.facts(block);
    Some(LeavingBlock {
        block,
        key: *key,
        parent,
        position,
        tenant,
        place: Arc::new(pin),
        others: 0,
    })
}

/// Writes blocks to a tier in one batch, together with those of their ancestors in host memory that
/// the tier lacks. Returns the outcome of each block of the batch.
fn write_all(
    inner: &CacheParts,
    below: &CacheTier,
    wanted: Vec<LeavingBlock>,
) -> HashMap<BlockKey, Result<WriteSuccess, UnwrittenReason>> {
    let mut batch: HashMap<BlockKey, LeavingBlock> = HashMap::with_capacity(wanted.len());
    let mut outcomes = HashMap::new();
    let mut parents: Vec<Option<BlockKey>> = Vec::new();
    for leaving in wanted {
        parents.push(leaving.parent);
        batch.insert(leaving.key, leaving);
    }
    while let Some(parent) = parents.pop() {
        let Some(key) = parent.filter(|key| !batch.contains_key(key) && !below.has(key)) else {
            continue;
        };
        // The tier refuses a block without its parent.
        if let Some(held) = hold(inner, &key) {
            parents.push(held.parent);
            batch.insert(key, held);
        }
    }
    let order = by_chains(batch.into_values().collect());
    let mut writes = Vec::with_capacity(order.len());
    let mut keys = Vec::with_capacity(order.len());
    let mut places = Vec::with_capacity(order.len());
    for leaving in order {
        places.push((Arc::downgrade(&leaving.place), leaving.others));
        let lent = (leaving.block, LeaseMode::Read);
        match inner.host.lend(&inner.manager, lent, leaving.place) {
            Ok(from) => {
                keys.push(leaving.key);
                writes.push(BlockWrite {
                    name: name(leaving.key),
                    parent: leaving.parent,
                    position: leaving.position,
                    tenant: leaving.tenant,
                    from,
                });
            }
            Err(error) => {
                log::warn!("block {} cannot be written: {error}", leaving.key);
                outcomes.insert(leaving.key, Err(UnwrittenReason::Failed));
            }
        }
    }
    outcomes.extend(write_batch(inner, below, (writes, places), keys));
    outcomes
}

/// Passes a batch to a tier, waits for it, and counts its outcomes.
fn write_batch(
    inner: &CacheParts,
    below: &CacheTier,
    (writes, places): (Vec<BlockWrite>, Vec<(HostMemoryRef, usize)>),
    keys: Vec<BlockKey>,
) -> Vec<(BlockKey, Result<WriteSuccess, UnwrittenReason>)> {
    if writes.is_empty() {
        return Vec::new();
    }
    let report = match below.write(writes) {
        Ok(report) => report,
        Err(error) => {
            inner.metrics.move_failed(TierId::HOST, below.id);
            below.is_late(places.into_iter().map(|(place, _)| place));
            below.writes.failed(inner.clock.now(), &error);
            // The late writes need a sync too.
            below.spill.touched(inner.clock.now());
            let failed = |key| (key, Err(UnwrittenReason::Failed));
            return keys.into_iter().map(failed).collect();
        }
    };
    // A tier that completed the batch but still holds its memory counts as late too.
    let kept = places.into_iter();
    let kept = kept.filter(|(place, others)| place.strong_count() > *others);
    below.is_late(kept.map(|(place, _)| place));
    let now = inner.clock.now();
    let new = |outcome: &Result<WriteSuccess, NotWritten>| matches!(outcome, Ok(WriteSuccess::New));
    let written = report.blocks.iter().filter(|outcome| new(outcome)).count();
    if written > 0 {
        let bytes = written as u64 * inner.block_bytes;
        let route = (TierId::HOST, below.id);
        inner.moved(route, written as u64, bytes, report.elapsed);
        inner.metrics.stored(below.id, written as u64);
        below.spill.wrote(written, now);
    }
    let mut failure = None;
    let ended = keys.into_iter().zip(report.blocks.iter());
    let outcomes = ended.map(|(key, outcome)| {
        let outcome = match outcome {
            Ok(wrote) => Ok(*wrote),
            Err(NotWritten::NoParent | NotWritten::Removed) => Err(UnwrittenReason::NoAncestor),
            Err(NotWritten::NoRoom) => Err(UnwrittenReason::NoRoom),
            Err(NotWritten::Failed(error)) => {
                inner.metrics.move_failed(TierId::HOST, below.id);
                failure = Some(error.clone());
                Err(UnwrittenReason::Failed)
            }
        };
        (key, outcome)
    });
    let outcomes = outcomes.collect();
    match failure {
        Some(error) => below.writes.failed(now, &error),
        None if written > 0 => below.writes.succeeded(now),
        None => {}
    }
    outcomes
}

/// Sorts blocks by chain, each after its parent.
fn by_chains(mut blocks: Vec<LeavingBlock>) -> Vec<LeavingBlock> {
    blocks.sort_by_key(|leaving| (leaving.position, leaving.key));
    let mut chains: HashMap<BlockKey, usize> = HashMap::with_capacity(blocks.len());
    for leaving in &blocks {
        let before = leaving.parent.and_then(|parent| chains.get(&parent));
        let chain = before.copied().unwrap_or(chains.len());
        chains.insert(leaving.key, chain);
    }
    // The sort is stable, so it keeps the order of positions within a chain.
    blocks.sort_by_key(|leaving| chains.get(&leaving.key).copied());
    blocks
}

/// Blocks that were evicted from host memory.
struct EvictedBatch<'a> {
    blocks: Arc<EvictedBlocks>,
    leaving: Vec<EvictedBlock>,
    /// One entry for each tier of the cache.
    routes: Vec<DemotionRoute<'a>>,
}

/// The evicted blocks for one tier.
struct DemotionRoute<'a> {
    /// Blocks with a write in flight.
    wanted: Vec<EvictedBlock>,
    /// Number of further blocks that are not written because the tier failed recently.
    left_out: u64,
    arrival: DemotionEnd<'a>,
}

/// Removes blocks from the departures when it is dropped, also after a failure or a panic.
struct DemotionEnd<'a> {
    inner: &'a CacheParts,
    keys: Vec<BlockKey>,
}

impl Drop for DemotionEnd<'_> {
    fn drop(&mut self) {
        if !self.keys.is_empty() {
            self.inner.departures.lock().arrive(self.keys.iter());
        }
    }
}
