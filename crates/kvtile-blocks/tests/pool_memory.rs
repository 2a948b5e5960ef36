//! The cost of a pool: bytes per block, and allocations once it is full.

#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::BlockKey;
use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_blocks::pool::{AllocateRequest, BlockPool, PinClaim, PoolSettings};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

/// Counts per thread, so that tests do not count each other's allocations.
struct CountingAllocator;

fn count(allocations: usize, bytes: isize) {
    // A thread that ends has no counters any more; its count is lost.
    let _ = ALLOCATIONS.try_with(|counter| counter.set(counter.get() + allocations));
    let _ = BYTES.try_with(|counter| counter.set(counter.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size().cast_signed());
        // SAFETY: the caller guarantees the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -layout.size().cast_signed());
        // SAFETY: the pointer came from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BLOCKS: usize = 65_536;
const CHAIN: usize = 128;

fn chain(number: usize) -> Vec<BlockKey> {
    let key = |position: usize| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&(position as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..CHAIN).map(key).collect()
}

/// A request that misses, stores a chain, and finds it again.
fn request(pool: &std::sync::Arc<BlockPool>, keys: &[BlockKey]) {
    let claim = PinClaim::default();
    assert!(pool.match_prefix(keys, &claim).is_empty());
    let blocks = pool.allocate(CHAIN, &AllocateRequest::default()).unwrap();
    drop(
        blocks
            .complete(keys, None)
            .unwrap()
            .register(&claim)
            .unwrap(),
    );
    assert_eq!(pool.match_prefix(keys, &claim).len(), CHAIN);
}

/// Pitfall 33: 600 bytes a cached block. The limit includes the policy's ghosts, which may be as
/// many as the pool has blocks.
#[test]
fn bookkeeping_of_a_cached_block_is_within_its_bytes_with_its_policy() {
    for kind in PolicyKind::ALL {
        let settings = PoolSettings::new().blocks(BLOCKS);
        let chains: Vec<_> = (0..3 * BLOCKS / CHAIN).map(chain).collect();
        let before = BYTES.get();
        let policy = PolicySettings::from(kind);
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
        for keys in &chains {
            request(&pool, keys);
        }
        assert_eq!(pool.cached(), BLOCKS);
        let bytes = (BYTES.get() - before).cast_unsigned() as f64 / BLOCKS as f64;
        println!("{kind}: {bytes:.1} bytes a block");
        assert!(bytes <= 90.0, "{kind}: {bytes:.1} bytes a block");
    }
}

/// Pitfall 33: three allocations per block.
#[test]
fn a_full_pool_allocates_for_batches_and_not_for_blocks() {
    for kind in PolicyKind::ALL {
        let settings = PoolSettings::new().blocks(64 * CHAIN);
        let policy = PolicySettings::from(kind);
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks)).unwrap();
        let chains: Vec<_> = (0..1_024).map(chain).collect();
        let (warm, measured) = chains.split_at(512);
        for keys in warm {
            request(&pool, keys);
        }
        let before = ALLOCATIONS.get();
        for keys in measured {
            request(&pool, keys);
        }
        let allocations = ALLOCATIONS.get() - before;
        let blocks = measured.len() * CHAIN;
        println!("{kind}: {allocations} allocations for {blocks} blocks");
        assert!(
            allocations * 8 <= blocks,
            "{kind}: {allocations} allocations for {blocks} blocks"
        );
    }
}

/// Pitfall 30: lookup misses make the index grow.
#[test]
fn a_lookup_that_finds_nothing_allocates_nothing_and_leaves_nothing() {
    let policy = PolicySettings::default();
    let pool = BlockPool::new(PoolSettings::default(), |blocks| policy.build(blocks)).unwrap();
    request(&pool, &chain(0));
    let absent: Vec<_> = (1..1_000).map(chain).collect();
    let before = (ALLOCATIONS.get(), BYTES.get());
    for keys in &absent {
        assert!(pool.match_prefix(keys, &PinClaim::default()).is_empty());
        assert_eq!(pool.peek(keys), 0);
    }
    assert_eq!((ALLOCATIONS.get(), BYTES.get()), before);
    pool.check_integrity();
}
