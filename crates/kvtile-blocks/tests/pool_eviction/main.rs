//! Which blocks leave a full pool, and which stay: hints, scans, dead ends and pins, with the
//! default policy unless a test names another.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `priorities` | which chains stay: priorities, deadlines and scans |
//! | `room` | exhaustion and recovery, and the cost of eviction |
//! | `leaves` | chains shrink from their ends, regardless of visits, pins, losses, restores and tenants |
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod leaves;
mod priorities;
mod room;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvtile_blocks::policy::{
    EvictionHints, EvictionPolicy, EvictionRefusal, Insertion, PolicyKind, PolicySettings, Visit,
};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, PinClaim, PoolSettings, StoredEntry, TenantId, TenantQuota,
};
use kvtile_blocks::{BlockId, BlockKey, BlocksError, Tick};
use kvtile_random::SplitMix64;

/// Block `position` of chain `number`.
fn key(number: u64, position: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&position.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn chain(number: u64, length: u64) -> Vec<BlockKey> {
    (0..length).map(|position| key(number, position)).collect()
}

fn pool(blocks: usize) -> Arc<BlockPool> {
    pool_with(blocks, PolicyKind::Gittins)
}

fn pool_with(blocks: usize, kind: PolicyKind) -> Arc<BlockPool> {
    let policy = PolicySettings::from(kind);
    let settings = PoolSettings::new().blocks(blocks);
    BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap()
}

/// A request: uses the cached part of a chain, and stores the remainder.
fn request(pool: &Arc<BlockPool>, keys: &[BlockKey], now: u64, hints: EvictionHints) {
    let claim = PinClaim {
        now: Tick(now),
        hints,
        ..PinClaim::default()
    };
    let found = pool.match_prefix(keys, &claim);
    store(pool, keys, found.len(), &claim);
    drop(found);
    pool.maintain();
    pool.check_integrity();
}

/// Stores the blocks of a chain from `first` on, after the earlier blocks.
fn store(pool: &Arc<BlockPool>, keys: &[BlockKey], first: usize, claim: &PinClaim) {
    let rest = &keys[first..];
    if rest.is_empty() {
        return;
    }
    let ask = AllocateRequest {
        now: claim.now,
        ..AllocateRequest::default()
    };
    let parent = first.checked_sub(1).map(|last| keys[last]);
    let blocks = pool.allocate(rest.len(), &ask).unwrap();
    let complete = blocks.complete(rest, parent).unwrap();
    drop(complete.register(claim).unwrap());
}

fn hints(change: impl FnOnce(&mut EvictionHints)) -> EvictionHints {
    let mut hints = EvictionHints::default();
    change(&mut hints);
    hints
}

/// How many blocks of a chain are found.
fn stored(pool: &BlockPool, number: u64, length: u64) -> usize {
    pool.peek(&chain(number, length))
}

/// Chains that are requested again.
const HOT: u64 = 32;

/// A workload: chains that are requested again, some more often than others, and chains that are
/// requested once.
struct ChainTraffic {
    random: SplitMix64,
    fresh: u64,
}

impl ChainTraffic {
    fn new(seed: u64) -> ChainTraffic {
        println!("seed {seed}");
        ChainTraffic {
            random: SplitMix64::new(seed),
            fresh: HOT,
        }
    }

    fn next(&mut self) -> Vec<BlockKey> {
        if self.random.below(2) == 0 {
            self.fresh += 1;
            return chain(self.fresh, 1 + self.random.below(12));
        }
        let (one, other) = (self.random.below(HOT), self.random.below(HOT));
        chain(one.min(other), 8)
    }
}
