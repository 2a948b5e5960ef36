//! The layers of a load to a device, for those who wait for them on a device.
//!
//! A load copies its blocks by several transfers. A layer is enqueued once transfers of all blocks are, each with a mark of
//! its device behind the layer. The end of a load that was enqueued is in its report.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_transfer::{DeviceMark, EnqueuedLayer, TransferCompletion, TransferError};
use parking_lot::{Condvar, Mutex};

/// The marks of a load, which [`LoadOptions::marks`](super::LoadOptions::marks) takes. Clones are those of the same load.
#[derive(Clone, Debug, Default)]
pub struct LoadMarks {
    shared: Arc<SharedLoadMarks>,
}

#[derive(Debug, Default)]
struct SharedLoadMarks {
    state: Mutex<LoadMarksState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LoadMarksState {
    transfers: Vec<LoadTransfer>,
    /// Whether the load starts no more transfers.
    is_closed: bool,
}

/// A transfer of some layers of some blocks.
#[derive(Clone, Debug)]
struct LoadTransfer {
    layers: Range<u64>,
    blocks: usize,
    transfer: TransferCompletion,
}

impl LoadMarksState {
    /// The transfers of a layer, if there are transfers of all `blocks` blocks.
    fn of_layer(&self, layer: u64, blocks: usize) -> Option<Vec<LoadTransfer>> {
        let of_layer = |one: &&LoadTransfer| one.layers.contains(&layer);
        let found: Vec<LoadTransfer> = self.transfers.iter().filter(of_layer).cloned().collect();
        let covered: usize = found.iter().map(|one| one.blocks).sum();
        (covered >= blocks).then_some(found)
    }
}

impl LoadMarks {
    /// The marks of a load that has not begun.
    #[must_use]
    pub fn new() -> LoadMarks {
        LoadMarks::default()
    }

    /// Waits until layer `layer` of all `blocks` blocks of the load is enqueued, at most for `timeout`. The marks are those
    /// to wait for: none where the layer has arrived. `None` on timeout, and `Some(None)` if the load ended without the
    /// layer of all blocks, or cannot tell: its completion has the outcome.
    ///
    /// # Errors
    /// The error of a transfer that failed before the layer was enqueued.
    pub fn wait_timeout(
        &self,
        layer: usize,
        blocks: usize,
        timeout: Duration,
    ) -> Result<Option<Option<Vec<DeviceMark>>>, TransferError> {
        let end = Instant::now().checked_add(timeout);
        let Some(transfers) = self.started(layer as u64, blocks, end) else {
            return Ok(None);
        };
        let Some(transfers) = transfers else {
            return Ok(Some(None));
        };
        let mut marks = Vec::with_capacity(transfers.len());
        for one in transfers {
            let index = usize::try_from(layer as u64 - one.layers.start).unwrap_or(usize::MAX);
            let left = end.map_or(timeout, |end| end.saturating_duration_since(Instant::now()));
            match one.transfer.wait_enqueued_timeout(index, left)? {
                None => return Ok(None),
                Some(EnqueuedLayer::Behind(mark)) => marks.push(mark),
                Some(EnqueuedLayer::Arrived) => {}
            }
        }
        Ok(Some(Some(marks)))
    }

    /// Waits until transfers of a layer of all blocks were started: `Some(None)` if that does not come.
    fn started(
        &self,
        layer: u64,
        blocks: usize,
        end: Option<Instant>,
    ) -> Option<Option<Vec<LoadTransfer>>> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(found) = state.of_layer(layer, blocks) {
                return Some(Some(found));
            }
            if state.is_closed {
                return Some(None);
            }
            let changed = &self.shared.changed;
            match end {
                Some(end) if changed.wait_until(&mut state, end).timed_out() => return None,
                Some(_) => {}
                None => changed.wait(&mut state),
            }
        }
    }

    /// A transfer of some layers of `blocks` further blocks was started.
    pub(super) fn started_one(
        &self,
        layers: Range<u64>,
        blocks: usize,
        transfer: &TransferCompletion,
    ) {
        self.shared.state.lock().transfers.push(LoadTransfer {
            layers,
            blocks,
            transfer: transfer.clone(),
        });
        self.shared.changed.notify_all();
    }

    /// No more transfers start.
    pub(super) fn close(&self) {
        self.shared.state.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}
