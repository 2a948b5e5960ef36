//! The thread of a tier: it writes the blocks that are due, and syncs in time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{TendedTier, spill::SpillDue};
use crate::{
    clock::Clock,
    error::{RequestError, TierError},
};

/// How long the thread of a tier sleeps if even its clock panics.
const AFTER_PANIC: Duration = Duration::from_millis(50);

/// Serves a tier until its spill list closes. `write` writes the blocks that are due.
pub(crate) fn serve_tier<K>(below: &TendedTier<K>, clock: &dyn Clock, write: impl Fn(Vec<K>)) {
    loop {
        let turn = || {
            let due = below.spill.wait(|| clock.now(), below.pauses());
            let is_end = matches!(due, SpillDue::Closed);
            serve(below, clock, due, &write);
            is_end
        };
        match catch_unwind(AssertUnwindSafe(turn)) {
            Ok(true) => return,
            Ok(false) => {}
            // If the clock panics, `wait` cannot return `Closed`, so the thread checks the flag
            // here.
            Err(_) if below.spill.is_closed() => return,
            Err(_) => tier_panicked(below, clock),
        }
    }
}

/// Handles a panic on a tier's thread like a failure: the operation pauses, and a sync stays due.
/// On a durable tier the syncs pause and hold back the writes; on another tier only the writes
/// pause.
fn tier_panicked<K>(below: &TendedTier<K>, clock: &dyn Clock) {
    let error = TierError::Request(RequestError::Panicked {
        what: "the thread of a tier",
    });
    log::error!("{error}; this is a defect; the cache goes on");
    let noted = catch_unwind(AssertUnwindSafe(|| {
        let now = clock.now();
        match below.abilities.is_durable {
            true => below.syncs.failed(now, &error),
            false => below.writes.failed(now, &error),
        }
        below.spill.touched(now);
    }));
    if noted.is_err() {
        std::thread::sleep(AFTER_PANIC);
    }
}

/// Runs the operation that is due at a tier; false if there is none.
pub(crate) fn step_tier<K>(
    below: &TendedTier<K>,
    clock: &dyn Clock,
    write: impl Fn(Vec<K>),
) -> bool {
    let due = below.spill.due(clock.now(), below.pauses());
    let is_something = matches!(due, SpillDue::Write(_) | SpillDue::Sync);
    serve(below, clock, due, &write);
    is_something
}

fn serve<K>(below: &TendedTier<K>, clock: &dyn Clock, due: SpillDue<K>, write: &impl Fn(Vec<K>)) {
    match due {
        SpillDue::Write(blocks) => write(blocks),
        SpillDue::Sync => {
            // `allows` admits one attempt after a pause.
            if below.syncs.allows(clock.now()) {
                below.sync(clock);
            }
        }
        SpillDue::Nothing | SpillDue::Closed => {}
    }
}
