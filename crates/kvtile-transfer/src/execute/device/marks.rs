//! The marks of a flight's layers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_device::DeviceMark;
use parking_lot::{Condvar, Mutex};

/// The marks behind the layers of a flight. They come in order while the copies are enqueued, and stay after the end.
#[derive(Debug)]
pub(crate) struct LayerMarks {
    state: Mutex<LayerMarksState>,
    changed: Condvar,
}

#[derive(Debug)]
struct LayerMarksState {
    marks: Vec<Option<DeviceMark>>,
    /// Whether no more marks come.
    is_closed: bool,
}

impl LayerMarks {
    pub(crate) fn new(layers: usize) -> Arc<LayerMarks> {
        Arc::new(LayerMarks {
            state: Mutex::new(LayerMarksState {
                marks: vec![None; layers],
                is_closed: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// The copies of `layer` are enqueued, in front of `mark`.
    pub(super) fn set(&self, layer: usize, mark: &DeviceMark) {
        let mut state = self.state.lock();
        if let Some(place) = state.marks.get_mut(layer) {
            *place = Some(mark.clone());
        }
        self.changed.notify_all();
    }

    /// The copies of all layers are enqueued, in front of `mark`.
    pub(super) fn set_all(&self, mark: &DeviceMark) {
        let mut state = self.state.lock();
        state.marks.fill(Some(mark.clone()));
        self.changed.notify_all();
    }

    /// No more marks come.
    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The mark of `layer`, if it has come.
    pub(crate) fn get(&self, layer: usize) -> Option<DeviceMark> {
        self.state.lock().marks.get(layer).cloned().flatten()
    }

    /// Waits for the mark of `layer`, at most for `timeout`: `None` on timeout, and `Some(None)` if none comes.
    pub(crate) fn wait_timeout(
        &self,
        layer: usize,
        timeout: Duration,
    ) -> Option<Option<DeviceMark>> {
        let end = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        loop {
            if let Some(Some(mark)) = state.marks.get(layer) {
                return Some(Some(mark.clone()));
            }
            if state.is_closed {
                return Some(None);
            }
            match end {
                Some(end) if self.changed.wait_until(&mut state, end).timed_out() => return None,
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Waits for the mark of `layer`; `None` if none comes.
    pub(crate) fn wait(&self, layer: usize) -> Option<DeviceMark> {
        // No clock reaches that time.
        self.wait_timeout(layer, Duration::MAX).flatten()
    }
}
