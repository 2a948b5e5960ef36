//! The caller's hints as run labels.

use super::{
    class::{self, BlockClass},
    leaves::{NEVER, PRIORITY_MAX},
    runs::RunLabel,
};
use crate::{Tick, policy::EvictionHints};

/// The time in units of 1024 ms.
pub(super) fn coarse(moment: Tick) -> u32 {
    u32::try_from(moment.0 >> 10).unwrap_or(NEVER - 1)
}

/// When the blocks expire, in the same units.
fn expiry(hints: &EvictionHints) -> u32 {
    match hints.expires {
        Some(moment) => coarse(Tick(moment.0.saturating_add(1023))).min(NEVER - 1),
        None => NEVER,
    }
}

/// The hints as a label, regardless of the blocks' kind.
pub(super) fn said(hints: &EvictionHints) -> RunLabel {
    RunLabel {
        class: BlockClass::new(0, class::output(hints.output_tokens)),
        count: 1,
        priority: wanted_priority(hints),
        expires: expiry(hints),
    }
}

/// The priority, clamped to the supported range.
fn wanted_priority(hints: &EvictionHints) -> i8 {
    hints.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX)
}
