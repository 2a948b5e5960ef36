//! What callers say about blocks, in the units of labels.

use super::{
    class::{self, Class},
    leaves::{NEVER, PRIORITY_MAX},
    runs::Label,
};
use crate::{Tick, policy::Hints};

/// The moment in units of about a second.
pub(super) fn coarse(moment: Tick) -> u32 {
    u32::try_from(moment.0 >> 10).unwrap_or(NEVER - 1)
}

/// From when on blocks are worth nothing.
fn expiry(hints: &Hints) -> u32 {
    match hints.expires {
        Some(moment) => coarse(Tick(moment.0.saturating_add(1023))).min(NEVER - 1),
        None => NEVER,
    }
}

/// What the caller says of blocks that are stored, whatever their kind.
pub(super) fn said(hints: &Hints) -> Label {
    Label {
        class: Class::new(0, class::output(hints.output_tokens)),
        count: 1,
        priority: wanted_priority(hints),
        expires: expiry(hints),
    }
}

/// How much longer than others blocks are to be kept.
fn wanted_priority(hints: &Hints) -> i8 {
    hints.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX)
}
