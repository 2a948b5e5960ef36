//! The predicted eviction order equals the actual one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kvtile_blocks::policy::{EvictionHints, PolicyKind, PolicySettings};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, PinClaim, PoolSettings, StoredEntry, TenantId, TenantQuota,
};
use kvtile_blocks::{BlockKey, Tick};
use kvtile_random::SplitMix64;

const POLICIES: [PolicyKind; 4] = [
    PolicyKind::Gittins,
    PolicyKind::Lru,
    PolicyKind::Arc,
    PolicyKind::S3Fifo,
];

/// Block `position` of chain `number`; chains of one family share their first four blocks.
fn key(number: u64, position: u64) -> BlockKey {
    let number = if position < 4 { number / 3 * 3 } else { number };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&position.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn filled(kind: PolicyKind, quotas: Vec<TenantQuota>, seed: u64) -> Arc<BlockPool> {
    let settings = PoolSettings::new().blocks(60).quotas(quotas);
    let policy = PolicySettings::from(kind);
    let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
    let mut random = SplitMix64::new(seed);
    for now in 0..300 {
        let number = random.below(12);
        let keys: Vec<BlockKey> = (0..1 + random.below(9)).map(|at| key(number, at)).collect();
        let mut hints = EvictionHints::default();
        hints.priority = i8::try_from(random.below(3)).unwrap() - 1;
        let claim = PinClaim {
            now: Tick(now),
            hints,
            ..PinClaim::default()
        };
        let found = pool.match_prefix(&keys, &claim);
        let request = AllocateRequest {
            tenant: TenantId(u32::try_from(number % 2).unwrap()),
            now: Tick(now),
        };
        let missing = &keys[found.len()..];
        if let Ok(room) = pool.allocate(missing.len(), &request) {
            let parent = keys[..found.len()].last().copied();
            drop(
                room.complete(missing, parent)
                    .unwrap()
                    .register(&claim)
                    .unwrap(),
            );
        }
        drop(found);
        pool.maintain();
    }
    pool.check_integrity();
    pool
}

fn assert_leaves_first(order: &[StoredEntry], what: &str) {
    let mut gone: HashSet<BlockKey> = HashSet::new();
    let mut children: HashMap<BlockKey, Vec<BlockKey>> = HashMap::new();
    for entry in order {
        if let Some(parent) = entry.parent {
            children.entry(parent).or_default().push(entry.key);
        }
    }
    for entry in order {
        let followed = children.get(&entry.key).into_iter().flatten();
        assert!(followed.clone().all(|child| gone.contains(child)), "{what}");
        assert!(gone.insert(entry.key), "{what}: a block comes twice");
    }
}

#[test]
fn blocks_come_in_the_order_in_which_they_are_evicted_and_nothing_changes() {
    for kind in POLICIES {
        for seed in 0..30 {
            let what = format!("{kind:?}, seed {seed}");
            let pool = filled(kind, Vec::new(), seed);
            let now = Tick(301);
            let order = pool.eviction_order(now);
            assert_eq!(order, pool.eviction_order(now), "{what}");
            assert_eq!(order.len(), pool.stats().cached, "{what}");
            assert_leaves_first(&order, &what);
            pool.check_integrity();
            let mut evicted = Vec::new();
            loop {
                let one = pool.evict(1, now);
                let Some(block) = one.iter().next() else {
                    break;
                };
                evicted.push(block.key);
            }
            let order: Vec<BlockKey> = order.iter().map(|entry| entry.key).collect();
            assert_eq!(order, evicted, "{what}");
        }
    }
}

#[test]
fn with_quotas_and_pins_every_block_comes_once_and_no_block_before_those_that_follow_it() {
    for kind in POLICIES {
        for seed in 0..30 {
            let what = format!("{kind:?}, seed {seed}");
            let quota = TenantQuota {
                tenant: TenantId(1),
                blocks: 20,
            };
            let pool = filled(kind, vec![quota], seed);
            let used: Vec<BlockKey> = (0..6).map(|at| key(seed % 12, at)).collect();
            let pinned = pool.match_prefix(&used, &PinClaim::default());
            // The policies offer pinned blocks, and set them aside.
            drop(pool.evict(5, Tick(301)));
            let order = pool.eviction_order(Tick(302));
            assert_eq!(order.len(), pool.stats().cached, "{what}");
            assert_leaves_first(&order, &what);
            drop(pinned);
            pool.check_integrity();
        }
    }
}
