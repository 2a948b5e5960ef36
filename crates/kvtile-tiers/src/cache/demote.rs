//! Room in host memory: what leaves it goes to the tiers below that are to have it.
//!
//! A block is written to a tier after the blocks before it in its chain, and only where all of them are on
//! that tier. So a restart finds everything that was written. What has left host memory and is on its way
//! stays findable ([`super::departures`]).

use std::{any::Any, collections::HashMap, sync::Arc};

use kvtile_blocks::{
    BlockId, BlockKey, BlocksError,
    events::TierId,
    pool::{AllocateRequest, Claim, EvictedBlock, EvictedBlocks, MutableBlocks, PinnedBlocks},
};
use kvtile_layout::broken;
use kvtile_transfer::LeaseMode;

use super::{
    Parts,
    below::{Below, Place, name},
    spill::SYNC_BLOCKS,
};
use crate::{
    error::TierError,
    tier::{BlockWrite, NotWritten, TierWrites, Wrote},
};

/// How often room is made before an allocation fails, where other threads take what was freed.
const TRIES: usize = 8;

/// A host block that is written to a tier.
struct Leaving {
    block: BlockId,
    key: BlockKey,
    parent: Option<BlockKey>,
    /// How many blocks stand before it in its chain.
    position: u32,
    tenant: u32,
    /// Keeps the block where it is.
    place: Arc<dyn Any + Send + Sync>,
    /// How often the cache has the place beside.
    others: usize,
}

/// Why a block was not written.
#[derive(Clone, Debug)]
pub(super) enum Unwritten {
    /// A block before it in its chain is neither in host memory nor on the tier, or it is not in host memory
    /// itself.
    NoAncestor,
    /// All of the tier's room holds its ancestors, or blocks in use.
    NoRoom,
    /// The write failed.
    Failed,
}

/// Host blocks to fill. What has to leave for them goes to the tiers below first, where the settings say
/// so.
pub(super) fn host_room(
    inner: &Parts,
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

/// Evicts up to `blocks` blocks.
pub(super) fn evict(inner: &Parts, tier: TierId, blocks: usize) -> Result<usize, TierError> {
    if tier == TierId::HOST {
        let _demoting = inner.demoting();
        let _turn = inner.turn();
        let evicted = take_out(inner, || inner.host.pool.evict(blocks, inner.tick()));
        let count = evicted.leaving.len();
        demote(inner, evicted);
        return Ok(count);
    }
    let below = inner.below.iter().find(|below| below.id == tier);
    let below = below.ok_or(TierError::NoSuchTier { tier })?;
    let count = below.tier.evict(blocks, inner.tick());
    below.spill.touched(inner.clock.now());
    Ok(count)
}

/// Whether a block that leaves host memory is to be on a tier.
pub(super) fn belongs_on(inner: &Parts, below: &Below, block: BlockId) -> bool {
    match below.settings.writes {
        TierWrites::OnEviction | TierWrites::AtOnce => true,
        TierWrites::AfterUses(uses) => inner.host.uses(block) >= uses,
    }
}

/// Forgets everything, but for blocks of tiers that are in use.
pub(super) fn clear(inner: &Parts) -> Result<usize, TierError> {
    // No block is on its way to a tier meanwhile.
    let _turn = inner.turn();
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
        false => Err(TierError::NotDurable),
    }
}

/// Pins the parent of a block that was just registered in host memory, where the parent is in a tier below
/// and not in host memory: the tier gives up no block that one in host memory follows. A shared tier, which may all
/// the same, is the last choice.
pub(super) fn anchor(inner: &Parts, blocks: &PinnedBlocks, parent: Option<BlockKey>) {
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
    // A hold of a shared tier is a promise; one of another tier keeps the block.
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

/// Writes host blocks that are not on a tier yet, each after its ancestors, whether or not the tier failed
/// lately. For each key: whether the block was written now, or why it is not there.
pub(super) fn write_keys(
    inner: &Parts,
    below: &Below,
    keys: &[BlockKey],
) -> Vec<Result<Wrote, Unwritten>> {
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
            .map(|key| (key, Err(Unwritten::NoAncestor))),
    );
    let outcome = |key: &BlockKey| match outcomes.get(key) {
        Some(outcome) => outcome.clone(),
        None => Ok(Wrote::Present),
    };
    keys.iter().map(outcome).collect()
}

/// Takes blocks out of host memory. Those that are to be written to a tier are on their way from then on.
fn take_out(inner: &Parts, evict: impl FnOnce() -> EvictedBlocks) -> Evicted<'_> {
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
    // The end of a way takes the lock again.
    drop(departures);
    let route = |(wanted, left_out): (Vec<EvictedBlock>, u64)| Route {
        arrival: Arrival {
            inner,
            keys: wanted.iter().map(|block| block.key).collect(),
        },
        wanted,
        left_out,
    };
    Evicted {
        blocks: Arc::new(evicted),
        leaving,
        routes: routes.into_iter().map(route).collect(),
    }
}

/// Writes evicted blocks to the tiers that they go to, each after its parent.
fn demote(inner: &Parts, evicted: Evicted<'_>) {
    let Evicted {
        blocks: place,
        leaving,
        routes,
    } = evicted;
    for (below, route) in inner.below.iter().zip(routes) {
        let Route {
            wanted,
            mut left_out,
            arrival,
        } = route;
        if !wanted.is_empty() {
            let blocks = wanted.iter().map(|evicted| {
                let (position, tenant) = inner.host.facts(evicted.block);
                Leaving {
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

/// Pins a host block, for as long as it takes to write it.
fn hold(inner: &Parts, key: &BlockKey) -> Option<Leaving> {
    let claim = Claim {
        now: inner.tick(),
        ..Claim::default()
    };
    let keys = std::slice::from_ref(key);
    let pin = inner.host.pool.pin(keys, &claim).blocks;
    let block = pin.ids().first().copied()?;
    let parent = pin.parents().next()?;
    let (position, tenant) = inner.host.facts(block);
    Some(Leaving {
        block,
        key: *key,
        parent,
        position,
        tenant,
        place: Arc::new(pin),
        others: 0,
    })
}

/// Writes blocks to a tier in one batch, with those before them that are in host memory and not there.
/// The outcome of each block of the batch.
fn write_all(
    inner: &Parts,
    below: &Below,
    wanted: Vec<Leaving>,
) -> HashMap<BlockKey, Result<Wrote, Unwritten>> {
    let mut batch: HashMap<BlockKey, Leaving> = HashMap::with_capacity(wanted.len());
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
        // Without its ancestor a block is refused by the tier.
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
                outcomes.insert(leaving.key, Err(Unwritten::Failed));
            }
        }
    }
    outcomes.extend(write_batch(inner, below, (writes, places), keys));
    outcomes
}

/// Hands a batch to a tier, waits for it, and counts what became of it.
fn write_batch(
    inner: &Parts,
    below: &Below,
    (writes, places): (Vec<BlockWrite>, Vec<(Place, usize)>),
    keys: Vec<BlockKey>,
) -> Vec<(BlockKey, Result<Wrote, Unwritten>)> {
    if writes.is_empty() {
        return Vec::new();
    }
    let report = match below.write(writes) {
        Ok(report) => report,
        Err(error) => {
            inner.metrics.move_failed(TierId::HOST, below.id);
            below.is_late(places.into_iter().map(|(place, _)| place));
            below.writes.failed(inner.clock.now(), &error);
            // What comes late is to be synced too.
            below.spill.touched(inner.clock.now());
            let failed = |key| (key, Err(Unwritten::Failed));
            return keys.into_iter().map(failed).collect();
        }
    };
    // A tier that has ended and keeps memory gets nothing more either.
    let kept = places.into_iter();
    let kept = kept.filter(|(place, others)| place.strong_count() > *others);
    below.is_late(kept.map(|(place, _)| place));
    let now = inner.clock.now();
    let new = |outcome: &Result<Wrote, NotWritten>| matches!(outcome, Ok(Wrote::New));
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
            Err(NotWritten::NoParent) => Err(Unwritten::NoAncestor),
            Err(NotWritten::NoRoom) => Err(Unwritten::NoRoom),
            Err(NotWritten::Failed(error)) => {
                inner.metrics.move_failed(TierId::HOST, below.id);
                failure = Some(error.clone());
                Err(Unwritten::Failed)
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

/// Blocks of one chain one after the other, none before its parent.
fn by_chains(mut blocks: Vec<Leaving>) -> Vec<Leaving> {
    blocks.sort_by_key(|leaving| (leaving.position, leaving.key));
    let mut chains: HashMap<BlockKey, usize> = HashMap::with_capacity(blocks.len());
    for leaving in &blocks {
        let before = leaving.parent.and_then(|parent| chains.get(&parent));
        let chain = before.copied().unwrap_or(chains.len());
        chains.insert(leaving.key, chain);
    }
    // The sort is stable: blocks of one chain stay in the order of their positions.
    blocks.sort_by_key(|leaving| chains.get(&leaving.key).copied());
    blocks
}

/// Blocks that were taken out of host memory.
struct Evicted<'a> {
    blocks: Arc<EvictedBlocks>,
    leaving: Vec<EvictedBlock>,
    /// For each tier of the cache.
    routes: Vec<Route<'a>>,
}

/// What goes to one tier.
struct Route<'a> {
    /// Blocks on their way to it.
    wanted: Vec<EvictedBlock>,
    /// How many more belong there and are not written, because it failed lately.
    left_out: u64,
    arrival: Arrival<'a>,
}

/// Ends the way of blocks to a tier when it is dropped, whatever became of them.
struct Arrival<'a> {
    inner: &'a Parts,
    keys: Vec<BlockKey>,
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if !self.keys.is_empty() {
            self.inner.departures.lock().arrive(self.keys.iter());
        }
    }
}
