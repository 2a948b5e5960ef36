//! The blocks of one tier: which are free, which hold what, and who uses them. It hands out ids and
//! knows no bytes, no other tier, and no clock.
//!
//! ```text
//!            allocate            complete             register
//!   free ───────────► mutable ───────────► complete ───────────► registered ──┐ match_prefix, pin:
//!    ▲                   │                    │                   │  ▲  └─────┘ one reference more
//!    │◄── drop ──────────┴────────────────────┘             evict │  │ drop: one reference less;
//!    │                                                            ▼  │ without any it is inactive
//!    └──────────────────────────── drop ────────────────────── evicted
//! ```
//!
//! A batch of blocks is held by a guard whose type says their state; dropping it gives them back.
//!
//! | module | what it is |
//! | --- | --- |
//! | `slot` | the state word, the key and the list pointer of each block |
//! | `index` | from keys to blocks, read without locks |
//! | `share` | a policy, its lock, and what it has been told |
//! | `visits` | what was found, until the policy hears of it |
//! | `children` | which cached blocks others follow |
//! | `ledger` | pins with deadlines |
//! | `owned`, `pinned` | the guards |
//! | `allocate`, `lookup`, `register`, `evict`, `order`, `restore` | what the pool does |
//! | `stats`, `integrity` | what it counts, and what must hold |
//! | `sync` | atomics and locks, or `loom`'s |
//!
//! **Only leaves are evicted.** A block with a cached child stays, whatever its policy offers and whichever
//! tenant the child is charged to. So eviction shortens chains from their ends; only [`BlockPool::remove`]
//! takes a block out of the middle of one.
//!
//! **Locks**, each taken before those after it: the slow path of allocation; the policies' locks, in
//! order; the children's; one stripe of the index; then any of the free list, a queue of visits, the
//! ledger, and the event log. Matching takes only the queue's and, for a claim with a deadline, the ledger's;
//! releasing takes none, except for blocks that the policy wanted in the meantime.
//!
//! **Order of events.** A block is reported as stored while whoever registers it pins it, and as
//! removed before it leaves the index, both under its policy's lock. Whoever registers a key that is
//! about to leave waits until it has left.

mod allocate;
mod children;
mod evict;
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

pub use evict::Removed;
pub use ledger::PinReport;
pub use lookup::Pinned;
pub use owned::{CompleteBlocks, EvictedBlock, EvictedBlocks, MutableBlocks, Rejected};
pub use pinned::PinnedBlocks;
pub use register::Registered;
pub use restore::{Restored, StoredEntry};
pub use settings::{
    AllocateRequest, Claim, Duplicates, EventSink, OwnerId, POOL_BLOCKS_MAX, PoolSettings, Quota,
    TenantId,
};
pub use stats::{Census, PoolStats, TenantStats};

use crate::policy::EvictionPolicy;
use crate::{BlockId, BlocksError, Tick};
use children::{Blocks, Children};
use index::Index;
use ledger::Ledger;
use share::Share;
use slot::Slots;
use stats::Counters;
use std::fmt;
use std::sync::Arc;
use sync::Lock;

/// The blocks of one tier, shared by all who use them.
pub struct BlockPool {
    settings: PoolSettings,
    slots: Slots,
    index: Index,
    free: Lock<Vec<BlockId>>,
    /// The first one is of all tenants without a quota, the others follow the settings.
    shares: Vec<Share>,
    children: Lock<Children>,
    /// One at a time gathers blocks for an allocation that the free ones do not cover.
    gathering: Lock<()>,
    ledger: Ledger,
    counters: Counters,
    events: Option<EventSink>,
}

impl BlockPool {
    /// A pool of free blocks. `policy` is asked once for each tenant with a quota and once for all
    /// others, and is told how many blocks there are; ids are below that.
    ///
    /// # Errors
    /// Where the settings contradict themselves.
    pub fn new(
        settings: PoolSettings,
        policy: impl FnMut(u32) -> Box<dyn EvictionPolicy>,
    ) -> Result<Arc<BlockPool>, BlocksError> {
        BlockPool::build(settings, policy, None)
    }

    /// A pool that reports what it stores and removes.
    ///
    /// # Errors
    /// Where the settings contradict themselves.
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
        let queue = settings.visit_queue_blocks.min(blocks).max(1);
        let mut share = || {
            Share::new(
                policy(u32::try_from(blocks).unwrap_or(u32::MAX)),
                blocks,
                queue,
            )
        };
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
        // The last one is given out first.
        let free: Vec<BlockId> = (0_u32..).take(blocks).map(BlockId).collect();
        Ok(Arc::new(BlockPool {
            slots: Slots::new(blocks),
            index: Index::new(blocks),
            free: Lock::new(free.into_iter().rev().collect()),
            shares,
            children: Lock::new(Children::new(blocks)),
            gathering: Lock::new(()),
            ledger: Ledger::new(),
            counters: Counters::new(),
            events,
            settings,
        }))
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// How many blocks there are.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.slots.len()
    }

    /// How many blocks can be allocated without evicting any.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free.lock().len()
    }

    /// Pins that were to end before `now` and did not, the longest overdue first.
    #[must_use]
    pub fn overdue(&self, now: Tick) -> Vec<PinReport> {
        self.ledger.overdue(now)
    }

    /// Lets the policies learn from what was matched and registered, which the next eviction would have to
    /// wait for otherwise, and study what they have seen, outside of their locks. To be called now and then
    /// by a thread that has time; returns whether there was anything to study.
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

    /// Where the children's table finds blocks.
    fn of_keys(&self) -> Blocks<'_> {
        Blocks {
            slots: &self.slots,
            index: &self.index,
        }
    }

    fn share_index(&self, tenant: TenantId) -> u32 {
        let of_tenant = |quota: &Quota| quota.tenant == tenant;
        let position = self.settings.quotas.iter().position(of_tenant);
        position.map_or(0, |index| u32::try_from(index + 1).unwrap_or(0))
    }

    /// # Panics
    /// Where there is no such share: slots hold indices of their own pool's shares alone.
    #[expect(
        clippy::indexing_slicing,
        reason = "slots are charged to shares of the pool, of which none goes away"
    )]
    fn share(&self, index: usize) -> &Share {
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
