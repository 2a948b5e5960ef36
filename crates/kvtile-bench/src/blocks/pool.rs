//! The operations of a pool, each over all its blocks, in chains of 128.

use std::{
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, BlocksError, Tick,
    policy::{PolicyKind, PolicySettings},
    pool::{AllocateRequest, BlockPool, PinClaim, PinnedBlocks, PoolSettings},
};
use serde::Serialize;

use super::{BlocksSettings, managers::CHAIN};
use crate::times::RoundTimes;
use kvtile_random::SplitMix64;

/// The operations in the order of a round, and their goals in nanoseconds per block.
const OPERATIONS: [(&str, Option<f64>); 6] = [
    ("allocate and drop", Some(25.0)),
    ("register", Some(150.0)),
    ("match active", Some(15.0)),
    ("match inactive and release", Some(80.0)),
    ("look up absent", None),
    ("evict", Some(100.0)),
];

/// One operation of a pool with one policy.
#[derive(Clone, Debug, Serialize)]
pub struct OperationRow {
    /// The policy.
    pub policy: PolicyKind,
    /// The operation.
    pub operation: &'static str,
    /// Nanoseconds per block, the median.
    pub ns_per_block: f64,
    /// Longest round minus shortest, as a part of the median.
    pub spread: f64,
    /// The goal in nanoseconds per block, if any.
    pub goal_ns: Option<f64>,
}

/// Two threads that match and release blocks, compared with one.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadsRow {
    /// The policy.
    pub policy: PolicyKind,
    /// Nanoseconds per block on one thread, the median.
    pub one_thread_ns_per_block: f64,
    /// Throughput of two threads on one pool over that of one thread.
    pub one_pool_gain: f64,
    /// Throughput of two threads, each on its own pool, over that of one thread.
    pub two_pools_gain: f64,
}

type KeyChain = Vec<BlockKey>;

/// Keys of chains that fill a pool; `salt` varies the keys.
fn chains(blocks: usize, salt: u64) -> Vec<KeyChain> {
    (0..blocks / CHAIN)
        .map(|chain| {
            let first = chain * CHAIN;
            (first..first + CHAIN)
                .map(|block| key(block as u64, salt))
                .collect()
        })
        .collect()
}

/// A uniformly distributed key.
fn key(block: u64, salt: u64) -> BlockKey {
    BlockKey::from_opaque(&[block.to_le_bytes(), salt.to_le_bytes(), [0; 8]].concat())
}

pub(super) fn new_pool(policy: PolicyKind, blocks: usize) -> Result<Arc<BlockPool>, BlocksError> {
    let settings = PoolSettings::new().blocks(blocks);
    let policy = PolicySettings::from(policy);
    BlockPool::new(settings, |blocks| policy.build(blocks))
}

/// Runs `work` and adds its time to `total`.
pub(super) fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    *total += begun.elapsed();
    done
}

/// All operations with one policy.
pub(super) fn operations(
    policy: PolicyKind,
    settings: &BlocksSettings,
) -> Result<Vec<OperationRow>, BlocksError> {
    let pool = new_pool(policy, settings.blocks)?;
    let (chains, absent) = (chains(settings.blocks, 0), chains(settings.blocks, 1));
    let mut times: [RoundTimes; OPERATIONS.len()] = Default::default();
    let mut random = SplitMix64::new(1);
    for number in 0..=settings.rounds {
        let order = random.order(chains.len());
        let now = Tick(u64::from(number) * 1_000);
        let round = round(&pool, &chains, &absent, &order, now)?;
        // The first round warms up.
        if number > 0 {
            for (times, time) in times.iter_mut().zip(round) {
                times.add(time);
            }
        }
    }
    let blocks = (chains.len() * CHAIN) as f64;
    let rows = OPERATIONS.iter().zip(&times);
    let rows = rows.map(|(&(operation, goal_ns), times)| OperationRow {
        policy,
        operation,
        ns_per_block: times.median().as_secs_f64() * 1e9 / blocks,
        spread: times.spread(),
        goal_ns,
    });
    Ok(rows.collect())
}

/// One round over a pool that is empty before and after it.
fn round(
    pool: &Arc<BlockPool>,
    chains: &[KeyChain],
    absent: &[KeyChain],
    order: &[usize],
    now: Tick,
) -> Result<[Duration; OPERATIONS.len()], BlocksError> {
    let mut times = [Duration::ZERO; OPERATIONS.len()];
    let [allocate, register, active, inactive, missing, evict] = &mut times;
    let claim = PinClaim {
        now,
        ..PinClaim::default()
    };
    let request = AllocateRequest {
        now,
        ..AllocateRequest::default()
    };
    for _ in order {
        timed(allocate, || pool.allocate(CHAIN, &request).map(drop))?;
    }
    let mut held: Vec<PinnedBlocks> = Vec::with_capacity(2 * chains.len());
    let in_order = || order.iter().filter_map(|&chain| chains.get(chain));
    for keys in in_order() {
        let blocks = pool.allocate(CHAIN, &request)?;
        let registered = timed(register, || {
            let complete = blocks.complete(keys, None).map_err(BlocksError::from)?;
            complete.register(&claim).map_err(BlocksError::from)
        })?;
        held.push(registered.blocks);
    }
    for keys in chains {
        let found = timed(active, || pool.match_prefix(keys, &claim));
        assert_eq!(found.len(), CHAIN, "an active chain is found whole");
        held.push(found);
    }
    drop(held);
    for keys in in_order() {
        let found = timed(inactive, || {
            let found = pool.match_prefix(keys, &claim);
            found.len()
        });
        assert_eq!(found, CHAIN, "an inactive chain is found whole");
    }
    for keys in absent {
        let found = timed(missing, || {
            keys.iter()
                .map(|key| pool.peek(std::slice::from_ref(key)))
                .sum::<usize>()
        });
        assert_eq!(found, 0, "an absent key is not found");
    }
    for _ in order {
        let evicted = timed(evict, || pool.evict(CHAIN, now));
        assert_eq!(evicted.len(), CHAIN, "inactive blocks can be evicted");
    }
    Ok(times)
}

/// A pool that stores all chains, none in use.
fn filled(policy: PolicyKind, chains: &[KeyChain]) -> Result<Arc<BlockPool>, BlocksError> {
    let pool = new_pool(policy, chains.len() * CHAIN)?;
    for keys in chains {
        let blocks = pool.allocate(CHAIN, &AllocateRequest::default())?;
        let complete = blocks.complete(keys, None).map_err(BlocksError::from)?;
        complete
            .register(&PinClaim::default())
            .map_err(BlocksError::from)?;
    }
    Ok(pool)
}

/// Finds each chain and releases it.
fn work(pool: &Arc<BlockPool>, chains: &[KeyChain]) {
    for keys in chains {
        let found = pool.match_prefix(keys, &PinClaim::default());
        assert_eq!(found.len(), CHAIN, "a stored chain is found whole");
    }
}

/// Two threads with half of the chains each, on one pool and on two, in turns with one thread.
pub(super) fn two_threads(
    policy: PolicyKind,
    settings: &BlocksSettings,
) -> Result<ThreadsRow, BlocksError> {
    let chains = chains(settings.blocks, 0);
    let (first, second) = chains.split_at(chains.len() / 2);
    let shared = filled(policy, &chains)?;
    let (left, right) = (filled(policy, first)?, filled(policy, second)?);
    let mut times: [RoundTimes; 3] = Default::default();
    for number in 0..=settings.rounds {
        let begun = Instant::now();
        work(&shared, &chains);
        let one = begun.elapsed();
        let one_pool = both(|| work(&shared, first), || work(&shared, second));
        let two_pools = both(|| work(&left, first), || work(&right, second));
        // The first round warms up.
        if number > 0 {
            for (times, time) in times.iter_mut().zip([one, one_pool, two_pools]) {
                times.add(time);
            }
        }
    }
    let [one, one_pool, two_pools] = times.map(|times| times.median().as_secs_f64());
    Ok(ThreadsRow {
        policy,
        one_thread_ns_per_block: one * 1e9 / (chains.len() * CHAIN) as f64,
        one_pool_gain: one / one_pool,
        two_pools_gain: one / two_pools,
    })
}

/// The time of two threads that start together, without the time to create them.
pub(super) fn both(first: impl FnOnce() + Send, second: impl FnOnce() + Send) -> Duration {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            barrier.wait();
            let begun = Instant::now();
            second();
            begun.elapsed()
        });
        barrier.wait();
        let begun = Instant::now();
        first();
        let mine = begun.elapsed();
        match other.join() {
            Ok(theirs) => mine.max(theirs),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
