//! Holds: blocks of a match that are brought to host memory and stay pinned there, for a process
//! that copies them itself.
//!
//! A hold keeps all of its blocks at once. Where host memory has no room for them, it ends with the
//! blocks that came, and gives the rest of the match back: once the holder has released the first
//! ones, another hold brings the next. If no block at all has room, the spare block of the tier takes
//! the first one.

use std::sync::{Arc, Weak};

use kvtile_blocks::BlockId;
use kvtile_transfer::completion::Completer;
use parking_lot::Mutex;

use super::{
    CacheParts, Match,
    found::{MatchSegment, SegmentPlace},
    host::SpareBlock,
    report::{LoadReport, LoadStop},
};

/// What keeps blocks of a hold, or of the rest of its match.
enum KeptBlocks {
    /// Pins.
    Pinned(MatchSegment),
    /// The spare block of a tier, with the bytes of one block.
    Spare(Arc<SpareBlock>),
}

/// Host blocks that stay pinned until the last clone is dropped.
#[derive(Clone)]
pub struct HostHold {
    ids: Arc<[BlockId]>,
    /// The pins.
    _kept: Arc<Mutex<Vec<KeptBlocks>>>,
}

impl std::fmt::Debug for HostHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostHold").field(&self.ids).finish()
    }
}

impl HostHold {
    /// The blocks in the order of the chain, by their numbers in
    /// [`host_memory`](super::Cache::host_memory).
    #[must_use]
    pub fn ids(&self) -> &[BlockId] {
        &self.ids
    }
}

/// The outcome of a hold.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HoldReport {
    /// Which blocks came, from where, and why not more. It copied no bytes.
    pub load: LoadReport,
    /// The blocks that came.
    pub held: HostHold,
    rest: Arc<Mutex<Option<Match>>>,
}

impl HoldReport {
    /// Takes the blocks that had no room in host memory ([`LoadStop::HostFull`]), pinned in their
    /// tiers: another hold may bring them once this one is released.
    #[must_use]
    pub fn take_rest(&self) -> Option<Match> {
        self.rest.lock().take()
    }
}

/// A hold in progress.
pub(super) struct HoldGoal {
    completer: Completer<HoldReport>,
    cache: Weak<CacheParts>,
    /// Index of its first block in the chain.
    position: usize,
    /// Blocks of the hold and of the rest, with the index of their first block in the hold.
    kept: Mutex<Vec<(usize, KeptBlocks)>>,
}

/// The completer of a load, a prefetch or a hold.
pub(super) enum LoadCompleter {
    /// A load, or a prefetch.
    Load(Completer<LoadReport>),
    /// A hold.
    Hold(HoldGoal),
}

impl LoadCompleter {
    pub(super) fn is_hold(&self) -> bool {
        self.goal().is_some()
    }

    /// A hold of a match whose first block has the index `position` in its chain.
    pub(super) fn hold(
        completer: Completer<HoldReport>,
        inner: &Arc<CacheParts>,
        position: usize,
    ) -> LoadCompleter {
        LoadCompleter::Hold(HoldGoal {
            completer,
            cache: Arc::downgrade(inner),
            position,
            kept: Mutex::default(),
        })
    }

    /// Whether the blocks only go to host memory and are released there.
    pub(super) fn is_prefetch(&self, has_destinations: bool) -> bool {
        matches!(self, LoadCompleter::Load(_)) && !has_destinations
    }

    pub(super) fn is_cancelled(&self) -> bool {
        match self {
            LoadCompleter::Load(completer) => completer.is_cancelled(),
            LoadCompleter::Hold(goal) => goal.completer.is_cancelled(),
        }
    }

    pub(super) fn layer_came(&self, layer: usize, blocks: usize) {
        if let LoadCompleter::Load(completer) = self {
            completer.layer_came(layer, blocks);
        }
    }

    fn goal(&self) -> Option<&HoldGoal> {
        match self {
            LoadCompleter::Load(_) => None,
            LoadCompleter::Hold(goal) => Some(goal),
        }
    }

    /// Keeps a segment of host memory from block `first` of the load on, for a hold; else releases
    /// it.
    pub(super) fn keep(&self, first: usize, segment: MatchSegment) {
        if matches!(segment.place, SegmentPlace::Host(_)) {
            self.give_back(first, segment);
        }
    }

    /// As [`keep`](Self::keep), for the pins of a block that was brought.
    pub(super) fn keep_brought(&self, index: usize, segment: impl FnOnce() -> MatchSegment) {
        if self.is_hold() {
            self.give_back(index, segment());
        }
    }

    /// As [`keep`](Self::keep), for a block that only the spare block of its tier had room for.
    pub(super) fn keep_spare(&self, index: usize, spare: Arc<SpareBlock>) {
        if let Some(goal) = self.goal() {
            goal.kept.lock().push((index, KeptBlocks::Spare(spare)));
        }
    }

    /// Keeps blocks from block `first` of a hold on that did not come, or that came behind such
    /// blocks: they are given back.
    pub(super) fn give_back(&self, first: usize, segment: MatchSegment) {
        if let Some(goal) = self.goal() {
            goal.kept.lock().push((first, KeptBlocks::Pinned(segment)));
        }
    }

    /// Whether a block at `index` may take the spare block of its tier. Only the first one of a hold
    /// may: the others wait for a later hold, as they would wait for the holder's release here.
    pub(super) fn may_take_spare(&self, index: usize) -> bool {
        !self.is_hold() || index == 0
    }

    pub(super) fn finish(&self, report: LoadReport) {
        match self {
            LoadCompleter::Load(completer) => completer.finish(report),
            LoadCompleter::Hold(goal) => goal.finish(report),
        }
    }
}

impl HoldGoal {
    fn finish(&self, report: LoadReport) {
        let mut kept = std::mem::take(&mut *self.kept.lock());
        kept.sort_unstable_by_key(|(first, _)| *first);
        let mut held = Vec::with_capacity(kept.len());
        let mut ids = Vec::with_capacity(report.blocks);
        let (mut rest, mut next) = (Vec::new(), report.blocks);
        for (first, blocks) in kept {
            let came = match &blocks {
                KeptBlocks::Pinned(segment) => match &segment.place {
                    SegmentPlace::Host(pins) => pins.ids().to_vec(),
                    _ => Vec::new(),
                },
                KeptBlocks::Spare(spare) => vec![spare.block()],
            };
            // Parts after the first block that did not come may have come; a hold ends before them.
            if !came.is_empty() && first == ids.len() && ids.len() < report.blocks {
                ids.extend(came);
                held.push(blocks);
            } else if let KeptBlocks::Pinned(segment) = blocks
                && first == next
            {
                next += segment.blocks();
                rest.push(segment);
            }
        }
        ids.truncate(report.blocks);
        let is_full = matches!(report.stopped, Some(LoadStop::HostFull));
        let rest = (is_full && !rest.is_empty())
            .then(|| Match::of_rest(&self.cache, rest, self.position + report.blocks));
        self.completer.finish(HoldReport {
            load: report,
            held: HostHold {
                ids: ids.into(),
                _kept: Arc::new(Mutex::new(held)),
            },
            rest: Arc::new(Mutex::new(rest)),
        });
    }
}
