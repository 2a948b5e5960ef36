//! Exhaustion and recovery, and the cost of eviction.

use super::*;

#[test]
fn an_exhausted_pool_recovers_when_a_guard_is_dropped() {
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

/// Counts the pool's refusals.
struct RefusalCounter {
    inner: Box<dyn EvictionPolicy>,
    count: Arc<AtomicUsize>,
}

impl EvictionPolicy for RefusalCounter {
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

    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal) {
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

/// A chain that was stored block by block, with only its last block used since. The policy selects
/// every other block before the leaf, and must not select them again for each eviction.
#[test]
fn evicting_a_long_chain_takes_as_many_steps_as_it_has_blocks() {
    const LENGTH: usize = 100_000;
    for kind in PolicyKind::ALL {
        let count = Arc::new(AtomicUsize::new(0));
        let policy = PolicySettings::from(kind);
        let settings = PoolSettings::new().blocks(LENGTH);
        let pool = BlockPool::new(settings, |blocks| {
            let (inner, count) = (policy.build(blocks), Arc::clone(&count));
            Box::new(RefusalCounter { inner, count })
        });
        let pool = pool.unwrap();
        let keys = chain(1, LENGTH as u64);
        for first in 0..keys.len() {
            store(&pool, &keys[..=first], first, &PinClaim::default());
        }
        let tail = &keys[keys.len() - 1..];
        drop(pool.match_prefix(tail, &PinClaim::default()));
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
