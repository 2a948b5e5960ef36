//! Flushes: they write the blocks of host memory to the durable tiers, the most valuable first, and
//! sync them. A flush writes nothing to tiers that are not durable.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId, pool::StoredEntry};
use serde::{Deserialize, Serialize};

use super::{
    CacheParts,
    below::{CacheTier, GROUP},
    demote::{self, UnwrittenReason},
};
use crate::tier::{TierHold, WriteSuccess};

/// A flush of a tier stops after this many failed blocks.
const FAILURES_MAX: usize = 4;

/// The outcome of a flush. Each of its blocks is durable on some tier or has one reason:
/// `no_tier + no_room + late + failed` of `wanted` blocks are not durable.
///
/// Only tiers with [`TierAbilities::is_durable`](crate::tier::TierAbilities) count. A flush ignores blocks
/// of other tiers that are not in host memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FlushReport {
    /// Blocks that were in host memory when the flush began, or had a write to a durable tier in
    /// flight. Closing omits blocks that the settings do not write yet
    /// ([`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses)).
    pub wanted: usize,
    /// Blocks that this call wrote, counted once for each tier.
    pub written: usize,
    /// Blocks without a durable tier to go to: the cache has none, their parent is neither in host
    /// memory nor on one, or they are the tail of a chain that fills no value of a shared tier.
    pub no_tier: usize,
    /// Blocks for which no durable tier has room; the tiers hold more valuable ones.
    pub no_room: usize,
    /// Blocks that are on no durable tier because the time was up. With a
    /// [`close_within`](crate::tier::TierSettings::close_within) of 0 closing writes none.
    pub late: usize,
    /// Blocks that are on no durable tier because a tier failed to write them, or lost them.
    pub failed: usize,
    /// Whether the cache has a durable tier and each block of the flush is now durable on at least
    /// one tier.
    pub durable: bool,
    /// The outcome on each durable tier, in the order of the cache's tiers.
    pub tiers: Vec<TierFlush>,
}

/// The outcome of a flush on one tier. `wanted` is `durable + no_room + late + failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TierFlush {
    /// The tier.
    pub tier: TierId,
    /// Host blocks to be written to it, including those that it already has; without the tails of
    /// chains that fill no value of a shared tier.
    pub wanted: usize,
    /// Of these, blocks that are now durable on it.
    pub durable: usize,
    /// Blocks that were written by this call.
    pub written: usize,
    /// Blocks for which the tier has no room.
    pub no_room: usize,
    /// Blocks that were not written because the time was up.
    pub late: usize,
    /// Blocks that the tier failed to write or to sync, or lost.
    pub failed: usize,
}

/// The outcome of a block. Of its outcomes on several tiers, the greatest one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FlushFate {
    NoTier,
    NoRoom,
    Late,
    Failed,
    Durable,
}

/// The blocks of a flush.
struct FlushBlocks {
    /// Host blocks that a lookup finds, the most valuable first; ancestors come before their
    /// descendants.
    order: Vec<StoredEntry>,
    /// Blocks with a write from host memory to a durable tier in flight.
    leaving: Vec<BlockKey>,
}

/// The writes of a flush to one tier.
#[derive(Default)]
struct FlushProgress {
    /// Known reasons why blocks are not on the tier.
    fates: HashMap<BlockKey, FlushFate>,
    /// Blocks that were written.
    written: Vec<BlockKey>,
    failures: usize,
    /// Pins of the blocks that the flush keeps on the tier.
    kept: Vec<Box<dyn TierHold>>,
}

/// Writes the blocks of host memory to the durable tiers that lack them, and waits until they are
/// durable.
///
/// A tier's room goes to the blocks that the policy of host memory would evict last. While the
/// cache closes, `close_within` bounds the writes to each tier but not the sync after them, and
/// blocks that the settings would not demote are omitted.
pub(super) fn flush(inner: &CacheParts, is_closing: bool) -> FlushReport {
    let tiers: Vec<&CacheTier> = inner.durable_tiers().collect();
    if tiers.is_empty() {
        let blocks = inner.host.pool.stats().cached;
        return FlushReport {
            wanted: blocks,
            no_tier: blocks,
            ..FlushReport::default()
        };
    }
    let wanted = wanted(inner);
    // A child of a departing block can be written only after the parent's write has ended.
    inner.wait_for_demotions();
    let belongs = |entry: &StoredEntry| {
        let mut tiers = tiers.iter();
        !is_closing || tiers.any(|below| belongs_on(inner, below, entry))
    };
    let keys = wanted.order.iter().filter(|entry| belongs(entry));
    let keys = keys.map(|entry| (entry.key, FlushFate::NoTier));
    let mut fates: HashMap<BlockKey, FlushFate> = keys.collect();
    fates.extend(wanted.leaving.iter().map(|key| (*key, FlushFate::Failed)));
    let mut report = FlushReport::default();
    for below in tiers {
        let keys = keys_for(inner, below, (&wanted.order, is_closing));
        let (tier, found) = flush_tier(inner, below, (&keys, &wanted.leaving), is_closing);
        for (key, fate) in found {
            let of_block = fates.entry(key).or_insert(fate);
            *of_block = fate.max(*of_block);
        }
        report.written += tier.written;
        report.tiers.push(tier);
    }
    let count = |fate| fates.values().filter(|of_block| **of_block == fate).count();
    report.wanted = fates.len();
    report.no_tier = count(FlushFate::NoTier);
    report.no_room = count(FlushFate::NoRoom);
    report.late = count(FlushFate::Late);
    report.failed = count(FlushFate::Failed);
    report.durable = count(FlushFate::Durable) == report.wanted;
    report
}

/// Collects the blocks of a flush that begins now.
fn wanted(inner: &CacheParts) -> FlushBlocks {
    // Under the lock no block leaves host memory, or arrives.
    let departures = inner.departures.lock();
    let all = inner.host.pool.eviction_order(inner.tick());
    let leaving = departures.to_durable();
    drop(departures);
    let mut found = HashSet::with_capacity(all.len());
    let mut order = Vec::with_capacity(all.len());
    let is_below = |key: &BlockKey| inner.below.iter().any(|below| below.has(key));
    for entry in all.into_iter().rev() {
        // If all tiers lost an ancestor, no lookup reaches this block.
        let follows = |parent: BlockKey| found.contains(&parent) || is_below(&parent);
        if entry
            .parent
            .is_none_or(|parent| follows(parent) || leaving.contains(&parent))
        {
            found.insert(entry.key);
            order.push(entry);
        }
    }
    FlushBlocks { order, leaving }
}

/// Whether closing writes a host block to a tier, or the tier already has it.
fn belongs_on(inner: &CacheParts, below: &CacheTier, entry: &StoredEntry) -> bool {
    demote::belongs_on(inner, below, entry.block) || below.has(&entry.key)
}

/// The keys of the host blocks that can be written to a tier, in their order: every ancestor is on
/// the tier or in host memory.
fn keys_for(
    inner: &CacheParts,
    below: &CacheTier,
    (order, is_closing): (&[StoredEntry], bool),
) -> Vec<BlockKey> {
    let mut found = HashSet::with_capacity(order.len());
    let mut keys = Vec::with_capacity(order.len());
    for entry in order {
        let follows = |parent: BlockKey| found.contains(&parent) || below.has(&parent);
        if entry.parent.is_none_or(follows) {
            found.insert(entry.key);
            if !is_closing || belongs_on(inner, below, entry) {
                keys.push(entry.key);
            }
        }
    }
    keys
}

/// Writes `keys` to a tier and syncs it. Returns the outcome of each key there, and of the
/// `leaving` blocks those that are durable there.
fn flush_tier(
    inner: &CacheParts,
    below: &CacheTier,
    (keys, leaving): (&[BlockKey], &[BlockKey]),
    is_closing: bool,
) -> (TierFlush, Vec<(BlockKey, FlushFate)>) {
    let within = is_closing.then_some(below.settings.close_within);
    let writes = within.is_none_or(|within| !within.is_zero());
    let mut progress = FlushProgress::default();
    match writes {
        true => write_by_worth(inner, below, (keys, inner.later(within)), &mut progress),
        false => progress.end_all(keys, FlushFate::Late),
    }
    // Other threads write the blocks that were evicted before this flush could pin them.
    inner.wait_for_demotions();
    let mut is_synced = true;
    if writes || below.spill.is_dirty() {
        let synced = below.sync(&*inner.clock);
        is_synced = synced.failure.is_none() && synced.lost == 0;
    }
    // A shared tier stores blocks in whole values only. It took these blocks, and waits for the rest.
    let waits = below.abilities.is_shared && is_synced && progress.failures == 0;
    let otherwise = match waits {
        true => FlushFate::NoTier,
        false => FlushFate::Failed,
    };
    let written = progress.written.iter().filter(|key| below.has(key)).count();
    let durable = below.tier.durable(GROUP, keys);
    let fates = keys.iter().zip(durable).map(|(key, is_durable)| {
        let reason = progress.fates.get(key).copied().unwrap_or(otherwise);
        (
            *key,
            if is_durable {
                FlushFate::Durable
            } else {
                reason
            },
        )
    });
    let mut fates: Vec<(BlockKey, FlushFate)> = fates.collect();
    progress.kept.clear();
    let count = |fate| {
        fates
            .iter()
            .filter(|(_, of_block)| *of_block == fate)
            .count()
    };
    let report = TierFlush {
        tier: below.id,
        wanted: keys.len() - count(FlushFate::NoTier),
        durable: count(FlushFate::Durable),
        written,
        no_room: count(FlushFate::NoRoom),
        late: count(FlushFate::Late),
        failed: count(FlushFate::Failed),
    };
    let arrived = leaving.iter().zip(below.tier.durable(GROUP, leaving));
    let arrived = arrived.filter(|(_, is_durable)| *is_durable);
    fates.extend(arrived.map(|(key, _)| (*key, FlushFate::Durable)));
    (report, fates)
}

impl FlushProgress {
    fn end_all(&mut self, keys: &[BlockKey], fate: FlushFate) {
        self.fates.extend(keys.iter().map(|key| (*key, fate)));
    }
}

fn write_by_worth(
    inner: &CacheParts,
    below: &CacheTier,
    (keys, deadline): (&[BlockKey], Option<Duration>),
    progress: &mut FlushProgress,
) {
    let most = match below.abilities.is_bounded {
        // A capacity beyond `usize::MAX` has room for every block.
        true => usize::try_from(below.tier.stats().capacity).unwrap_or(usize::MAX),
        false => usize::MAX,
    };
    let (wanted, rest) = keys.split_at(keys.len().min(most));
    progress.end_all(rest, FlushFate::NoRoom);
    // Pins the blocks that the tier already has, so that the writes do not evict them.
    let there = wanted.iter().filter_map(|key| below.hold_one(key));
    progress.kept.extend(there);
    let mut left = wanted;
    while !left.is_empty() {
        if inner.is_past(deadline) {
            progress.end_all(left, FlushFate::Late);
            break;
        }
        if progress.failures >= FAILURES_MAX {
            break;
        }
        let (batch, after) = left.split_at(left.len().min(inner.batch_blocks()));
        left = after;
        let mut refused = write_batch(inner, below, batch, progress);
        // A tier without a capacity has room again after the writes that take it now.
        while !refused.is_empty()
            && !below.abilities.is_bounded
            && progress.failures < FAILURES_MAX
            && !inner.is_past(deadline)
        {
            let synced = below.sync(&*inner.clock);
            progress.failures += usize::from(synced.failure.is_some() || synced.lost > 0);
            let again = write_batch(inner, below, &refused, progress);
            let is_over = again.len() == refused.len();
            refused = again;
            if is_over {
                break;
            }
        }
        progress.end_all(&refused, FlushFate::NoRoom);
    }
}

/// Writes a batch of a flush to a tier. Returns the keys that found no room.
fn write_batch(
    inner: &CacheParts,
    below: &CacheTier,
    batch: &[BlockKey],
    progress: &mut FlushProgress,
) -> Vec<BlockKey> {
    let mut refused = Vec::new();
    let outcomes = demote::write_keys(inner, below, batch);
    for (key, outcome) in batch.iter().zip(outcomes) {
        match outcome {
            Ok(wrote) => {
                if wrote == WriteSuccess::New {
                    progress.written.push(*key);
                }
                progress.kept.extend(below.hold_one(key));
            }
            Err(UnwrittenReason::NoRoom) => refused.push(*key),
            // The block was evicted since, or its ancestor was not written; the check for
            // durability after the sync decides.
            Err(UnwrittenReason::NoAncestor) => {}
            Err(UnwrittenReason::Failed) => progress.failures += 1,
        }
    }
    refused
}
