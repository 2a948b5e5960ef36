//! Stores: the caller's rows to staging memory. The tiers' threads write the blocks from there.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, GroupId, events::TierId};
use kvtile_layout::broken;
use kvtile_transfer::completion::Completer;

use super::{
    BlockOutcome, BlockOutcomes,
    count::{CountedJob, RunningJob},
    load::{copy, dropped},
    parts::BlockStoreParts,
    rows::RowsParts,
    staging::{StagedBlock, StagedName, StagingBlock},
};
use crate::{
    error::{RequestError, TierError},
    metrics::Queue,
    tier::{BlockName, RemovalTicket},
};

/// The most blocks that are copied with one transfer.
const BATCH_BLOCKS: usize = 64;

/// The names of a block to store, besides its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreName {
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
}

/// A store that waits in the queue.
pub(super) struct RowStoreJob {
    pub(super) completer: Completer<BlockOutcomes>,
    pub(super) keys: Vec<BlockKey>,
    pub(super) names: Vec<StoreName>,
    /// The row of each key.
    pub(super) ids: Vec<usize>,
    pub(super) tenant: u32,
    pub(super) start: Duration,
    /// Tells which blocks were removed after the call.
    pub(super) ticket: RemovalTicket,
    /// Whether the job has begun. A job that is dropped after that without outcomes panicked.
    pub(super) has_begun: bool,
    /// The job's counts at the store and at the rows. They end after the completion, and before
    /// `rows`, whose last owner waits for them.
    pub(super) counted: [CountedJob; 2],
    pub(super) rows: Arc<RowsParts>,
}

/// The outcomes of a store, as they become known.
struct RowStoreProgress {
    blocks: Vec<BlockOutcome>,
    bytes: u64,
}

impl RowStoreProgress {
    fn set(&mut self, at: usize, outcome: BlockOutcome) {
        let blocks = self.blocks.len();
        let Some(one) = self.blocks.get_mut(at) else {
            broken(format_args!("the outcome of block {at} of {blocks}"))
        };
        *one = outcome;
    }
}

impl RowStoreJob {
    /// Executes the store.
    pub(super) fn run(mut self, parts: &BlockStoreParts) {
        let _running = RunningJob::begin(&self.counted);
        self.has_begun = true;
        let mut progress = RowStoreProgress {
            blocks: vec![BlockOutcome::NoRoom; self.keys.len()],
            bytes: 0,
        };
        if parts.settings.read_only {
            let refused = TierError::Request(RequestError::ReadOnlyStore);
            progress.blocks.fill(BlockOutcome::Failed(refused));
        } else if self.completer.is_cancelled() {
            progress.blocks.fill(BlockOutcome::Cancelled);
        } else {
            self.stage_all(parts, &mut progress);
        }
        self.finish(parts, progress);
    }

    fn group(&self) -> GroupId {
        self.rows.group
    }

    /// Stages the blocks that are not stored yet, in batches that fit in staging memory.
    fn stage_all(&self, parts: &BlockStoreParts, progress: &mut RowStoreProgress) {
        let group = self.group();
        let mut wanted: Vec<usize> = Vec::with_capacity(self.keys.len());
        for (at, key) in self.keys.iter().enumerate() {
            match parts.has_everywhere(group, key) {
                true => progress.set(at, BlockOutcome::Present),
                false => wanted.push(at),
            }
        }
        let staging = &parts.group(group).staging;
        let mut rest = wanted.as_slice();
        while !rest.is_empty() && !self.completer.is_cancelled() {
            let within = match parts.writes_are_paused() {
                true => Duration::ZERO,
                false => parts.settings.stage_within,
            };
            let places = staging.take_to_store(rest.len().min(BATCH_BLOCKS), within);
            let (batch, after) = rest.split_at(places.len());
            if batch.is_empty() {
                parts.metrics.left_out(TierId::HOST, rest.len() as u64);
                return;
            }
            rest = after;
            self.stage(parts, (batch, places), progress);
        }
        for &at in rest {
            progress.set(at, BlockOutcome::Cancelled);
        }
    }

    /// Copies the rows of the blocks `at` to `places`, and queues the blocks for the tiers.
    fn stage(
        &self,
        parts: &BlockStoreParts,
        (at, places): (&[usize], Vec<StagingBlock>),
        progress: &mut RowStoreProgress,
    ) {
        let group = self.group();
        let staging = &parts.group(group).staging;
        let to: Vec<usize> = places.iter().map(|place| place.block).collect();
        let rows: Vec<usize> = at.iter().map(|at| self.row(*at)).collect();
        let route = (TierId::DEVICE, TierId::HOST);
        match copy(
            parts,
            (self.rows.handle, &rows),
            (staging.handle, &to),
            route,
        ) {
            Ok(bytes) => progress.bytes += bytes,
            Err(error) => {
                let failed = BlockOutcome::Failed(TierError::Transfer(error));
                at.iter().for_each(|at| progress.set(*at, failed.clone()));
                return;
            }
        }
        let tiers = parts.below.len();
        let blocks = at.iter().zip(places).map(|(&at, place)| {
            let unwritten = parts.unwritten.enter();
            StagedBlock::new(place, self.name(at), (tiers, unwritten))
        });
        let staged = self.publish(parts, blocks.collect());
        for &at in at {
            progress.set(at, BlockOutcome::Done);
        }
        parts.metrics.stored(TierId::HOST, staged.len() as u64);
        for below in &parts.below {
            for _ in &staged {
                parts.metrics.queued(Queue::Spill);
            }
            let blocks = staged.iter().map(Arc::clone);
            below.spill.push(blocks, usize::MAX, |_| true);
        }
    }

    /// Makes copied blocks findable, and returns those that the tiers are to write: not those that
    /// are staged already, and not those that the caller has removed in the meantime.
    fn publish(
        &self,
        parts: &BlockStoreParts,
        mut blocks: Vec<StagedBlock>,
    ) -> Vec<Arc<StagedBlock>> {
        let group = self.group();
        let removals = self.ticket.lock();
        let removed = blocks.extract_if(.., |block| {
            let key = block.key;
            removals.is_removed(&BlockName { group, key })
        });
        let removed: Vec<StagedBlock> = removed.collect();
        let staged = parts.group(group).staging.stage(blocks);
        drop(removals);
        drop(removed);
        staged
    }

    fn name(&self, at: usize) -> StagedName {
        let (Some(&key), Some(name)) = (self.keys.get(at), self.names.get(at)) else {
            broken(format_args!("block {at} of {}", self.keys.len()))
        };
        StagedName {
            group: self.group(),
            key,
            parent: name.parent.filter(|_| name.position > 0),
            position: name.position,
            tenant: self.tenant,
        }
    }

    fn row(&self, at: usize) -> usize {
        match self.ids.get(at) {
            Some(&row) => row,
            None => broken(format_args!("row {at} of {}", self.ids.len())),
        }
    }

    fn finish(&self, parts: &BlockStoreParts, progress: RowStoreProgress) {
        let elapsed = parts.clock.now().saturating_sub(self.start);
        self.completer.finish(BlockOutcomes {
            blocks: progress.blocks.into(),
            bytes: progress.bytes,
            elapsed,
        });
    }
}

impl Drop for RowStoreJob {
    /// Completes a store that did not finish: the store was closed, or it panicked.
    fn drop(&mut self) {
        let outcome = dropped(self.has_begun);
        let end = BlockOutcomes::all(self.keys.len(), &outcome, Duration::ZERO);
        self.completer.finish(end);
    }
}
