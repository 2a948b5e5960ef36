//! Flushes: what is in host memory to the durable tiers below, what is worth most first, and synced there. Tiers
//! that are not durable get nothing by a flush.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId, pool::StoredEntry};

use super::{
    Parts,
    below::{Below, GROUP},
    demote::{self, Unwritten},
};
use crate::tier::{Hold, Wrote};

/// A flush gives up after so many failures of the disk in a row.
const FAILURES_MAX: usize = 4;

/// What a flush came to. Each block that it was to bring is durable on some tier, or one of those that have a
/// reason: what is not durable is `no_tier + no_room + late + failed` of `wanted`.
///
/// Only tiers whose [`Abilities::is_durable`](crate::tier::Abilities) holds count. Blocks that are in other tiers and
/// not in host memory are not a flush's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Blocks that were in host memory when the flush began, or on their way from there to a durable tier. Closing
    /// leaves out those that the settings do not write yet
    /// ([`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses)).
    pub wanted: usize,
    /// Blocks that were written by this call, once for each tier; the others were there already.
    pub written: usize,
    /// Blocks that no durable tier was to have: the cache has none, or the block before them in their chain is
    /// neither in host memory nor on one.
    pub no_tier: usize,
    /// Blocks for which no durable tier has room; they are worth less than those that are there.
    pub no_room: usize,
    /// Blocks that are on no durable tier because the time was over; with a
    /// [`close_within`](crate::tier::TierSettings::close_within) of 0 it never begins.
    pub late: usize,
    /// Blocks that are on no durable tier because one failed, or lost them.
    pub failed: usize,
    /// Whether the cache has a durable tier and all wanted blocks outlive a crash now, each on some tier. What one
    /// tier does not have and another has is durable.
    pub durable: bool,
    /// What it came to on each durable tier, in the order of the cache; none where there is none.
    pub tiers: Vec<TierFlush>,
}

/// What a flush came to on one tier. `wanted` is `durable + no_room + late + failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierFlush {
    /// Which.
    pub tier: TierId,
    /// Host blocks that were to be on it.
    pub wanted: usize,
    /// Of these, blocks that outlive a crash there now.
    pub durable: usize,
    /// Blocks that were written by this call.
    pub written: usize,
    /// Blocks for which it has no room.
    pub no_room: usize,
    /// Blocks for which the time was over.
    pub late: usize,
    /// Blocks that it failed to write or to sync, or lost.
    pub failed: usize,
}

/// What became of a block. Of what became of it on several tiers, the last one of this list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    NoTier,
    NoRoom,
    Late,
    Failed,
    Durable,
}

/// The blocks that a flush is about.
struct Wanted {
    /// Host blocks that a lookup finds, those first that are worth most; no block comes before its ancestors.
    order: Vec<StoredEntry>,
    /// Blocks on their way from host memory to a durable tier.
    leaving: Vec<BlockKey>,
}

/// The writing to one tier.
#[derive(Default)]
struct Progress {
    /// Why blocks are not on the tier, where it is known.
    fates: HashMap<BlockKey, Fate>,
    /// Blocks that were written.
    written: Vec<BlockKey>,
    failures: usize,
    /// What is to be on the tier in the end, pinned there.
    kept: Vec<Box<dyn Hold>>,
}

/// Brings blocks of host memory to the durable tiers below that are not there, and waits until they are durable.
///
/// The room of a tier goes to the blocks that the policy of host memory would give up last. When the
/// cache is closing, `close_within` bounds the writing to each tier, not the sync behind it, and what the
/// settings would not write on eviction is left out.
pub(super) fn flush(inner: &Parts, is_closing: bool) -> FlushReport {
    let tiers: Vec<&Below> = inner.durable_tiers().collect();
    if tiers.is_empty() {
        let blocks = inner.host.pool.stats().cached;
        return FlushReport {
            wanted: blocks,
            no_tier: blocks,
            ..FlushReport::default()
        };
    }
    let wanted = wanted(inner);
    // What follows a block that is on its way to a tier can be written there once that has arrived.
    inner.wait_for_demotions();
    let belongs = |entry: &StoredEntry| {
        let mut tiers = tiers.iter();
        !is_closing || tiers.any(|below| belongs_on(inner, below, entry))
    };
    let keys = wanted.order.iter().filter(|entry| belongs(entry));
    let keys = keys.map(|entry| (entry.key, Fate::NoTier));
    let mut fates: HashMap<BlockKey, Fate> = keys.collect();
    fates.extend(wanted.leaving.iter().map(|key| (*key, Fate::Failed)));
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
    report.no_tier = count(Fate::NoTier);
    report.no_room = count(Fate::NoRoom);
    report.late = count(Fate::Late);
    report.failed = count(Fate::Failed);
    report.durable = count(Fate::Durable) == report.wanted;
    report
}

/// What a flush that begins now is about.
fn wanted(inner: &Parts) -> Wanted {
    // Under the lock no block leaves host memory, or arrives.
    let departures = inner.departures.lock();
    let all = inner.host.pool.eviction_order(inner.tick());
    let leaving = departures.to_durable();
    drop(departures);
    let mut found = HashSet::with_capacity(all.len());
    let mut order = Vec::with_capacity(all.len());
    let is_below = |key: &BlockKey| inner.below.iter().any(|below| below.has(key));
    for entry in all.into_iter().rev() {
        // Where all tiers lost an ancestor, no lookup comes as far as this block.
        let follows = |parent: BlockKey| found.contains(&parent) || is_below(&parent);
        if entry
            .parent
            .is_none_or(|parent| follows(parent) || leaving.contains(&parent))
        {
            found.insert(entry.key);
            order.push(entry);
        }
    }
    Wanted { order, leaving }
}

/// Whether closing brings a host block to a tier, or finds it there.
fn belongs_on(inner: &Parts, below: &Below, entry: &StoredEntry) -> bool {
    demote::belongs_on(inner, below, entry.block) || below.has(&entry.key)
}

/// The keys of those host blocks that can be on a tier, in their order: none behind a block that is not there.
fn keys_for(
    inner: &Parts,
    below: &Below,
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

/// Brings `keys` to a tier and syncs it. What became of each of them there; of the blocks that are `leaving`, those
/// that are durable there.
fn flush_tier(
    inner: &Parts,
    below: &Below,
    (keys, leaving): (&[BlockKey], &[BlockKey]),
    is_closing: bool,
) -> (TierFlush, Vec<(BlockKey, Fate)>) {
    let within = is_closing.then_some(below.settings.close_within);
    let writes = within.is_none_or(|within| !within.is_zero());
    let mut progress = Progress::default();
    match writes {
        true => write_by_worth(inner, below, (keys, inner.later(within)), &mut progress),
        false => progress.end_all(keys, Fate::Late),
    }
    // What left host memory before it was held, other threads write.
    inner.wait_for_demotions();
    if writes || below.spill.is_dirty() {
        below.sync(&*inner.clock);
    }
    let written = progress.written.iter().filter(|key| below.has(key)).count();
    let durable = below.tier.durable(GROUP, keys);
    let fates = keys.iter().zip(durable).map(|(key, is_durable)| {
        let reason = progress.fates.get(key).copied().unwrap_or(Fate::Failed);
        (*key, if is_durable { Fate::Durable } else { reason })
    });
    let mut fates: Vec<(BlockKey, Fate)> = fates.collect();
    progress.kept.clear();
    let count = |fate| {
        fates
            .iter()
            .filter(|(_, of_block)| *of_block == fate)
            .count()
    };
    let report = TierFlush {
        tier: below.id,
        wanted: keys.len(),
        durable: count(Fate::Durable),
        written,
        no_room: count(Fate::NoRoom),
        late: count(Fate::Late),
        failed: count(Fate::Failed),
    };
    let arrived = leaving.iter().zip(below.tier.durable(GROUP, leaving));
    let arrived = arrived.filter(|(_, is_durable)| *is_durable);
    fates.extend(arrived.map(|(key, _)| (*key, Fate::Durable)));
    (report, fates)
}

impl Progress {
    fn end_all(&mut self, keys: &[BlockKey], fate: Fate) {
        self.fates.extend(keys.iter().map(|key| (*key, fate)));
    }
}

fn write_by_worth(
    inner: &Parts,
    below: &Below,
    (keys, deadline): (&[BlockKey], Option<Duration>),
    progress: &mut Progress,
) {
    let most = match below.abilities.is_bounded {
        // More than memory can address have room for all.
        true => usize::try_from(below.tier.stats().capacity).unwrap_or(usize::MAX),
        false => usize::MAX,
    };
    let (wanted, rest) = keys.split_at(keys.len().min(most));
    progress.end_all(rest, Fate::NoRoom);
    // First those that are there: what is written for others may not push them out.
    let there = wanted.iter().filter_map(|key| below.hold_one(key));
    progress.kept.extend(there);
    let mut left = wanted;
    while !left.is_empty() {
        if inner.is_past(deadline) {
            progress.end_all(left, Fate::Late);
            break;
        }
        if progress.failures >= FAILURES_MAX {
            break;
        }
        let (batch, after) = left.split_at(left.len().min(inner.batch_blocks()));
        left = after;
        let outcomes = demote::write_keys(inner, below, batch);
        for (key, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(wrote) => {
                    if wrote == Wrote::New {
                        progress.written.push(*key);
                    }
                    progress.kept.extend(below.hold_one(key));
                }
                Err(Unwritten::NoRoom) => progress.end_all(&[*key], Fate::NoRoom),
                // It has left host memory since, or its ancestor was not written: the end shows it.
                Err(Unwritten::NoAncestor) => {}
                Err(Unwritten::Failed) => progress.failures += 1,
            }
        }
    }
}
