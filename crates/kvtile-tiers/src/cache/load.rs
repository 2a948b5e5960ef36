//! Loads: blocks of a match to the engine, or from disk to host memory.
//!
//! A load is cut into parts, so that several threads read the disk at once. Each part brings its
//! blocks to host memory where they are not there, and copies them from there. Where others use all
//! of host memory, they pass through a block that is kept for this.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockId, BlockKey, BlocksError,
    events::Tier,
    pool::{AllocateRequest, Claim, PinnedBlocks, TenantId},
};
use kvtile_transfer::{LayoutHandle, LeaseMode, TransferError, TransferOptions};

use super::{
    Clock, Completion, Inner, LoadOptions, LookupOptions, Match, Priority,
    completion::Shared,
    found::{self, Segment},
    host::ids,
    job::Job,
    open::check_identity,
    stored::Stored,
};
use crate::{disk::Miss, error::TierError, metrics::MissReason};

/// Parts per thread that a load from disk is cut into.
const PARTS_PER_WORKER: usize = 2;

/// Why a load ended before its last block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LoadStop {
    /// It was cancelled.
    Cancelled,
    /// It was not its turn in time.
    Deadline,
    /// The cache was closed.
    Closed,
    /// A block on disk is not what was written, or cannot be read.
    Lost,
    /// A block on disk was evicted before it was read.
    Evicted,
    /// It would fill more than the whole queue: its blocks alternate between tiers too often.
    TooManyPieces,
    /// All host memory is in use; only prefetching ends so.
    HostFull,
    /// The pool of host memory refused a key.
    Pool(BlocksError),
    /// The copy to the engine was refused or failed.
    Transfer(TransferError),
}

/// What a load came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// Leading blocks that are where they were wanted. What comes after them has to be computed.
    pub blocks: usize,
    /// Blocks that were wanted.
    pub wanted: usize,
    /// Blocks that came from host memory.
    pub from_host: usize,
    /// Blocks that were read from disk.
    pub from_disk: usize,
    /// Payload bytes that were copied to the engine.
    pub bytes: u64,
    /// From the call to the end.
    pub elapsed: Duration,
    /// Why not all of them came.
    pub stopped: Option<LoadStop>,
}

#[derive(Default)]
struct Outcome {
    /// The first block that did not come, and why.
    stopped: Option<(usize, LoadStop)>,
    from_host: usize,
    from_disk: usize,
    bytes: u64,
}

/// What the parts of a load share.
pub(super) struct Load {
    shared: Arc<Shared<LoadReport>>,
    outcome: Mutex<Outcome>,
    left: AtomicUsize,
    wanted: usize,
    clock: Arc<dyn Clock>,
    start: Duration,
    deadline: Option<Duration>,
}

/// Neighbouring blocks of a load that are in one tier. The load learns of its end when it is
/// dropped, whatever became of it.
pub(super) struct LoadPart {
    load: Arc<Load>,
    /// There until the end.
    segment: Option<Segment>,
    /// Whether all of its blocks came, or somebody said why not.
    told: bool,
    /// Index of its first block in the load.
    first: usize,
    /// Index of its first block in the chain.
    position: usize,
    /// Where its blocks go; nothing for a prefetch.
    destinations: Option<(LayoutHandle, Vec<usize>)>,
}

/// Starts loading.
pub(super) fn start(
    inner: &Arc<Inner>,
    found: Match,
    destinations: &[usize],
    options: &LoadOptions,
) -> Result<Completion<LoadReport>, TierError> {
    if !Arc::ptr_eq(&found.inner, inner) {
        return Err(TierError::OtherCache);
    }
    let blocks = found.blocks();
    if destinations.len() > blocks {
        return Err(TierError::TooManyDestinations {
            destinations: destinations.len(),
            blocks,
        });
    }
    let layout = inner.check_blocks(options.layout, destinations)?;
    let found = found.truncate(destinations.len());
    begin(inner, found, Some((layout, destinations)), options)
}

/// Starts reading from disk to host memory.
pub(super) fn prefetch(
    inner: &Arc<Inner>,
    keys: &[BlockKey],
) -> Result<Completion<LoadReport>, TierError> {
    let found = found::lookup(inner, keys, &LookupOptions::default());
    let options = LoadOptions {
        priority: Priority::Background,
        ..LoadOptions::default()
    };
    begin(inner, found, None, &options)
}

fn begin(
    inner: &Arc<Inner>,
    mut found: Match,
    destinations: Option<(LayoutHandle, &[usize])>,
    options: &LoadOptions,
) -> Result<Completion<LoadReport>, TierError> {
    let wanted = found.blocks();
    let (position, mut first) = (found.first, 0);
    let on_disk = found.blocks_in(Tier::Disk);
    let most = inner.settings.workers.max(1) * PARTS_PER_WORKER;
    // No load is so fine that it could never be queued.
    let places = inner.settings.queue_capacity;
    let others = found.segments.len().saturating_sub(1);
    let most = most.min(places.saturating_sub(others)).max(1);
    let chunk = on_disk.div_ceil(most).max(1);
    let mut pieces = Vec::new();
    for mut segment in found.segments.drain(..) {
        let mut start = (first, position + first);
        first += segment.blocks.len();
        if destinations.is_none() && segment.tier == Tier::Host {
            // It is where it should be; nothing is to be done, and nothing stays pinned.
            continue;
        }

        while segment.tier == Tier::Disk && segment.blocks.len() > chunk {
            let rest = segment.split_off(chunk);
            pieces.push((start, std::mem::replace(&mut segment, rest)));
            start = (start.0 + chunk, start.1 + chunk);
        }
        pieces.push((start, segment));
    }
    let left_out = pieces.get(places).map(|((first, _), _)| *first);
    pieces.truncate(places);
    let layers = if destinations.is_some() {
        inner.layers
    } else {
        0
    };
    let load = Arc::new(Load {
        shared: Shared::new(layers, pieces.len()),
        outcome: Mutex::default(),
        left: AtomicUsize::new(pieces.len()),
        wanted,
        clock: Arc::clone(&inner.clock),
        start: inner.clock.now(),
        deadline: inner.later(options.within),
    });
    let completion = Completion::new(Arc::clone(&load.shared));
    if pieces.is_empty() {
        load.finish();
        return Ok(completion);
    }
    if let Some(first) = left_out {
        load.stop(first, LoadStop::TooManyPieces);
    }
    let mut jobs = Vec::with_capacity(pieces.len());
    for ((first, position), segment) in pieces {
        let blocks = segment.blocks.len();
        let there = destinations
            .and_then(|(layout, ids)| Some((layout, ids.get(first..first + blocks)?.to_vec())));
        jobs.push(Job::Load(LoadPart {
            load: Arc::clone(&load),
            segment: Some(segment),
            told: false,
            first,
            position,
            destinations: there,
        }));
    }
    if let Err(error) = inner.queue(options.priority, jobs) {
        inner.metrics.lost(MissReason::QueueFull, wanted as u64);
        return Err(error);
    }
    Ok(completion)
}

impl Load {
    fn finish(&self) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let stopped = outcome.stopped.take();
        let report = LoadReport {
            blocks: stopped.as_ref().map_or(self.wanted, |(first, _)| *first),
            wanted: self.wanted,
            from_host: outcome.from_host,
            from_disk: outcome.from_disk,
            bytes: outcome.bytes,
            elapsed: self.clock.now().saturating_sub(self.start),
            stopped: stopped.map(|(_, stop)| stop),
        };
        drop(outcome);
        self.shared.finish(report);
    }

    /// Block `index` did not come.
    fn stop(&self, index: usize, stop: LoadStop) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = outcome.stopped.as_ref().is_none_or(|(at, _)| index < *at);
        if earlier {
            outcome.stopped = Some((index, stop));
        }
    }

    fn count(&self, count: impl FnOnce(&mut Outcome)) {
        count(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl LoadPart {
    pub(super) fn run(mut self, inner: &Inner) {
        let Some(segment) = self.segment.take() else {
            return;
        };
        let blocks = segment.blocks.len() as u64;
        if self.load.shared.is_cancelled() {
            inner.metrics.lost(MissReason::Cancelled, blocks);
            self.stop(0, LoadStop::Cancelled);
        } else if inner.is_past(self.load.deadline) {
            inner.metrics.lost(MissReason::Deadline, blocks);
            self.stop(0, LoadStop::Deadline);
        } else if let Err((blocks, stop)) = self.bring(inner, &segment) {
            self.stop(blocks, stop);
        }
        self.told = true;
        // Pins go before the end is told.
        drop(segment);
    }

    /// Whether its blocks go to host memory and no further.
    pub(super) fn is_prefetch(&self) -> bool {
        self.destinations.is_none()
    }

    /// Its block `index` did not come.
    fn stop(&self, index: usize, stop: LoadStop) {
        self.load.stop(self.first + index, stop);
    }

    /// Brings the blocks; on an error says how many came.
    fn bring(&self, inner: &Inner, segment: &Segment) -> Result<(), (usize, LoadStop)> {
        let blocks = &segment.blocks;
        match (segment.tier, &inner.disk) {
            (Tier::Disk, Some(disk)) => self.bring_from_disk(inner, disk, blocks),
            _ => {
                self.copy(inner, blocks.ids(), 0, true)
                    .map_err(|stop| (0, stop))?;
                self.load.count(|outcome| outcome.from_host += blocks.len());
                Ok(())
            }
        }
    }

    /// As many blocks at a time as host memory has room for.
    fn bring_from_disk(
        &self,
        inner: &Inner,
        disk: &Stored,
        blocks: &PinnedBlocks,
    ) -> Result<(), (usize, LoadStop)> {
        let wanted = self.wanted(blocks);
        let mut done = 0;
        while done < wanted.len() {
            let mut host: Vec<PinnedBlocks> = Vec::new();
            let mut read = 0;
            let mut stop = None;
            for block in wanted.get(done..).unwrap_or_default() {
                if self.load.shared.is_cancelled() {
                    stop = Some(LoadStop::Cancelled);
                    break;
                }
                match inner.bring_one(disk, block) {
                    Ok(Brought { block, was_read }) => {
                        host.push(block);
                        read += usize::from(was_read);
                    }
                    Err(why) => {
                        stop = Some(why);
                        break;
                    }
                }
            }
            let ids: Vec<BlockId> = host.iter().flat_map(|one| one.ids()).copied().collect();
            let came = ids.len();
            let last = done + came == blocks.len();
            if came > 0 {
                let copied = self.copy(inner, &ids, done, last);
                copied.map_err(|stop| (done, stop))?;
                self.load.count(|outcome| {
                    outcome.from_disk += read;
                    outcome.from_host += came - read;
                });
            }
            done += came;
            drop(host);
            match (stop, wanted.get(done)) {
                // What was brought is copied and not pinned any more: there is room again.
                (Some(LoadStop::HostFull), _) if came > 0 => {}
                (Some(LoadStop::HostFull), Some(block)) => {
                    let passed = self.pass_through(inner, disk, block, done);
                    passed.map_err(|stop| (done, stop))?;
                    done += 1;
                }
                (Some(stop), _) => return Err((done, stop)),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// One block from disk to its destination, without a place in host memory: others use all of
    /// it. It waits for its turn at the one block that is kept for this, and for nothing else.
    fn pass_through(
        &self,
        inner: &Inner,
        disk: &Stored,
        block: &Wanted,
        at: usize,
    ) -> Result<(), LoadStop> {
        let spare = inner.host.spare().filter(|_| self.destinations.is_some());
        let Some(spare) = spare else {
            inner.metrics.lost(MissReason::HostFull, 1);
            return Err(LoadStop::HostFull);
        };
        inner.read(disk, block, *spare)?;
        let last = at + 1 == self.destinations.as_ref().map_or(0, |(_, ids)| ids.len());
        self.copy(inner, &[*spare], at, last)?;
        self.load.count(|outcome| outcome.from_disk += 1);
        Ok(())
    }

    fn wanted(&self, blocks: &PinnedBlocks) -> Vec<Wanted> {
        let chain = blocks.keys().zip(blocks.parents());
        let slots = blocks.ids().iter().zip(chain).enumerate();
        let of_block = |(index, (&slot, (key, parent)))| Wanted {
            slot,
            key,
            parent,
            position: u32::try_from(self.position + index).unwrap_or(u32::MAX),
        };
        slots.map(of_block).collect()
    }

    /// Copies host blocks to the destinations from `at` on. `last`: with them the part is whole,
    /// and its layers are told as they come.
    fn copy(&self, inner: &Inner, host: &[BlockId], at: usize, last: bool) -> Result<(), LoadStop> {
        let Some((layout, destinations)) = &self.destinations else {
            return Ok(());
        };
        let there = destinations.get(at..at + host.len()).unwrap_or_default();
        let transfer = inner.manager.execute_transfer(
            inner.host.handle,
            &ids(host),
            *layout,
            there,
            TransferOptions::new(),
        );
        let transfer = transfer.map_err(LoadStop::Transfer)?;
        if last {
            for layer in 0..inner.layers {
                transfer.wait_layer(layer).map_err(LoadStop::Transfer)?;
                self.load.shared.layer_done(layer);
            }
        }
        let report = transfer.wait().map_err(LoadStop::Transfer)?;
        let route = (Tier::Host, Tier::Device);
        inner.moved(route, host.len() as u64, report.bytes, report.elapsed);
        self.load.count(|outcome| outcome.bytes += report.bytes);
        Ok(())
    }
}

impl Drop for LoadPart {
    fn drop(&mut self) {
        drop(self.segment.take());
        if !self.told {
            self.stop(0, LoadStop::Closed);
        }
        if self.load.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.load.finish();
        }
    }
}

/// A block on disk that is wanted in host memory.
struct Wanted {
    slot: BlockId,
    key: BlockKey,
    parent: Option<BlockKey>,
    position: u32,
}

/// A block in host memory, pinned there.
struct Brought {
    block: PinnedBlocks,
    /// Otherwise somebody else had brought it.
    was_read: bool,
}

impl Inner {
    /// The layout of a load or a store. Refuses one that is not of the cache's identity, ids that it
    /// does not have, and the same id twice.
    pub(super) fn check_blocks(
        &self,
        layout: Option<LayoutHandle>,
        blocks: &[usize],
    ) -> Result<LayoutHandle, TierError> {
        let (handle, count) = match layout {
            None => (self.engine, self.engine_blocks),
            Some(handle) => {
                let layout = self.manager.layout(handle)?;
                check_identity(&self.settings, &layout)?;
                (handle, layout.shape().num_blocks())
            }
        };
        let mut seen = HashSet::with_capacity(blocks.len());
        for &block in blocks {
            if block as u64 >= count {
                return Err(TierError::EngineBlockOutOfRange {
                    block,
                    blocks: count,
                });
            }
            if !seen.insert(block) {
                return Err(TierError::EngineBlockTwice { block });
            }
        }
        Ok(handle)
    }

    /// Counts what arrived.
    pub(super) fn moved(&self, (from, to): (Tier, Tier), blocks: u64, bytes: u64, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.metrics.moved(from, to, blocks, bytes, nanoseconds);
    }

    /// One block from disk to host memory, pinned there.
    fn bring_one(&self, disk: &Stored, wanted: &Wanted) -> Result<Brought, LoadStop> {
        let claim = Claim {
            now: self.tick(),
            ..Claim::default()
        };
        let key = std::slice::from_ref(&wanted.key);
        let _flight = self.flights.board(wanted.key);
        // Somebody else may have brought it meanwhile.
        let there = self.host.pool.pin(key, &claim).blocks;
        if !there.is_empty() {
            return Ok(Brought {
                block: there,
                was_read: false,
            });
        }
        let tenant = TenantId(disk.tenant(wanted.slot));
        let request = AllocateRequest {
            tenant,
            now: claim.now,
        };
        let room = self.host_room(1, &request);
        let room = room.map_err(|_| LoadStop::HostFull)?;
        let Some(&block) = room.ids().first() else {
            return Err(LoadStop::HostFull);
        };
        self.read(disk, wanted, block)?;
        self.host.describe(block, wanted.position, tenant.0);
        let complete = room.complete(key, wanted.parent);
        let complete = complete.map_err(|rejected| LoadStop::Pool(rejected.error))?;
        let registered = complete.register(&claim);
        self.metrics.stored(Tier::Host, 1);
        registered
            .map(|registered| Brought {
                block: registered.blocks,
                was_read: true,
            })
            .map_err(|rejected| LoadStop::Pool(rejected.error))
    }

    /// Reads a slot into a host block and verifies it.
    fn read(&self, disk: &Stored, wanted: &Wanted, block: BlockId) -> Result<(), LoadStop> {
        let lease = self.host.lease(&self.manager, block, LeaseMode::Write);
        let mut lease = lease.map_err(LoadStop::Transfer)?;
        let bytes = lease.block_mut(block.index() as u64);
        let bytes = bytes.map_err(LoadStop::Transfer)?;
        let start = self.clock.now();
        let Err(miss) = disk.store.read(wanted.slot.0, &wanted.key, bytes) else {
            let time = self.clock.now().saturating_sub(start);
            disk.rate.measured(self.block_bytes, time);
            self.metrics.checked(Tier::Disk, 1, 0);
            self.moved((Tier::Disk, Tier::Host), 1, self.block_bytes, time);
            return Ok(());
        };
        self.metrics.move_failed(Tier::Disk, Tier::Host);
        match &miss {
            Miss::Empty | Miss::WrongKey | Miss::Replaced => {
                self.metrics.lost(MissReason::Evicted, 1);
                return Err(LoadStop::Evicted);
            }
            Miss::Checksum | Miss::Torn | Miss::Truncated => {
                self.metrics.checked(Tier::Disk, 1, 1);
                self.metrics.lost(MissReason::Checksum, 1);
            }
            _ => self.metrics.lost(MissReason::ReadFailed, 1),
        }
        disk.drop_bad(wanted.slot, &wanted.key, &miss);
        Err(LoadStop::Lost)
    }
}
