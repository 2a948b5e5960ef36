//! Chains shrink from their ends, regardless of visits, pins, losses, restores and tenants.

use super::*;

#[test]
fn a_dead_end_leaves_whole() {
    let pool = pool(64);
    let mut dead = chain(1, 4);
    dead.extend((0..20).map(|position| key(99, position)));
    request(&pool, &dead, 0, EvictionHints::default());
    for now in 1..60 {
        let mut keys = chain(1, 4);
        keys.extend((0..4).map(|position| key(2 + now % 8, position)));
        request(&pool, &keys, now, EvictionHints::default());
    }
    let tail = || {
        dead[4..]
            .iter()
            .filter(|&&key| pool.peek(&[key]) == 1)
            .count()
    };
    assert_eq!(tail(), 20);
    // Blocks are evicted one by one; no other block is evicted before the tail's last.
    let others = pool.cached() - 20;
    for left in (0..20).rev() {
        assert_eq!(pool.evict(1, Tick(60)).len(), 1);
        assert_eq!((tail(), pool.cached()), (left, others + left));
    }
    assert_eq!(stored(&pool, 1, 4), 4, "the shared start is in use");
}

/// Stores a chain after `parent`, for a tenant.
fn put(pool: &Arc<BlockPool>, tenant: u32, keys: &[BlockKey], parent: Option<BlockKey>) {
    let request = AllocateRequest {
        tenant: TenantId(tenant),
        ..AllocateRequest::default()
    };
    let blocks = pool.allocate(keys.len(), &request).unwrap();
    let complete = blocks.complete(keys, parent).unwrap();
    drop(complete.register(&PinClaim::default()).unwrap());
    pool.check_integrity();
}

/// Evicts blocks one by one. Returns their keys in this order.
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
        assert_eq!(pool.match_prefix(&keys[3..], &PinClaim::default()).len(), 5);
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
        assert_eq!(
            pool.match_prefix(&second[1..], &PinClaim::default()).len(),
            2
        );
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
fn a_chain_is_evicted_from_its_end_in_any_storing_order() {
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
fn a_lost_block_that_returns_is_evicted_after_its_children() {
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
fn chains_restored_in_any_order_are_evicted_from_their_ends() {
    const BLOCKS: u32 = 96;
    for kind in PolicyKind::ALL {
        for seed in 0..8 {
            println!("{kind}, seed {seed}");
            let mut traffic = ChainTraffic::new(seed);
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
                entries.swap(at, traffic.random.index(at + 1));
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
fn ancestors_of_a_pinned_block_stay_and_are_evicted_after_it() {
    for kind in PolicyKind::ALL {
        let pool = pool_with(8, kind);
        let keys = chain(1, 8);
        put(&pool, 0, &keys, None);
        let held = pool.pin(&keys[4..5], &PinClaim::default());
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
        let settings = PoolSettings::new().blocks(16).quotas(vec![TenantQuota {
            tenant: TenantId(1),
            blocks: 4,
        }]);
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
        let (mine, others) = (chain(1, 4), chain(2, 3));
        put(&pool, 1, &mine, None);
        // Another tenant continues after the third block.
        put(&pool, 0, &others, Some(mine[2]));
        put(&pool, 1, &[key(3, 0)], None);
        assert_eq!(pool.peek(&mine), 3, "{kind}: the leaf was evicted");
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
        // Its blocks may be evicted after the other tenant's have left.
        assert_eq!(pool.remove(&others).blocks, 3);
        put(&pool, 1, &chain(4, 4), None);
        assert_eq!(pool.peek(&mine), 0, "{kind}");
        // One call evicts every block, of either tenant.
        put(&pool, 0, &others, Some(key(4, 3)));
        let cached = pool.cached();
        assert_eq!(pool.evict(usize::MAX, Tick(0)).len(), cached, "{kind}");
        pool.check_integrity();
    }
}

/// Keys are the caller's, so a hostile one can make a block its own ancestor.
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
            // A cycle that is dissolved by other means.
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
