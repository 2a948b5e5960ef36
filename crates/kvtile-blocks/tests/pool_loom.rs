//! The concurrent core of the pool in every order in which a few threads can meet, up to a bounded
//! number of preemptions. Run by `cargo x loom`.

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::policy::{EvictionPolicy, Insertion, Offer, Visit};
use kvtile_blocks::pool::{AllocateRequest, BlockPool, Claim, PinnedBlocks, PoolSettings};
use kvtile_blocks::{BlockId, BlockKey, Tick};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// First in, first out, without any atomics of its own.
#[derive(Default)]
struct Fifo {
    queue: Vec<BlockId>,
    aside: Vec<BlockId>,
    /// The block that holds what nobody asks for.
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
            let known = self.queue.contains(block) || self.aside.contains(block);
            assert!(known, "only what is stored is visited");
            let unasked = self.unasked == Some(*block);
            assert!(
                !unasked,
                "a visit is of what was found, not of what is there now"
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

    fn evict(
        &mut self,
        wanted: usize,
        _now: Tick,
        offer: &mut dyn FnMut(BlockId) -> Offer,
    ) -> usize {
        let mut taken = 0;
        while taken < wanted && !self.queue.is_empty() {
            let block = self.queue.remove(0);
            match offer(block) {
                Offer::Taken(_) => taken += 1,
                Offer::Pinned => self.aside.push(block),
            }
        }
        taken
    }

    fn removed(&mut self, block: BlockId) {
        self.queue.retain(|&other| other != block);
        self.aside.retain(|&other| other != block);
    }

    fn released(&mut self, block: BlockId) {
        assert!(
            self.aside.contains(&block),
            "only what was set aside is released"
        );
        self.aside.retain(|&other| other != block);
        self.queue.push(block);
    }

    fn keeps_prefixes(&self) -> bool {
        false
    }

    fn len(&self) -> usize {
        self.queue.len() + self.aside.len()
    }

    fn check_integrity(&self) {
        assert!(
            self.aside.is_empty(),
            "nothing that nobody uses is set aside"
        );
    }
}

fn key(number: u8) -> BlockKey {
    let spread = (u64::from(number) + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = [number; 16];
    bytes[..8].copy_from_slice(&(spread ^ (spread >> 29)).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn pool(blocks: usize) -> Arc<BlockPool> {
    let settings = PoolSettings {
        blocks,
        visit_queue_blocks: 2,
        ..PoolSettings::default()
    };
    BlockPool::new(settings, |_| Box::new(Fifo::default())).unwrap()
}

fn register(pool: &Arc<BlockPool>, number: u8) -> Option<PinnedBlocks> {
    let blocks = pool.allocate(1, &AllocateRequest::default()).ok()?;
    let complete = blocks.complete(&[key(number)], None).unwrap();
    Some(complete.register(&Claim::default()).unwrap().blocks)
}

fn look_up(pool: &Arc<BlockPool>, number: u8) -> PinnedBlocks {
    pool.match_prefix(&[key(number)], &Claim::default())
}

/// Runs the body in all orders, and says in how many; one would prove nothing.
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
fn a_block_that_was_wanted_while_pinned_is_offered_again_after_its_release() {
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
        assert_eq!(pool.peek(&[key(1)]), 1, "what is pinned is found");
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

/// A reader stands on the slot of the first key, on its way to the second one, while that slot leaves
/// the list and goes into another one as the third key.
#[test]
fn what_stays_is_found_while_its_neighbour_goes_and_comes_back_elsewhere() {
    // There are two lists, so some of these keys stand as they have to.
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
    assert_eq!(found, 1, "nobody removed it");
    drop(pinned);
    pool.check_integrity();
}

#[test]
fn a_visit_is_not_taken_for_one_of_what_comes_in_its_place() {
    model(|| {
        let pool = pool(1);
        drop(register(&pool, 1).unwrap());
        let other = Arc::clone(&pool);
        let replaces = thread::spawn(move || {
            drop(register(&other, UNASKED));
        });
        drop(look_up(&pool, 1));
        replaces.join().unwrap();
        // Whatever is waiting to be told is told now.
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
