//! Loads: they copy blocks of a match to the engine; prefetches copy blocks of tiers to host memory.
//!
//! A load is split into parts, so that several worker threads read and copy at once. Each part
//! reads missing blocks into host memory in batches, and copies them from there to the engine. If
//! all host memory is in use, blocks go through the tier's spare block instead.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{BlockId, BlockKey, events::TierId};
use kvtile_layout::{RangePair, broken};
use kvtile_transfer::{
    DeviceMark, LayoutHandle,
    completion::{Completer, Completion},
};
use parking_lot::Mutex;

use super::{
    CacheParts, Clock, LoadMarks, LoadOptions, LookupOptions, Match, Priority, QueueLabel,
    below::CacheTier,
    bring::{self, BroughtBlocks, WantedBlock},
    found::{self, MatchSegment, SegmentPlace},
    hold::{HoldReport, LoadCompleter},
    host::{NoSpare, ids},
    job::{BoxedCacheJob, CacheJob},
    layered,
    load_pieces::{LoadPiece, cut, is_layered},
    report::{LoadReport, LoadStop},
    requests,
};
use crate::{
    below::HostMemoryRef,
    error::{RequestError, TierError},
    metrics::MissReason,
};

#[derive(Default)]
struct LoadOutcome {
    /// Index of the first block that did not arrive, and the reason.
    stopped: Option<(usize, LoadStop)>,
    from_host: usize,
    /// Blocks read from each tier below, in the order of the cache's tiers.
    from_below: Vec<usize>,
    bytes: u64,
}

/// The state that the parts of a load share.
struct SharedLoad {
    completer: LoadCompleter,
    outcome: Mutex<LoadOutcome>,
    left: AtomicUsize,
    wanted: usize,
    /// The tiers of the cache below host memory.
    tiers: Vec<TierId>,
    clock: Arc<dyn Clock>,
    start: Duration,
    deadline: Option<Duration>,
    /// The work of devices that comes before the copies.
    after: Vec<DeviceMark>,
    marks: Option<LoadMarks>,
}

/// Consecutive pieces of a load that one job brings. Dropping it reports its end to the load, also after a panic.
struct LoadPart {
    load: Arc<SharedLoad>,
    /// Pieces that have not completed.
    pieces: VecDeque<LoadPiece>,
    /// Whether the blocks only go to host memory.
    is_prefetch: bool,
    /// Whether the job has begun. If so, pieces left in a dropped part were lost to a panic.
    has_begun: bool,
}

/// Starts loading.
pub(super) fn start(
    inner: &Arc<CacheParts>,
    found: Match,
    destinations: &[usize],
    options: &LoadOptions,
) -> Result<Completion<LoadReport>, TierError> {
    if !found.is_of(inner) {
        return Err(TierError::Request(RequestError::OtherCache));
    }
    let blocks = found.blocks();
    if destinations.len() > blocks {
        return Err(TierError::Request(RequestError::TooManyDestinations {
            destinations: destinations.len(),
            blocks,
        }));
    }
    let layout = requests::check_blocks(inner, options.layout, destinations)?;
    requests::check_after(&inner.manager, layout, &options.after)?;
    let found = found.truncate(destinations.len());
    let completer = Completer::new(inner.layers, found.blocks());
    let completion = completer.completion();
    let goal = (LoadCompleter::Load(completer), Some((layout, destinations)));
    begin(inner, found, goal, options)?;
    Ok(completion)
}

/// Starts a prefetch from the tiers below to host memory.
pub(super) fn prefetch(
    inner: &Arc<CacheParts>,
    keys: &[BlockKey],
) -> Result<Completion<LoadReport>, TierError> {
    let lookup = (&LookupOptions::default(), MissReason::Absent);
    prefetch_found(inner, found::lookup(inner, keys, lookup))
}

/// As [`prefetch`], for the blocks of a match.
pub(super) fn prefetch_found(
    inner: &Arc<CacheParts>,
    found: Match,
) -> Result<Completion<LoadReport>, TierError> {
    let options = LoadOptions::new().priority(Priority::Background);
    let completer = Completer::new(0, found.blocks());
    let completion = completer.completion();
    let goal = (LoadCompleter::Load(completer), None);
    begin(inner, found, goal, &options)?;
    Ok(completion)
}

/// Starts bringing the blocks of a match to host memory, where they stay pinned.
pub(super) fn hold(
    inner: &Arc<CacheParts>,
    found: Match,
    options: &LoadOptions,
) -> Result<Completion<HoldReport>, TierError> {
    if !found.is_of(inner) {
        return Err(TierError::Request(RequestError::OtherCache));
    }
    let completer = Completer::new(0, found.blocks());
    let completion = completer.completion();
    let goal = LoadCompleter::hold(completer, inner, found.first);
    begin(inner, found, (goal, None), options)?;
    Ok(completion)
}

fn begin(
    inner: &Arc<CacheParts>,
    found: Match,
    (completer, destinations): (LoadCompleter, Option<(LayoutHandle, &[usize])>),
    options: &LoadOptions,
) -> Result<(), TierError> {
    let wanted = found.blocks();
    let is_prefetch = completer.is_prefetch(destinations.is_some());
    let pieces = cut(inner, found, (destinations, is_prefetch));
    // The queue must be able to take all parts of a load.
    let per_part = pieces.len().div_ceil(inner.settings.queue_capacity).max(1);
    let parts = pieces.len().div_ceil(per_part);
    let load = Arc::new(SharedLoad {
        completer,
        outcome: Mutex::new(LoadOutcome {
            from_below: vec![0; inner.below.len()],
            ..LoadOutcome::default()
        }),
        left: AtomicUsize::new(parts),
        wanted,
        tiers: inner.below.iter().map(|below| below.id).collect(),
        clock: Arc::clone(&inner.clock),
        start: inner.clock.now(),
        deadline: inner.later(options.within),
        after: options.after.clone(),
        marks: options.marks.clone(),
    });
    let is_there = |piece: &LoadPiece| piece.segment.tier == TierId::HOST;
    if pieces.is_empty() || (load.completer.is_hold() && pieces.iter().all(is_there)) {
        // No thread has to bring anything.
        for piece in pieces {
            load.count(|outcome| outcome.from_host += piece.segment.blocks());
            load.completer.keep(piece.first, piece.segment);
        }
        load.finish();
        return Ok(());
    }
    let mut pieces = pieces.into_iter().peekable();
    let mut jobs: Vec<BoxedCacheJob<CacheParts>> = Vec::with_capacity(parts);
    while pieces.peek().is_some() {
        jobs.push(Box::new(LoadPart {
            load: Arc::clone(&load),
            pieces: pieces.by_ref().take(per_part).collect(),
            is_prefetch,
            has_begun: false,
        }));
    }
    inner.queue(options.priority, jobs).inspect_err(|_| {
        inner.metrics.lost(MissReason::QueueFull, wanted as u64);
    })
}

impl SharedLoad {
    fn finish(&self) {
        let mut outcome = self.outcome.lock();
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
        if let Some(marks) = &self.marks {
            marks.close();
        }
        self.completer.finish(report);
    }

    fn by_tier(&self, blocks: &[usize]) -> Vec<(TierId, usize)> {
        let tiers = self.tiers.iter().copied().zip(blocks.iter().copied());
        tiers.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// Ends the load before block `index`, unless it already ends earlier.
    fn stop(&self, index: usize, stop: LoadStop) {
        let mut outcome = self.outcome.lock();
        let earlier = outcome.stopped.as_ref().is_none_or(|(at, _)| index < *at);
        if earlier {
            outcome.stopped = Some((index, stop));
        }
    }

    /// Counts blocks that were read from the tier at index `tier`.
    fn came_from(&self, tier: usize, blocks: usize) {
        self.count(|outcome| match outcome.from_below.get_mut(tier) {
            Some(count) => *count += blocks,
            None => broken(format_args!("tier {tier} of {}", self.tiers.len())),
        });
    }

    fn count(&self, count: impl FnOnce(&mut LoadOutcome)) {
        count(&mut self.outcome.lock());
    }
}

impl CacheJob<CacheParts> for LoadPart {
    fn label(&self) -> QueueLabel {
        match self.is_prefetch {
            true => QueueLabel::Prefetch,
            false => QueueLabel::Load,
        }
    }

    /// Brings its pieces in order, up to the first block that does not arrive.
    fn run(mut self: Box<Self>, inner: &CacheParts) {
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
                // Releases or keeps the pins before the completion.
                Ok(()) => {
                    if let Some(piece) = self.pieces.pop_front() {
                        self.load.completer.keep(piece.first, piece.segment);
                    }
                }
                Err((blocks, stop)) => {
                    let is_full = matches!(stop, LoadStop::HostFull);
                    self.load.stop(piece.first + blocks, stop);
                    if is_full {
                        self.give_back(blocks);
                    }
                    self.pieces.clear();
                }
            }
        }
    }
}

impl LoadPart {
    /// Gives its pieces back to the match of a hold, without the first `came` blocks of the first one.
    fn give_back(&mut self, came: usize) {
        let mut skip = came;
        for mut piece in self.pieces.drain(..) {
            let first = piece.first + skip;
            let left = piece.segment.split_off(skip);
            if left.blocks() > 0 {
                self.load.completer.give_back(first, left);
            }
            skip = 0;
        }
    }
}

impl LoadPiece {
    /// Brings the blocks of the piece. An error contains the number of blocks that arrived.
    fn bring(&self, inner: &CacheParts, load: &SharedLoad) -> Result<(), (usize, LoadStop)> {
        match &self.segment.place {
            SegmentPlace::Host(blocks) => {
                self.copy(inner, load, (blocks.ids(), 0), None)
                    .map_err(|stop| (0, stop))?;
                load.count(|outcome| outcome.from_host += blocks.len());
                Ok(())
            }
            SegmentPlace::Below(tier, ..) => self.bring_from(inner, load, *tier),
            SegmentPlace::Leaving(tier, _) => match self.arrival(inner, *tier) {
                Some(tier) => self.bring_from(inner, load, tier),
                None => {
                    let blocks = self.segment.blocks();
                    inner.metrics.lost(MissReason::Late, blocks as u64);
                    // None of them was brought, however many have arrived.
                    Err((0, LoadStop::Late))
                }
            },
        }
    }

    /// Waits until one tier has all blocks that leave host memory, at most for the time of their first tier, and
    /// returns it. Where all writes end before, it is the first tier, which says what is missing. `None` after a
    /// timeout.
    fn arrival(&self, inner: &CacheParts, first: usize) -> Option<usize> {
        let keys: Vec<BlockKey> = (0..self.segment.blocks())
            .map(|at| self.segment.key(at))
            .collect();
        // A tier whose reads pause may have them too; lookups do not name it either.
        let has_all = |below: &CacheTier| {
            below.may_look(inner.clock.now()) && keys.iter().all(|key| below.has(key))
        };
        let within = inner.tier(first).settings.answer_within;
        let mut found = None;
        let in_time = inner.departures.wait(&keys, within, || {
            found = inner.below.iter().position(has_all);
            found.is_some()
        });
        found.or(in_time.then_some(first))
    }

    /// Brings blocks of a tier in batches that fit in host memory.
    fn bring_from(
        &self,
        inner: &CacheParts,
        load: &SharedLoad,
        tier: usize,
    ) -> Result<(), (usize, LoadStop)> {
        let below = inner.tier(tier);
        let wanted = self.wanted(inner);
        let layered = self.destinations.is_some() && is_layered(inner, &self.segment);
        let most = match layered {
            // Half of host memory at most, so that other loads find room too.
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
            let BroughtBlocks { blocks, read, stop } = match layered {
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
            for (index, pins) in (self.first + done..).zip(blocks) {
                let place = SegmentPlace::Host(pins);
                let keeps = || MatchSegment::new(inner, place);
                load.completer.keep_brought(index, keeps);
            }
            done += came;
            match (stop, wanted.get(done)) {
                // The arrived blocks are copied and unpinned, so host memory has room again.
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

    /// Reads blocks into host memory and copies them to the destinations from index `at` on, layer
    /// by layer.
    fn bring_layers(
        &self,
        inner: &CacheParts,
        load: &SharedLoad,
        (below, batch): (&CacheTier, &[WantedBlock]),
        at: usize,
    ) -> BroughtBlocks {
        let mut chunks = layered::chunks(inner, below, batch.len());
        if chunks.is_empty() {
            // The last blocks of a load that is larger than host memory.
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

    /// Copies one block from a tier to its destination through the tier's spare block, because all
    /// host memory is in use; a hold keeps the spare block. It waits while other loads use the spare
    /// block, and fails at once if the tier still holds it.
    fn pass_through(
        &self,
        inner: &CacheParts,
        load: &SharedLoad,
        (tier, block): (usize, &WantedBlock),
        at: usize,
    ) -> Result<(), LoadStop> {
        let below = inner.tier(tier);
        let index = self.first + at;
        let completer = &load.completer;
        let spare = match completer.is_prefetch(self.destinations.is_some()) {
            false if completer.may_take_spare(index) => {
                inner.host.spare(tier, below.settings.answer_within)
            }
            // A prefetch ends in host memory.
            _ => Err(NoSpare::InUse),
        };
        let spare = spare.map(Arc::new).map_err(|none| {
            let (reason, stop) = match none {
                NoSpare::InUse => (MissReason::HostFull, LoadStop::HostFull),
                NoSpare::Late => (MissReason::Late, LoadStop::Late),
            };
            // A holder asks again for what had no room, and counts what it gives up.
            if !(completer.is_hold() && reason == MissReason::HostFull) {
                inner.metrics.lost(reason, 1);
            }
            stop
        })?;
        let id = spare.block();
        let place = Arc::clone(&spare) as Arc<_>;
        let came = bring::read(inner, below, std::slice::from_ref(block), &[id], &place);
        drop(place);
        let came = came.into_iter().collect::<Result<(), LoadStop>>();
        let copied = came.and_then(|()| self.copy(inner, load, (&[id], at), None));
        if Arc::strong_count(&spare) > 1 {
            // The tier still holds the memory: it timed out, or did not drop the batch.
            spare.is_late();
            let kept: HostMemoryRef = Arc::downgrade(&(Arc::clone(&spare) as Arc<_>));
            below.is_late([kept]);
        }
        copied?;
        load.completer.keep_spare(index, spare);
        load.came_from(tier, 1);
        Ok(())
    }

    fn wanted(&self, inner: &CacheParts) -> Vec<WantedBlock> {
        let of_block = |index| {
            let (parent, tenant) = self.segment.facts(index);
            WantedBlock {
                key: self.segment.key(index),
                parent,
                position: inner.position(self.position + index),
                tenant,
            }
        };
        (0..self.segment.blocks()).map(of_block).collect()
    }

    /// Copies host blocks, or some layers of them, to the destinations from index `at` on, and
    /// reports each layer as it arrives.
    fn copy(
        &self,
        inner: &CacheParts,
        load: &SharedLoad,
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
        let mut options = requests::transfer_after(&load.after);
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
        if let Some(marks) = &load.marks {
            marks.started_one(layers.clone(), host.len(), &transfer);
        }
        for (layer, index) in layers.clone().zip(0..) {
            transfer.wait_layer(index).map_err(LoadStop::Transfer)?;
            let layer = usize::try_from(layer).unwrap_or(usize::MAX);
            load.completer.layer_came(layer, host.len());
        }
        let report = transfer.wait().map_err(LoadStop::Transfer)?;
        let route = (TierId::HOST, TierId::DEVICE);
        // A block counts as moved with its last layer.
        let blocks = if layers.end == all.end { host.len() } else { 0 };
        inner.moved(route, blocks as u64, report.bytes, report.elapsed);
        load.count(|outcome| outcome.bytes += report.bytes);
        Ok(())
    }
}

impl Drop for LoadPart {
    fn drop(&mut self) {
        // Pieces that never began (the cache was closed, or its queue was full), or that a panic
        // interrupted.
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
