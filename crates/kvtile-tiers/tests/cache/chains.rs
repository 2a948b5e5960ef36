//! Chains that are longer than a tier, or that arrive in pieces: the cache always keeps their head.

use std::{path::Path, sync::Barrier, thread};

use kvtile_blocks::{BlockKey, events::TierId, policy::PolicyKind};
use kvtile_tiers::cache::{CacheSettings, Priority, StoreOptions, StoreStop, TierWrites};

use super::common::{TestEngine, chain, engine_layout, settings, with_disk};
use super::keeper::{self, TestCache};

const POLICIES: [PolicyKind; 4] = [
    PolicyKind::Gittins,
    PolicyKind::Lru,
    PolicyKind::Arc,
    PolicyKind::S3Fifo,
];

const WRITES: [TierWrites; 3] = [
    TierWrites::OnEviction,
    TierWrites::AtOnce,
    TierWrites::AfterUses(1),
];

fn found(cache: &TestCache, keys: &[BlockKey]) -> usize {
    let found = cache.lookup(keys);
    found.blocks()
}

/// Stores a chain in pieces. Returns the reported numbers of stored and dropped blocks.
fn store_in_pieces(cache: &TestCache, keys: &[BlockKey], piece: usize) -> (usize, usize) {
    let engine = TestEngine::new(cache);
    let (mut stored, mut dropped) = (0, 0);
    for first in (0..keys.len()).step_by(piece) {
        let end = (first + piece).min(keys.len());
        let report = engine.store_from(&keys[..end], first, 0);
        assert_eq!(report.present, 0);
        stored += report.stored;
        dropped += report.dropped;
        let is_short = report.dropped > 0;
        let says_why = matches!(
            report.stopped,
            Some(StoreStop::HostFull | StoreStop::NoAncestors)
        );
        assert_eq!(is_short, says_why, "{report:?}");
    }
    (stored, dropped)
}

#[test]
fn the_head_of_a_chain_that_does_not_fit_is_found_whatever_the_policy_and_the_pieces() {
    for policy in POLICIES {
        for (blocks, room) in [(17, 16), (40, 16), (60, 1), (60, 59), (16, 16)] {
            for piece in [1, 3, 16, 60] {
                let settings = settings(room as u64).policies(policy, policy).workers(0);
                let cache = keeper::open(settings, engine_layout()).unwrap();
                let engine = TestEngine::new(&cache);
                let what =
                    format!("{policy:?}: {blocks} blocks, room for {room}, pieces of {piece}");
                // Older blocks are evicted; the blocks of the chain itself stay.
                engine.store(&chain(9, room.min(5)), 0);
                let keys = chain(1, blocks);
                for round in 0..3 {
                    let known = found(&cache, &keys);
                    if round > 0 {
                        assert_eq!(known, room.min(blocks), "{what}, round {round}");
                    }
                    let report = engine.store_from(&keys, known.min(blocks - 1), 0);
                    assert_eq!(
                        report.stored + report.present + report.dropped,
                        blocks - known.min(blocks - 1)
                    );
                    if round == 0 {
                        let again = keeper::open(
                            CacheSettings::clone(&super::common::settings(room as u64))
                                .policies(policy, policy)
                                .workers(0),
                            engine_layout(),
                        );
                        let again = again.unwrap();
                        let (stored, dropped) = store_in_pieces(&again, &keys, piece);
                        assert_eq!(
                            (stored, dropped),
                            (room.min(blocks), blocks - room.min(blocks)),
                            "{what}"
                        );
                        assert_eq!(found(&again, &keys), room.min(blocks), "{what}");
                        assert_eq!(
                            TestEngine::new(&again).load(&keys, 0),
                            room.min(blocks),
                            "{what}"
                        );
                        again.check_integrity();
                    }
                }
                cache.check_integrity();
            }
        }
    }
}

fn two_tiers(
    folder: &Path,
    host: u64,
    disk: u64,
    writes: TierWrites,
    policy: PolicyKind,
) -> CacheSettings {
    with_disk(host, folder, disk)
        .disk_writes(writes)
        .policies(policy, policy)
        .workers(0)
}

#[test]
fn with_a_disk_as_much_of_a_chain_is_found_as_either_tier_holds_and_after_a_restart_as_the_disk_holds()
 {
    let folders = tempfile::tempdir().unwrap();
    let mut number = 0;
    for policy in POLICIES {
        for writes in WRITES {
            for (blocks, host, disk_bytes) in [
                (50, 8, 120_000),
                (50, 30, 120_000),
                (50, 8, 2 << 20),
                (20, 30, 120_000),
                (60, 1, 120_000),
            ] {
                for piece in [1, 7, 60] {
                    number += 1;
                    let folder = folders.path().join(number.to_string());
                    let open = || {
                        let settings = two_tiers(&folder, host, disk_bytes, writes, policy);
                        keeper::open(settings, engine_layout()).unwrap()
                    };
                    let keys = chain(1, blocks);
                    let what = format!(
                        "{policy:?}, {writes:?}: {blocks} blocks in pieces of {piece}, room for {host}"
                    );
                    let cache = open();
                    let slots = cache.pool_stats(TierId::DISK).unwrap().blocks;
                    let host = usize::try_from(host).unwrap();
                    let what = format!("{what} and {slots}");
                    store_in_pieces(&cache, &keys, piece);
                    let known = found(&cache, &keys);
                    let least = match writes {
                        // Blocks go to disk after uses, and these have none.
                        TierWrites::AfterUses(_) => host.min(blocks),
                        _ => host.max(slots).min(blocks),
                    };
                    assert!(known >= least, "{what}: {known} of {least}");
                    let mut engine = TestEngine::new(&cache);
                    assert_eq!(engine.load(&keys, 0), known, "{what}");
                    cache.check_integrity();
                    let written = cache.disk().unwrap().store_stats().writes;
                    assert!(written <= blocks as u64, "{what}: {written} writes");
                    drop(engine);
                    let flushed = cache.close();
                    let cache = open();
                    let again = found(&cache, &keys);
                    let least = slots.min(known);
                    assert!(
                        again >= least,
                        "{what}: {again} of {least} after a restart, {flushed:?}"
                    );
                    assert_eq!(TestEngine::new(&cache).load(&keys, 0), again, "{what}");
                    cache.check_integrity();
                    drop(cache);
                    std::fs::remove_dir_all(&folder).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_block_whose_ancestors_are_in_no_tier_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    for settings in [settings(16), with_disk(16, folder.path(), 4 << 20)] {
        let cache = keeper::open(settings.workers(0), engine_layout()).unwrap();
        let engine = TestEngine::new(&cache);
        let keys = chain(1, 8);
        let report = engine.store_from(&keys, 3, 0);
        assert_eq!((report.stored, report.dropped), (0, 5));
        assert!(matches!(report.stopped, Some(StoreStop::NoAncestors)));
        assert_eq!(cache.pool_stats(TierId::HOST).unwrap().cached, 0);
        assert_eq!(cache.stats().left_out[&TierId::HOST], 5);
        engine.store(&keys[..3], 0);
        assert_eq!(engine.store_from(&keys, 3, 0).stored, 5);
        assert_eq!(found(&cache, &keys), 8);
    }
}

/// Evicted blocks are on disk only; the engine still has them and stores their descendants.
#[test]
fn the_disk_keeps_the_ancestors_of_host_blocks() {
    for policy in POLICIES {
        let folder = tempfile::tempdir().unwrap();
        let settings = two_tiers(folder.path(), 16, 120_000, TierWrites::OnEviction, policy);
        let cache = keeper::open(settings, engine_layout()).unwrap();
        let mut engine = TestEngine::new(&cache);
        let keys = chain(1, 12);
        engine.store(&keys[..8], 0);
        cache.evict(TierId::HOST, 8).unwrap();
        assert_eq!(engine.store_from(&keys, 8, 0).stored, 4);
        let slots = cache.pool_stats(TierId::DISK).unwrap().blocks;
        let evicted = cache.evict(TierId::DISK, slots).unwrap();
        assert_eq!(
            evicted, 0,
            "{policy:?}: all blocks on disk have descendants in host memory"
        );
        assert_eq!(engine.load(&keys, 20), 12, "{policy:?}");
        cache.evict(TierId::HOST, 16).unwrap();
        assert_eq!(cache.evict(TierId::DISK, 4).unwrap(), 4, "no pin is left");
        assert_eq!(engine.load(&keys, 20), 8, "{policy:?}");
        cache.check_integrity();
    }
}

/// With several threads, and with later pieces taken before earlier ones.
#[test]
fn pieces_of_a_chain_may_come_at_once_and_in_any_order_of_the_queue() {
    for round in 0..40 {
        let cache = keeper::open(settings(64).workers(3), engine_layout()).unwrap();
        let engine = TestEngine::new(&cache);
        let keys = chain(round, 48);
        for (at, key) in keys.iter().enumerate() {
            engine.compute(key, at);
        }
        let pieces: Vec<_> = (0..48)
            .step_by(4)
            .map(|first| {
                let priority = match (first / 4) % 3 {
                    0 => Priority::Background,
                    1 => Priority::Low,
                    _ => Priority::Urgent,
                };
                let options = StoreOptions::new().priority(priority);
                let blocks = [first, first + 1, first + 2, first + 3];
                cache
                    .store_with(&keys, &blocks, &options.first(first))
                    .unwrap()
            })
            .collect();
        for piece in pieces {
            let report = piece.wait();
            assert_eq!((report.stored, report.dropped), (4, 0), "{report:?}");
        }
        assert_eq!(found(&cache, &keys), 48);
        let stats = cache.stats();
        assert!(
            stats.queues.iter().all(|queue| queue.depth == 0),
            "{stats:?}"
        );
        cache.check_integrity();
    }
}

#[test]
fn parked_pieces_keep_their_places_in_the_queue_and_end_with_the_cache() {
    let open = || {
        let settings = settings(64).workers(0).queue_capacity(4);
        keeper::open(settings, engine_layout()).unwrap()
    };
    let keys = chain(1, 16);
    let store = |cache: &TestCache, first: usize, priority| {
        let options = StoreOptions::new().priority(priority);
        let blocks: Vec<usize> = (first..first + 4).collect();
        cache.store_with(&keys, &blocks, &options.first(first))
    };
    let cache = open();
    let first = store(&cache, 0, Priority::Background).unwrap();
    let later = [4, 8, 12].map(|first| store(&cache, first, Priority::Urgent).unwrap());
    // The later pieces are taken first, and are parked.
    for _ in 0..3 {
        assert!(cache.step());
        assert!(!first.is_complete());
    }
    assert!(
        store(&cache, 0, Priority::Urgent).is_err(),
        "the queue is full"
    );
    first.cancel();
    assert!(cache.step());
    assert!(matches!(first.wait().stopped, Some(StoreStop::Cancelled)));
    while cache.step() {}
    for piece in later {
        assert!(matches!(piece.wait().stopped, Some(StoreStop::NoAncestors)));
    }
    let cache = open();
    let background = store(&cache, 0, Priority::Background).unwrap();
    let parked = [background, store(&cache, 4, Priority::Urgent).unwrap()];
    assert!(cache.step());
    drop(cache);
    for piece in parked {
        assert!(matches!(piece.wait().stopped, Some(StoreStop::Closed)));
    }
}

#[test]
fn two_requests_store_long_chains_at_once_and_both_keep_their_heads() {
    for policy in POLICIES {
        let cache = keeper::open(settings(24).policies(policy, policy), engine_layout()).unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            for number in 0..2 {
                let (cache, barrier) = (&cache, &barrier);
                scope.spawn(move || {
                    let engine = TestEngine::new(cache);
                    let keys = chain(number, 30);
                    barrier.wait();
                    for first in (0..30).step_by(5) {
                        let block = usize::try_from(number).unwrap() * 32;
                        engine.store_from(&keys[..first + 5], first, block);
                    }
                });
            }
        });
        let heads = [0, 1].map(|number| found(&cache, &chain(number, 30)));
        assert_eq!(
            heads[0] + heads[1],
            24,
            "{policy:?}: {heads:?}: every block in host memory can be found"
        );
        cache.check_integrity();
    }
}
