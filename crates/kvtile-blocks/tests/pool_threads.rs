//! Threads that store, find, evict and remove at random in one pool. A guard's blocks keep their
//! keys while it lives, and in the end every block and event is accounted for.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use kvtile_blocks::events::{Event, EventKind, EventLog, TierId};
use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, EventSink, PinClaim, PinnedBlocks, PoolSettings,
};
use kvtile_blocks::{BlockKey, GroupId, Tick};
use kvtile_random::SplitMix64;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

const BLOCKS: usize = 96;
const THREADS: u64 = 4;
const STEPS: usize = 4_000;

fn chain(number: usize, length: usize) -> Vec<BlockKey> {
    let key = |position: usize| {
        let family = if position < 3 { number % 2 } else { number };
        let mut bytes = [0; 16];
        bytes[0] = u8::try_from(family).unwrap() + 1;
        bytes[8] = u8::try_from(position).unwrap();
        BlockKey::from_bytes(bytes)
    };
    (0..length).map(key).collect()
}

fn store(pool: &Arc<BlockPool>, keys: &[BlockKey], held: &mut Vec<(PinnedBlocks, Vec<BlockKey>)>) {
    let found = pool.match_prefix(keys, &PinClaim::default());
    let rest = &keys[found.len()..];
    let parent = found.len().checked_sub(1).map(|last| keys[last]);
    let Ok(blocks) = pool.allocate(rest.len(), &AllocateRequest::default()) else {
        return;
    };
    let complete = blocks.complete(rest, parent).unwrap();
    let mut all = found;
    all.append(complete.register(&PinClaim::default()).unwrap().blocks)
        .unwrap();
    held.push((all, keys.to_vec()));
}

fn work(pool: &Arc<BlockPool>, seed: u64, removing: bool) {
    let mut random = SplitMix64::new(seed);
    let mut held: Vec<(PinnedBlocks, Vec<BlockKey>)> = Vec::new();
    for _ in 0..STEPS {
        let keys = chain(random.index(10), 1 + random.index(10));
        match random.index(12) {
            0..=4 => store(pool, &keys, &mut held),
            5..=8 => {
                let found = pool.match_prefix(&keys, &PinClaim::default());
                let keys = keys[..found.len()].to_vec();
                held.push((found, keys));
            }
            9 => drop(pool.evict(random.index(6), Tick(0))),
            10 if removing => {
                pool.remove(&keys[keys.len() / 2..]);
            }
            11 if removing && random.index(50) == 0 => {
                pool.clear();
            }
            _ => assert!(pool.peek(&keys) <= keys.len()),
        }
        for (blocks, keys) in &held {
            assert!(
                blocks.keys().eq(keys.iter().copied()),
                "pinned blocks keep their keys"
            );
        }
        while held.len() > 3 {
            let at = random.index(held.len());
            drop(held.swap_remove(at));
        }
    }
}

/// For each key, stored and removed events alternate, and the keys stored in the end are in the
/// pool.
fn check_events(events: &[Event], pool: &BlockPool) {
    let mut stored = BTreeSet::new();
    for event in events {
        assert_eq!(event.group, GroupId(4));
        match event.kind {
            EventKind::Stored { key, .. } => assert!(stored.insert(key), "stored twice: {key}"),
            EventKind::Removed { key } => assert!(stored.remove(&key), "removed twice: {key}"),
            EventKind::Cleared => stored.clear(),
        }
    }
    let snapshot: BTreeSet<BlockKey> = pool.snapshot().iter().map(|entry| entry.key).collect();
    assert_eq!(stored, snapshot);
}

fn run(kind: PolicyKind, seed: u64, removing: bool) {
    println!("policy {kind}, seed {seed}, removing {removing}");
    let log = Arc::new(EventLog::new(NonZeroUsize::new(1 << 20).unwrap()).unwrap());
    let mut subscriber = log.subscribe();
    let sink = EventSink {
        log: Arc::clone(&log),
        tier: TierId::HOST,
        group: GroupId(4),
    };
    let settings = PoolSettings::new().blocks(BLOCKS).visit_queue_blocks(32);
    let policy = PolicySettings::from(kind);
    let pool = BlockPool::with_events(settings, |blocks| policy.build(blocks), sink).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let pool = &pool;
            scope.spawn(move || work(pool, seed * 100 + thread, removing));
        }
    });
    let census = pool.census();
    assert_eq!(census.free + census.inactive, BLOCKS);
    let mut events = Vec::new();
    subscriber.poll(&mut events, usize::MAX).unwrap();
    check_events(&events, &pool);
    pool.check_integrity();
    while !pool.evict(7, Tick(0)).is_empty() {}
    assert_eq!(pool.census().free, BLOCKS, "no block stays parked");
}

#[test]
fn threads_find_stored_blocks_and_every_event_is_in_order() {
    for kind in PolicyKind::ALL {
        for seed in 0..3 {
            run(kind, seed, false);
            run(kind, seed, true);
        }
    }
}

#[test]
fn guards_give_their_blocks_back_while_their_thread_panics() {
    let policy = PolicySettings::default();
    let settings = PoolSettings::new().blocks(BLOCKS);
    let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
    let theirs = Arc::clone(&pool);
    let thread = std::thread::spawn(move || {
        let mut held = Vec::new();
        store(&theirs, &chain(1, 8), &mut held);
        let _mutable = theirs.allocate(4, &AllocateRequest::default()).unwrap();
        let _evicted = theirs.evict(1, Tick(0));
        assert!(held.is_empty(), "this panic unwinds");
    });
    assert!(thread.join().is_err());
    let census = pool.census();
    assert_eq!((census.active, census.owned), (0, 0));
    pool.check_integrity();
}
