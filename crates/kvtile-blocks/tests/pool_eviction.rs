//! What leaves a full pool, and what stays: hints, scans, dead ends and pins, with the default policy
//! unless it says otherwise.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvtile_blocks::policy::{
    EvictionPolicy, Hints, Insertion, PolicyKind, PolicySettings, Refusal, Visit,
};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, Claim, PoolSettings, Quota, StoredEntry, TenantId,
};
use kvtile_blocks::{BlockId, BlockKey, BlocksError, Tick};

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
    let settings = PoolSettings {
        blocks,
        ..PoolSettings::default()
    };
    BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap()
}

/// A request: uses what is stored of a chain, and stores the rest.
fn request(pool: &Arc<BlockPool>, keys: &[BlockKey], now: u64, hints: Hints) {
    let claim = Claim {
        now: Tick(now),
        hints,
        ..Claim::default()
    };
    let found = pool.match_prefix(keys, &claim);
    store(pool, keys, found.len(), &claim);
    drop(found);
    pool.maintain();
    pool.check_integrity();
}

/// Stores the blocks of a chain from `first` on, behind those before.
fn store(pool: &Arc<BlockPool>, keys: &[BlockKey], first: usize, claim: &Claim) {
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

fn hints(change: impl FnOnce(&mut Hints)) -> Hints {
    let mut hints = Hints::default();
    change(&mut hints);
    hints
}

/// How many blocks of a chain are found.
fn stored(pool: &BlockPool, number: u64, length: u64) -> usize {
    pool.peek(&chain(number, length))
}

/// Chains that come back.
const HOT: u64 = 32;

/// Requests as they come: chains that come back, some more often than others, and chains that never
/// do.
struct Traffic {
    state: u64,
    fresh: u64,
}

impl Traffic {
    fn new(seed: u64) -> Traffic {
        println!("seed {seed}");
        Traffic {
            state: seed,
            fresh: HOT,
        }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn next(&mut self) -> Vec<BlockKey> {
        if self.random().is_multiple_of(2) {
            self.fresh += 1;
            return chain(self.fresh, 1 + self.random() % 12);
        }
        let (one, other) = (self.random() % HOT, self.random() % HOT);
        chain(one.min(other), 8)
    }
}

#[test]
fn a_block_with_priority_outlives_an_equal_one_without() {
    for (priority, first_to_go) in [(4, 2), (-4, 1)] {
        let pool = pool(8);
        request(&pool, &chain(1, 4), 0, hints(|h| h.priority = priority));
        request(&pool, &chain(2, 4), 0, Hints::default());
        drop(pool.evict(4, Tick(0)));
        assert_eq!(stored(&pool, first_to_go, 4), 0, "priority {priority}");
        assert_eq!(stored(&pool, 3 - first_to_go, 4), 4, "priority {priority}");
    }
}

#[test]
fn a_priority_fades_and_its_block_leaves_in_the_end() {
    let mut outlived = [0, 0];
    for (outlived, priority) in outlived.iter_mut().zip([0, 4]) {
        let pool = pool(256);
        let mut traffic = Traffic::new(5);
        for now in 0..500 {
            request(&pool, &traffic.next(), now, Hints::default());
        }
        let kept = chain(u64::MAX, 4);
        request(&pool, &kept, 500, hints(|h| h.priority = priority));
        while pool.peek(&kept) > 0 {
            *outlived += 1;
            request(&pool, &traffic.next(), 500 + *outlived, Hints::default());
            assert!(*outlived < 50_000, "priority {priority}: it stays for ever");
        }
    }
    let [without, with] = outlived;
    println!("{without} requests without priority, {with} with it");
    assert!(with > 2 * without, "{without} and {with}");
}

#[test]
fn what_has_expired_goes_before_what_was_used_long_ago() {
    let pool = pool(12);
    request(&pool, &chain(1, 4), 0, Hints::default());
    request(
        &pool,
        &chain(2, 4),
        10,
        hints(|h| h.expires = Some(Tick(60_000))),
    );
    request(
        &pool,
        &chain(3, 4),
        20,
        hints(|h| h.expires = Some(Tick(900_000))),
    );
    drop(pool.evict(4, Tick(120_000)));
    assert_eq!([1, 2, 3].map(|number| stored(&pool, number, 4)), [4, 0, 4]);
}

#[test]
fn a_pool_full_of_the_highest_priority_still_allocates() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(16, kind);
        let forever = hints(|h| h.priority = i8::MAX);
        for number in 0..8 {
            request(&pool, &chain(number, 4), number, forever);
            assert_eq!(stored(&pool, number, 4), 4, "{kind}");
        }
    }
}

/// Pitfall 28: leaves go first, and one long scan takes all of them.
#[test]
fn one_long_scan_does_not_empty_the_cache() {
    let left = [PolicyKind::Gittins, PolicyKind::Lru].map(|kind| {
        let pool = pool_with(512, kind);
        let mut traffic = Traffic::new(3);
        for now in 0..2_000 {
            request(&pool, &traffic.next(), now, Hints::default());
        }
        let hot = |pool: &BlockPool| {
            (0..HOT)
                .map(|number| stored(pool, number, 8))
                .sum::<usize>()
        };
        let before = hot(&pool);
        // Five times what the pool has room for, each once, stored piece by piece as they are computed.
        for document in 0..20 {
            let archive = chain(1 << 32 | document, 128);
            for first in (0..archive.len()).step_by(32) {
                store(&pool, &archive[..first + 32], first, &Claim::default());
            }
            pool.maintain();
        }
        let after = hot(&pool);
        println!("{kind}: {before} blocks that come back before the scan, {after} after it");
        assert!(before > 64, "{kind}");
        (before, after)
    });
    let [(before, after), (_, with_lru)] = left;
    assert!(
        after * 2 > before && with_lru == 0,
        "{after} of {before}, {with_lru} with LRU"
    );
}

#[test]
fn a_dead_end_leaves_whole() {
    let pool = pool(64);
    let mut dead = chain(1, 4);
    dead.extend((0..20).map(|position| key(99, position)));
    request(&pool, &dead, 0, Hints::default());
    for now in 1..60 {
        let mut keys = chain(1, 4);
        keys.extend((0..4).map(|position| key(2 + now % 8, position)));
        request(&pool, &keys, now, Hints::default());
    }
    let tail = || {
        dead[4..]
            .iter()
            .filter(|&&key| pool.peek(&[key]) == 1)
            .count()
    };
    assert_eq!(tail(), 20);
    // Blocks leave one by one, and until the last of the tail has left, no other does.
    let others = pool.cached() - 20;
    for left in (0..20).rev() {
        assert_eq!(pool.evict(1, Tick(60)).len(), 1);
        assert_eq!((tail(), pool.cached()), (left, others + left));
    }
    assert_eq!(stored(&pool, 1, 4), 4, "what it began with is in use");
}

#[test]
fn what_was_exhausted_is_there_when_a_guard_is_dropped() {
    let pool = pool(4);
    let held = pool.allocate(3, &AllocateRequest::default()).unwrap();
    let refused = pool.allocate(2, &AllocateRequest::default());
    let error = BlocksError::Exhausted {
        wanted: 2,
        blocks: 4,
        free: 1,
        cached: 0,
        held: 3,
    };
    assert_eq!(refused.unwrap_err(), error);
    drop(held);
    assert_eq!(
        pool.allocate(4, &AllocateRequest::default()).unwrap().len(),
        4
    );
    pool.check_integrity();
}

#[test]
fn a_million_blocks_come_back() {
    const BLOCKS: u32 = 1_000_000;
    const LENGTH: u32 = 100;
    let pool = pool(BLOCKS as usize);
    let entry = |block: u32| {
        let (number, position) = (u64::from(block / LENGTH), u64::from(block % LENGTH));
        StoredEntry {
            block: BlockId(block),
            key: key(number, position),
            parent: position.checked_sub(1).map(|before| key(number, before)),
            tenant: TenantId::default(),
        }
    };
    let start = Instant::now();
    let restored = pool.restore((0..BLOCKS).map(entry), Tick(0)).unwrap();
    println!("{:.3} s", start.elapsed().as_secs_f64());
    assert_eq!(
        (restored.blocks, restored.superfluous.len()),
        (BLOCKS as usize, 0)
    );
    assert_eq!(pool.cached(), BLOCKS as usize);
    assert_eq!(stored(&pool, 9_999, u64::from(LENGTH)), LENGTH as usize);
    drop(pool.evict(1_000, Tick(0)));
    assert_eq!(pool.cached(), BLOCKS as usize - 1_000);
}

/// Stores a chain behind `parent`, for a tenant.
fn put(pool: &Arc<BlockPool>, tenant: u32, keys: &[BlockKey], parent: Option<BlockKey>) {
    let request = AllocateRequest {
        tenant: TenantId(tenant),
        ..AllocateRequest::default()
    };
    let blocks = pool.allocate(keys.len(), &request).unwrap();
    let complete = blocks.complete(keys, parent).unwrap();
    drop(complete.register(&Claim::default()).unwrap());
    pool.check_integrity();
}

/// Evicts one block after the other; their keys, in this order.
fn leaving(pool: &Arc<BlockPool>) -> Vec<BlockKey> {
    let mut keys = Vec::new();
    loop {
        let evicted = pool.evict(1, Tick(0));
        pool.check_integrity();
        match evicted.iter().next() {
            Some(block) => keys.push(block.key),
            None => return keys,
        }
    }
}

fn reversed(keys: &[BlockKey]) -> Vec<BlockKey> {
    keys.iter().rev().copied().collect()
}

#[test]
fn one_eviction_of_a_chain_whose_tail_was_visited_takes_its_last_block() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(8, kind);
        let keys = chain(1, 8);
        put(&pool, 0, &keys, None);
        // Host memory has the first three.
        assert_eq!(pool.match_prefix(&keys[3..], &Claim::default()).len(), 5);
        assert_eq!(pool.evict(1, Tick(0)).len(), 1);
        pool.check_integrity();
        assert_eq!(pool.peek(&keys), 7, "{kind}");
        assert_eq!(leaving(&pool), reversed(&keys[..7]), "{kind}");
    }
}

#[test]
fn two_chains_of_which_one_is_loaded_without_its_first_block() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(8, kind);
        let (first, second) = (chain(1, 2), chain(2, 3));
        put(&pool, 0, &first, None);
        put(&pool, 0, &second, None);
        assert_eq!(pool.match_prefix(&second[1..], &Claim::default()).len(), 2);
        pool.check_integrity();
        let left = leaving(&pool);
        let of = |keys: &[BlockKey]| {
            let one = left.iter().filter(|key| keys.contains(key));
            one.copied().collect::<Vec<BlockKey>>()
        };
        assert_eq!(of(&first), reversed(&first), "{kind}");
        assert_eq!(of(&second), reversed(&second), "{kind}");
        if kind == PolicyKind::Lru {
            assert_eq!(left[..2], reversed(&first), "it was used longest ago");
        }
    }
}

#[test]
fn a_chain_leaves_from_its_end_in_whatever_order_it_was_stored() {
    for kind in PolicyKind::ALL {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let pool = pool_with(16, kind);
            let keys = chain(1, 12);
            for part in order {
                let first: usize = part * 4;
                let parent = first.checked_sub(1).map(|last| keys[last]);
                put(&pool, 0, &keys[first..first + 4], parent);
            }
            assert_eq!(leaving(&pool), reversed(&keys), "{kind} {order:?}");
        }
    }
}

#[test]
fn a_block_that_was_lost_and_comes_back_goes_after_what_follows_it() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(16, kind);
        let keys = chain(1, 8);
        put(&pool, 0, &keys, None);
        assert_eq!(pool.remove(&keys[3..4]).blocks, 1);
        pool.check_integrity();
        assert!(!pool.has(&keys[3]) && pool.has_child(&keys[3]), "{kind}");
        assert!(!pool.has_child(&keys[2]) && !pool.has_child(&keys[7]));
        put(&pool, 0, &keys[3..4], Some(keys[2]));
        assert!(pool.has_child(&keys[2]) && pool.has_child(&keys[3]));
        assert_eq!(leaving(&pool), reversed(&keys), "{kind}");
        assert!(!pool.has_child(&keys[3]));
    }
}

#[test]
fn what_is_restored_in_any_order_leaves_from_the_ends_of_its_chains() {
    const BLOCKS: u32 = 96;
    for kind in PolicyKind::ALL {
        for seed in 0..8 {
            println!("{kind}, seed {seed}");
            let mut traffic = Traffic::new(seed);
            let mut entries: Vec<StoredEntry> = (0..BLOCKS)
                .map(|block| {
                    let (number, position) = (u64::from(block / 12), u64::from(block % 12));
                    StoredEntry {
                        block: BlockId(block),
                        key: key(number, position),
                        parent: position.checked_sub(1).map(|before| key(number, before)),
                        tenant: TenantId::default(),
                    }
                })
                .collect();
            for at in (1..entries.len()).rev() {
                entries.swap(at, usize::try_from(traffic.random()).unwrap() % (at + 1));
            }
            let pool = pool_with(BLOCKS as usize, kind);
            assert_eq!(
                pool.restore(entries, Tick(0)).unwrap().blocks,
                BLOCKS as usize
            );
            pool.check_integrity();
            let left = leaving(&pool);
            assert_eq!(left.len(), BLOCKS as usize);
            for number in 0..8 {
                let keys = chain(number, 12);
                let of: Vec<BlockKey> = left.iter().filter(|k| keys.contains(k)).copied().collect();
                assert_eq!(of, reversed(&keys), "chain {number}");
            }
        }
    }
}

#[test]
fn what_is_before_a_pinned_block_stays_and_goes_after_it() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(8, kind);
        let keys = chain(1, 8);
        put(&pool, 0, &keys, None);
        let held = pool.pin(&keys[4..5], &Claim::default());
        let gone: Vec<BlockKey> = pool
            .evict(usize::MAX, Tick(0))
            .iter()
            .map(|b| b.key)
            .collect();
        assert_eq!(gone, reversed(&keys[5..]), "{kind}");
        assert!(pool.allocate(4, &AllocateRequest::default()).is_err());
        pool.check_integrity();
        drop(held);
        let gone: Vec<BlockKey> = pool
            .evict(usize::MAX, Tick(0))
            .iter()
            .map(|b| b.key)
            .collect();
        assert_eq!(gone, reversed(&keys[..5]), "{kind}");
    }
}

#[test]
fn a_tenant_at_its_quota_gives_up_its_own_leaves_and_no_block_that_another_tenant_builds_on() {
    for kind in PolicyKind::ALL {
        let policy = PolicySettings::from(kind);
        let settings = PoolSettings {
            blocks: 16,
            quotas: vec![Quota {
                tenant: TenantId(1),
                blocks: 4,
            }],
            ..PoolSettings::default()
        };
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
        let (mine, others) = (chain(1, 4), chain(2, 3));
        put(&pool, 1, &mine, None);
        // Another tenant goes on behind the third block.
        put(&pool, 0, &others, Some(mine[2]));
        put(&pool, 1, &[key(3, 0)], None);
        assert_eq!(pool.peek(&mine), 3, "{kind}: the leaf went");
        let two = AllocateRequest {
            tenant: TenantId(1),
            ..AllocateRequest::default()
        };
        let refused = pool.allocate(2, &two).unwrap_err();
        assert!(
            matches!(refused, BlocksError::QuotaExhausted { .. }),
            "{kind}: {refused}"
        );
        assert_eq!((pool.peek(&mine), pool.peek(&others)), (3, 3), "{kind}");
        pool.check_integrity();
        // Its blocks may go when the other tenant's have left.
        assert_eq!(pool.remove(&others).blocks, 3);
        put(&pool, 1, &chain(4, 4), None);
        assert_eq!(pool.peek(&mine), 0, "{kind}");
        // And all goes in one call, whoever has the leaves.
        put(&pool, 0, &others, Some(key(4, 3)));
        let cached = pool.cached();
        assert_eq!(pool.evict(usize::MAX, Tick(0)).len(), cached, "{kind}");
        pool.check_integrity();
    }
}

/// Keys are the caller's, and nothing keeps a hostile one from naming a block as its own ancestor.
#[test]
fn blocks_that_follow_themselves_can_be_evicted() {
    for kind in PolicyKind::ALL {
        for length in 1..6 {
            let pool = pool_with(16, kind);
            let ring = chain(1, length);
            for (at, key) in ring.iter().enumerate() {
                let before = (at + ring.len() - 1) % ring.len();
                put(&pool, 0, std::slice::from_ref(key), Some(ring[before]));
            }
            put(&pool, 0, &chain(2, 4), Some(ring[0]));
            assert_eq!(
                pool.allocate(16, &AllocateRequest::default())
                    .unwrap()
                    .len(),
                16
            );
            pool.check_integrity();
            assert_eq!(pool.cached(), 0, "{kind}");
            // A ring that is taken apart otherwise.
            for key in &ring {
                put(
                    &pool,
                    0,
                    std::slice::from_ref(key),
                    Some(ring[ring.len() - 1]),
                );
            }
            drop(pool.evict(1, Tick(0)));
            pool.remove(&ring[..1]);
            pool.check_integrity();
            drop(pool.evict(usize::MAX, Tick(0)));
            assert_eq!(pool.cached(), 0, "{kind}");
        }
    }
}

/// Counts what the pool refuses.
struct Refusals {
    inner: Box<dyn EvictionPolicy>,
    count: Arc<AtomicUsize>,
}

impl EvictionPolicy for Refusals {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        self.inner.visited(visit);
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.inner.inserted(insertion);
    }

    fn candidate(&mut self, now: Tick) -> Option<BlockId> {
        self.inner.candidate(now)
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        self.inner.evicted(block, key);
    }

    fn refused(&mut self, block: BlockId, refusal: Refusal) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.inner.refused(block, refusal);
    }

    fn removed(&mut self, block: BlockId) {
        self.inner.removed(block);
    }

    fn released(&mut self, block: BlockId) {
        self.inner.released(block);
    }

    fn became_leaf(&mut self, block: BlockId) {
        self.inner.became_leaf(block);
    }

    fn copy(&self) -> Box<dyn EvictionPolicy> {
        self.inner.copy()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn check_integrity(&self) {
        self.inner.check_integrity();
    }
}

/// A chain whose blocks were stored one by one and visited at its end alone: a policy meets all others
/// before it meets the leaf, and may not meet them again for each block.
#[test]
fn evicting_a_long_chain_takes_as_many_steps_as_it_has_blocks() {
    const LENGTH: usize = 100_000;
    for kind in PolicyKind::ALL {
        let count = Arc::new(AtomicUsize::new(0));
        let policy = PolicySettings::from(kind);
        let settings = PoolSettings {
            blocks: LENGTH,
            ..PoolSettings::default()
        };
        let pool = BlockPool::new(settings, |blocks| {
            let (inner, count) = (policy.build(blocks), Arc::clone(&count));
            Box::new(Refusals { inner, count })
        });
        let pool = pool.unwrap();
        let keys = chain(1, LENGTH as u64);
        for first in 0..keys.len() {
            store(&pool, &keys[..=first], first, &Claim::default());
        }
        let tail = &keys[keys.len() - 1..];
        drop(pool.match_prefix(tail, &Claim::default()));
        let start = Instant::now();
        for left in (0..keys.len()).rev() {
            drop(pool.evict(1, Tick(0)));
            assert!(!pool.has(&keys[left]), "{kind}");
        }
        let (seconds, refusals) = (start.elapsed().as_secs_f64(), count.load(Ordering::Relaxed));
        println!("{kind}: {seconds:.3} s, {refusals} refusals");
        assert!(refusals <= LENGTH, "{kind}: {refusals} refusals");
    }
}
