//! Stores: they copy blocks of the engine to host memory.
//!
//! The cache keeps a chain from its first block on. A store never evicts the ancestors of its
//! blocks: of a chain that does not fit, it stores the head and drops the tail. It also drops a
//! block whose ancestors are in no tier, since no lookup would find it.

use std::{ops::Range, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, BlocksError,
    events::TierId,
    pool::{AllocateRequest, MutableBlocks, PinClaim, PinnedBlocks},
};
use kvtile_layout::broken;
use kvtile_transfer::{
    LayoutHandle, TransferError,
    completion::{Completer, Completion},
};

use super::{
    CacheParts, QueueLabel, StoreOptions, demote,
    host::ids,
    job::{BoxedCacheJob, CacheJob},
    parent::PinnedParent,
    requests, tend,
};
use crate::{
    error::{RequestError, TierError},
    room::chain_room,
    tier::{RemovalTicket, TierWrites},
};

/// Why a store ended before its last block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreStop {
    /// The caller cancelled it.
    Cancelled,
    /// It did not begin before its deadline.
    Deadline,
    /// The cache was cleared during the store.
    Cleared,
    /// The cache was closed.
    Closed,
    /// A worker thread panicked during the store: a bug of kvtile or of a medium.
    Panicked,
    /// Host memory has no room: all of it is in use, or holds the ancestors of the blocks, which a
    /// store does not evict.
    HostFull,
    /// The parent of the first block is in no tier, so no lookup would find the blocks. An engine
    /// that has the parent can store it too.
    NoAncestors,
    /// The pool of host memory refused the keys.
    Pool(BlocksError),
    /// The copy from the engine was refused or failed.
    Transfer(TransferError),
    /// The daemon of a connected cache did not answer in time.
    Late,
    /// The daemon of a connected cache refused it, for the reason in its message.
    Refused(Arc<str>),
}

/// The outcome of a store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// Blocks that were copied and that lookups now find.
    pub stored: usize,
    /// Blocks that were stored already.
    pub present: usize,
    /// Blocks that were not stored.
    pub dropped: usize,
    /// Payload bytes copied from the engine.
    pub bytes: u64,
    /// Time from the call to the completion.
    pub elapsed: Duration,
    /// Why some blocks were dropped.
    pub stopped: Option<StoreStop>,
}

/// The longest store for which the caller's thread checks whether all of its blocks are stored
/// already.
const PEEK_MAX: usize = 1024;

/// A store that waits in the queue.
struct StoreJob {
    completer: Completer<StoreReport>,
    /// Its number among the stores in flight.
    number: u64,
    keys: Arc<[BlockKey]>,
    /// The key of the block before the first one.
    parent: Option<BlockKey>,
    /// Number of blocks before the first one in the chain.
    position: usize,
    /// The source layout.
    layout: LayoutHandle,
    /// The engine's blocks in the source layout.
    sources: Vec<usize>,
    options: StoreOptions,
    start: Duration,
    /// Tells whether the cache was cleared after the call.
    ticket: RemovalTicket,
    deadline: Option<Duration>,
    /// Whether the job has begun. A job that is dropped after that without a report panicked.
    has_begun: bool,
}

/// Starts storing.
pub(super) fn start(
    inner: &Arc<CacheParts>,
    all: &[BlockKey],
    blocks: &[usize],
    options: &StoreOptions,
) -> Result<Completion<StoreReport>, TierError> {
    let first = options.first;
    let wanted = first.checked_add(blocks.len());
    let Some(chain) = wanted.and_then(|end| all.get(first..end)) else {
        return Err(TierError::Request(RequestError::TooFewKeys {
            keys: all.len(),
            first,
            blocks: blocks.len(),
        }));
    };
    let layout = requests::check_blocks(inner, options.layout, blocks)?;
    requests::check_after(&inner.manager, layout, &options.after)?;
    let completer = Completer::new(0, 0);
    let completion = completer.completion();
    // The job checks longer chains on a worker thread.
    let is_done = blocks.len() <= PEEK_MAX && inner.host.pool.peek(chain) == chain.len();
    let keys: Arc<[BlockKey]> = chain.into();
    let number = match is_done {
        true => 0,
        false => inner.chains.enter(Arc::clone(&keys)),
    };
    let job = StoreJob {
        completer,
        number,
        parent: match inner.is_rootless {
            true => None,
            false => first.checked_sub(1).and_then(|at| all.get(at)).copied(),
        },
        keys,
        position: first,
        layout,
        sources: blocks.to_vec(),
        options: StoreOptions {
            hints: inner.hints(options.hints, options.lifetime),
            ..options.clone()
        },
        start: inner.clock.now(),
        ticket: inner.removals.begin(),
        deadline: inner.later(options.within),
        has_begun: false,
    };
    if is_done {
        let done = StoreProgress {
            present: job.keys.len(),
            ..StoreProgress::default()
        };
        job.finish(inner, &done, None);
        return Ok(completion);
    }
    let queued = inner.queue(options.priority, vec![Box::new(job)]);
    if queued.is_err() {
        store_ended(inner, number);
    }
    queued.map(|()| completion)
}

/// The progress of a store.
#[derive(Default)]
struct StoreProgress {
    stored: usize,
    present: usize,
    bytes: u64,
}

impl CacheJob<CacheParts> for StoreJob {
    fn label(&self) -> QueueLabel {
        QueueLabel::Store
    }

    fn run(mut self: Box<Self>, inner: &CacheParts) {
        // Dropping the guard resumes the stores that wait for this one, also after a panic.
        let mut end = StoreEnd {
            inner,
            number: Some(self.number),
        };
        self.has_begun = true;
        let (job, parent) = match (self.parent, PinnedParent::hold(inner, self.parent.as_ref())) {
            // An older store may be copying the parent.
            (Some(key), None) => match self.park(inner, &key) {
                Ok(()) => {
                    end.number = None;
                    return;
                }
                // The older store has ended since the first check, or there is none.
                Err(mut job) => {
                    job.has_begun = true;
                    (job, PinnedParent::hold(inner, Some(&key)))
                }
            },
            (_, parent) => (self, parent),
        };
        job.copy_from(inner, parent);
    }
}

impl StoreJob {
    /// Parks the job until the older store of `key` ends; fails if there is none.
    fn park(mut self: Box<Self>, inner: &CacheParts, key: &BlockKey) -> Result<(), Box<StoreJob>> {
        inner.queue.park();
        self.has_begun = false;
        let (number, priority) = (self.number, self.options.priority);
        let mut left = Some(self);
        inner.chains.park(number, key, || {
            left.take()
                .map(|job| (priority, job as BoxedCacheJob<CacheParts>))
        });
        match left {
            None => Ok(()),
            Some(job) => {
                inner.queue.unpark();
                Err(job)
            }
        }
    }

    fn copy_from(&self, inner: &CacheParts, parent: Option<PinnedParent>) {
        let mut done = StoreProgress::default();
        let stopped = match parent {
            _ if inner.is_past(self.deadline) => Some(StoreStop::Deadline),
            None => Some(StoreStop::NoAncestors),
            Some(parent) => self.copy_all(inner, parent, &mut done).err(),
        };
        self.finish(inner, &done, stopped);
    }

    fn finish(&self, inner: &CacheParts, done: &StoreProgress, stopped: Option<StoreStop>) {
        let elapsed = inner.clock.now().saturating_sub(self.start);
        let report = self.report(done, elapsed, stopped);
        inner.metrics.stored(TierId::HOST, report.stored as u64);
        if matches!(
            report.stopped,
            Some(StoreStop::HostFull | StoreStop::NoAncestors)
        ) {
            inner.metrics.left_out(TierId::HOST, report.dropped as u64);
        }
        self.completer.finish(report);
    }

    fn report(
        &self,
        done: &StoreProgress,
        elapsed: Duration,
        stopped: Option<StoreStop>,
    ) -> StoreReport {
        StoreReport {
            stored: done.stored,
            present: done.present,
            dropped: self.keys.len() - done.stored - done.present,
            bytes: done.bytes,
            elapsed,
            stopped,
        }
    }

    /// Copies the blocks, in runs that fit in host memory.
    fn copy_all(
        &self,
        inner: &CacheParts,
        mut parent: PinnedParent,
        done: &mut StoreProgress,
    ) -> Result<(), StoreStop> {
        let mut at = 0;
        while at < self.keys.len() {
            if self.completer.is_cancelled() {
                return Err(StoreStop::Cancelled);
            }
            let (_, rest) = self.keys.split_at(at);
            let (blocks, last) = match PinnedParent::hold_leading(inner, rest) {
                Some(present) => present,
                None => match self.room(inner, rest.len(), &mut parent) {
                    Some(room) => {
                        let range = at..at + room.len();
                        at = range.end;
                        parent = self.copy(inner, range, room, done)?;
                        continue;
                    }
                    // Blocks that do not fit in host memory may be in a tier below already.
                    None => {
                        PinnedParent::hold_leading_below(inner, rest).ok_or(StoreStop::HostFull)?
                    }
                },
            };
            done.present += blocks;
            at += blocks;
            parent = last;
        }
        Ok(())
    }

    /// Allocates host blocks, fewer if not all fit, without evicting the ancestors from all tiers.
    fn room(
        &self,
        inner: &CacheParts,
        wanted: usize,
        parent: &mut PinnedParent,
    ) -> Option<MutableBlocks> {
        let request = AllocateRequest {
            tenant: self.options.tenant,
            now: inner.tick(),
        };
        loop {
            let room = chain_room(wanted, |blocks| demote::host_room(inner, blocks, &request));
            if room.is_some() {
                return room;
            }
            // Only the ancestors are left to evict. They may leave host memory once a tier below
            // has them.
            if !parent.move_below(inner) {
                return None;
            }
        }
    }

    /// Copies the blocks of `range` into `room` and registers them. Returns the last one, pinned.
    fn copy(
        &self,
        inner: &CacheParts,
        range: Range<usize>,
        room: MutableBlocks,
        done: &mut StoreProgress,
    ) -> Result<PinnedParent, StoreStop> {
        let parts = self
            .keys
            .get(range.clone())
            .zip(self.sources.get(range.clone()));
        let Some((keys, sources)) = parts else {
            broken(format_args!(
                "blocks {range:?} of {} keys and {} sources",
                self.keys.len(),
                self.sources.len()
            ))
        };
        let transfer = inner.manager.execute_transfer(
            self.layout,
            sources,
            inner.host.handle,
            &ids(room.ids()),
            requests::transfer_after(&self.options.after),
        );
        let report = transfer.and_then(|transfer| transfer.wait());
        let report = report.map_err(StoreStop::Transfer)?;
        done.bytes += report.bytes;
        let route = (TierId::DEVICE, TierId::HOST);
        inner.moved(route, keys.len() as u64, report.bytes, report.elapsed);
        let tenant = self.options.tenant.0;
        for (index, &block) in room.ids().iter().enumerate() {
            let position = inner.position(self.position + range.start + index);
            inner.host.describe(block, position, tenant);
        }
        let before = range.start.checked_sub(1).and_then(|at| self.keys.get(at));
        let last = match inner.is_rootless {
            true => self.register_each(inner, keys, room, done)?,
            false => {
                let parent = before.copied().or(self.parent);
                let is_end = range.end == self.keys.len();
                self.register(inner, (keys, parent, is_end), room, done)?
            }
        };
        self.write_through(inner, keys);
        Ok(PinnedParent::Host(last))
    }

    /// Registers copied blocks as a chain after `parent`. Returns the last one, pinned.
    fn register(
        &self,
        inner: &CacheParts,
        (keys, parent, is_end): (&[BlockKey], Option<BlockKey>, bool),
        room: MutableBlocks,
        done: &mut StoreProgress,
    ) -> Result<PinnedBlocks, StoreStop> {
        let complete = room.complete(keys, parent);
        let complete = complete.map_err(|rejected| StoreStop::Pool(rejected.error))?;
        let mut hints = self.options.hints;
        hints.partial_tail &= is_end;
        let removals = self.ticket.lock();
        if removals.is_cleared() {
            return Err(StoreStop::Cleared);
        }
        let registered = complete.register(&PinClaim {
            now: inner.tick(),
            hints,
            ..PinClaim::default()
        });
        drop(removals);
        let registered = registered.map_err(|rejected| StoreStop::Pool(rejected.error))?;
        let twice = registered.duplicates.len();
        done.stored += keys.len() - twice;
        done.present += twice;
        demote::anchor(inner, &registered.blocks, parent);
        let mut blocks = registered.blocks;
        let last = blocks.split_off(blocks.len().saturating_sub(1));
        drop(blocks);
        Ok(last)
    }

    /// Registers copied blocks without parents. Returns the last one, pinned.
    fn register_each(
        &self,
        inner: &CacheParts,
        keys: &[BlockKey],
        mut room: MutableBlocks,
        done: &mut StoreProgress,
    ) -> Result<PinnedBlocks, StoreStop> {
        let Some((last, others)) = keys.split_last() else {
            broken(format_args!(
                "a store of {} host blocks copied none",
                room.len()
            ))
        };
        for key in others {
            let one = room.take(0..1);
            drop(self.register(inner, (std::slice::from_ref(key), None, false), one, done)?);
        }
        self.register(inner, (std::slice::from_ref(last), None, true), room, done)
    }

    /// Queues the blocks for the tiers with [`TierWrites::AtOnce`].
    fn write_through(&self, inner: &CacheParts, keys: &[BlockKey]) {
        for below in &inner.below {
            if below.settings.writes == TierWrites::AtOnce {
                tend::spill(inner, below, keys);
            }
        }
    }
}

impl Drop for StoreJob {
    /// Completes a store that did not finish: the cache was closed, the queue was full, or it
    /// panicked.
    fn drop(&mut self) {
        let nothing = StoreProgress::default();
        let stop = match self.has_begun {
            false => StoreStop::Closed,
            true => StoreStop::Panicked,
        };
        self.completer
            .finish(self.report(&nothing, Duration::ZERO, Some(stop)));
    }
}

/// Ends a store when it is dropped, also after a panic, so that waiting stores resume.
struct StoreEnd<'a> {
    inner: &'a CacheParts,
    /// `None` if the store is parked.
    number: Option<u64>,
}

impl Drop for StoreEnd<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            store_ended(self.inner, number);
        }
    }
}

/// Ends a store, and queues the stores that were parked for it.
fn store_ended(inner: &CacheParts, number: u64) {
    let parked = inner.chains.leave(number);
    if parked.is_empty() {
        return;
    }
    for _ in &parked {
        inner.metrics.queued(QueueLabel::Store);
    }
    for job in inner.queue.resume(parked) {
        inner.metrics.unqueued(job.label());
    }
}
