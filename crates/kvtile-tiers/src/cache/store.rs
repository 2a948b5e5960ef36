//! Stores: the engine's blocks to host memory.

use std::{ops::Range, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, BlocksError,
    events::Tier,
    pool::{AllocateRequest, Claim, MutableBlocks},
};
use kvtile_transfer::{LayoutHandle, TransferError, TransferOptions};

use super::{
    Completion, DiskWrites, Inner, Priority, StoreOptions, completion::Shared, demote::WriteJob,
    host::ids, job::Job,
};
use crate::error::TierError;

/// Why a store ended before its last block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreStop {
    /// It was cancelled.
    Cancelled,
    /// It was not its turn in time.
    Deadline,
    /// The cache was closed.
    Closed,
    /// All host memory is in use.
    HostFull,
    /// The pool of host memory refused the keys.
    Pool(BlocksError),
    /// The copy from the engine was refused or failed.
    Transfer(TransferError),
}

/// What a store came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// Blocks that were copied and can be found now.
    pub stored: usize,
    /// Blocks that were there already.
    pub present: usize,
    /// Blocks that were not stored.
    pub dropped: usize,
    /// Payload bytes that were copied.
    pub bytes: u64,
    /// From the call to the end.
    pub elapsed: Duration,
    /// Why not all of them were stored.
    pub stopped: Option<StoreStop>,
}

/// A store that waits for its turn.
pub(super) struct StoreJob {
    shared: Arc<Shared<StoreReport>>,
    keys: Vec<BlockKey>,
    /// The block before the first one.
    parent: Option<BlockKey>,
    /// How many blocks stand before the first one in the chain.
    position: usize,
    /// The layout that they are in.
    layout: LayoutHandle,
    /// Where they are in it.
    sources: Vec<usize>,
    /// Blocks that were there when the store was asked for.
    present: usize,
    options: StoreOptions,
    start: Duration,
    deadline: Option<Duration>,
}

/// Starts storing.
pub(super) fn start(
    inner: &Arc<Inner>,
    (keys, first): (&[BlockKey], usize),
    blocks: &[usize],
    options: &StoreOptions,
) -> Result<Completion<StoreReport>, TierError> {
    let wanted = first.checked_add(blocks.len());
    let Some(chain) = wanted.and_then(|end| keys.get(first..end)) else {
        return Err(TierError::TooFewKeys {
            keys: keys.len(),
            first,
            blocks: blocks.len(),
        });
    };
    let layout = inner.check_blocks(options.layout, blocks)?;
    let shared = Shared::new(0, 0);
    let completion = Completion::new(Arc::clone(&shared));
    let present = inner.host.pool.peek(chain);
    let position = first + present;
    let job = StoreJob {
        shared,
        keys: chain.get(present..).unwrap_or_default().to_vec(),
        parent: position.checked_sub(1).and_then(|at| keys.get(at)).copied(),
        position,
        layout,
        sources: blocks.get(present..).unwrap_or_default().to_vec(),
        present,
        options: StoreOptions {
            hints: inner.hints(options.hints, options.lifetime),
            ..*options
        },
        start: inner.clock.now(),
        deadline: inner.later(options.within),
    };
    if job.keys.is_empty() {
        job.finish(inner, Stored::default(), None);
        return Ok(completion);
    }
    inner.queue(options.priority, vec![Job::Store(job)])?;
    Ok(completion)
}

/// What a store has done so far.
#[derive(Default)]
struct Stored {
    stored: usize,
    present: usize,
    bytes: u64,
}

impl StoreJob {
    pub(super) fn run(self, inner: &Inner) {
        let mut done = Stored::default();
        let stopped = if inner.is_past(self.deadline) {
            Some(StoreStop::Deadline)
        } else {
            self.copy_all(inner, &mut done).err()
        };
        self.finish(inner, done, stopped);
    }

    fn finish(&self, inner: &Inner, done: Stored, stopped: Option<StoreStop>) {
        let elapsed = inner.clock.now().saturating_sub(self.start);
        let report = self.report(&done, elapsed, stopped);
        inner.metrics.stored(Tier::Host, report.stored as u64);
        self.shared.finish(report);
    }

    fn report(&self, done: &Stored, elapsed: Duration, stopped: Option<StoreStop>) -> StoreReport {
        StoreReport {
            stored: done.stored,
            present: self.present + done.present,
            dropped: self.keys.len() - done.stored - done.present,
            bytes: done.bytes,
            elapsed,
            stopped,
        }
    }

    /// In pieces that host memory has room for.
    fn copy_all(&self, inner: &Inner, done: &mut Stored) -> Result<(), StoreStop> {
        let mut at = 0;
        while at < self.keys.len() {
            if self.shared.is_cancelled() {
                return Err(StoreStop::Cancelled);
            }
            let rest = self.keys.get(at..).unwrap_or_default();
            let present = inner.host.pool.peek(rest);
            done.present += present;
            at += present;
            let wanted = rest.len() - present;
            if wanted == 0 {
                break;
            }
            let room = self.room(inner, wanted).ok_or(StoreStop::HostFull)?;
            at += self.copy(inner, at..at + room.len(), room, done)?;
        }
        Ok(())
    }

    /// Host blocks for up to `wanted` blocks.
    fn room(&self, inner: &Inner, wanted: usize) -> Option<MutableBlocks> {
        let request = AllocateRequest {
            tenant: self.options.tenant,
            now: inner.tick(),
        };
        let mut count = wanted;
        while count > 0 {
            match inner.host_room(count, &request) {
                Ok(room) => return Some(room),
                Err(_) => count /= 2,
            }
        }
        None
    }

    /// Copies the blocks of `range` into `room` and registers them. Returns how many that were.
    fn copy(
        &self,
        inner: &Inner,
        range: Range<usize>,
        room: MutableBlocks,
        done: &mut Stored,
    ) -> Result<usize, StoreStop> {
        let keys = self.keys.get(range.clone()).unwrap_or_default();
        let sources = self.sources.get(range.clone()).unwrap_or_default();
        let transfer = inner.manager.execute_transfer(
            self.layout,
            sources,
            inner.host.handle,
            &ids(room.ids()),
            TransferOptions::new(),
        );
        let report = transfer.and_then(|transfer| transfer.wait());
        let report = report.map_err(StoreStop::Transfer)?;
        done.bytes += report.bytes;
        let route = (Tier::Device, Tier::Host);
        inner.moved(route, keys.len() as u64, report.bytes, report.elapsed);
        let tenant = self.options.tenant.0;
        for (index, &block) in room.ids().iter().enumerate() {
            let position = self.position + range.start + index;
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            inner.host.describe(block, position, tenant);
        }
        let before = range.start.checked_sub(1).and_then(|at| self.keys.get(at));
        let parent = before.copied().or(self.parent);
        let complete = room.complete(keys, parent);
        let complete = complete.map_err(|rejected| StoreStop::Pool(rejected.error))?;
        let registered = complete.register(&Claim {
            now: inner.tick(),
            hints: self.options.hints,
            ..Claim::default()
        });
        let registered = registered.map_err(|rejected| StoreStop::Pool(rejected.error))?;
        let twice = registered.duplicates.len();
        done.stored += keys.len() - twice;
        done.present += twice;
        drop(registered);
        self.write_through(inner, keys);
        Ok(keys.len())
    }

    /// To disk as well, where the settings say so. Where the queue is full, the blocks go to disk
    /// when they are evicted.
    fn write_through(&self, inner: &Inner, keys: &[BlockKey]) {
        let writes = inner.settings.disk.as_ref().map(|disk| disk.writes);
        if writes == Some(DiskWrites::AtOnce) {
            let keys = keys.to_vec();
            let job = Job::Write(WriteJob { keys });
            let _ = inner.queue(Priority::Background, vec![job]);
        }
    }
}

impl Drop for StoreJob {
    /// One that was never done ends too: the cache was closed, or the queue was full.
    fn drop(&mut self) {
        let nothing = Stored::default();
        let closed = Some(StoreStop::Closed);
        self.shared
            .finish(self.report(&nothing, Duration::ZERO, closed));
    }
}
