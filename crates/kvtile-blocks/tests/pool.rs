//! The guarantees of a pool, one per test.

#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, DuplicateHandling, OwnerId, PinClaim, PinnedBlocks, PoolSettings,
    StoredEntry, TenantId, TenantQuota,
};
use kvtile_blocks::{BlockId, BlockKey, BlocksError, Tick};
use std::sync::Arc;

fn chain(number: u8, length: usize) -> Vec<BlockKey> {
    let key = |position: usize| {
        let mut bytes = [number; 16];
        bytes[8..].copy_from_slice(&(position as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..length).map(key).collect()
}

fn pool_of(settings: PoolSettings, kind: PolicyKind) -> Arc<BlockPool> {
    let policy = PolicySettings::from(kind);
    BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap()
}

fn pool(blocks: usize) -> Arc<BlockPool> {
    let settings = PoolSettings::new().blocks(blocks);
    pool_of(settings, PolicyKind::Lru)
}

fn store_for(pool: &Arc<BlockPool>, keys: &[BlockKey], tenant: TenantId) -> PinnedBlocks {
    let request = AllocateRequest {
        tenant,
        ..AllocateRequest::default()
    };
    let blocks = pool.allocate(keys.len(), &request).unwrap();
    let complete = blocks.complete(keys, None).unwrap();
    complete.register(&PinClaim::default()).unwrap().blocks
}

fn store(pool: &Arc<BlockPool>, keys: &[BlockKey]) -> PinnedBlocks {
    store_for(pool, keys, TenantId::default())
}

/// Pitfall 27: the head of a chain is evicted first, and its tail is useless.
#[test]
fn a_policy_over_leaves_never_evicts_a_block_before_those_that_follow_it() {
    for kind in [PolicyKind::Lru, PolicyKind::Gittins] {
        let pool = pool_of(PoolSettings::new().blocks(64), kind);
        let chains: Vec<_> = (0..4).map(|number| chain(number, 16)).collect();
        for keys in &chains {
            drop(store(&pool, keys));
        }
        drop(pool.match_prefix(&chains[0], &PinClaim::default()));
        for _ in 0..64 {
            drop(pool.evict(1, Tick(0)));
            for keys in &chains {
                let found = pool.peek(keys);
                let rest = &keys[found..];
                assert!(
                    rest.iter().all(|&key| pool.peek(&[key]) == 0),
                    "{kind}: a tail is left"
                );
            }
            pool.check_integrity();
        }
        assert_eq!(pool.census().free, 64);
    }
}

#[test]
fn a_prefix_is_found_whether_its_blocks_are_in_use_or_not() {
    let pool = pool(16);
    let keys = chain(1, 6);
    let mut first = store(&pool, &keys);
    drop(first.split_off(3));
    let found = pool.match_prefix(&keys, &PinClaim::default());
    assert!(found.keys().eq(keys.iter().copied()));
    assert_eq!(found.ids()[..3], *first.ids());
    let mut longer = keys.clone();
    longer.push(chain(2, 1)[0]);
    assert_eq!(pool.match_prefix(&longer, &PinClaim::default()).len(), 6);
}

/// Pitfall 32: a block stays pinned after its last user.
#[test]
fn unpinned_blocks_can_be_evicted() {
    let pool = pool(4);
    let pinned = store(&pool, &chain(1, 4));
    assert!(pool.evict(4, Tick(0)).is_empty());
    let refused = pool.allocate(1, &AllocateRequest::default());
    let error = BlocksError::Exhausted {
        wanted: 1,
        blocks: 4,
        free: 0,
        cached: 4,
        held: 0,
    };
    assert_eq!(refused.unwrap_err(), error);
    drop(pinned);
    assert_eq!(pool.evict(4, Tick(0)).len(), 4);
    pool.check_integrity();
}

#[test]
fn an_allocation_that_cannot_be_served_changes_nothing_but_the_cache() {
    let pool = pool(8);
    let pinned = store(&pool, &chain(1, 4));
    assert!(pool.allocate(5, &AllocateRequest::default()).is_err());
    assert!(
        pool.allocate(usize::MAX, &AllocateRequest::default())
            .is_err()
    );
    assert_eq!(pool.census().free, 4);
    assert_eq!(
        pool.allocate(4, &AllocateRequest::default()).unwrap().len(),
        4
    );
    assert_eq!(pool.stats().refused_allocations, 2);
    drop(pinned);
    pool.check_integrity();
}

#[test]
fn evicted_blocks_have_their_keys_and_are_not_reused_before_they_are_dropped() {
    let pool = pool(4);
    let keys = chain(1, 4);
    let ids = store(&pool, &keys).ids().to_vec();
    let evicted = pool.evict(2, Tick(0));
    assert_eq!(pool.peek(&keys), 2, "evicted blocks are not found");
    for block in evicted.iter() {
        let position = ids.iter().position(|&id| id == block.block).unwrap();
        assert_eq!(block.key, keys[position]);
        assert_eq!(block.parent, Some(keys[position - 1]));
    }
    let room = pool.allocate(2, &AllocateRequest::default()).unwrap();
    assert!(room.ids().iter().all(|id| !evicted.ids().contains(id)));
    drop((evicted, room));
    pool.check_integrity();
}

#[test]
fn blocks_evicted_for_an_allocation_are_shown_with_their_bytes_intact() {
    let pool = pool(4);
    let keys = chain(1, 3);
    let ids = store(&pool, &keys).ids().to_vec();
    let request = AllocateRequest::default();
    let mut shown = Vec::new();
    let room = pool.allocate_with(3, &request, |leaving| {
        shown.extend_from_slice(leaving);
        assert_eq!(pool.peek(&keys), 1, "evicted blocks are not found");
        assert!(
            pool.allocate(1, &request).is_ok(),
            "the first block can be evicted too"
        );
    });
    let ids_and_parents = [(ids[2], Some(keys[1])), (ids[1], Some(keys[0]))];
    let shown = shown.iter().map(|block| (block.block, block.parent));
    assert_eq!(shown.collect::<Vec<_>>(), ids_and_parents);
    let room = room.unwrap();
    assert!(
        ids_and_parents
            .iter()
            .all(|(id, _)| room.ids().contains(id))
    );
    drop(room);
    pool.check_integrity();
}

#[test]
fn blocks_evicted_for_a_failed_allocation_are_shown_and_then_freed() {
    let pool = pool(4);
    drop(store(&pool, &chain(1, 2)));
    let pinned = store(&pool, &chain(2, 2));
    let mut shown = 0;
    let refused = pool.allocate_with(3, &AllocateRequest::default(), |leaving| {
        shown = leaving.len();
    });
    assert!(refused.is_err());
    assert_eq!(shown, 2);
    assert_eq!(pool.census().free, 2);
    drop(pinned);
    pool.check_integrity();
}

#[test]
fn a_callback_for_evicted_blocks_may_panic() {
    for wanted in [3, 4] {
        let pool = pool(4);
        drop(store(&pool, &chain(1, 3)));
        let held = (wanted == 4).then(|| store(&pool, &chain(2, 1)));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = pool.allocate_with(wanted, &AllocateRequest::default(), |_| panic!("a test"));
        }));
        assert!(outcome.is_err());
        drop(held);
        pool.check_integrity();
        assert_eq!(
            pool.allocate(4, &AllocateRequest::default()).unwrap().len(),
            4
        );
    }
}

#[test]
fn refused_blocks_are_returned() {
    let settings = PoolSettings::new()
        .blocks(8)
        .duplicates(DuplicateHandling::Refuse);
    let pool = pool_of(settings, PolicyKind::Lru);
    let keys = chain(1, 3);
    let blocks = pool.allocate(3, &AllocateRequest::default()).unwrap();
    let rejected = blocks.complete(&keys[..2], None).unwrap_err();
    let error = BlocksError::KeyCount { blocks: 3, keys: 2 };
    assert_eq!(rejected.error, error);
    drop(
        rejected
            .blocks
            .complete(&keys, None)
            .unwrap()
            .register(&PinClaim::default())
            .unwrap(),
    );

    let others = [chain(2, 1)[0], keys[1]];
    let blocks = pool.allocate(2, &AllocateRequest::default()).unwrap();
    let complete = blocks.complete(&others, None).unwrap();
    let rejected = complete.register(&PinClaim::default()).unwrap_err();
    let (key, position) = (keys[1], 1);
    assert_eq!(rejected.error, BlocksError::DuplicateKey { key, position });
    assert_eq!(rejected.blocks.len(), 2);
    assert_eq!(
        pool.peek(&others[..1]),
        0,
        "nothing of the batch is registered"
    );
    pool.remove(&keys[1..]);
    assert_eq!(
        rejected
            .blocks
            .register(&PinClaim::default())
            .unwrap()
            .blocks
            .len(),
        2
    );
    pool.check_integrity();
}

#[test]
fn a_removed_block_stays_with_its_users_and_is_not_found_by_others() {
    let pool = pool(4);
    let keys = chain(1, 4);
    let pinned = store(&pool, &keys);
    let removed = pool.remove(&keys[2..3]);
    assert_eq!((removed.blocks, removed.pinned), (1, 1));
    assert_eq!(pool.peek(&keys), 2);
    assert!(
        pinned.keys().eq(keys.iter().copied()),
        "its user still has it"
    );
    drop(pinned);
    assert_eq!(pool.census().free, 1);
    pool.check_integrity();
}

#[test]
fn pins_that_outlive_their_deadline_are_reported_by_guard() {
    let pool = pool(8);
    let keys = chain(1, 6);
    drop(store(&pool, &keys));
    let claim = PinClaim {
        owner: OwnerId(7),
        deadline: Some(Tick(20)),
        now: Tick(10),
        ..PinClaim::default()
    };
    let mut pinned = pool.match_prefix(&keys, &claim);
    assert!(pool.overdue(Tick(20)).is_empty());
    let reports = pool.overdue(Tick(21));
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].owner, reports[0].blocks), (OwnerId(7), 6));
    assert_eq!(
        (reports[0].deadline, reports[0].since),
        (Tick(20), Tick(10))
    );
    let tail = pinned.split_off(4);
    let blocks = |now| {
        pool.overdue(now)
            .iter()
            .map(|report| report.blocks)
            .collect::<Vec<_>>()
    };
    assert_eq!(blocks(Tick(30)), [4, 2]);
    pinned.append(tail).unwrap();
    assert_eq!(blocks(Tick(30)), [6]);
    drop(pinned);
    assert!(blocks(Tick(30)).is_empty());
    assert_eq!(pool.stats().open_claims, 0);
}

#[test]
fn a_tenant_over_its_quota_evicts_its_own_blocks_and_one_under_it_those_of_others() {
    let tenant = TenantId(1);
    let settings = PoolSettings::new()
        .blocks(16)
        .quotas(vec![TenantQuota { tenant, blocks: 6 }]);
    let pool = pool_of(settings, PolicyKind::Lru);
    drop(store(&pool, &chain(1, 16)));
    drop(store_for(&pool, &chain(2, 4), tenant));
    assert_eq!((pool.peek(&chain(1, 16)), pool.used(tenant)), (12, 4));
    drop(store_for(&pool, &chain(3, 4), tenant));
    assert_eq!((pool.peek(&chain(2, 4)), pool.peek(&chain(3, 4))), (2, 4));
    assert_eq!(pool.used(tenant), 6);
    drop(store(&pool, &chain(4, 8)));
    assert_eq!(
        pool.used(tenant),
        6,
        "other tenants do not evict blocks within its due"
    );
    let request = AllocateRequest {
        tenant,
        ..AllocateRequest::default()
    };
    let refused = pool.allocate(7, &request).unwrap_err();
    assert!(matches!(
        refused,
        BlocksError::QuotaExhausted {
            limit: 6,
            wanted: 7,
            ..
        }
    ));
    pool.check_integrity();
}

#[test]
fn a_pool_is_restored_with_its_blocks() {
    let pool = pool(8);
    let keys = chain(1, 5);
    drop(store(&pool, &keys));
    let mut entries = pool.snapshot();
    entries.sort_by_key(|entry| keys.iter().position(|&key| key == entry.key));
    let (blocks, duplicate) = (self::pool(8), entries[0]);
    entries.push(StoredEntry {
        block: BlockId(7),
        ..duplicate
    });
    let restored = blocks.restore(entries.iter().copied(), Tick(0)).unwrap();
    assert_eq!((restored.blocks, restored.superfluous.len()), (5, 1));
    assert_eq!(blocks.peek(&keys), 5);
    assert!(
        blocks.restore([duplicate], Tick(0)).is_err(),
        "the block is in use already"
    );
    blocks.check_integrity();
    assert_eq!(blocks.evict(8, Tick(0)).len(), 5);
    blocks.check_integrity();
}

#[test]
fn settings_that_contradict_themselves_are_refused() {
    let build = |settings| {
        let policy = PolicySettings::default();
        BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap_err()
    };
    let none = PoolSettings::new().blocks(0);
    assert!(matches!(
        build(none),
        BlocksError::PoolSize { blocks: 0, .. }
    ));
    let quota = |blocks| TenantQuota {
        tenant: TenantId(3),
        blocks,
    };
    let with = |quotas| PoolSettings::new().quotas(quotas);
    let tenant = TenantId(3);
    assert_eq!(
        build(with(vec![quota(0)])),
        BlocksError::QuotaOfNothing { tenant }
    );
    assert_eq!(
        build(with(vec![quota(1), quota(2)])),
        BlocksError::TwoQuotas { tenant }
    );
}

#[test]
fn settings_are_plain_data_with_defaults() {
    let settings: PoolSettings = serde_json::from_str(r#"{"blocks": 12}"#).unwrap();
    assert_eq!(
        (settings.blocks, settings.duplicates),
        (12, DuplicateHandling::Share)
    );
    let text = serde_json::to_string(&settings).unwrap();
    assert_eq!(
        serde_json::from_str::<PoolSettings>(&text).unwrap(),
        settings
    );
    assert!(serde_json::from_str::<PoolSettings>(r#"{"block": 12}"#).is_err());
}

#[test]
fn policies_learn_outside_of_their_locks() {
    let pool = pool_of(PoolSettings::new().blocks(64), PolicyKind::Gittins);
    let mut studied = false;
    for round in 0..400_u16 {
        let number = u8::try_from(round % 7).unwrap();
        let keys = chain(number, 8);
        if pool.match_prefix(&keys, &PinClaim::default()).is_empty() {
            drop(store(&pool, &keys));
        }
        studied |= pool.maintain();
    }
    assert!(studied);
    pool.check_integrity();
}
