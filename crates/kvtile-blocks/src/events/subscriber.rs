//! A reader of the log. It never blocks writers, and it does not interpret events.

use super::log::LogCopyOutcome;
use super::{Event, EventLog, EventSnapshot};
use std::sync::Arc;
use thiserror::Error;

/// The subscriber fell behind the log's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the subscriber lagged and missed {missed} events; the next one is {resume_at}. Take a snapshot \
     to know what is stored, and poll more often or make the log longer"
)]
pub struct Lagged {
    /// The number of events that were overwritten before they were read.
    pub missed: u64,
    /// The sequence number at which the next poll starts, unless the subscriber resynchronises.
    pub resume_at: u64,
}

/// A reading position in an [`EventLog`]. It costs nothing to keep without polling, or to drop.
#[derive(Debug)]
pub struct EventSubscriber {
    log: Arc<EventLog>,
    next: u64,
}

impl EventSubscriber {
    pub(super) fn new(log: Arc<EventLog>, next: u64) -> EventSubscriber {
        EventSubscriber { log, next }
    }

    /// Appends up to `max` events to `events`, each once and in order. Returns how many.
    ///
    /// # Errors
    /// [`Lagged`] if events were overwritten before they were read. Each gap is reported once: that
    /// poll appends nothing, and the next poll starts after the gap.
    pub fn poll(&mut self, events: &mut Vec<Event>, max: usize) -> Result<usize, Lagged> {
        match self.log.copy(self.next, events, max) {
            LogCopyOutcome::Events(count) => {
                self.next += count as u64;
                Ok(count)
            }
            LogCopyOutcome::Forgotten { oldest } => {
                let missed = oldest - self.next;
                self.next = oldest;
                Err(Lagged {
                    missed,
                    resume_at: oldest,
                })
            }
            // The position is ahead only after a snapshot of another log. Waiting until this log
            // is as long would misnumber its events, so reading starts at its current end.
            LogCopyOutcome::Ahead { next } => {
                self.next = next;
                Ok(0)
            }
        }
    }

    /// Blocks until the next poll returns events or a gap. Returns false, at once from then on, when the
    /// owner of the log has ended the waits ([`EventLog::end_waits`]).
    #[must_use = "after the end of waits a loop that waits would spin"]
    pub fn wait(&self) -> bool {
        self.log.wait(self.next)
    }

    /// Continues at the first event to apply on top of a snapshot of the same log.
    pub fn resynchronise(&mut self, snapshot: &EventSnapshot) {
        self.next = snapshot.from;
    }

    /// The sequence number of the event that the next poll starts with.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next
    }
}
