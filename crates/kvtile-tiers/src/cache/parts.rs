//! The parts of a cache, as its threads share them, and what all of them need: the time, the queue, the tiers.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use kvtile_blocks::{
    Tick,
    events::{EventLog, TierId},
    policy::Hints,
};
use kvtile_layout::broken;
use kvtile_transfer::{LayoutHandle, TransferManager};

use super::{
    CacheSettings, Priority, QueueLabel,
    below::Below,
    chains::Chains,
    departures::Departures,
    flights::Flights,
    host::Host,
    job::Job,
    queue::{Queue, Refused},
};
use crate::{
    clock::Clock,
    error::TierError,
    metrics::CacheMetrics,
    tier::{Pieces, TierStats},
};

/// What the threads of a cache share.
pub(super) struct Parts {
    pub(super) manager: Arc<TransferManager>,
    pub(super) engine: LayoutHandle,
    pub(super) layers: usize,
    pub(super) page_size: u64,
    pub(super) block_bytes: u64,
    /// How a stored block is cut.
    pub(super) pieces: Pieces,
    pub(super) engine_blocks: u64,
    /// Whether the engine's layout is to be unregistered in the end.
    pub(super) owns_engine: bool,
    pub(super) host: Host,
    /// The tiers below host memory, in the order in which blocks are looked for.
    pub(super) below: Vec<Below>,
    /// Held while host blocks are evicted and written, so that no thread evicts the parent of a block
    /// that another one is about to write.
    pub(super) turn: Mutex<()>,
    /// Read while host blocks are evicted, until these are on their tiers.
    pub(super) demotions: RwLock<()>,
    /// Blocks on their way from host memory to a tier.
    pub(super) departures: Departures,
    pub(super) queue: Queue<Job<Parts>>,
    /// Stores that are under way.
    pub(super) chains: Chains<(Priority, Job<Parts>)>,
    pub(super) flights: Flights,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: CacheSettings,
    pub(super) metrics: Arc<CacheMetrics>,
    /// What the tiers had counted when they were last looked at: host memory, then those below it.
    pub(super) seen: Vec<Mutex<TierStats>>,
    pub(super) events: Arc<EventLog>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Most blocks that are read in one batch.
const BATCH_BLOCKS_MAX: u64 = 64;

/// Most bytes that are read in one batch, where that is more than one block.
const BATCH_BYTES_MAX: u64 = 64 << 20;

impl Parts {
    pub(super) fn tick(&self) -> Tick {
        self.tick_in(Duration::ZERO)
    }

    /// The tick that it is after some time.
    pub(super) fn tick_in(&self, time: Duration) -> Tick {
        let millis = self.clock.now().saturating_add(time).as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// The hints of a request; a lifetime becomes the tick at which it ends.
    pub(super) fn hints(&self, mut hints: Hints, lifetime: Option<Duration>) -> Hints {
        if let Some(lifetime) = lifetime {
            hints.expires = Some(self.tick_in(lifetime));
        }
        hints
    }

    pub(super) fn later(&self, time: Option<Duration>) -> Option<Duration> {
        time.map(|time| self.clock.now().saturating_add(time))
    }

    pub(super) fn is_past(&self, deadline: Option<Duration>) -> bool {
        deadline.is_some_and(|deadline| self.clock.now() > deadline)
    }

    /// Queues all jobs or none, without waiting.
    pub(super) fn queue(&self, priority: Priority, jobs: Vec<Job<Parts>>) -> Result<(), TierError> {
        let labels: Vec<QueueLabel> = jobs.iter().map(|job| job.label()).collect();
        // Counted before a worker can take them.
        labels.iter().for_each(|label| self.metrics.queued(*label));
        self.queue.push(priority, jobs).map_err(|(refused, jobs)| {
            drop(jobs);
            labels
                .iter()
                .for_each(|label| self.metrics.unqueued(*label));
            match refused {
                Refused::Full { waiting } => {
                    labels.iter().for_each(|label| self.metrics.refused(*label));
                    TierError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    }
                }
                Refused::Closed => TierError::Closed,
            }
        })
    }

    /// Counts what arrived.
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

    /// Blocks that are read in one batch, or written by a flush.
    pub(super) fn batch_blocks(&self) -> usize {
        let blocks = (BATCH_BYTES_MAX / self.block_bytes).clamp(1, BATCH_BLOCKS_MAX);
        match usize::try_from(blocks) {
            Ok(blocks) => blocks,
            Err(_) => broken(format_args!(
                "{blocks} blocks of a batch, of at most {BATCH_BLOCKS_MAX}"
            )),
        }
    }

    /// Above so many, keys of blocks that have left host memory are dropped from the list of those to
    /// write: no more than half of them can be there.
    pub(super) fn spill_keys_max(&self) -> usize {
        self.host.pool.blocks().saturating_mul(2)
    }

    /// The tiers that what was stored outlives the process on.
    pub(super) fn durable_tiers(&self) -> impl Iterator<Item = &Below> {
        let below = self.below.iter();
        below.filter(|below| below.abilities.is_durable)
    }

    /// The tier at a position of the list.
    pub(super) fn tier(&self, at: usize) -> &Below {
        let Some(below) = self.below.get(at) else {
            broken(format_args!("tier {at} of {}", self.below.len()))
        };
        below
    }

    /// The turn to evict host blocks and write them.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that host blocks are about to be evicted, until they are on their tiers. A thread says it once.
    pub(super) fn demoting(&self) -> RwLockReadGuard<'_, ()> {
        let demotions = self.demotions.read();
        demotions.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all demotions that have begun.
    pub(super) fn wait_for_demotions(&self) {
        let demotions = self.demotions.write();
        drop(demotions.unwrap_or_else(PoisonError::into_inner));
    }
}
