//! The parent of blocks that are being stored, held so that its whole chain stays in some tier.
//!
//! Policies evict leaves only, and a host block whose parent is on disk alone pins it there, so a pinned
//! block keeps all of its ancestors.

use kvtile_blocks::{
    BlockKey,
    events::Tier,
    pool::{Claim, PinnedBlocks},
};

use super::{DiskWrites, Inner};

/// The block before one that is being stored.
pub(super) enum Parent {
    /// There is none: the block is the first of its chain.
    Root,
    /// It is pinned in host memory.
    Host(PinnedBlocks),
    /// It is pinned on disk.
    Disk {
        /// Held, not read.
        _pinned: PinnedBlocks,
    },
}

impl Parent {
    /// Pins the block of `key`, or nothing for the first block of a chain; `None` where no tier has it.
    pub(super) fn hold(inner: &Inner, key: Option<&BlockKey>) -> Option<Parent> {
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
        let disk = inner.disk.as_ref()?;
        let _pinned = disk.hold(key)?;
        Some(Parent::Disk { _pinned })
    }

    /// Pins the last of the leading blocks that a tier has: how many these are, and the last one; `None`
    /// where it has not even the first.
    pub(super) fn hold_leading(
        inner: &Inner,
        tier: Tier,
        keys: &[BlockKey],
    ) -> Option<(usize, Parent)> {
        let pool = match (tier, &inner.disk) {
            (Tier::Host, _) => &inner.host.pool,
            (_, Some(disk)) => &disk.pool,
            (_, None) => return None,
        };
        let there = keys.get(..pool.peek(keys)).unwrap_or_default();
        let claim = Claim {
            now: inner.tick(),
            ..Claim::default()
        };
        let mut pinned = pool.pin(there, &claim);
        let leading = pinned.positions.iter().zip(0..);
        let leading = leading.take_while(|(at, place)| *at == place).count();
        drop(pinned.blocks.split_off(leading));
        let last = pinned.blocks.split_off(leading.checked_sub(1)?);
        let parent = match tier {
            Tier::Host => Parent::Host(last),
            _ => Parent::Disk { _pinned: last },
        };
        Some((leading, parent))
    }

    /// Brings the chain to the disk where its blocks are to go there anyway, and pins it there instead of
    /// in host memory. False where nothing changed.
    pub(super) fn move_to_disk(&mut self, inner: &Inner) -> bool {
        let (Parent::Host(pinned), Some(disk)) = (&*self, &inner.disk) else {
            return false;
        };
        let Some(key) = pinned.keys().next() else {
            return false;
        };
        let writes = inner.settings.disk.as_ref().map(|disk| disk.writes);
        let may_write = !matches!(writes, Some(DiskWrites::AfterUses(_)) | None)
            && disk.takes_blocks(inner.clock.now());
        if !may_write && !disk.has(&key) {
            return false;
        }
        match inner.write_now(disk, &key) {
            Ok((_, _pinned)) => {
                *self = Parent::Disk { _pinned };
                true
            }
            Err(_) => false,
        }
    }
}
