//! The concurrent core of the pool under loom: all interleavings of a few threads, up to a bounded
//! number of preemptions. Run by `cargo x loom`.

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::policy::{EvictionPolicy, EvictionRefusal, Insertion, Visit};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, PinClaim, PinnedBlocks, PoolSettings, TenantId, TenantQuota,
};
use kvtile_blocks::{BlockId, BlockKey, Tick};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// First in, first out, without atomics of its own.
#[derive(Clone, Default)]
struct Fifo {
    queue: Vec<BlockId>,
    aside: Vec<BlockId>,
    followed: Vec<BlockId>,
    /// The block of the key that no model looks up.
    unasked: Option<BlockId>,
}

/// The number of a key that no model looks up.
const UNASKED: u8 = 9;

impl EvictionPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        for block in visit.blocks {
            let all = [&self.queue, &self.aside, &self.followed];
            let known = all.iter().any(|blocks| blocks.contains(block));
            assert!(known, "only stored blocks are visited");
            let unasked = self.unasked == Some(*block);
            assert!(
                !unasked,
                "a visit is of the blocks found, not of their successors"
            );
        }
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.queue.extend_from_slice(insertion.blocks);
        for (&block, stored) in insertion.blocks.iter().zip(insertion.keys) {
            if *stored == key(UNASKED) {
                self.unasked = Some(block);
            }
        }
    }

    fn candidate(&mut self, _now: Tick) -> Option<BlockId> {
        self.queue.first().copied()
    }

    fn evicted(&mut self, block: BlockId, _key: &BlockKey) {
        self.removed(block);
    }

    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal) {
        self.queue.retain(|&other| other != block);
        match refusal {
            EvictionRefusal::Pinned => self.aside.push(block),
            EvictionRefusal::Followed => self.followed.push(block),
        }
    }

    fn removed(&mut self, block: BlockId) {
        self.queue.retain(|&other| other != block);
        self.aside.retain(|&other| other != block);
        self.followed.retain(|&other| other != block);
    }

    fn released(&mut self, block: BlockId) {
        assert!(
            self.aside.contains(&block),
            "only blocks set aside are released"
        );
        self.aside.retain(|&other| other != block);
        self.queue.push(block);
    }

    fn became_leaf(&mut self, block: BlockId) {
        if self.followed.contains(&block) {
            self.followed.retain(|&other| other != block);
            self.queue.push(block);
        }
    }

    fn copy(&self) -> Box<dyn EvictionPolicy> {
        Box::new(self.clone())
    }

    fn len(&self) -> usize {
        self.queue.len() + self.aside.len() + self.followed.len()
    }

    fn check_integrity(&self) {
        assert!(self.aside.is_empty(), "no unpinned block is set aside");
    }
}

fn key(number: u8) -> BlockKey {
    let spread = (u64::from(number) + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = [number; 16];
    bytes[..8].copy_from_slice(&(spread ^ (spread >> 29)).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn pool(blocks: usize) -> Arc<BlockPool> {
    let settings = PoolSettings::new().blocks(blocks).visit_queue_blocks(2);
    BlockPool::new(settings, |_| Box::new(Fifo::default())).unwrap()
}

/// Two tenants; the second one has a policy of its own.
fn pool_of_two() -> Arc<BlockPool> {
    let settings = PoolSettings::new()
        .blocks(2)
        .quotas(vec![TenantQuota {
            tenant: TenantId(1),
            blocks: 1,
        }])
        .visit_queue_blocks(2);
    BlockPool::new(settings, |_| Box::new(Fifo::default())).unwrap()
}

fn register(pool: &Arc<BlockPool>, number: u8) -> Option<PinnedBlocks> {
    register_behind(pool, TenantId(0), number, None)
}

fn register_behind(
    pool: &Arc<BlockPool>,
    tenant: TenantId,
    number: u8,
    parent: Option<u8>,
) -> Option<PinnedBlocks> {
    let request = AllocateRequest {
        tenant,
        ..AllocateRequest::default()
    };
    let blocks = pool.allocate(1, &request).ok()?;
    let complete = blocks.complete(&[key(number)], parent.map(key)).unwrap();
    Some(complete.register(&PinClaim::default()).unwrap().blocks)
}

fn look_up(pool: &Arc<BlockPool>, number: u8) -> PinnedBlocks {
    pool.match_prefix(&[key(number)], &PinClaim::default())
}

/// Runs the body in all interleavings, and prints their number; a single one would prove nothing.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let orders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        body();
    });
    let orders = orders.load(Ordering::Relaxed);
    println!("{orders} orders");
    assert!(orders > 1, "the threads met in {orders} orders only");
}

#[test]
fn a_block_is_either_pinned_or_evicted() {
    model(|| {
        let pool = pool(1);
        drop(register(&pool, 1));
        let other = Arc::clone(&pool);
        let evictor = thread::spawn(move || other.evict(1, Tick(0)));
        let pinned = look_up(&pool, 1);
        let evicted = evictor.join().unwrap();
        assert_eq!(pinned.len() + evicted.len(), 1);
        if !pinned.is_empty() {
            assert!(pinned.keys().eq([key(1)]));
        }
        drop((pinned, evicted));
        pool.check_integrity();
    });
}

#[test]
fn a_block_selected_while_pinned_is_offered_again_after_its_release() {
    model(|| {
        let pool = pool(1);
        let pinned = register(&pool, 1).unwrap();
        let other = Arc::clone(&pool);
        let evictor = thread::spawn(move || drop(other.evict(1, Tick(0))));
        drop(pinned);
        evictor.join().unwrap();
        pool.check_integrity();
        drop(pool.evict(1, Tick(0)));
        assert_eq!(pool.census().free, 1, "it could be evicted");
        pool.check_integrity();
    });
}

#[test]
fn a_key_is_registered_while_its_block_is_evicted() {
    model(|| {
        let pool = pool(2);
        drop(register(&pool, 1));
        let other = Arc::clone(&pool);
        let evictor = thread::spawn(move || drop(other.evict(1, Tick(0))));
        let pinned = register(&pool, 1).unwrap();
        assert!(pinned.keys().eq([key(1)]));
        assert_eq!(pool.peek(&[key(1)]), 1, "a pinned block is found");
        evictor.join().unwrap();
        drop(pinned);
        pool.check_integrity();
        assert_eq!(
            pool.peek(&[key(1)]),
            1,
            "it came after the eviction, or was pinned during it"
        );
    });
}

#[test]
fn two_threads_that_register_one_key_share_one_block() {
    model(|| {
        let pool = pool(2);
        let other = Arc::clone(&pool);
        let second = thread::spawn(move || register(&other, 1).unwrap());
        let first = register(&pool, 1).unwrap();
        let second = second.join().unwrap();
        assert_eq!(first.ids(), second.ids());
        drop((first, second));
        pool.check_integrity();
        assert_eq!(pool.census().free, 1);
    });
}

/// A reader is at the slot of the first key, on its way to the second one, while that slot leaves
/// the list and joins another one as the third key.
#[test]
fn a_block_is_found_while_its_neighbour_moves_to_another_list() {
    // There are two lists, so some of these keys are placed as the test needs.
    for goes in 1..5 {
        for comes in 5..9 {
            model(move || found_while_a_neighbour_moves(goes, 0, comes));
        }
    }
}

fn found_while_a_neighbour_moves(goes: u8, stays: u8, comes: u8) {
    let pool = pool(2);
    let pinned = register(&pool, stays).unwrap();
    drop(register(&pool, goes));
    let other = Arc::clone(&pool);
    let writer = thread::spawn(move || {
        drop(other.evict(1, Tick(0)));
        drop(register(&other, comes));
    });
    let other = Arc::clone(&pool);
    let reader = thread::spawn(move || other.peek(&[key(stays)]));
    writer.join().unwrap();
    let found = reader.join().unwrap();
    assert_eq!(found, 1, "it was not removed");
    drop(pinned);
    pool.check_integrity();
}

#[test]
fn a_visit_is_not_credited_to_a_block_that_reuses_the_id() {
    model(|| {
        let pool = pool(1);
        drop(register(&pool, 1).unwrap());
        let other = Arc::clone(&pool);
        let replaces = thread::spawn(move || {
            drop(register(&other, UNASKED));
        });
        drop(look_up(&pool, 1));
        replaces.join().unwrap();
        // Processes all queued visits.
        assert_eq!(pool.cached(), 1);
        pool.check_integrity();
    });
}

#[test]
fn a_removed_block_is_free_after_its_last_pin() {
    model(|| {
        let pool = pool(1);
        let pinned = register(&pool, 1).unwrap();
        let other = Arc::clone(&pool);
        let remover = thread::spawn(move || other.remove(&[key(1)]));
        drop(pinned);
        assert_eq!(remover.join().unwrap().blocks, 1);
        assert_eq!(pool.census().free, 1);
        pool.check_integrity();
    });
}

/// The child belongs to another tenant than its parent, so to another lock.
#[test]
fn a_parent_is_evicted_before_its_child_is_stored_or_not_at_all() {
    model(|| {
        let pool = pool_of_two();
        drop(register(&pool, 1));
        let other = Arc::clone(&pool);
        let evictor = thread::spawn(move || drop(other.evict(1, Tick(0))));
        let child = register_behind(&pool, TenantId(1), 2, Some(1)).unwrap();
        assert!(pool.has_child(&key(1)));
        evictor.join().unwrap();
        let parent = pool.has(&key(1));
        drop(pool.evict(1, Tick(0)));
        assert_eq!(pool.has(&key(1)), parent, "it has a child");
        drop(child);
        pool.check_integrity();
        drop(pool.evict(2, Tick(0)));
        assert_eq!(pool.cached(), 0, "every block is evicted");
        pool.check_integrity();
    });
}

#[test]
fn a_parent_that_was_refused_is_offered_again_when_its_child_has_left() {
    for removes in [false, true] {
        model(move || {
            let pool = pool_of_two();
            drop(register(&pool, 1));
            drop(register_behind(&pool, TenantId(1), 2, Some(1)));
            let other = Arc::clone(&pool);
            let evictor = thread::spawn(move || drop(other.evict(1, Tick(0))));
            if removes {
                pool.remove(&[key(2)]);
            } else {
                drop(pool.evict(1, Tick(0)));
            }
            evictor.join().unwrap();
            pool.check_integrity();
            drop(pool.evict(2, Tick(0)));
            assert_eq!(pool.cached(), 0, "every block is evicted");
            pool.check_integrity();
        });
    }
}
