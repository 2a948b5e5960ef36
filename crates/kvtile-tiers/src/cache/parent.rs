//! The parent of blocks that are being stored, held so that its whole chain stays in some tier.
//!
//! Policies evict leaves only, and a host block whose parent is in a tier alone pins it there, so a pinned
//! block keeps all of its ancestors.

use kvtile_blocks::{
    BlockKey,
    pool::{Claim, PinnedBlocks},
};

use super::{Parts, below::Below, demote};
use crate::tier::{Hold, TierWrites};

/// The block before one that is being stored.
pub(super) enum Parent {
    /// There is none: the block is the first of its chain.
    Root,
    /// It is pinned in host memory.
    Host(PinnedBlocks),
    /// It is pinned in a tier below.
    Below {
        /// Held, not read.
        _hold: Box<dyn Hold>,
    },
}

impl Parent {
    /// Pins the block of `key`, or nothing for the first block of a chain; `None` where no tier has it.
    pub(super) fn hold(inner: &Parts, key: Option<&BlockKey>) -> Option<Parent> {
        let Some(key) = key else {
            return Some(Parent::Root);
        };
        let claim = Claim {
            now: inner.tick(),
            ..Claim::default()
        };
        let keys = std::slice::from_ref(key);
        let pinned = inner.host.pool.pin(keys, &claim).blocks;
        if !pinned.is_empty() {
            return Some(Parent::Host(pinned));
        }
        let _hold = inner.below.iter().find_map(|below| below.hold_one(key))?;
        Some(Parent::Below { _hold })
    }

    /// Pins the last of the leading blocks that host memory has: how many these are, and the last one; `None`
    /// where it has not even the first.
    pub(super) fn hold_leading(inner: &Parts, keys: &[BlockKey]) -> Option<(usize, Parent)> {
        let pool = &inner.host.pool;
        let (there, _) = keys.split_at(pool.peek(keys));
        let claim = Claim {
            now: inner.tick(),
            ..Claim::default()
        };
        let mut pinned = pool.pin(there, &claim);
        let leading = pinned.positions.iter().zip(0..);
        let leading = leading.take_while(|(at, place)| *at == place).count();
        drop(pinned.blocks.split_off(leading));
        let last = pinned.blocks.split_off(leading.checked_sub(1)?);
        Some((leading, Parent::Host(last)))
    }

    /// The same of the first tier below that has any.
    pub(super) fn hold_leading_below(inner: &Parts, keys: &[BlockKey]) -> Option<(usize, Parent)> {
        let mut hold = inner.below.iter().find_map(|below| below.hold(keys))?;
        let leading = hold.blocks();
        let _hold = hold.split_off(leading.checked_sub(1)?);
        Some((leading, Parent::Below { _hold }))
    }

    /// Brings the chain to a tier below where its blocks are to go there anyway, and pins it there instead of
    /// in host memory. False where nothing changed.
    pub(super) fn move_below(&mut self, inner: &Parts) -> bool {
        let Parent::Host(pinned) = &*self else {
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
                *self = Parent::Below { _hold };
                true
            }
            None => false,
        }
    }
}

/// The block on a tier, written there where it may be.
fn write_below(inner: &Parts, below: &Below, key: &BlockKey) -> Option<Box<dyn Hold>> {
    if let Some(hold) = below.hold_one(key) {
        return Some(hold);
    }
    let may_write = !matches!(below.settings.writes, TierWrites::AfterUses(_))
        && below.takes_blocks(inner.clock.now());
    if !may_write {
        return None;
    }
    let written = demote::write_keys(inner, below, std::slice::from_ref(key));
    written.into_iter().next()?.ok()?;
    below.hold_one(key)
}
