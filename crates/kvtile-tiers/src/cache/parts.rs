//! The state that the threads of a cache share, with helpers for its clock, its queue and its
//! tiers.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{
    Tick,
    events::{EventLog, StoredBlock, TierId},
    policy::EvictionHints,
};
use kvtile_layout::broken;
use kvtile_transfer::TransferManager;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use super::{
    CacheSettings, EngineLayout, Priority, QueueLabel, below::CacheTier, chains::StoresInFlight,
    departures::Departures, flights::BlockFlights, host::HostTier, job::BoxedCacheJob,
};
use crate::{
    clock::Clock,
    error::{RequestError, TierError},
    metrics::CacheMetrics,
    queue::{JobQueue, QueueRefusal},
    source::ListStoredBlocks,
    tier::{BlockPieces, Removals, TierStats},
};

/// The shared state of a cache.
pub(crate) struct CacheParts {
    pub(super) manager: Arc<TransferManager>,
    /// `None` where each call gives a layout.
    pub(super) engine: Option<EngineLayout>,
    pub(super) layers: usize,
    pub(super) page_size: u64,
    pub(super) block_bytes: u64,
    /// How a stored block is cut into pieces.
    pub(super) pieces: BlockPieces,
    /// Whether blocks have no parents: each is found, kept and evicted by itself.
    pub(super) is_rootless: bool,
    pub(super) host: HostTier,
    /// The tiers below host memory, in lookup order.
    pub(super) below: Vec<CacheTier>,
    /// Held during the eviction and the write of host blocks, so that no thread evicts the parent
    /// of a block that another thread is about to write.
    pub(super) turn: Mutex<()>,
    /// Read-locked from the eviction of host blocks until their writes to tiers have ended.
    pub(super) demotions: RwLock<()>,
    /// Blocks with a write from host memory to a tier in flight.
    pub(super) departures: Departures,
    pub(super) queue: JobQueue<BoxedCacheJob<CacheParts>>,
    /// The clearings of the cache, for stores in flight.
    pub(super) removals: Arc<Removals>,
    /// Stores in flight.
    pub(super) chains: StoresInFlight<(Priority, BoxedCacheJob<CacheParts>)>,
    pub(super) flights: BlockFlights,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: CacheSettings,
    pub(super) metrics: Arc<CacheMetrics>,
    /// The counters of host memory and of the tiers below at the last observation.
    pub(super) seen: Vec<Mutex<TierStats>>,
    pub(super) events: Arc<EventLog>,
}

impl std::fmt::Debug for CacheParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheParts").finish_non_exhaustive()
    }
}

impl ListStoredBlocks for CacheParts {
    fn list_stored(&self, blocks: &mut Vec<StoredBlock>) {
        self.host.pool.list_stored(blocks);
        for below in &self.below {
            below.tier.list(blocks);
        }
    }
}

/// The largest number of blocks of a read batch.
const BATCH_BLOCKS_MAX: u64 = 64;

/// The largest size of a read batch of more than one block.
const BATCH_BYTES_MAX: u64 = 64 << 20;

impl CacheParts {
    pub(super) fn tick(&self) -> Tick {
        self.tick_in(Duration::ZERO)
    }

    /// The tick after `time` from now.
    pub(super) fn tick_in(&self, time: Duration) -> Tick {
        let millis = self.clock.now().saturating_add(time).as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// The hints of a request, with its lifetime converted to the tick of its end.
    pub(super) fn hints(
        &self,
        mut hints: EvictionHints,
        lifetime: Option<Duration>,
    ) -> EvictionHints {
        if let Some(lifetime) = lifetime {
            hints.expires = Some(self.tick_in(lifetime));
        }
        hints
    }

    /// The stored position of the block after `before` blocks of its chain.
    pub(super) fn position(&self, before: usize) -> u32 {
        match self.is_rootless {
            // The block may be stored again after another number of blocks.
            true => 0,
            false => u32::try_from(before).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn later(&self, time: Option<Duration>) -> Option<Duration> {
        time.map(|time| self.clock.now().saturating_add(time))
    }

    pub(super) fn is_past(&self, deadline: Option<Duration>) -> bool {
        deadline.is_some_and(|deadline| self.clock.now() > deadline)
    }

    /// Queues all jobs or none, without blocking.
    pub(super) fn queue(
        &self,
        priority: Priority,
        jobs: Vec<BoxedCacheJob<CacheParts>>,
    ) -> Result<(), TierError> {
        let labels: Vec<QueueLabel> = jobs.iter().map(|job| job.label()).collect();
        // Counted before the push, because a worker may take a job at once.
        labels.iter().for_each(|label| self.metrics.queued(*label));
        self.queue.push(priority, jobs).map_err(|(refused, jobs)| {
            drop(jobs);
            labels
                .iter()
                .for_each(|label| self.metrics.unqueued(*label));
            match refused {
                QueueRefusal::Full { waiting } => {
                    labels.iter().for_each(|label| self.metrics.refused(*label));
                    TierError::Request(RequestError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    })
                }
                QueueRefusal::Closed => TierError::Request(RequestError::Closed),
            }
        })
    }

    /// Counts a completed transfer.
    pub(super) fn moved(
        &self,
        (from, to): (TierId, TierId),
        blocks: u64,
        bytes: u64,
        time: Duration,
    ) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.metrics.moved(from, to, blocks, bytes, nanoseconds);
    }

    /// Number of blocks of a read batch, or of a write batch of a flush.
    pub(super) fn batch_blocks(&self) -> usize {
        let blocks = (BATCH_BYTES_MAX / self.block_bytes).clamp(1, BATCH_BLOCKS_MAX);
        match usize::try_from(blocks) {
            Ok(blocks) => blocks,
            Err(_) => broken(format_args!(
                "{blocks} blocks of a batch, of at most {BATCH_BLOCKS_MAX}"
            )),
        }
    }

    /// The limit above which a spill list drops keys of blocks that have left host memory. At most
    /// half of this number of keys can be in host memory.
    pub(super) fn spill_keys_max(&self) -> usize {
        self.host.pool.blocks().saturating_mul(2)
    }

    /// The tiers on which stored blocks outlive the process.
    pub(super) fn durable_tiers(&self) -> impl Iterator<Item = &CacheTier> {
        let below = self.below.iter();
        below.filter(|below| below.abilities.is_durable)
    }

    /// The tier at an index of the list.
    pub(super) fn tier(&self, at: usize) -> &CacheTier {
        let Some(below) = self.below.get(at) else {
            broken(format_args!("tier {at} of {}", self.below.len()))
        };
        below
    }

    /// Takes the turn to evict host blocks and write them.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Marks a demotion as in progress until the guard is dropped. A thread must not hold two
    /// guards.
    pub(super) fn demoting(&self) -> RwLockReadGuard<'_, ()> {
        self.demotions.read()
    }

    /// Waits for all demotions that are in progress.
    pub(super) fn wait_for_demotions(&self) {
        drop(self.demotions.write());
    }
}
