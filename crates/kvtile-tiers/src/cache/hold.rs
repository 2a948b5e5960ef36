//! Holds: blocks of a match that are brought to host memory and stay pinned there, for a process
//! that copies them itself.

use std::sync::Arc;

use kvtile_blocks::BlockId;
use kvtile_transfer::completion::Completer;
use parking_lot::Mutex;

use super::{
    found::{MatchSegment, SegmentPlace},
    report::LoadReport,
};

/// Host blocks that stay pinned until the last clone is dropped.
#[derive(Clone)]
pub struct HostHold {
    ids: Arc<[BlockId]>,
    /// The pins.
    _segments: Arc<Mutex<Vec<MatchSegment>>>,
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
}

/// The completer of a load, a prefetch or a hold.
pub(super) enum LoadCompleter {
    /// A load, or a prefetch.
    Load(Completer<LoadReport>),
    /// A hold, with the pins so far and the index of their first block.
    Hold(Completer<HoldReport>, Mutex<Vec<(usize, MatchSegment)>>),
}

impl LoadCompleter {
    /// Whether the blocks only go to host memory and are released there.
    pub(super) fn is_prefetch(&self, has_destinations: bool) -> bool {
        matches!(self, LoadCompleter::Load(_)) && !has_destinations
    }

    pub(super) fn is_cancelled(&self) -> bool {
        match self {
            LoadCompleter::Load(completer) => completer.is_cancelled(),
            LoadCompleter::Hold(completer, _) => completer.is_cancelled(),
        }
    }

    pub(super) fn layer_came(&self, layer: usize, blocks: usize) {
        if let LoadCompleter::Load(completer) = self {
            completer.layer_came(layer, blocks);
        }
    }

    /// Keeps a segment of host memory from block `first` of the load on, for a hold; else releases
    /// it.
    pub(super) fn keep(&self, first: usize, segment: MatchSegment) {
        if let LoadCompleter::Hold(_, kept) = self
            && matches!(segment.place, SegmentPlace::Host(_))
        {
            kept.lock().push((first, segment));
        }
    }

    /// As [`keep`](Self::keep), for the pins of a block that was brought.
    pub(super) fn keep_brought(&self, index: usize, segment: impl FnOnce() -> MatchSegment) {
        if matches!(self, LoadCompleter::Hold(..)) {
            self.keep(index, segment());
        }
    }

    pub(super) fn finish(&self, report: LoadReport) {
        let (completer, kept) = match self {
            LoadCompleter::Load(completer) => return completer.finish(report),
            LoadCompleter::Hold(completer, kept) => (completer, kept),
        };
        let mut kept = std::mem::take(&mut *kept.lock());
        kept.sort_unstable_by_key(|(first, _)| *first);
        let mut segments = Vec::with_capacity(kept.len());
        let mut ids = Vec::with_capacity(report.blocks);
        for (first, segment) in kept {
            // Parts after the first block that did not come may have come; a load ends before them.
            if let SegmentPlace::Host(pins) = &segment.place
                && first == ids.len()
                && ids.len() < report.blocks
            {
                ids.extend_from_slice(pins.ids());
                segments.push(segment);
            }
        }
        ids.truncate(report.blocks);
        completer.finish(HoldReport {
            load: report,
            held: HostHold {
                ids: ids.into(),
                _segments: Arc::new(Mutex::new(segments)),
            },
        });
    }
}
