//! The parent of blocks that are being stored, pinned so that its whole chain stays in the tiers.
//!
//! A pinned block keeps all of its ancestors: policies evict leaves only, and a host block pins a
//! parent that is only in a tier below.

use kvtile_blocks::{
    BlockKey,
    pool::{PinClaim, PinnedBlocks},
};

use super::{CacheParts, below::CacheTier, demote};
use crate::tier::{TierHold, TierWrites};

/// The parent of a block that is being stored.
pub(super) enum PinnedParent {
    /// No parent: the block is the first of its chain.
    Root,
    /// The parent is pinned in host memory.
    Host(PinnedBlocks),
    /// The parent is pinned in a tier below.
    Below {
        /// Keeps the pin; never read.
        _hold: Box<dyn TierHold>,
    },
}

impl PinnedParent {
    /// Pins the block of `key`, or nothing for the first block of a chain; `None` if no tier has
    /// it.
    pub(super) fn hold(inner: &CacheParts, key: Option<&BlockKey>) -> Option<PinnedParent> {
        let Some(key) = key else {
            return Some(PinnedParent::Root);
        };
        let claim = PinClaim {
            now: inner.tick(),
            ..PinClaim::default()
        };
        let keys = std::slice::from_ref(key);
        let pinned = inner.host.pool.pin(keys, &claim).blocks;
        if !pinned.is_empty() {
            return Some(PinnedParent::Host(pinned));
        }
        let _hold = inner.below.iter().find_map(|below| below.hold_one(key))?;
        Some(PinnedParent::Below { _hold })
    }

    /// Pins the last of the leading blocks that are in host memory. Returns their number and the
    /// last one; `None` if the first block is not there.
    pub(super) fn hold_leading(
        inner: &CacheParts,
        keys: &[BlockKey],
    ) -> Option<(usize, PinnedParent)> {
        let pool = &inner.host.pool;
        let (there, _) = keys.split_at(pool.peek(keys));
        let claim = PinClaim {
            now: inner.tick(),
            ..PinClaim::default()
        };
        let mut pinned = pool.pin(there, &claim);
        let leading = pinned.positions.iter().zip(0..);
        let leading = leading.take_while(|(at, place)| *at == place).count();
        drop(pinned.blocks.split_off(leading));
        let last = pinned.blocks.split_off(leading.checked_sub(1)?);
        Some((leading, PinnedParent::Host(last)))
    }

    /// Like [`PinnedParent::hold_leading`], for the first tier below that has the first block.
    pub(super) fn hold_leading_below(
        inner: &CacheParts,
        keys: &[BlockKey],
    ) -> Option<(usize, PinnedParent)> {
        let mut hold = inner.below.iter().find_map(|below| below.hold(keys))?;
        let leading = hold.blocks();
        let _hold = hold.split_off(leading.checked_sub(1)?);
        Some((leading, PinnedParent::Below { _hold }))
    }

    /// Writes the block, with its ancestors, to a tier below that would get it on eviction, and
    /// pins it there instead of in host memory. Returns false if nothing changed.
    pub(super) fn move_below(&mut self, inner: &CacheParts) -> bool {
        let PinnedParent::Host(pinned) = &*self else {
            return false;
        };
        let Some(key) = pinned.keys().next() else {
            return false;
        };
        let moved = inner
            .below
            .iter()
            .find_map(|below| write_below(inner, below, &key));
        match moved {
            Some(_hold) => {
                *self = PinnedParent::Below { _hold };
                true
            }
            None => false,
        }
    }
}

/// Pins the block on a tier, and writes it there first if the settings and the backoff allow that.
fn write_below(inner: &CacheParts, below: &CacheTier, key: &BlockKey) -> Option<Box<dyn TierHold>> {
    if let Some(hold) = below.hold_one(key) {
        return Some(hold);
    }
    let writes = below.settings.writes;
    let may_write = matches!(writes, TierWrites::OnEviction | TierWrites::AtOnce)
        && below.takes_blocks(inner.clock.now());
    if !may_write {
        return None;
    }
    let written = demote::write_keys(inner, below, std::slice::from_ref(key));
    written.into_iter().next()?.ok()?;
    below.hold_one(key)
}
