//! Completions: every completion ends, for every kind and number of waiters.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `gated` | nothing: a file whose transfers stop on demand |
//! | `waiting` | threads, futures and wakers are notified of the end, of a panic and of an error |
//! | `queue` | long and full queues, and the drop of a manager |
//! | `blocks` | blocks and layers while their transfers are in flight |
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod gated;
mod queue;
mod waiting;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use kvtile_layout::{Shape, Unit};
use kvtile_testkit::gate::PATIENCE;
use kvtile_transfer::{TransferCompletion, TransferError, TransferReport};
use parking_lot::{Condvar, Mutex};

/// 1.5 MiB a block of 6 layers: too large for the caller's thread.
pub(crate) fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 6, 16, 8, 512, Unit::raw(2).unwrap()).unwrap()
}

/// A waker that wakes a waiting thread.
#[derive(Default)]
pub(crate) struct WakeSignal {
    woken: Mutex<bool>,
    changed: Condvar,
    pub(crate) wakes: AtomicUsize,
}

impl Wake for WakeSignal {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        *self.woken.lock() = true;
        self.changed.notify_all();
    }
}

impl WakeSignal {
    /// Waits for a wake, with a timeout.
    pub(crate) fn wait(&self) {
        let mut woken = self.woken.lock();
        let waits = |woken: &mut bool| !*woken;
        let waited = self.changed.wait_while_for(&mut woken, waits, PATIENCE);
        assert!(!waited.timed_out(), "no wake in time");
        *woken = false;
    }
}

/// A minimal executor.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let signal = Arc::new(WakeSignal::default());
    let waker = Waker::from(Arc::clone(&signal));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => signal.wait(),
        }
    }
}

/// The result of a transfer. Panics if the transfer does not end in time.
pub(crate) fn end(done: &TransferCompletion) -> Result<TransferReport, TransferError> {
    let end = done.wait_timeout(PATIENCE);
    end.expect("the transfer does not end")
}
