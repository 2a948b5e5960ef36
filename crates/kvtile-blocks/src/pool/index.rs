//! A hash table from keys to blocks, with collision lists that run through the slots. Readers take
//! no lock; writers take the lock of a stripe. The index does not know phases: the pool decides
//! whether a found block may be used.
//!
//! A stripe is a seqlock. A reader that finds its key is done. A reader that misses may have walked
//! during a write, even from its list into another one. So it compares the stripe's version before
//! and after the walk, and retries if a writer changed it. A slot is linked into another list only
//! after it was unlinked from its own under that stripe's lock, so a reader that followed it sees
//! the version changed.

use super::slot::{BlockSlots, KeyWords, NONE};
use super::sync::{AtomicU32, AtomicU64, Ordering, PoolLock, PoolLockGuard, fence, spin_loop};
use crate::{BlockId, BlockKey};
use std::hint::select_unpredictable;

const STRIPES_MAX: usize = if cfg!(loom) { 1 } else { 256 };

/// Retries of a reader before it waits for the stripe's lock.
const WALKS_MAX: usize = if cfg!(loom) { 2 } else { 64 };

#[derive(Debug)]
#[repr(align(64))]
struct IndexStripe {
    lock: PoolLock<()>,
    /// Odd while a writer is changing the stripe's lists.
    version: AtomicU64,
}

#[derive(Debug)]
pub(super) struct BlockIndex {
    heads: Box<[AtomicU32]>,
    stripes: Box<[IndexStripe]>,
}

/// Steps that a glance at many keys takes in all lists. A third of the keys are not at the front of
/// their list, and a tenth not behind it either; no branch predictor can guess which.
const STEPS: usize = 2;

/// Blocks prefetched as one batch: their cache lines fit the L1 cache.
const WARM: usize = 64;

/// A bucket of the table, with its stripe locked against writers.
pub(super) struct LockedBucket<'a> {
    head: &'a AtomicU32,
    stripe: &'a IndexStripe,
    _held: PoolLockGuard<'a, ()>,
}

impl BlockIndex {
    pub(super) fn new(blocks: usize) -> BlockIndex {
        let heads = blocks.max(2);
        let stripes = (1 << (heads.ilog2() - 1)).min(STRIPES_MAX);
        let stripe = |_| IndexStripe {
            lock: PoolLock::new(()),
            version: AtomicU64::new(0),
        };
        BlockIndex {
            heads: (0..heads).map(|_| AtomicU32::new(NONE)).collect(),
            stripes: (0..stripes).map(stripe).collect(),
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "scaled to the number of heads, and bits below the number of stripes"
    )]
    fn place(&self, key: KeyWords) -> (&AtomicU32, &IndexStripe) {
        // The upper half of the product is below the number of heads.
        let scaled = (u128::from(key.mixed()) * self.heads.len() as u128) >> 64;
        let bucket = usize::try_from(scaled).unwrap_or(0);
        let stripe = bucket & (self.stripes.len() - 1);
        (&self.heads[bucket], &self.stripes[stripe])
    }

    /// A block with this key, from one walk without retry. `None` is inconclusive.
    pub(super) fn glance(&self, slots: &BlockSlots, key: KeyWords) -> Option<u32> {
        walk(slots, self.place(key).0, key)
    }

    /// Glances for many keys, up to the first miss. The lists advance in lockstep and without
    /// branches, so that the memory reads overlap.
    pub(super) fn glance_at(&self, slots: &BlockSlots, keys: &[BlockKey], found: &mut [u32]) {
        for (front, key) in found.iter_mut().zip(keys) {
            *front = self.place(KeyWords::new(key)).0.load(Ordering::Acquire);
        }
        for _ in 0..STEPS {
            for (front, key) in found.iter_mut().zip(keys) {
                *front = here_or_next(slots, *front, KeyWords::new(key));
            }
        }
        let mut keys = found.iter_mut().zip(keys);
        for (front, key) in keys.by_ref() {
            match follow(slots, *front, KeyWords::new(key)) {
                Some(id) => *front = id,
                None => {
                    *front = NONE;
                    break;
                }
            }
        }
        for (front, _) in keys {
            *front = NONE;
        }
    }

    /// Finds a block with this key that `accept` takes. `None` means that at some moment during the
    /// call there was none.
    pub(super) fn find<T>(
        &self,
        slots: &BlockSlots,
        key: KeyWords,
        mut accept: impl FnMut(u32) -> Option<T>,
    ) -> Option<T> {
        let (head, stripe) = self.place(key);
        for _ in 0..WALKS_MAX {
            let version = stripe.version.load(Ordering::Acquire);
            let found = walk(slots, head, key).and_then(&mut accept);
            if found.is_some() {
                return found;
            }
            fence(Ordering::Acquire);
            if version % 2 == 0 && stripe.version.load(Ordering::Relaxed) == version {
                return None;
            }
            spin_loop();
        }
        // A writer was preempted in its critical section: wait for the lock.
        let _held = stripe.lock.lock();
        walk(slots, head, key).and_then(accept)
    }

    /// Prefetches what linking or unlinking these blocks reads, as one batch: the first blocks of
    /// their lists. Both take a lock for each block, and reads do not move ahead of a lock, so cache
    /// misses would add up.
    pub(super) fn warm(&self, slots: &BlockSlots, ids: &[BlockId]) {
        for ids in ids.chunks(WARM) {
            let mut fronts = [NONE; WARM];
            for (front, &id) in fronts.iter_mut().zip(ids) {
                *front = self.place(slots.of(id).key()).0.load(Ordering::Acquire);
            }
            for front in fronts.into_iter().filter(|&front| front != NONE) {
                slots.get(front).key();
            }
        }
    }

    pub(super) fn lock(&self, key: KeyWords) -> LockedBucket<'_> {
        let (head, stripe) = self.place(key);
        LockedBucket {
            head,
            stripe,
            _held: stripe.lock.lock(),
        }
    }

    /// Unlinks a block from the table.
    pub(super) fn unlink(&self, slots: &BlockSlots, id: BlockId) {
        self.lock(slots.of(id).key()).unlink(slots, id);
    }

    /// The blocks of each list; for tests, without concurrent writers.
    pub(super) fn lists<'a>(
        &'a self,
        slots: &'a BlockSlots,
    ) -> impl Iterator<Item = Vec<u32>> + 'a {
        self.heads.iter().map(|head| {
            let mut list = Vec::new();
            let mut id = head.load(Ordering::Acquire);
            while id != NONE && list.len() <= slots.len() {
                list.push(id);
                id = slots.get(id).next();
            }
            list
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        let version = |stripe: &IndexStripe| stripe.version.load(Ordering::Acquire);
        self.stripes.iter().all(|stripe| version(stripe) % 2 == 0)
    }
}

impl LockedBucket<'_> {
    pub(super) fn find(&self, slots: &BlockSlots, key: KeyWords) -> Option<u32> {
        walk(slots, self.head, key)
    }

    /// Links a block at the front. Its key must not be in the table yet.
    pub(super) fn link(&self, slots: &BlockSlots, id: BlockId) {
        let first = self.head.load(Ordering::Relaxed);
        self.change(|| {
            slots.of(id).set_next(first);
            self.head.store(id.0, Ordering::Release);
        });
    }

    fn unlink(&self, slots: &BlockSlots, id: BlockId) {
        let after = slots.of(id).next();
        let mut before = NONE;
        let mut at = self.head.load(Ordering::Relaxed);
        while at != id.0 {
            assert!(at != NONE, "a registered block is in the index");
            before = at;
            at = slots.get(at).next();
        }
        self.change(|| {
            if before == NONE {
                self.head.store(after, Ordering::Release);
            } else {
                slots.get(before).set_next(after);
            }
        });
    }

    fn change(&self, change: impl FnOnce()) {
        let version = &self.stripe.version;
        let even = version.load(Ordering::Relaxed);
        version.store(even + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        version.store(even + 2, Ordering::Release);
    }
}

/// Walks a list. The walk ends even if a writer changes the list concurrently: it visits at most as
/// many slots as exist. A longer walk implies a change, and then the reader retries.
fn walk(slots: &BlockSlots, head: &AtomicU32, key: KeyWords) -> Option<u32> {
    follow(slots, head.load(Ordering::Acquire), key)
}

/// The block, if it has this key or is `NONE`, else the next one in its list.
fn here_or_next(slots: &BlockSlots, id: u32, key: KeyWords) -> u32 {
    let slot = slots.get_or_last(id);
    let stay = (id == NONE) | slot.key().is(key);
    select_unpredictable(stay, id, slot.next())
}

fn follow(slots: &BlockSlots, front: u32, key: KeyWords) -> Option<u32> {
    let mut id = front;
    for _ in 0..slots.len() {
        if id == NONE {
            return None;
        }
        let slot = slots.get(id);
        if slot.key() == key {
            return Some(id);
        }
        id = slot.next();
    }
    None
}
