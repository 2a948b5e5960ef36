//! Closing caches: one by a call, all before the interpreter ends.

use kvtile::{
    blocks::events::TierId,
    tiers::cache::{Cache, FlushReport},
};
use pyo3::prelude::*;

use super::OPEN;
use crate::{ending, guard, slot::OpenSlot};

/// Closes all open caches before the interpreter ends. After that, other threads do not return to
/// Python.
pub(crate) fn close_all(py: Python<'_>) -> PyResult<()> {
    if guard::check_fork().is_err() {
        return Ok(());
    }
    guard::call(py, || {
        for slot in OPEN.take() {
            close(&slot);
        }
    })?;
    ending::begin(py);
    Ok(())
}

/// Closes a cache once the calls of other threads have ended. Returns whether it has a tier whose blocks outlive the
/// process, and what became of the blocks of host memory. Returns `None` if the cache is closed
/// already. Also returns `None` if this thread is inside a call of the cache: the last such call
/// then closes it.
pub(super) fn close(slot: &OpenSlot<Cache>) -> Option<(bool, FlushReport)> {
    let cache = slot.take()?;
    // Tiers of a daemon are not in this process; its disk is known by its pool.
    let is_durable = |tier: TierId| match cache.tier(tier) {
        Some(tier) => tier.abilities().is_durable,
        None => tier == TierId::DISK && cache.pool_stats(tier).is_some(),
    };
    let is_durable = cache.tiers().into_iter().any(is_durable);
    Some((is_durable, cache.close()))
}
