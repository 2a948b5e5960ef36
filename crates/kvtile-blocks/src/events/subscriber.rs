//! A reader of the log. It never holds the log back; it does not interpret what it reads.

use super::log::Copied;
use super::{Event, EventLog, Snapshot};
use std::sync::Arc;
use thiserror::Error;

/// A subscriber was slower than the log is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the subscriber lagged and missed {missed} events; the next one is {resume_at}. Take a snapshot \
     to know what is stored, and poll more often or make the log longer"
)]
pub struct Lagged {
    /// How many events were overwritten before they were read.
    pub missed: u64,
    /// The event that the next poll starts with, unless the subscriber resynchronises.
    pub resume_at: u64,
}

/// A place in an [`EventLog`]. Dropping it costs nothing, and so does keeping it without polling.
#[derive(Debug)]
pub struct Subscriber {
    log: Arc<EventLog>,
    next: u64,
}

impl Subscriber {
    pub(super) fn new(log: Arc<EventLog>, next: u64) -> Subscriber {
        Subscriber { log, next }
    }

    /// Adds up to `max` events to the end of `events`, each once and in order, and returns how
    /// many.
    ///
    /// # Errors
    /// [`Lagged`] when events were overwritten before they were read. It is told once for each such
    /// gap; nothing is added then, and the next poll starts after the gap.
    pub fn poll(&mut self, events: &mut Vec<Event>, max: usize) -> Result<usize, Lagged> {
        match self.log.copy(self.next, events, max) {
            Copied::Events(count) => {
                self.next += count as u64;
                Ok(count)
            }
            Copied::Forgotten { oldest } => {
                let missed = oldest - self.next;
                self.next = oldest;
                Err(Lagged {
                    missed,
                    resume_at: oldest,
                })
            }
            // Only after a snapshot of another log: there is nothing to read until this one is
            // as long, and its events would be misnumbered. Start where this log is.
            Copied::Ahead { next } => {
                self.next = next;
                Ok(0)
            }
        }
    }

    /// Goes on at the first event that has to be applied on top of a snapshot of the same log.
    pub fn resynchronise(&mut self, snapshot: &Snapshot) {
        self.next = snapshot.from;
    }

    /// The sequence number of the event that it reads next.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next
    }
}
