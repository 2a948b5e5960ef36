//! Lookups never confuse two keys, and never wait for an eviction.

#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::policy::{
    EvictionPolicy, EvictionRefusal, Insertion, PolicyKind, PolicySettings, Visit,
};
use kvtile_blocks::pool::{AllocateRequest, BlockPool, PinClaim, PinnedBlocks, PoolSettings};
use kvtile_blocks::{BlockId, BlockKey, Tick};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Longer than any machine needs, so that waiting for a lock fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

fn key(bits: u128) -> BlockKey {
    BlockKey::from_bytes(bits.to_le_bytes())
}

fn store(pool: &Arc<BlockPool>, keys: &[BlockKey]) -> PinnedBlocks {
    let blocks = pool.allocate(keys.len(), &AllocateRequest::default());
    let complete = blocks.unwrap().complete(keys, None).unwrap();
    complete.register(&PinClaim::default()).unwrap().blocks
}

/// Pitfall 26: keys that are cut for the index.
#[test]
fn pitfall_26_keys_that_differ_in_any_one_bit_are_different_blocks() {
    let base = 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978;
    let settings = PoolSettings::new().blocks(129);
    let policy = PolicySettings::default();
    let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
    let neighbours = (0..128).map(|bit| key(base ^ (1 << bit)));
    let keys: Vec<BlockKey> = std::iter::once(key(base)).chain(neighbours).collect();
    for at in 0..keys.len() {
        assert_eq!(
            pool.peek(&keys[at..=at]),
            0,
            "{at}: found before it was stored"
        );
        drop(store(&pool, &keys[at..=at]));
    }
    let found = pool.match_prefix(&keys, &PinClaim::default());
    assert!(found.keys().eq(keys.iter().copied()));
    for (first, second) in (0..128).flat_map(|bit| (0..bit).map(move |other| (other, bit))) {
        let absent = key(base ^ (1 << first) ^ (1 << second));
        assert!(
            pool.match_prefix(&[absent], &PinClaim::default())
                .is_empty()
        );
    }
    pool.check_integrity();
}

/// A store looks up which of its ancestors are cached, and pins them during its allocation.
#[test]
fn has_and_pin_answer_for_each_key_and_are_no_use_of_a_block() {
    for kind in PolicyKind::ALL {
        let policy = PolicySettings::from(kind);
        let settings = PoolSettings::new().blocks(6);
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
        drop(store(&pool, &[key(1)]));
        drop(store(&pool, &[key(2)]));
        let ask = [9, 2, 2, 8, 1].map(key);
        let is_there = ask.map(|key| pool.has(&key));
        assert_eq!(is_there, [false, true, true, false, true], "{kind}");
        let held = pool.pin(&ask, &PinClaim::default());
        assert_eq!(held.positions, [1, 2, 4], "{kind}");
        assert!(held.blocks.keys().eq([2, 2, 1].map(key)), "{kind}");
        // All free blocks can be allocated, and no pinned one.
        let rest = pool.allocate(4, &AllocateRequest::default()).unwrap();
        assert!(pool.allocate(1, &AllocateRequest::default()).is_err());
        assert!(pool.has(&key(1)) && pool.has(&key(2)), "{kind}");
        drop((rest, held));
        drop(pool.evict(usize::MAX, Tick(0)));
        assert!(!pool.has(&key(1)) && !pool.has(&key(2)), "{kind}");
        assert!(pool.pin(&ask, &PinClaim::default()).blocks.is_empty());
        pool.check_integrity();
    }
}

#[test]
fn pinning_blocks_is_no_visit() {
    let policy = PolicySettings::from(PolicyKind::Lru);
    let pool = BlockPool::new(PoolSettings::default(), |blocks| policy.build(blocks)).unwrap();
    drop(store(&pool, &[key(1)]));
    drop(store(&pool, &[key(2)]));
    assert!(pool.has(&key(1)));
    drop(pool.pin(&[key(1)], &PinClaim::default()));
    assert_eq!(pool.stats().lookups, 0);
    drop(pool.evict(1, Tick(0)));
    assert!(!pool.has(&key(1)) && pool.has(&key(2)));
}

/// A policy that signals each eviction, and continues on a signal.
struct SignallingPolicy {
    inner: Box<dyn EvictionPolicy>,
    begun: Option<Sender<()>>,
    go_on: Receiver<()>,
}

impl EvictionPolicy for SignallingPolicy {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        self.inner.visited(visit);
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.inner.inserted(insertion);
    }

    fn candidate(&mut self, now: Tick) -> Option<BlockId> {
        if let Some(begun) = self.begun.take() {
            begun.send(()).unwrap();
            self.go_on.recv_timeout(PATIENCE).unwrap();
        }
        self.inner.candidate(now)
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        self.inner.evicted(block, key);
    }

    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal) {
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

/// Pitfalls 30 and 33: one global lock, which lookups and releases wait for.
#[test]
fn pitfall_30_33_finding_and_releasing_do_not_wait_for_an_eviction() {
    // Full after the first visit: a later visit is counted as lost, and does not wait.
    let settings = PoolSettings::new().blocks(8).visit_queue_blocks(4);
    let (begun, has_begun) = channel();
    let (tell, go_on) = channel();
    let mut ends = Some((begun, go_on));
    let policy = PolicySettings::from(PolicyKind::Lru);
    let slow = |blocks| -> Box<dyn EvictionPolicy> {
        let (begun, go_on) = ends.take().unwrap();
        let inner = policy.build(blocks);
        Box::new(SignallingPolicy {
            inner,
            begun: Some(begun),
            go_on,
        })
    };
    let pool = BlockPool::new(settings, slow).unwrap();
    let keys: Vec<BlockKey> = (1..9).map(key).collect();
    let held = store(&pool, &keys);
    let evicting = Arc::clone(&pool);
    let evicts = thread::spawn(move || evicting.evict(2, Tick(0)).len());
    has_begun.recv_timeout(PATIENCE).unwrap();

    let (done, is_done) = channel();
    let finding = Arc::clone(&pool);
    let finds = thread::spawn(move || {
        let claim = PinClaim::default();
        assert!(finding.match_prefix(&[key(99)], &claim).is_empty());
        assert_eq!(finding.peek(&keys), 8);
        for _ in 0..3 {
            assert_eq!(finding.match_prefix(&keys[..4], &claim).len(), 4);
        }
        drop(held);
        done.send(()).unwrap();
    });
    let waited = is_done.recv_timeout(PATIENCE);
    tell.send(()).unwrap();
    waited.unwrap();
    finds.join().unwrap();
    assert_eq!(evicts.join().unwrap(), 2);
    let stats = pool.stats();
    assert_eq!((stats.lookups, stats.lost_visits), (4, 2));
    pool.check_integrity();
}
