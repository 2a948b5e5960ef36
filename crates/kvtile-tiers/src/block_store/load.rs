//! Loads: blocks of the tiers, and staged blocks, into the caller's rows.

use std::{any::Any, sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, GroupId, events::TierId, pool::PinClaim};
use kvtile_layout::broken;
use kvtile_transfer::{
    LayoutHandle, LeaseMode, TransferError, TransferOptions,
    completion::{Completer, Completion},
};

use super::{
    BlockOutcome, BlockOutcomes,
    count::{CountedJob, RunningJob},
    parts::{BlockStoreParts, StoreTier},
    rows::RowsParts,
    staging::{StagedBlock, StagingBlock},
};
use crate::{
    error::{RequestError, TierError},
    metrics::MissReason,
    tier::{BlockName, BlockRead, HostBlock, ReadReport, TierHold, TierMiss},
};

/// A load that waits in the queue.
pub(super) struct StoreLoadJob {
    pub(super) completer: Completer<BlockOutcomes>,
    pub(super) keys: Vec<BlockKey>,
    /// The row of each key.
    pub(super) ids: Vec<usize>,
    pub(super) start: Duration,
    /// Whether the job has begun. A job that is dropped after that without outcomes panicked.
    pub(super) has_begun: bool,
    /// The job's counts at the store and at the rows. They end after the completion, and before
    /// `rows`, whose last owner waits for them.
    pub(super) counted: [CountedJob; 2],
    pub(super) rows: Arc<RowsParts>,
}

/// The outcomes of a load, as they become known.
struct LoadProgress {
    blocks: Vec<BlockOutcome>,
    bytes: u64,
    hits: Vec<(TierId, u64)>,
}

/// The blocks of a load that one tier has, pinned there.
struct TierBlocks<'a> {
    below: &'a StoreTier,
    /// Their indices in the load.
    at: Vec<usize>,
    _holds: Vec<Box<dyn TierHold>>,
}

/// A read of a tier straight into rows.
struct DirectRead<'a> {
    below: &'a StoreTier,
    /// The indices of its blocks in the load.
    at: Vec<usize>,
    completion: Completion<ReadReport>,
    /// Alive while the tier holds rows.
    place: Arc<dyn Any + Send + Sync>,
    _holds: Vec<Box<dyn TierHold>>,
}

impl LoadProgress {
    fn set(&mut self, at: usize, outcome: BlockOutcome) {
        let blocks = self.blocks.len();
        let Some(one) = self.blocks.get_mut(at) else {
            broken(format_args!("the outcome of block {at} of {blocks}"))
        };
        *one = outcome;
    }

    fn set_all(&mut self, at: &[usize], outcome: &BlockOutcome) {
        for &at in at {
            self.set(at, outcome.clone());
        }
    }
}

impl StoreLoadJob {
    /// Executes the load.
    pub(super) fn run(mut self, parts: &BlockStoreParts) {
        let _running = RunningJob::begin(&self.counted);
        self.has_begun = true;
        if self.completer.is_cancelled() {
            self.finish_all(parts, &BlockOutcome::Cancelled);
            return;
        }
        let mut progress = LoadProgress {
            blocks: vec![BlockOutcome::Absent; self.keys.len()],
            bytes: 0,
            hits: Vec::new(),
        };
        let (staged, tiers) = self.find(parts);
        let mut direct = Vec::new();
        let mut bounced = Vec::new();
        for blocks in tiers {
            let hits = (blocks.below.id, blocks.at.len() as u64);
            progress.hits.push(hits);
            match self.rows.is_direct {
                true => direct.push(self.begin_direct(parts, blocks, &mut progress)),
                false => bounced.push(blocks),
            }
        }
        self.copy_staged(parts, &staged, &mut progress);
        drop(staged);
        for blocks in bounced {
            self.bounce(parts, &blocks, &mut progress);
        }
        for read in direct {
            self.end_direct(parts, read, &mut progress);
        }
        self.finish(parts, progress);
    }

    fn group(&self) -> GroupId {
        self.rows.group
    }

    fn key(&self, at: usize) -> BlockKey {
        match self.keys.get(at) {
            Some(&key) => key,
            None => broken(format_args!("key {at} of {}", self.keys.len())),
        }
    }

    fn row(&self, at: usize) -> usize {
        match self.ids.get(at) {
            Some(&row) => row,
            None => broken(format_args!("row {at} of {}", self.ids.len())),
        }
    }

    /// Finds the staged blocks with their indices, and the blocks of each tier.
    fn find<'a>(
        &self,
        parts: &'a BlockStoreParts,
    ) -> (Vec<(usize, Arc<StagedBlock>)>, Vec<TierBlocks<'a>>) {
        let now = parts.clock.now();
        let group = self.group();
        let claim = PinClaim {
            now: parts.tick(),
            ..PinClaim::default()
        };
        let mut staged = Vec::new();
        let mut tiers: Vec<TierBlocks<'_>> = parts
            .below
            .iter()
            .filter(|below| below.may_read(now))
            .map(|below| TierBlocks {
                below,
                at: Vec::new(),
                _holds: Vec::new(),
            })
            .collect();
        // Before the tiers: a block leaves staging memory only when the tiers have it.
        let there = parts.group(group).staging.find(&self.keys);
        let mut at = 0;
        while let Some(place) = there.get(at) {
            if let Some(block) = place {
                staged.push((at, Arc::clone(block)));
                at += 1;
                continue;
            }
            let (_, rest) = self.keys.split_at(at);
            let (_, places) = there.split_at(at);
            let unstaged = places.iter().take_while(|place| place.is_none()).count();
            let (rest, _) = rest.split_at(unstaged);
            at += find_in_tiers(&mut tiers, (group, rest), &claim, at).max(1);
        }
        tiers.retain(|blocks| !blocks.at.is_empty());
        (staged, tiers)
    }

    /// Copies staged blocks to their rows.
    fn copy_staged(
        &self,
        parts: &BlockStoreParts,
        staged: &[(usize, Arc<StagedBlock>)],
        progress: &mut LoadProgress,
    ) {
        if staged.is_empty() {
            return;
        }
        progress.hits.push((TierId::HOST, staged.len() as u64));
        let at: Vec<usize> = staged.iter().map(|(at, _)| *at).collect();
        let blocks: Vec<usize> = staged.iter().map(|(_, block)| block.place.block).collect();
        self.copy_to_rows(parts, &blocks, &at, progress);
    }

    /// Copies blocks of staging memory to the rows of the load's blocks `at`.
    fn copy_to_rows(
        &self,
        parts: &BlockStoreParts,
        blocks: &[usize],
        at: &[usize],
        progress: &mut LoadProgress,
    ) {
        let rows: Vec<usize> = at.iter().map(|at| self.row(*at)).collect();
        let staging = parts.group(self.group()).staging.handle;
        let route = (TierId::HOST, TierId::DEVICE);
        match copy(parts, (staging, blocks), (self.rows.handle, &rows), route) {
            Ok(bytes) => {
                progress.bytes += bytes;
                progress.set_all(at, &BlockOutcome::Done);
            }
            Err(error) => {
                let failed = BlockOutcome::Failed(TierError::Transfer(error));
                progress.set_all(at, &failed);
            }
        }
    }

    /// Starts a read straight into the rows.
    fn begin_direct<'a>(
        &self,
        parts: &BlockStoreParts,
        blocks: TierBlocks<'a>,
        progress: &mut LoadProgress,
    ) -> DirectRead<'a> {
        let TierBlocks { below, at, _holds } = blocks;
        let place: Arc<dyn Any + Send + Sync> = Arc::new(());
        let mut reads = Vec::with_capacity(at.len());
        let mut begun = Vec::with_capacity(at.len());
        for at in at {
            let lent = (self.rows.handle, self.row(at));
            match lend(parts, lent, LeaseMode::Write, Arc::clone(&place)) {
                Ok(into) => {
                    reads.push(self.read_of(at, into));
                    begun.push(at);
                }
                Err(error) => progress.set(at, BlockOutcome::Failed(error)),
            }
        }
        DirectRead {
            below,
            completion: below.tier.read(reads),
            at: begun,
            place,
            _holds,
        }
    }

    fn read_of(&self, at: usize, into: HostBlock) -> BlockRead {
        let name = BlockName {
            group: self.group(),
            key: self.key(at),
        };
        BlockRead { name, into }
    }

    /// Waits until the tier no longer touches the rows: a late read cannot be taken back.
    fn end_direct(
        &self,
        parts: &BlockStoreParts,
        read: DirectRead<'_>,
        progress: &mut LoadProgress,
    ) {
        let DirectRead {
            below,
            at,
            completion,
            place,
            ..
        } = read;
        let report = match below.end_read(&completion, at.len()) {
            Err(error @ TierError::Request(RequestError::Late { .. })) => {
                is_late(parts, below, (&error, at.len()), [&place]);
                Ok(completion.wait())
            }
            report => report,
        };
        match report {
            Ok(report) if report.blocks.len() == at.len() => {
                let arrived = settle(parts, below, (&self.keys, &at), &report, progress);
                let bytes = arrived.len() as u64 * parts.group(self.group()).block_bytes;
                progress.bytes += bytes;
                let route = (below.id, TierId::DEVICE);
                parts.moved(route, arrived.len(), bytes, report.elapsed);
            }
            Ok(_) => progress.set_all(&at, &BlockOutcome::Failed(broken_tier(below))),
            Err(error) => progress.set_all(&at, &BlockOutcome::Failed(error)),
        }
    }

    /// Reads blocks to staging memory and copies them to rows of another order.
    fn bounce(
        &self,
        parts: &BlockStoreParts,
        blocks: &TierBlocks<'_>,
        progress: &mut LoadProgress,
    ) {
        let staging = &parts.group(self.group()).staging;
        let mut rest = blocks.at.as_slice();
        while !rest.is_empty() {
            let places = staging.take_to_load(rest.len(), parts.settings.stage_within);
            let (batch, after) = rest.split_at(places.len());
            if batch.is_empty() {
                progress.set_all(rest, &BlockOutcome::NoRoom);
                return;
            }
            rest = after;
            let places: Vec<Arc<StagingBlock>> = places.into_iter().map(Arc::new).collect();
            if !self.bounce_batch(parts, blocks.below, (batch, &places), progress) {
                let late = late(blocks.below);
                progress.set_all(rest, &BlockOutcome::Failed(late));
                return;
            }
        }
    }

    /// Bounces one batch; false if the tier did not answer in time.
    fn bounce_batch(
        &self,
        parts: &BlockStoreParts,
        below: &StoreTier,
        (at, places): (&[usize], &[Arc<StagingBlock>]),
        progress: &mut LoadProgress,
    ) -> bool {
        let staging = parts.group(self.group()).staging.handle;
        let mut reads = Vec::with_capacity(at.len());
        let mut begun = Vec::with_capacity(at.len());
        let mut from = Vec::with_capacity(at.len());
        for (&at, place) in at.iter().zip(places) {
            let kept = Arc::clone(place) as Arc<dyn Any + Send + Sync>;
            match lend(parts, (staging, place.block), LeaseMode::Write, kept) {
                Ok(into) => {
                    reads.push(self.read_of(at, into));
                    begun.push(at);
                    from.push(place.block);
                }
                Err(error) => progress.set(at, BlockOutcome::Failed(error)),
            }
        }
        let report = match below.read(reads) {
            Ok(report) => report,
            Err(error) => {
                let kept = places.iter().map(|place| Arc::clone(place) as Arc<_>);
                let kept: Vec<Arc<dyn Any + Send + Sync>> = kept.collect();
                is_late(parts, below, (&error, begun.len()), &kept);
                progress.set_all(&begun, &BlockOutcome::Failed(error));
                return false;
            }
        };
        let arrived = settle(parts, below, (&self.keys, &begun), &report, progress);
        let bytes = arrived.len() as u64 * parts.group(self.group()).block_bytes;
        let route = (below.id, TierId::HOST);
        parts.moved(route, arrived.len(), bytes, report.elapsed);
        let came = begun.iter().zip(&from);
        let came = came.filter(|(at, _)| arrived.binary_search(at).is_ok());
        let (at, from): (Vec<usize>, Vec<usize>) = came.map(|(at, from)| (*at, *from)).unzip();
        if !at.is_empty() {
            self.copy_to_rows(parts, &from, &at, progress);
        }
        true
    }

    fn finish_all(&self, parts: &BlockStoreParts, outcome: &BlockOutcome) {
        self.finish(
            parts,
            LoadProgress {
                blocks: vec![outcome.clone(); self.keys.len()],
                bytes: 0,
                hits: Vec::new(),
            },
        );
    }

    fn finish(&self, parts: &BlockStoreParts, progress: LoadProgress) {
        let hits: u64 = progress.hits.iter().map(|(_, blocks)| *blocks).sum();
        let misses = self.keys.len() as u64 - hits;
        let reason = match progress.blocks.first() {
            Some(BlockOutcome::Cancelled) => MissReason::Cancelled,
            _ => MissReason::Absent,
        };
        parts.metrics.looked_up(&progress.hits, &[(reason, misses)]);
        let elapsed = parts.clock.now().saturating_sub(self.start);
        self.completer.finish(BlockOutcomes {
            blocks: progress.blocks.into(),
            bytes: progress.bytes,
            elapsed,
        });
    }
}

impl Drop for StoreLoadJob {
    /// Completes a load that did not finish: the store was closed, or it panicked.
    fn drop(&mut self) {
        let outcome = dropped(self.has_begun);
        let end = BlockOutcomes::all(self.keys.len(), &outcome, Duration::ZERO);
        self.completer.finish(end);
    }
}

/// The outcome of the blocks of a job that was dropped.
pub(super) fn dropped(has_begun: bool) -> BlockOutcome {
    match has_begun {
        false => BlockOutcome::Closed,
        true => BlockOutcome::Failed(TierError::Request(RequestError::Panicked {
            what: "a job of the block store",
        })),
    }
}

/// Finds the leading blocks of `keys` in the first tier that has the first of them, and returns how
/// many. `first` is the index of the first key in its load.
fn find_in_tiers(
    tiers: &mut [TierBlocks<'_>],
    (group, keys): (GroupId, &[BlockKey]),
    claim: &PinClaim,
    first: usize,
) -> usize {
    for blocks in tiers {
        let tier = &blocks.below.tier;
        let there = keys.iter().take_while(|key| tier.has(group, key)).count();
        let (there, _) = keys.split_at(there);
        if there.is_empty() {
            continue;
        }
        if let Some(hold) = tier.find(group, there, claim) {
            let found = hold.blocks();
            blocks.at.extend(first..first + found);
            blocks._holds.push(hold);
            return found;
        }
    }
    0
}

/// Sets the outcomes of a batch and counts them; returns the indices of the blocks that arrived,
/// ascending.
fn settle(
    parts: &BlockStoreParts,
    below: &StoreTier,
    (keys, at): (&[BlockKey], &[usize]),
    report: &ReadReport,
    progress: &mut LoadProgress,
) -> Vec<usize> {
    below.reads.succeeded(parts.clock.now());
    let mut arrived = Vec::with_capacity(at.len());
    let mut damaged = 0;
    for (&at, outcome) in at.iter().zip(report.blocks.iter()) {
        let outcome = match outcome {
            Ok(_) => {
                arrived.push(at);
                BlockOutcome::Done
            }
            Err(TierMiss::Absent) => {
                parts.metrics.lost(MissReason::Evicted, 1);
                BlockOutcome::Absent
            }
            Err(TierMiss::Damaged { .. }) => {
                damaged += 1;
                parts.metrics.lost(MissReason::Checksum, 1);
                below.spill.touched(parts.clock.now());
                BlockOutcome::Damaged
            }
            Err(TierMiss::Failed(error)) => {
                log::warn!("block {:?} was not read: {error}", keys.get(at));
                parts.metrics.lost(MissReason::ReadFailed, 1);
                below.spill.touched(parts.clock.now());
                BlockOutcome::Failed(error.clone())
            }
        };
        if !outcome.is_ok() {
            parts.metrics.move_failed(below.id, TierId::DEVICE);
        }
        progress.set(at, outcome);
    }
    let checked = arrived.len() as u64 + damaged;
    parts.metrics.checked(below.id, checked, damaged);
    arrived
}

/// Counts a read that was not complete in time. The tier still holds the memory of `places`.
fn is_late<'a>(
    parts: &BlockStoreParts,
    below: &StoreTier,
    (error, blocks): (&TierError, usize),
    places: impl IntoIterator<Item = &'a Arc<dyn Any + Send + Sync>>,
) {
    below.is_late(places.into_iter().map(Arc::downgrade));
    below.reads.failed(parts.clock.now(), error);
    parts.metrics.move_failed(below.id, TierId::DEVICE);
    let late = MissReason::Late;
    parts.metrics.lost(late, blocks as u64);
}

fn late(below: &StoreTier) -> TierError {
    TierError::Request(RequestError::Late {
        tier: below.id,
        operation: "read",
        within: below.settings.answer_within,
    })
}

fn broken_tier(below: &StoreTier) -> TierError {
    TierError::Batch(crate::error::BatchError::TierBroken {
        tier: below.id,
        what: "ended a batch with another number of outcomes than blocks",
    })
}

/// Leases one block of a layout for a batch of a tier; `place` is alive while the tier holds it.
pub(super) fn lend(
    parts: &BlockStoreParts,
    (handle, block): (LayoutHandle, usize),
    mode: LeaseMode,
    place: Arc<dyn Any + Send + Sync>,
) -> Result<HostBlock, TierError> {
    let lease = parts.manager.lease(handle, &[block], mode)?;
    HostBlock::new(lease, place)
}

/// Copies blocks from one layout to another, and returns the bytes.
pub(super) fn copy(
    parts: &BlockStoreParts,
    (from, from_blocks): (LayoutHandle, &[usize]),
    (to, to_blocks): (LayoutHandle, &[usize]),
    route: (TierId, TierId),
) -> Result<u64, TransferError> {
    let options = TransferOptions::new();
    let manager = &parts.manager;
    let copied = manager
        .execute_transfer(from, from_blocks, to, to_blocks, options)
        .and_then(|transfer| transfer.wait());
    match copied {
        Ok(report) => {
            parts.moved(route, from_blocks.len(), report.bytes, report.elapsed);
            Ok(report.bytes)
        }
        Err(error) => {
            parts.metrics.move_failed(route.0, route.1);
            Err(error)
        }
    }
}
