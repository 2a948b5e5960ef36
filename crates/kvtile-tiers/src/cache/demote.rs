//! From host memory to disk: when room is needed, and when the settings say so.
//!
//! What is on disk are whole prefixes, always: a block is written after the blocks before it in its chain,
//! and only where all of them are on disk. So a restart finds everything that was written.

use kvtile_blocks::{
    BlockId, BlockKey, BlocksError,
    events::Tier,
    pool::{AllocateRequest, Claim, EvictedBlock, MutableBlocks, PinnedBlocks, TenantId},
};
use kvtile_layout::broken;
use kvtile_transfer::LeaseMode;

use super::{DiskWrites, Inner, spill::SYNC_BLOCKS, stored::Stored};
use crate::{disk::SlotWrite, error::TierError};

/// A host block that is written to disk.
#[derive(Clone, Copy)]
struct Leaving {
    block: BlockId,
    key: BlockKey,
    parent: Option<BlockKey>,
    /// How many blocks stand before it in its chain.
    position: u32,
}

/// One that is pinned meanwhile.
struct Held {
    leaving: Leaving,
    _pin: PinnedBlocks,
}

/// Why a block was not written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// A block before it in its chain is neither in host memory nor on disk.
    NoAncestor,
    /// All slots hold its ancestors, or blocks in use.
    NoRoom,
    /// The disk failed lately and is left alone for a while.
    Paused,
    /// The disk failed.
    Failed,
}

impl Inner {
    /// Host blocks to fill. What has to leave for them goes to disk first, where the settings say
    /// so.
    pub(super) fn host_room(
        &self,
        blocks: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        let pool = &self.host.pool;
        let Some(disk) = &self.disk else {
            return pool.allocate(blocks, request);
        };
        let _demoting = disk.demoting();
        let _turn = (pool.free_blocks() < blocks).then(|| disk.turn());
        pool.allocate_with(blocks, request, |leaving| {
            self.demote(disk, leaving.iter().copied());
        })
    }

    /// Evicts up to `blocks` blocks.
    pub(super) fn evict(&self, tier: Tier, blocks: usize) -> Result<usize, TierError> {
        match (tier, &self.disk) {
            (Tier::Host, _) => Ok(self.evict_host(blocks)),
            (Tier::Disk, Some(disk)) => {
                let leaving = disk.pool.evict(blocks, self.tick());
                disk.forget(leaving.ids(), self.clock.now());
                Ok(leaving.len())
            }
            _ => Err(TierError::NoSuchTier { tier }),
        }
    }

    fn evict_host(&self, blocks: usize) -> usize {
        let turns = self
            .disk
            .as_ref()
            .map(|disk| (disk.demoting(), disk.turn()));
        let leaving = self.host.pool.evict(blocks, self.tick());
        if let Some(disk) = &self.disk {
            self.demote(disk, leaving.iter());
        }
        drop(turns);
        leaving.len()
    }

    /// Whether a block that leaves host memory is to be on disk.
    pub(super) fn belongs_on_disk(&self, block: BlockId) -> bool {
        match self.settings.disk.as_ref().map(|disk| disk.writes) {
            None => false,
            Some(DiskWrites::OnEviction | DiskWrites::AtOnce) => true,
            Some(DiskWrites::AfterUses(uses)) => self.host.uses(block) >= uses,
        }
    }

    /// Forgets everything, but for blocks on disk that are in use.
    pub(super) fn clear(&self) -> Result<usize, TierError> {
        let mut gone = self.host.pool.clear().blocks;
        self.host.weigh_all_anchors();
        if let Some(disk) = &self.disk {
            let leaving = disk.pool.evict(usize::MAX, self.tick());
            disk.forget(leaving.ids(), self.clock.now());
            gone += leaving.len();
            drop(leaving);
            if !self.sync_disk(disk).durable {
                return Err(TierError::NotDurable);
            }
        }
        Ok(gone)
    }

    /// Pins the parent of a block that was just registered in host memory, where the parent is on disk
    /// and not in host memory: the disk gives up no block that one in host memory follows.
    pub(super) fn anchor(&self, blocks: &PinnedBlocks, parent: Option<BlockKey>) {
        let Some((disk, parent)) = self.disk.as_ref().zip(parent) else {
            return;
        };
        let Some(&first) = blocks.ids().first() else {
            broken(format_args!(
                "no block was registered behind parent {parent}"
            ))
        };
        if self.host.pool.peek(std::slice::from_ref(&parent)) == 0
            && let Some(pinned) = disk.hold(&parent)
        {
            self.host.anchor(first, pinned);
        }
    }

    /// Writes a host block that is still there and not on disk yet, after its ancestors.
    pub(super) fn write_key(&self, disk: &Stored, key: &BlockKey) {
        if disk.has(key) {
            return;
        }
        if let Some(held) = self.hold(key) {
            // What was not written is written when it is evicted, if the disk takes blocks then.
            let _ = self.write_unless_paused(disk, &held.leaving);
        }
    }

    /// Writes a host block and its ancestors as far as they are not on disk, whether or not the disk
    /// failed lately. Returns how many blocks were written, and the last one, pinned on disk.
    pub(super) fn write_now(
        &self,
        disk: &Stored,
        key: &BlockKey,
    ) -> Result<(usize, PinnedBlocks), Unwritten> {
        let mut written = 0;
        if !disk.has(key) {
            let held = self.hold(key).ok_or(Unwritten::NoAncestor)?;
            written = self.write_chain(disk, &held.leaving)?;
        }
        let pinned = disk.hold(key).ok_or(Unwritten::NoRoom)?;
        Ok((written, pinned))
    }

    /// Writes evicted blocks that belong on disk and are not there yet, each after its parent.
    fn demote(&self, disk: &Stored, leaving: impl Iterator<Item = EvictedBlock>) {
        let mut blocks = Vec::new();
        let mut wanted = Vec::new();
        for EvictedBlock { block, key, parent } in leaving {
            blocks.push(block);
            if self.belongs_on_disk(block) && !disk.has(&key) {
                let (position, _) = self.host.facts(block);
                wanted.push(Leaving {
                    block,
                    key,
                    parent,
                    position,
                });
            }
        }
        wanted.sort_by_key(|leaving| leaving.position);
        let mut left_out = 0;
        for leaving in &wanted {
            left_out += u64::from(self.write_unless_paused(disk, leaving).is_err());
        }
        self.metrics.left_out(Tier::Disk, left_out);
        self.host.weigh_anchors(blocks.into_iter());
        if self.settings.workers == 0 && disk.spill.written() >= SYNC_BLOCKS {
            self.sync_disk(disk);
        }
    }

    /// Pins a host block, for as long as it takes to write it.
    fn hold(&self, key: &BlockKey) -> Option<Held> {
        let claim = Claim {
            now: self.tick(),
            ..Claim::default()
        };
        let keys = std::slice::from_ref(key);
        let pin = self.host.pool.pin(keys, &claim).blocks;
        let block = pin.ids().first().copied()?;
        let leaving = Leaving {
            block,
            key: *key,
            parent: pin.parents().next()?,
            position: self.host.facts(block).0,
        };
        Some(Held { leaving, _pin: pin })
    }

    fn write_unless_paused(&self, disk: &Stored, last: &Leaving) -> Result<usize, Unwritten> {
        if !disk.takes_blocks(self.clock.now()) {
            disk.health.left_out(1);
            return Err(Unwritten::Paused);
        }
        self.write_chain(disk, last)
    }

    /// Writes a block, after those before it that are in host memory and not on disk, up to the first
    /// failure. Returns how many were written.
    fn write_chain(&self, disk: &Stored, last: &Leaving) -> Result<usize, Unwritten> {
        let mut before: Vec<Held> = Vec::new();
        let mut at = *last;
        while let Some(key) = at.parent.filter(|key| !disk.has(key)) {
            let held = self.hold(&key).ok_or(Unwritten::NoAncestor)?;
            // A chain that ran in circles would have no end.
            if held.leaving.position >= at.position {
                return Err(Unwritten::NoAncestor);
            }
            at = held.leaving;
            before.push(held);
        }
        let mut written = 0;
        let chain = before.iter().rev().map(|held| &held.leaving);
        for leaving in chain.chain([last]) {
            written += usize::from(self.write(disk, leaving)?);
        }
        Ok(written)
    }

    /// Writes one block whose parent is on disk, and makes it findable there; false where it is there
    /// already.
    fn write(&self, disk: &Stored, leaving: &Leaving) -> Result<bool, Unwritten> {
        // Two threads that wrote the same block would give one slot up while it holds the block.
        let _flight = disk.writes.board(leaving.key);
        if disk.has(&leaving.key) {
            return Ok(false);
        }
        let parent = leaving.parent.map(|key| disk.hold(&key));
        if matches!(parent, Some(None)) {
            return Err(Unwritten::NoAncestor);
        }
        match self.try_write(disk, leaving) {
            Ok(()) => {
                self.metrics.stored(Tier::Disk, 1);
                disk.health.succeeded(self.clock.now());
                Ok(true)
            }
            Err(TierError::Blocks(BlocksError::Exhausted { .. })) => Err(Unwritten::NoRoom),
            Err(error) => {
                self.metrics.move_failed(Tier::Host, Tier::Disk);
                disk.health.failed(self.clock.now(), &error);
                Err(Unwritten::Failed)
            }
        }
    }

    fn try_write(&self, disk: &Stored, leaving: &Leaving) -> Result<(), TierError> {
        let key = leaving.key;
        let (position, tenant) = self.host.facts(leaving.block);
        let request = AllocateRequest {
            tenant: TenantId(tenant),
            now: self.tick(),
        };
        let room = disk.pool.allocate_with(1, &request, |leaving| {
            let slots: Vec<BlockId> = leaving.iter().map(|evicted| evicted.block).collect();
            disk.forget(&slots, self.clock.now());
        })?;
        let [slot] = *room.ids() else {
            broken(format_args!("{} slots for block {key}", room.len()))
        };
        let lease = self
            .host
            .lease(&self.manager, leaving.block, LeaseMode::Read)?;
        let write = SlotWrite {
            slot: slot.0,
            key,
            parent: leaving.parent,
            position,
            tenant,
            bytes: lease.block(leaving.block.index() as u64)?,
        };
        let start = self.clock.now();
        let written = disk.store.write(&[write]);
        self.drop_lost(disk, &disk.store.take_lost());
        if let Some(failed) = written.failed.into_iter().next() {
            return Err(failed.error);
        }
        drop(lease);
        let time = self.clock.now().saturating_sub(start);
        self.moved((Tier::Host, Tier::Disk), 1, self.block_bytes, time);
        disk.wrote(slot, tenant, self.clock.now());
        let complete = room.complete(std::slice::from_ref(&key), leaving.parent);
        let complete = complete.map_err(|rejected| rejected.error)?;
        let registered = complete.register(&Claim {
            now: self.tick(),
            ..Claim::default()
        });
        let registered = registered.map_err(|rejected| rejected.error)?;
        assert!(
            registered.duplicates.is_empty(),
            "block {key} was written while another thread wrote it"
        );
        Ok(())
    }
}
