//! Refused requests.

use kvtile_tiers::{RequestError, TierError};

use super::{
    common::{TestEngine, chain, engine_layout, settings, with_disk},
    keeper,
};

const DISK: u64 = 4 << 20;

#[test]
fn blocks_that_the_engine_does_not_have_are_refused() {
    let cache = keeper::open(settings(8), engine_layout()).unwrap();
    let keys = chain(1, 2);
    let store = |blocks: &[usize]| cache.store(&keys, blocks);
    let outside = store(&[0, 64]).unwrap_err();
    assert!(matches!(
        outside,
        TierError::Request(RequestError::EngineBlockOutOfRange { block: 64, .. })
    ));
    assert!(matches!(
        store(&[3, 3]),
        Err(TierError::Request(RequestError::EngineBlockTwice {
            block: 3
        }))
    ));
    assert!(matches!(
        store(&[1, 2, 3]),
        Err(TierError::Request(RequestError::TooFewKeys { .. }))
    ));
    let found = cache.lookup(&keys);
    let load = cache.load(found, &[1]);
    assert!(matches!(
        load,
        Err(TierError::Request(RequestError::TooManyDestinations { .. }))
    ));
}

#[test]
fn a_full_queue_refuses_at_once_and_leaves_nothing_pinned() {
    let settings = settings(16).workers(0).queue_capacity(2);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    let load = || {
        let found = cache.lookup(&keys);
        cache.load(found, &[20, 21, 22])
    };
    let waiting = [load().unwrap(), load().unwrap()];
    assert!(matches!(
        load(),
        Err(TierError::Request(RequestError::Busy {
            waiting: 2,
            capacity: 2
        }))
    ));
    let refused: u64 = cache.stats().queues.iter().map(|queue| queue.refused).sum();
    assert_eq!(refused, 1);
    while cache.step() {}
    for load in waiting {
        assert_eq!(load.wait().blocks, 3);
    }
    let evicted = cache.evict(kvtile_blocks::events::TierId::HOST, 16);
    assert_eq!(evicted.unwrap(), 3, "nothing stays pinned");
}

/// Pitfall 40: a metric without a denominator.
#[test]
fn every_looked_up_block_is_a_hit_or_a_miss_of_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let cache = keeper::open(with_disk(3, folder.path(), DISK), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    for number in 0..6 {
        engine.load(&chain(number % 4, 5), 0);
        engine.store(&chain(number % 4, 3), 10);
    }
    let stats = cache.stats();
    let hits: u64 = stats.hits.values().sum();
    let misses: u64 = stats.misses.values().sum();
    assert_eq!(hits + misses, stats.lookup_blocks, "{stats:?}");
    assert_eq!(stats.lookup_blocks, 6 * 5);
    assert!(hits > 0 && misses > 0);
    for queue in &stats.queues {
        assert!(queue.depth == 0 && queue.capacity > 0 && queue.offered >= queue.refused);
    }
}
