//! The pool's counters. Every partial count has its total beside it. No decision depends on them,
//! so `loom` does not explore their interleavings.

use super::BlockPool;
use super::evict::EvictionTrigger;
use super::settings::TenantId;
use super::slot::BlockPhase;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the pool was created, and its current occupancy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PoolStats {
    /// Blocks in the pool.
    pub blocks: usize,
    /// Of them: free.
    pub free: usize,
    /// Of them: cached, pinned or not.
    pub cached: usize,
    /// Calls of `match_prefix`.
    pub lookups: u64,
    /// Keys in those calls.
    pub looked_up_blocks: u64,
    /// Of those keys: hits.
    pub hit_blocks: u64,
    /// Visits that did not reach the policy because its queue was full.
    pub lost_visits: u64,
    /// Calls of `allocate` that succeeded.
    pub allocations: u64,
    /// Blocks that those calls allocated.
    pub allocated_blocks: u64,
    /// Calls of `allocate` that were refused.
    pub refused_allocations: u64,
    /// Keys that were registered.
    pub registered_blocks: u64,
    /// Of them: those that were registered already.
    pub duplicate_blocks: u64,
    /// Blocks evicted to make room.
    pub evicted_for_room: u64,
    /// Blocks evicted because their tenant exceeded its quota.
    pub evicted_for_quota: u64,
    /// Blocks evicted by `evict`.
    pub evicted_on_request: u64,
    /// Blocks removed by `remove`.
    pub removed_blocks: u64,
    /// Blocks removed by `clear`.
    pub cleared_blocks: u64,
    /// Live guards of pinned blocks with a deadline.
    pub open_claims: usize,
    /// Usage by share: all tenants without a quota first.
    pub tenants: Vec<TenantStats>,
}

impl PoolStats {
    /// Adds the counts of another pool of the same tier. Tenants with the same number become one.
    pub fn add(&mut self, other: &PoolStats) {
        let PoolStats {
            blocks,
            free,
            cached,
            lookups,
            looked_up_blocks,
            hit_blocks,
            lost_visits,
            allocations,
            allocated_blocks,
            refused_allocations,
            registered_blocks,
            duplicate_blocks,
            evicted_for_room,
            evicted_for_quota,
            evicted_on_request,
            removed_blocks,
            cleared_blocks,
            open_claims,
            tenants,
        } = other;
        self.blocks += blocks;
        self.free += free;
        self.cached += cached;
        self.lookups += lookups;
        self.looked_up_blocks += looked_up_blocks;
        self.hit_blocks += hit_blocks;
        self.lost_visits += lost_visits;
        self.allocations += allocations;
        self.allocated_blocks += allocated_blocks;
        self.refused_allocations += refused_allocations;
        self.registered_blocks += registered_blocks;
        self.duplicate_blocks += duplicate_blocks;
        self.evicted_for_room += evicted_for_room;
        self.evicted_for_quota += evicted_for_quota;
        self.evicted_on_request += evicted_on_request;
        self.removed_blocks += removed_blocks;
        self.cleared_blocks += cleared_blocks;
        self.open_claims += open_claims;
        for theirs in tenants {
            let mut ours = self.tenants.iter_mut();
            match ours.find(|ours| ours.tenant == theirs.tenant) {
                Some(ours) => {
                    ours.used += theirs.used;
                    let limits = ours.limit.zip(theirs.limit);
                    ours.limit = limits.map(|(ours, theirs)| ours + theirs);
                }
                None => self.tenants.push(*theirs),
            }
        }
    }
}

/// The blocks charged to a tenant, or to all tenants without a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStats {
    /// The tenant; `None` for all tenants without a quota.
    pub tenant: Option<TenantId>,
    /// Blocks charged.
    pub used: usize,
    /// The quota.
    pub limit: Option<usize>,
}

/// The number of blocks in each state. Each block is counted once; concurrent changes may show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCensus {
    /// In the free list.
    pub free: usize,
    /// Mutable, complete, or evicted and not dropped yet.
    pub owned: usize,
    /// Registered and pinned.
    pub active: usize,
    /// Registered and not pinned.
    pub inactive: usize,
    /// Removed while pinned.
    pub withdrawn: usize,
}

/// The counters, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct PoolCounters {
    lookups: AtomicU64,
    looked_up_blocks: AtomicU64,
    hit_blocks: AtomicU64,
    lost_visits: AtomicU64,
    allocations: AtomicU64,
    allocated_blocks: AtomicU64,
    refused_allocations: AtomicU64,
    registered_blocks: AtomicU64,
    duplicate_blocks: AtomicU64,
    evicted_for_room: AtomicU64,
    evicted_for_quota: AtomicU64,
    evicted_on_request: AtomicU64,
    removed_blocks: AtomicU64,
    cleared_blocks: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    if count > 0 {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl PoolCounters {
    pub(super) fn new() -> PoolCounters {
        PoolCounters {
            lookups: AtomicU64::new(0),
            looked_up_blocks: AtomicU64::new(0),
            hit_blocks: AtomicU64::new(0),
            lost_visits: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            allocated_blocks: AtomicU64::new(0),
            refused_allocations: AtomicU64::new(0),
            registered_blocks: AtomicU64::new(0),
            duplicate_blocks: AtomicU64::new(0),
            evicted_for_room: AtomicU64::new(0),
            evicted_for_quota: AtomicU64::new(0),
            evicted_on_request: AtomicU64::new(0),
            removed_blocks: AtomicU64::new(0),
            cleared_blocks: AtomicU64::new(0),
        }
    }

    pub(super) fn look_up(&self, blocks: usize, hits: usize) {
        add(&self.lookups, 1);
        add(&self.looked_up_blocks, blocks);
        add(&self.hit_blocks, hits);
    }

    pub(super) fn lose_visit(&self) {
        add(&self.lost_visits, 1);
    }

    pub(super) fn allocate(&self, blocks: usize) {
        add(&self.allocations, 1);
        add(&self.allocated_blocks, blocks);
    }

    pub(super) fn refuse_allocation(&self) {
        add(&self.refused_allocations, 1);
    }

    pub(super) fn register(&self, blocks: usize, duplicates: usize) {
        add(&self.registered_blocks, blocks);
        add(&self.duplicate_blocks, duplicates);
    }

    pub(super) fn evict(&self, reason: EvictionTrigger, blocks: usize) {
        let counter = match reason {
            EvictionTrigger::Room => &self.evicted_for_room,
            EvictionTrigger::Quota => &self.evicted_for_quota,
            EvictionTrigger::Request => &self.evicted_on_request,
        };
        add(counter, blocks);
    }

    pub(super) fn remove(&self, blocks: usize) {
        add(&self.removed_blocks, blocks);
    }

    pub(super) fn clear(&self, blocks: usize) {
        add(&self.cleared_blocks, blocks);
    }
}

impl BlockPool {
    /// The counters and the current occupancy.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let quotas = self.settings.quotas.iter().map(Some);
        let tenants = std::iter::once(None).chain(quotas).zip(&self.shares);
        PoolStats {
            blocks: self.blocks(),
            free: self.free.lock().len(),
            cached: self.cached(),
            lookups: read(&counters.lookups),
            looked_up_blocks: read(&counters.looked_up_blocks),
            hit_blocks: read(&counters.hit_blocks),
            lost_visits: read(&counters.lost_visits),
            allocations: read(&counters.allocations),
            allocated_blocks: read(&counters.allocated_blocks),
            refused_allocations: read(&counters.refused_allocations),
            registered_blocks: read(&counters.registered_blocks),
            duplicate_blocks: read(&counters.duplicate_blocks),
            evicted_for_room: read(&counters.evicted_for_room),
            evicted_for_quota: read(&counters.evicted_for_quota),
            evicted_on_request: read(&counters.evicted_on_request),
            removed_blocks: read(&counters.removed_blocks),
            cleared_blocks: read(&counters.cleared_blocks),
            open_claims: self.ledger.len(),
            tenants: tenants
                .map(|(quota, share)| TenantStats {
                    tenant: quota.map(|quota| quota.tenant),
                    used: share.used(),
                    limit: quota.map(|quota| quota.blocks),
                })
                .collect(),
        }
    }

    /// The number of cached blocks.
    #[must_use]
    pub fn cached(&self) -> usize {
        let shares = self.shares.iter();
        shares.map(|share| share.lock().listed.len()).sum()
    }

    /// Counts the blocks in each state, with one pass over all of them.
    #[must_use]
    pub fn census(&self) -> PoolCensus {
        let mut census = PoolCensus::default();
        for id in (0_u32..).take(self.blocks()) {
            let state = self.slots.get(id).state();
            match state.phase() {
                BlockPhase::Free => census.free += 1,
                BlockPhase::Mutable
                | BlockPhase::Complete
                | BlockPhase::Evicting
                | BlockPhase::Evicted => {
                    census.owned += 1;
                }
                BlockPhase::Registered if state.references() > 0 => census.active += 1,
                BlockPhase::Registered => census.inactive += 1,
                BlockPhase::Withdrawn => census.withdrawn += 1,
            }
        }
        census
    }
}
