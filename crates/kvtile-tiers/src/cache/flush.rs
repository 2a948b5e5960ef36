//! Flushes: what is in host memory to the tiers below, what is worth most first, and durable.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kvtile_blocks::BlockKey;

use super::{
    Parts,
    below::{Below, GROUP},
    demote::{self, Unwritten},
};
use crate::tier::{Hold, Wrote};

/// A flush gives up after so many failures of the disk in a row.
const FAILURES_MAX: usize = 4;

/// What a flush came to. Each block that it was to bring is durable on some tier, or one of those that have a
/// reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Blocks that were in host memory when the flush began.
    pub wanted: usize,
    /// Blocks that were written by this call, once for each tier; the others were there already.
    pub written: usize,
    /// Blocks that are not on a tier because it has no room for them; they are worth less than those that are.
    pub no_room: usize,
    /// Blocks that are on no tier because the time was over.
    pub late: usize,
    /// Blocks that are on no tier because it failed, or that it lost.
    pub failed: usize,
    /// Whether all blocks that were in host memory, or on their way from there to a tier, outlive a
    /// crash now. Without a tier below host memory nothing does.
    pub durable: bool,
}

/// What a flush of one tier came to.
struct Progress {
    /// The keys that were to be on the tier, and whether each is durable there.
    durable: Vec<(BlockKey, bool)>,
    written: usize,
    no_room: usize,
    late: usize,
    failures: usize,
    /// What is to be on the tier in the end, pinned there.
    kept: Vec<Box<dyn Hold>>,
    is_synced: bool,
}

/// Brings blocks of host memory to the tiers below that are not there, and waits until they are durable.
///
/// The room of a tier goes to the blocks that the policy of host memory would give up last. When the
/// cache is closing, `close_within` bounds the writing to each tier, not the sync behind it, and what the
/// settings would not write on eviction is left out.
pub(super) fn flush(inner: &Parts, is_closing: bool) -> FlushReport {
    let mut report = FlushReport {
        durable: !inner.below.is_empty(),
        ..FlushReport::default()
    };
    // The blocks that were to be somewhere, and whether they are durable anywhere.
    let mut blocks: HashMap<BlockKey, bool> = HashMap::new();
    for below in &inner.below {
        let within = below.settings.close_within;
        if is_closing && within.is_zero() {
            if below.spill.is_dirty() {
                below.sync(&*inner.clock);
            }
            report.durable = false;
            continue;
        }
        let deadline = inner.later(is_closing.then_some(within));
        let progress = flush_tier(inner, below, deadline, is_closing);
        report.written += progress.written;
        report.no_room += progress.no_room;
        report.late += progress.late;
        report.durable &= progress.is_synced && progress.failures == 0;
        for (key, is_durable) in progress.durable {
            *blocks.entry(key).or_default() |= is_durable;
        }
    }
    let volatile = blocks.values().filter(|durable| !**durable).count();
    report.wanted = blocks.len();
    report.no_room = report.no_room.min(volatile);
    report.late = report.late.min(volatile - report.no_room);
    report.failed = volatile - report.no_room - report.late;
    report.durable &= volatile == 0;
    report
}

fn flush_tier(
    inner: &Parts,
    below: &Below,
    deadline: Option<Duration>,
    belonging_only: bool,
) -> Progress {
    let keys = keys_by_worth(inner, below, belonging_only);
    let failures_before = below.writes.failures();
    let mut progress = write_by_worth(inner, below, &keys, deadline);
    // What left host memory before it was listed, or before it was held, other threads write.
    inner.wait_for_demotions();
    let synced = below.sync(&*inner.clock);
    progress.written = progress.written.saturating_sub(synced.lost);
    progress.is_synced = synced.failure.is_none();
    let has_failed = below.writes.failures() != failures_before;
    progress.failures = progress.failures.max(usize::from(has_failed));
    let durable = below.tier.durable(GROUP, &keys);
    progress.durable = keys.into_iter().zip(durable).collect();
    progress.kept.clear();
    progress
}

/// The keys of host blocks that a lookup finds, those first that are worth most; no block comes before
/// its ancestors.
fn keys_by_worth(inner: &Parts, below: &Below, belonging_only: bool) -> Vec<BlockKey> {
    let order = inner.host.pool.eviction_order(inner.tick());
    let mut found = HashSet::with_capacity(order.len());
    let mut keys = Vec::with_capacity(order.len());
    for entry in order.into_iter().rev() {
        // Where the tier lost an ancestor, no lookup comes as far as this block.
        let follows = |parent: BlockKey| found.contains(&parent) || below.has(&parent);
        if entry.parent.is_none_or(follows) {
            found.insert(entry.key);
            let belongs = || demote::belongs_on(inner, below, entry.block) || below.has(&entry.key);
            if !belonging_only || belongs() {
                keys.push(entry.key);
            }
        }
    }
    keys
}

fn write_by_worth(
    inner: &Parts,
    below: &Below,
    keys: &[BlockKey],
    deadline: Option<Duration>,
) -> Progress {
    let mut progress = Progress {
        durable: Vec::new(),
        written: 0,
        no_room: 0,
        late: 0,
        failures: 0,
        kept: Vec::new(),
        is_synced: false,
    };
    let stats = below.tier.stats();
    let most = match below.abilities.is_bounded {
        true => usize::try_from(stats.capacity).unwrap_or(usize::MAX),
        false => usize::MAX,
    };
    let (wanted, rest) = keys.split_at(keys.len().min(most));
    let absent = |keys: &[BlockKey]| keys.iter().filter(|key| !below.has(key)).count();
    // First those that are there: what is written for others may not push them out.
    let there = wanted.iter().filter_map(|key| below.hold_one(key));
    progress.kept.extend(there);
    let mut left = wanted;
    while !left.is_empty() {
        if inner.is_past(deadline) {
            progress.late += absent(left);
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
                    progress.written += usize::from(wrote == Wrote::New);
                    progress.kept.extend(below.hold_one(key));
                }
                Err(Unwritten::NoRoom) => progress.no_room += 1,
                // It has left host memory since, or its ancestor was not written: the end shows it.
                Err(Unwritten::NoAncestor) => {}
                Err(Unwritten::Failed) => progress.failures += 1,
            }
        }
    }
    progress.no_room += absent(rest);
    progress
}
