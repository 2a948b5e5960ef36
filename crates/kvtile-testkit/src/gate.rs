//! A gate that stops threads under test until the test opens it, and waits with a time limit.
//!
//! A failing test must end. A gate opens when its [`ShutGate`] is dropped, also by a panic. A
//! thread waits at it for at most [`PATIENCE`] and panics then. The gate knows nothing of the
//! threads' work.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// The time limit of waits for events that should be immediate. Only a failing test waits this
/// long.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct GateState {
    /// Arriving threads that still stop.
    stops: usize,
    /// Threads that have stopped since the gate was shut.
    stopped: usize,
    /// The number of openings; a stopped thread waits until it changes.
    opened: u64,
}

/// A gate for threads under test; initially open.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    /// Stops the next `threads` arriving threads until the returned guard is dropped. Later threads
    /// pass.
    #[must_use = "the gate opens when it is dropped"]
    pub fn shut(self: &Arc<Gate>, threads: usize) -> ShutGate {
        let mut state = self.state.lock();
        (state.stops, state.stopped) = (threads, 0);
        ShutGate {
            gate: Arc::clone(self),
        }
    }

    /// Called by a thread under test; returns when the gate is open.
    ///
    /// # Panics
    /// The gate is not opened in time.
    pub fn pass(&self) {
        let mut state = self.state.lock();
        if state.stops == 0 {
            return;
        }
        state.stops -= 1;
        state.stopped += 1;
        self.changed.notify_all();
        let opened = state.opened;
        let waits = |state: &mut GateState| state.opened == opened;
        let waited = self.changed.wait_while_for(&mut state, waits, PATIENCE);
        drop(state);
        assert!(!waited.timed_out(), "the gate stayed shut for {PATIENCE:?}");
    }

    fn open(&self) {
        let mut state = self.state.lock();
        state.stops = 0;
        state.opened += 1;
        self.changed.notify_all();
    }
}

/// The guard of a shut gate. Dropping it opens the gate.
#[derive(Debug)]
pub struct ShutGate {
    gate: Arc<Gate>,
}

impl ShutGate {
    /// Waits until `threads` threads have stopped.
    ///
    /// # Panics
    /// They do not stop in time.
    pub fn wait_until_stopped(&self, threads: usize) {
        let mut state = self.gate.state.lock();
        let waits = |state: &mut GateState| state.stopped < threads;
        let waited = self
            .gate
            .changed
            .wait_while_for(&mut state, waits, PATIENCE);
        let stopped = state.stopped;
        // A failed assertion under the lock would leave the threads stopped.
        drop(state);
        assert!(
            !waited.timed_out(),
            "{stopped} of {threads} threads stopped in {PATIENCE:?}"
        );
    }

    /// Opens the gate.
    pub fn open(self) {}
}

impl Drop for ShutGate {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// Waits until `is_so` returns true.
///
/// # Panics
/// It does not in time; the message contains `what`.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn the_requested_number_of_threads_stop_and_later_ones_pass() {
        let (gate, passed) = (Arc::new(Gate::default()), AtomicUsize::new(0));
        gate.pass();
        thread::scope(|scope| {
            let shut = gate.shut(2);
            for _ in 0..2 {
                scope.spawn(|| {
                    gate.pass();
                    passed.fetch_add(1, Ordering::SeqCst);
                });
            }
            shut.wait_until_stopped(2);
            gate.pass();
            assert_eq!(passed.load(Ordering::SeqCst), 0);
            shut.open();
        });
        assert_eq!(passed.into_inner(), 2);
        gate.pass();
    }

    #[test]
    fn a_panic_of_the_test_opens_the_gate() {
        let gate = Arc::new(Gate::default());
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            let shut = gate.shut(1);
            let stopped = thread::spawn({
                let gate = Arc::clone(&gate);
                move || gate.pass()
            });
            shut.wait_until_stopped(1);
            std::panic::resume_unwind(Box::new(stopped));
        }));
        let stopped = stopped.unwrap_err().downcast::<thread::JoinHandle<()>>();
        stopped.unwrap().join().unwrap();
    }
}
