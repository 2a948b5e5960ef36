//! The blocks of one tier: their states, contents, pins and owners. The pool hands out block ids.
//! It knows no bytes, no other tier, and no clock.
//!
//! ```text
//!            allocate            complete             register
//!   free ───────────► mutable ───────────► complete ───────────► registered ──┐ match_prefix, pin:
//!    ▲                   │                    │                   │  ▲  └─────┘ adds a reference
//!    │◄── drop ──────────┴────────────────────┘             evict │  │ drop: removes a reference;
//!    │                                                            ▼  │ at zero the block is inactive
//!    └──────────────────────────── drop ────────────────────── evicted
//! ```
//!
//! A guard holds a batch of blocks, and its type encodes their state. Dropping the guard releases
//! the blocks.
//!
//! | module | what it is |
//! | --- | --- |
//! | `slot` | the state word, the key and the list pointer of each block |
//! | `index` | a hash table from keys to blocks with lock-free reads |
//! | `share` | a policy, its lock, and the queue of events for it |
//! | `visits` | lookup hits that the policy has not processed yet |
//! | `children` | which cached blocks have cached children |
//! | `ledger` | pins with deadlines |
//! | `free` | the free list |
//! | `owned`, `pinned` | the guards |
//! | `allocate`, `lookup`, `register`, `evict`, `order`, `restore` | the pool's operations |
//! | `stats`, `integrity` | counters and invariants |
//! | `sync` | atomics and locks, or `loom`'s |
//!
//! **Only leaves are evicted.** A block with a cached child stays, regardless of what its policy
//! selects and of which tenant the child is charged to. So eviction shortens chains from their
//! ends; only [`BlockPool::remove`] takes a block out of the middle of a chain.
//!
//! **Locks**, in acquisition order: the slow path of allocation; the policies' locks, in share
//! order; the children's table; one stripe of the index; then any of the free list, a visit queue,
//! the ledger, and the event log. Matching takes only the visit queue's lock and, for a claim with
//! a deadline, the ledger's. Releasing takes none, except for blocks that were removed or that the
//! policy selected while they were pinned.
//!
//! **Order of events.** Under the policy's lock, a block is reported as stored while the
//! registering thread pins it, and as removed before it leaves the index. A thread that registers a
//! key whose block is being evicted or removed waits until that block has left the index.

mod allocate;
mod children;
mod evict;
mod free;
mod index;
mod integrity;
mod ledger;
mod lookup;
mod order;
mod owned;
mod pinned;
mod register;
mod restore;
mod settings;
mod share;
mod slot;
mod stats;
mod sync;
mod visits;

pub use evict::RemovedBlocks;
pub use ledger::PinReport;
pub use lookup::PinnedKeys;
pub use owned::{CompleteBlocks, EvictedBlock, EvictedBlocks, MutableBlocks, RejectedBlocks};
pub use pinned::PinnedBlocks;
pub use register::RegisteredBlocks;
pub use restore::{RestoredBlocks, StoredEntry};
pub use settings::{
    AllocateRequest, DuplicateHandling, EventSink, OwnerId, POOL_BLOCKS_MAX, PinClaim,
    PoolSettings, TenantId, TenantQuota,
};
pub use stats::{PoolCensus, PoolStats, TenantStats};

use crate::policy::EvictionPolicy;
use crate::{BlocksError, Tick};
use children::{ChildCounts, SlotsByKey};
use free::FreeBlocks;
use index::BlockIndex;
use ledger::PinLedger;
use share::PoolShare;
use slot::BlockSlots;
use stats::PoolCounters;
use std::fmt;
use std::sync::Arc;
use sync::PoolLock;

/// The blocks of one tier, shared by all threads that use them.
pub struct BlockPool {
    settings: PoolSettings,
    slots: BlockSlots,
    index: BlockIndex,
    free: PoolLock<FreeBlocks>,
    /// The first share is for all tenants without a quota; the others follow the settings.
    shares: Vec<PoolShare>,
    children: PoolLock<ChildCounts>,
    /// Serialises allocations that have to evict.
    gathering: PoolLock<()>,
    ledger: PinLedger,
    counters: PoolCounters,
    events: Option<EventSink>,
}

impl BlockPool {
    /// A pool of free blocks. `policy` is called once for each tenant with a quota and once for all
    /// other tenants. Its argument is the number of blocks; all ids are below it.
    ///
    /// # Errors
    /// If the settings are inconsistent.
    pub fn new(
        settings: PoolSettings,
        policy: impl FnMut(u32) -> Box<dyn EvictionPolicy>,
    ) -> Result<Arc<BlockPool>, BlocksError> {
        BlockPool::build(settings, policy, None)
    }

    /// A pool that appends its changes to an event log.
    ///
    /// # Errors
    /// If the settings are inconsistent.
    pub fn with_events(
        settings: PoolSettings,
        policy: impl FnMut(u32) -> Box<dyn EvictionPolicy>,
        events: EventSink,
    ) -> Result<Arc<BlockPool>, BlocksError> {
        BlockPool::build(settings, policy, Some(events))
    }

    fn build(
        settings: PoolSettings,
        mut policy: impl FnMut(u32) -> Box<dyn EvictionPolicy>,
        events: Option<EventSink>,
    ) -> Result<Arc<BlockPool>, BlocksError> {
        settings.validate()?;
        let blocks = settings.blocks;
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        let queue = settings.visit_queue_blocks.min(blocks).max(1);
        let mut share = || PoolShare::new(policy(count), blocks, queue);
        let promised = settings.quotas.iter().map(|quota| quota.blocks);
        let promised = promised.fold(0, usize::saturating_add);
        let mut common = share();
        common.due = blocks.saturating_sub(promised);
        let mut shares = vec![common];
        for quota in &settings.quotas {
            let mut own = share();
            own.limit = quota.blocks;
            own.due = quota.blocks;
            shares.push(own);
        }
        Ok(Arc::new(BlockPool {
            slots: BlockSlots::new(blocks),
            index: BlockIndex::new(blocks),
            free: PoolLock::new(FreeBlocks::new(count)),
            shares,
            children: PoolLock::new(ChildCounts::default()),
            gathering: PoolLock::new(()),
            ledger: PinLedger::new(),
            counters: PoolCounters::new(),
            events,
            settings,
        }))
    }

    /// The pool's settings.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.slots.len()
    }

    /// The number of blocks that can be allocated without eviction.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free.lock().len()
    }

    /// Pins whose deadline is before `now`, the longest overdue first.
    #[must_use]
    pub fn overdue(&self, now: Tick) -> Vec<PinReport> {
        self.ledger.overdue(now)
    }

    /// Lets the policies learn from lookups and registrations, outside their locks. Otherwise the
    /// next eviction does part of this work. Call it now and then from a thread with spare time. It
    /// returns whether there was a lesson to study.
    pub fn maintain(&self) -> bool {
        let mut studied = false;
        for share in &self.shares {
            let lesson = share.lock().policy.lesson();
            if let Some(lesson) = lesson {
                let learned = lesson.study();
                share.lock().policy.learn(learned);
                studied = true;
            }
        }
        studied
    }

    /// The slots and the index, for the children's table.
    fn of_keys(&self) -> SlotsByKey<'_> {
        SlotsByKey {
            slots: &self.slots,
            index: &self.index,
        }
    }

    fn share_index(&self, tenant: TenantId) -> u32 {
        let of_tenant = |quota: &TenantQuota| quota.tenant == tenant;
        let position = self.settings.quotas.iter().position(of_tenant);
        position.map_or(0, |index| u32::try_from(index + 1).unwrap_or(0))
    }

    /// # Panics
    /// If there is no such share. Slots hold only share indices of their own pool.
    #[expect(
        clippy::indexing_slicing,
        reason = "slots are charged to shares of the pool, which are never removed"
    )]
    fn share(&self, index: usize) -> &PoolShare {
        &self.shares[index]
    }
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockPool")
            .field("settings", &self.settings)
            .field("stats", &self.stats())
            .finish()
    }
}
