//! Loads: blocks of a match to the engine, or from disk to host memory.
//!
//! A load is cut into parts, so that several threads read and copy at once. Each part brings its
//! blocks to host memory where they are not there, in batches, and copies them from there. Where all of host
//! memory is in use, they pass through a block that is kept for this.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{BlockId, BlockKey, events::TierId};
use kvtile_layout::{RangePair, broken};
use kvtile_transfer::{
    LayoutHandle, TransferOptions,
    completion::{Completer, Completion},
};

use super::{
    Clock, LoadOptions, LookupOptions, Match, Parts, Priority, QueueLabel,
    below::{self, Below},
    bring::{self, Brought, Wanted},
    found::{self, Place, Segment},
    host::{NoSpare, ids},
    job::{Job, Work},
    layered,
    report::{LoadReport, LoadStop},
    requests,
};
use crate::{error::TierError, metrics::MissReason};

/// Parts per thread that a load from disk is cut into.
const PARTS_PER_WORKER: usize = 2;

#[derive(Default)]
struct Outcome {
    /// The first block that did not come, and why.
    stopped: Option<(usize, LoadStop)>,
    from_host: usize,
    /// For each tier of the cache.
    from_below: Vec<usize>,
    bytes: u64,
}

/// What the parts of a load share.
struct Load {
    completer: Completer<LoadReport>,
    outcome: Mutex<Outcome>,
    left: AtomicUsize,
    wanted: usize,
    /// The tiers of the cache below host memory.
    tiers: Vec<TierId>,
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
struct LoadPart {
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
    inner: &Arc<Parts>,
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
    let layout = requests::check_blocks(inner, options.layout, destinations)?;
    let found = found.truncate(destinations.len());
    begin(inner, found, Some((layout, destinations)), options)
}

/// Starts reading from disk to host memory.
pub(super) fn prefetch(
    inner: &Arc<Parts>,
    keys: &[BlockKey],
) -> Result<Completion<LoadReport>, TierError> {
    let found = found::lookup(inner, keys, &LookupOptions::default());
    let options = LoadOptions::new().priority(Priority::Background);
    begin(inner, found, None, &options)
}

fn begin(
    inner: &Arc<Parts>,
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
        outcome: Mutex::new(Outcome {
            from_below: vec![0; inner.below.len()],
            ..Outcome::default()
        }),
        left: AtomicUsize::new(parts),
        wanted,
        tiers: inner.below.iter().map(|below| below.id).collect(),
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
    let mut jobs: Vec<Job<Parts>> = Vec::with_capacity(parts);
    while pieces.peek().is_some() {
        jobs.push(Box::new(LoadPart {
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

/// The pieces that a match is brought in: its segments, those below host memory cut so that several threads
/// read at once.
fn cut(
    inner: &Parts,
    mut found: Match,
    destinations: Option<(LayoutHandle, &[usize])>,
) -> Vec<Piece> {
    let (position, mut first) = (found.first, 0);
    let below = found.blocks() - found.blocks_in(TierId::HOST);
    let most = inner.settings.workers.max(1) * PARTS_PER_WORKER;
    let others = found.segments.len().saturating_sub(1);
    let most = most.min(inner.settings.queue_capacity.saturating_sub(others));
    let chunk = below.div_ceil(most.max(1)).max(1);
    let mut pieces = Vec::new();
    let mut add = |segment: Segment, first: usize| {
        let blocks = first..first + segment.blocks();
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
        first += segment.blocks();
        if destinations.is_none() && segment.tier == TierId::HOST {
            // It is where it should be; nothing is to be done, and nothing stays pinned.
            continue;
        }
        let layered = destinations.is_some() && is_layered(inner, &segment);
        while !layered && segment.tier != TierId::HOST && segment.blocks() > chunk {
            let rest = segment.split_off(chunk);
            add(std::mem::replace(&mut segment, rest), start);
            start += chunk;
        }
        add(segment, start);
    }
    pieces
}

/// Whether a segment comes layer by layer: all of its blocks at once then, by one part of the load.
fn is_layered(inner: &Parts, segment: &Segment) -> bool {
    match &segment.place {
        Place::Host(_) => false,
        Place::Below(tier, ..) | Place::Leaving(tier, _) => {
            !layered::chunks(inner, inner.tier(*tier), segment.blocks()).is_empty()
        }
    }
}

impl Load {
    fn finish(&self) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let stopped = outcome.stopped.take();
        let report = LoadReport {
            blocks: stopped.as_ref().map_or(self.wanted, |(first, _)| *first),
            wanted: self.wanted,
            from_host: outcome.from_host,
            from_below: self.by_tier(&outcome.from_below),
            bytes: outcome.bytes,
            elapsed: self.clock.now().saturating_sub(self.start),
            stopped: stopped.map(|(_, stop)| stop),
        };
        drop(outcome);
        self.completer.finish(report);
    }

    fn by_tier(&self, blocks: &[usize]) -> Vec<(TierId, usize)> {
        let tiers = self.tiers.iter().copied().zip(blocks.iter().copied());
        tiers.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// Block `index` did not come.
    fn stop(&self, index: usize, stop: LoadStop) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = outcome.stopped.as_ref().is_none_or(|(at, _)| index < *at);
        if earlier {
            outcome.stopped = Some((index, stop));
        }
    }

    /// Blocks were read from the tier at this position of the list.
    fn came_from(&self, tier: usize, blocks: usize) {
        self.count(|outcome| match outcome.from_below.get_mut(tier) {
            Some(count) => *count += blocks,
            None => broken(format_args!("tier {tier} of {}", self.tiers.len())),
        });
    }

    fn count(&self, count: impl FnOnce(&mut Outcome)) {
        count(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Work<Parts> for LoadPart {
    fn label(&self) -> QueueLabel {
        match self.is_prefetch {
            true => QueueLabel::Prefetch,
            false => QueueLabel::Load,
        }
    }

    /// Brings its pieces in order, up to the first block that does not come.
    fn run(mut self: Box<Self>, inner: &Parts) {
        self.has_begun = true;
        while let Some(piece) = self.pieces.front() {
            let left: usize = self.pieces.iter().map(|piece| piece.segment.blocks()).sum();
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
}

impl Piece {
    /// Brings the blocks; on an error says how many came.
    fn bring(&self, inner: &Parts, load: &Load) -> Result<(), (usize, LoadStop)> {
        match &self.segment.place {
            Place::Host(blocks) => {
                self.copy(inner, load, (blocks.ids(), 0), None)
                    .map_err(|stop| (0, stop))?;
                load.count(|outcome| outcome.from_host += blocks.len());
                Ok(())
            }
            Place::Below(tier, ..) => self.bring_from(inner, load, *tier),
            Place::Leaving(tier, _) => {
                let within = inner.tier(*tier).settings.answer_within;
                for at in 0..self.segment.blocks() {
                    if !inner.departures.wait(&self.segment.key(at), within) {
                        let left = self.segment.blocks() - at;
                        inner.metrics.lost(MissReason::Late, left as u64);
                        return Err((at, LoadStop::Late));
                    }
                }
                self.bring_from(inner, load, *tier)
            }
        }
    }

    /// In batches, as far as host memory has room.
    fn bring_from(&self, inner: &Parts, load: &Load, tier: usize) -> Result<(), (usize, LoadStop)> {
        let below = inner.tier(tier);
        let wanted = self.wanted();
        let layered = self.destinations.is_some() && is_layered(inner, &self.segment);
        let most = match layered {
            // Other loads want host memory too.
            true => (inner.host.pool.blocks() / 2).max(inner.batch_blocks()),
            false => inner.batch_blocks(),
        };
        let mut done = 0;
        while done < wanted.len() {
            if load.completer.is_cancelled() {
                return Err((done, LoadStop::Cancelled));
            }
            let (_, rest) = wanted.split_at(done);
            let (batch, _) = rest.split_at(rest.len().min(most));
            let Brought { blocks, read, stop } = match layered {
                true => self.bring_layers(inner, load, (below, batch), done),
                false => bring::bring(inner, below, batch),
            };
            let ids: Vec<BlockId> = blocks.iter().flat_map(|one| one.ids()).copied().collect();
            let came = ids.len();
            if came > 0 {
                if !layered {
                    let copied = self.copy(inner, load, (&ids, done), None);
                    copied.map_err(|stop| (done, stop))?;
                }
                load.came_from(tier, read);
                load.count(|outcome| outcome.from_host += came - read);
            }
            done += came;
            drop(blocks);
            match (stop, wanted.get(done)) {
                // What was brought is copied and not pinned any more: there is room again.
                (Some(LoadStop::HostFull), _) if came > 0 => {}
                (Some(LoadStop::HostFull), Some(block)) => {
                    let passed = self.pass_through(inner, load, (tier, block), done);
                    passed.map_err(|stop| (done, stop))?;
                    done += 1;
                }
                (Some(stop), _) => return Err((done, stop)),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Brings blocks to host memory and copies them to the destinations from `at` on, layer by layer.
    fn bring_layers(
        &self,
        inner: &Parts,
        load: &Load,
        (below, batch): (&Below, &[Wanted]),
        at: usize,
    ) -> Brought {
        let mut chunks = layered::chunks(inner, below, batch.len());
        if chunks.is_empty() {
            // The rest of a load that was larger than host memory.
            chunks = layered::whole(inner);
        }
        layered::bring(inner, below, (batch, chunks), &mut |ids, layers| {
            let blocks = batch.len() as u64;
            if load.completer.is_cancelled() {
                inner.metrics.lost(MissReason::Cancelled, blocks);
                return Err(LoadStop::Cancelled);
            }
            if inner.is_past(load.deadline) {
                inner.metrics.lost(MissReason::Deadline, blocks);
                return Err(LoadStop::Deadline);
            }
            self.copy(inner, load, (ids, at), Some(layers))
        })
    }

    /// One block from a tier to its destination, without a place in host memory: all of it is in use. It
    /// waits for its turn at the one block that is kept for this tier, and not where the tier itself keeps it.
    fn pass_through(
        &self,
        inner: &Parts,
        load: &Load,
        (tier, block): (usize, &Wanted),
        at: usize,
    ) -> Result<(), LoadStop> {
        let below = inner.tier(tier);
        let spare = match self.destinations {
            Some(_) => inner.host.spare(tier, below.settings.answer_within),
            // A prefetch ends in host memory.
            None => Err(NoSpare::InUse),
        };
        let spare = spare.map(Arc::new).map_err(|none| {
            let (reason, stop) = match none {
                NoSpare::InUse => (MissReason::HostFull, LoadStop::HostFull),
                NoSpare::Late => (MissReason::Late, LoadStop::Late),
            };
            inner.metrics.lost(reason, 1);
            stop
        })?;
        let id = spare.block();
        let place = Arc::clone(&spare) as Arc<_>;
        let came = bring::read(inner, below, std::slice::from_ref(block), &[id], &place);
        drop(place);
        let came = came.into_iter().collect::<Result<(), LoadStop>>();
        let copied = came.and_then(|()| self.copy(inner, load, (&[id], at), None));
        if Arc::strong_count(&spare) > 1 {
            // The tier still has the memory: it did not answer in time, or did not drop what it had.
            spare.is_late();
            let kept: below::Place = Arc::downgrade(&(spare as Arc<_>));
            below.is_late([kept]);
        }
        copied?;
        load.came_from(tier, 1);
        Ok(())
    }

    fn wanted(&self) -> Vec<Wanted> {
        let of_block = |index| {
            let (parent, tenant) = self.segment.facts(index);
            Wanted {
                key: self.segment.key(index),
                parent,
                position: u32::try_from(self.position + index).unwrap_or(u32::MAX),
                tenant,
            }
        };
        (0..self.segment.blocks()).map(of_block).collect()
    }

    /// Copies host blocks, or these layers of them, to the destinations from `at` on, and reports each layer as
    /// it comes.
    fn copy(
        &self,
        inner: &Parts,
        load: &Load,
        (host, at): (&[BlockId], usize),
        layers: Option<&Range<u64>>,
    ) -> Result<(), LoadStop> {
        let Some((layout, destinations)) = &self.destinations else {
            // A prefetch ends in host memory.
            return Ok(());
        };
        let Some(there) = destinations.get(at..at + host.len()) else {
            broken(format_args!(
                "{} blocks from {at} on of {} destinations",
                host.len(),
                destinations.len()
            ))
        };
        let mut options = TransferOptions::new();
        if let Some(layers) = layers {
            options = options.layers(RangePair::same(layers.start, layers.end - layers.start));
        }
        let source = inner.host.handle;
        let transfer = inner
            .manager
            .execute_transfer(source, &ids(host), *layout, there, options);
        let transfer = transfer.map_err(LoadStop::Transfer)?;
        let all = 0..inner.layers as u64;
        let layers = layers.unwrap_or(&all);
        for (layer, index) in layers.clone().zip(0..) {
            transfer.wait_layer(index).map_err(LoadStop::Transfer)?;
            let layer = usize::try_from(layer).unwrap_or(usize::MAX);
            load.completer.layer_came(layer, host.len());
        }
        let report = transfer.wait().map_err(LoadStop::Transfer)?;
        let route = (TierId::HOST, TierId::DEVICE);
        // A block has come with its last layer.
        let blocks = if layers.end == all.end { host.len() } else { 0 };
        inner.moved(route, blocks as u64, report.bytes, report.elapsed);
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
