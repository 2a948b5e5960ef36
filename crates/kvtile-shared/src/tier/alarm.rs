//! Ends work whose time is up, although its call of the store has not returned.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

/// Work with a deadline.
pub(super) trait TimedWork: Send + Sync {
    /// The deadline has passed. It does nothing if the work has ended.
    fn too_late(&self);
}

struct AlarmEntry {
    at: Instant,
    number: u64,
    work: Weak<dyn TimedWork>,
}

impl PartialEq for AlarmEntry {
    fn eq(&self, other: &AlarmEntry) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for AlarmEntry {}

impl PartialOrd for AlarmEntry {
    fn partial_cmp(&self, other: &AlarmEntry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for AlarmEntry {
    fn cmp(&self, other: &AlarmEntry) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[derive(Default)]
struct AlarmState {
    entries: BinaryHeap<Reverse<AlarmEntry>>,
    number: u64,
    is_closed: bool,
}

/// A thread that waits for deadlines.
#[derive(Default)]
pub(super) struct DeadlineAlarm {
    state: Mutex<AlarmState>,
    changed: Condvar,
}

impl DeadlineAlarm {
    /// Starts the thread.
    pub(super) fn start(name: &str) -> Result<Arc<DeadlineAlarm>, std::io::Error> {
        let alarm = Arc::new(DeadlineAlarm::default());
        let own = Arc::clone(&alarm);
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || own.work())?;
        Ok(alarm)
    }

    /// Calls [`TimedWork::too_late`] at a time, unless the work was dropped by then.
    pub(super) fn set(&self, at: Instant, work: Weak<dyn TimedWork>) {
        let mut state = self.state.lock();
        state.number += 1;
        let number = state.number;
        state.entries.push(Reverse(AlarmEntry { at, number, work }));
        // As a rule, later work has a later deadline; then the thread sleeps on.
        let is_next = state
            .entries
            .peek()
            .is_some_and(|next| next.0.number == number);
        drop(state);
        if is_next {
            self.changed.notify_one();
        }
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_one();
    }

    fn work(&self) {
        let mut state = self.state.lock();
        while !state.is_closed {
            let Some(Reverse(first)) = state.entries.peek() else {
                self.changed.wait(&mut state);
                continue;
            };
            let at = first.at;
            if at > Instant::now() {
                self.changed.wait_until(&mut state, at);
                continue;
            }
            let due = state.entries.pop();
            drop(state);
            if let Some(work) = due.and_then(|due| due.0.work.upgrade())
                && catch_unwind(AssertUnwindSafe(|| work.too_late())).is_err()
            {
                log::error!(
                    "ending late work of a shared store panicked; later deadlines are kept"
                );
            }
            state = self.state.lock();
        }
    }
}
