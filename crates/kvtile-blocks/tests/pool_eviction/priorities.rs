//! Which chains stay: priorities, deadlines and scans.

use super::*;

#[test]
fn a_block_with_priority_outlives_an_equal_one_without() {
    for (priority, first_to_go) in [(4, 2), (-4, 1)] {
        let pool = pool(8);
        request(&pool, &chain(1, 4), 0, hints(|h| h.priority = priority));
        request(&pool, &chain(2, 4), 0, EvictionHints::default());
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
        let mut traffic = ChainTraffic::new(5);
        for now in 0..500 {
            request(&pool, &traffic.next(), now, EvictionHints::default());
        }
        let kept = chain(u64::MAX, 4);
        request(&pool, &kept, 500, hints(|h| h.priority = priority));
        while pool.peek(&kept) > 0 {
            *outlived += 1;
            request(
                &pool,
                &traffic.next(),
                500 + *outlived,
                EvictionHints::default(),
            );
            assert!(*outlived < 50_000, "priority {priority}: it stays forever");
        }
    }
    let [without, with] = outlived;
    println!("{without} requests without priority, {with} with it");
    assert!(with > 2 * without, "{without} and {with}");
}

#[test]
fn expired_blocks_are_evicted_before_the_least_recently_used() {
    let pool = pool(12);
    request(&pool, &chain(1, 4), 0, EvictionHints::default());
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

/// Pitfall 28: leaves are evicted first, and one long scan evicts all of them.
#[test]
fn one_long_scan_does_not_empty_the_cache() {
    let left = [PolicyKind::Gittins, PolicyKind::Lru].map(|kind| {
        let pool = pool_with(512, kind);
        let mut traffic = ChainTraffic::new(3);
        for now in 0..2_000 {
            request(&pool, &traffic.next(), now, EvictionHints::default());
        }
        let hot = |pool: &BlockPool| {
            (0..HOT)
                .map(|number| stored(pool, number, 8))
                .sum::<usize>()
        };
        let before = hot(&pool);
        // Five times the pool's capacity, each document once, stored in parts as it is computed.
        for document in 0..20 {
            let archive = chain(1 << 32 | document, 128);
            for first in (0..archive.len()).step_by(32) {
                store(&pool, &archive[..first + 32], first, &PinClaim::default());
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
