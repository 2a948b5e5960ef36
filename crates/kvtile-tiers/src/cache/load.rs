//! Loads: blocks of a match to the engine, or from disk to host memory.
//!
//! A load is cut into parts, so that several threads read the disk at once. Each part brings its
//! blocks to host memory where they are not there, and copies them from there. Where others use all
//! of host memory, they pass through a block that is kept for this.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{BlockId, BlockKey, BlocksError, events::Tier, pool::PinnedBlocks};
use kvtile_layout::broken;
use kvtile_transfer::{
    LayoutHandle, TransferError, TransferOptions,
    completion::{Completer, Completion},
};

use super::{
    Clock, Inner, LoadOptions, LookupOptions, Match, Priority,
    bring::{Brought, Wanted},
    found::{self, Segment},
    host::ids,
    job::Job,
    stored::Stored,
};
use crate::{error::TierError, metrics::MissReason};

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
    /// A thread panicked while it loaded a part: a defect of kvtile or of a medium.
    Panicked,
    /// A block on disk is not what was written, or cannot be read.
    Lost,
    /// A block on disk was evicted before it was read.
    Evicted,
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
    completer: Completer<LoadReport>,
    outcome: Mutex<Outcome>,
    left: AtomicUsize,
    wanted: usize,
    clock: Arc<dyn Clock>,
    start: Duration,
    deadline: Option<Duration>,
}

/// Neighbouring blocks of a load that are in one tier.
struct Piece {
    segment: Segment,
    /// Index of its first block in the load.
    first: usize,
    /// Index of its first block in the chain.
    position: usize,
    /// Where its blocks go; nothing for a prefetch.
    destinations: Option<(LayoutHandle, Vec<usize>)>,
}

/// Neighbouring pieces of a load, which one job brings. The load learns of its end when it is dropped,
/// whatever became of it.
pub(super) struct LoadPart {
    load: Arc<Load>,
    /// Those that were not begun yet.
    pieces: VecDeque<Piece>,
    /// Whether it goes to host memory and no further.
    is_prefetch: bool,
    /// Whether it has begun: what is left of it when it is dropped was lost to a panic then.
    has_begun: bool,
}

/// Starts loading.
pub(super) fn start(
    inner: &Arc<Inner>,
    found: Match,
    destinations: &[usize],
    options: &LoadOptions,
) -> Result<Completion<LoadReport>, TierError> {
    if !found.is_of(inner) {
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
    found: Match,
    destinations: Option<(LayoutHandle, &[usize])>,
    options: &LoadOptions,
) -> Result<Completion<LoadReport>, TierError> {
    let wanted = found.blocks();
    let is_prefetch = destinations.is_none();
    let layers = if is_prefetch { 0 } else { inner.layers };
    let pieces = cut(inner, found, destinations);
    // However finely a load is cut, the queue has places for all of its parts.
    let per_part = pieces.len().div_ceil(inner.settings.queue_capacity).max(1);
    let parts = pieces.len().div_ceil(per_part);
    let load = Arc::new(Load {
        completer: Completer::new(layers, wanted),
        outcome: Mutex::default(),
        left: AtomicUsize::new(parts),
        wanted,
        clock: Arc::clone(&inner.clock),
        start: inner.clock.now(),
        deadline: inner.later(options.within),
    });
    let completion = load.completer.completion();
    if pieces.is_empty() {
        load.finish();
        return Ok(completion);
    }
    let mut pieces = pieces.into_iter().peekable();
    let mut jobs = Vec::with_capacity(parts);
    while pieces.peek().is_some() {
        jobs.push(Job::Load(LoadPart {
            load: Arc::clone(&load),
            pieces: pieces.by_ref().take(per_part).collect(),
            is_prefetch,
            has_begun: false,
        }));
    }
    if let Err(error) = inner.queue(options.priority, jobs) {
        inner.metrics.lost(MissReason::QueueFull, wanted as u64);
        return Err(error);
    }
    Ok(completion)
}

/// The pieces that a match is brought in: its segments, those on disk cut so that several threads
/// read at once.
fn cut(
    inner: &Inner,
    mut found: Match,
    destinations: Option<(LayoutHandle, &[usize])>,
) -> Vec<Piece> {
    let (position, mut first) = (found.first, 0);
    let on_disk = found.blocks_in(Tier::Disk);
    let most = inner.settings.workers.max(1) * PARTS_PER_WORKER;
    let others = found.segments.len().saturating_sub(1);
    let most = most.min(inner.settings.queue_capacity.saturating_sub(others));
    let chunk = on_disk.div_ceil(most.max(1)).max(1);
    let mut pieces = Vec::new();
    let mut add = |segment: Segment, first: usize| {
        let blocks = first..first + segment.blocks.len();
        let destinations = destinations.map(|(layout, ids)| {
            let Some(mine) = ids.get(blocks.clone()) else {
                broken(format_args!(
                    "blocks {blocks:?} of {} destinations",
                    ids.len()
                ))
            };
            (layout, mine.to_vec())
        });
        pieces.push(Piece {
            first,
            position: position + first,
            destinations,
            segment,
        });
    };
    for mut segment in found.segments.drain(..) {
        let mut start = first;
        first += segment.blocks.len();
        if destinations.is_none() && segment.tier == Tier::Host {
            // It is where it should be; nothing is to be done, and nothing stays pinned.
            continue;
        }
        while segment.tier == Tier::Disk && segment.blocks.len() > chunk {
            let rest = segment.split_off(chunk);
            add(std::mem::replace(&mut segment, rest), start);
            start += chunk;
        }
        add(segment, start);
    }
    pieces
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
        self.completer.finish(report);
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
    /// Brings its pieces in order, up to the first block that does not come.
    pub(super) fn run(mut self, inner: &Inner) {
        self.has_begun = true;
        while let Some(piece) = self.pieces.front() {
            let left: usize = self
                .pieces
                .iter()
                .map(|piece| piece.segment.blocks.len())
                .sum();
            let stopped = if self.load.completer.is_cancelled() {
                inner.metrics.lost(MissReason::Cancelled, left as u64);
                Err((0, LoadStop::Cancelled))
            } else if inner.is_past(self.load.deadline) {
                inner.metrics.lost(MissReason::Deadline, left as u64);
                Err((0, LoadStop::Deadline))
            } else {
                piece.bring(inner, &self.load)
            };
            match stopped {
                // Pins go before the end is reported.
                Ok(()) => drop(self.pieces.pop_front()),
                Err((blocks, stop)) => {
                    self.load.stop(piece.first + blocks, stop);
                    self.pieces.clear();
                }
            }
        }
    }

    /// Whether its blocks go to host memory and no further.
    pub(super) fn is_prefetch(&self) -> bool {
        self.is_prefetch
    }
}

impl Piece {
    /// Brings the blocks; on an error says how many came.
    fn bring(&self, inner: &Inner, load: &Load) -> Result<(), (usize, LoadStop)> {
        let blocks = &self.segment.blocks;
        match (self.segment.tier, &inner.disk) {
            (Tier::Disk, Some(disk)) => self.bring_from_disk(inner, load, disk),
            _ => {
                self.copy(inner, load, blocks.ids(), 0)
                    .map_err(|stop| (0, stop))?;
                load.count(|outcome| outcome.from_host += blocks.len());
                Ok(())
            }
        }
    }

    /// As many blocks at a time as host memory has room for.
    fn bring_from_disk(
        &self,
        inner: &Inner,
        load: &Load,
        disk: &Stored,
    ) -> Result<(), (usize, LoadStop)> {
        let wanted = self.wanted();
        let mut done = 0;
        while done < wanted.len() {
            let mut host: Vec<PinnedBlocks> = Vec::new();
            let mut read = 0;
            let mut stop = None;
            for block in wanted.iter().skip(done) {
                if load.completer.is_cancelled() {
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
            if came > 0 {
                let copied = self.copy(inner, load, &ids, done);
                copied.map_err(|stop| (done, stop))?;
                load.count(|outcome| {
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
                    let passed = self.pass_through(inner, load, (disk, block), done);
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
        load: &Load,
        (disk, block): (&Stored, &Wanted),
        at: usize,
    ) -> Result<(), LoadStop> {
        let spare = inner.host.spare().filter(|_| self.destinations.is_some());
        let Some(spare) = spare else {
            inner.metrics.lost(MissReason::HostFull, 1);
            return Err(LoadStop::HostFull);
        };
        inner.read(disk, block, *spare)?;
        self.copy(inner, load, &[*spare], at)?;
        load.count(|outcome| outcome.from_disk += 1);
        Ok(())
    }

    fn wanted(&self) -> Vec<Wanted> {
        let blocks = &self.segment.blocks;
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

    /// Copies host blocks to the destinations from `at` on, and reports each layer as it comes.
    fn copy(
        &self,
        inner: &Inner,
        load: &Load,
        host: &[BlockId],
        at: usize,
    ) -> Result<(), LoadStop> {
        let Some((layout, destinations)) = &self.destinations else {
            return Ok(());
        };
        let Some(there) = destinations.get(at..at + host.len()) else {
            broken(format_args!(
                "{} blocks from {at} on of {} destinations",
                host.len(),
                destinations.len()
            ))
        };
        let transfer = inner.manager.execute_transfer(
            inner.host.handle,
            &ids(host),
            *layout,
            there,
            TransferOptions::new(),
        );
        let transfer = transfer.map_err(LoadStop::Transfer)?;
        for layer in 0..inner.layers {
            transfer.wait_layer(layer).map_err(LoadStop::Transfer)?;
            load.completer.layer_came(layer, host.len());
        }
        let report = transfer.wait().map_err(LoadStop::Transfer)?;
        let route = (Tier::Host, Tier::Device);
        inner.moved(route, host.len() as u64, report.bytes, report.elapsed);
        load.count(|outcome| outcome.bytes += report.bytes);
        Ok(())
    }
}

impl Drop for LoadPart {
    fn drop(&mut self) {
        // Pieces that were never begun (the cache was closed, or its queue was full), or not ended.
        if let Some(piece) = self.pieces.front() {
            let stop = match self.has_begun {
                false => LoadStop::Closed,
                true => LoadStop::Panicked,
            };
            self.load.stop(piece.first, stop);
        }
        self.pieces.clear();
        if self.load.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.load.finish();
        }
    }
}
