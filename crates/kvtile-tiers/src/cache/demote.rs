//! From host memory to disk: when room is needed, when the settings say so, and on flushing.
//!
//! A block is written after the blocks before it in its chain, as far as these are in host memory,
//! so that what is on disk are whole prefixes.

use kvtile_blocks::{
    BlockId, BlockKey, BlocksError,
    events::Tier,
    pool::{AllocateRequest, Claim, EvictedBlock, MutableBlocks, PinnedBlocks, TenantId},
};
use kvtile_transfer::LeaseMode;

use super::{
    DiskWrites, Inner,
    stored::{BLOCKS_PER_SYNC, Stored},
};
use crate::{disk::SlotWrite, error::TierError};

/// Host blocks to be written to disk, if they are still there and not on disk yet.
pub(super) struct WriteJob {
    pub(super) keys: Vec<BlockKey>,
}

/// What a flush came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Blocks that were written by this call.
    pub written: usize,
    /// Blocks that could not be written, or that the disk lost.
    pub failed: usize,
    /// Whether everything that is on disk is durable.
    pub durable: bool,
}

/// A host block that is written to disk.
#[derive(Clone, Copy)]
struct Leaving {
    block: BlockId,
    key: BlockKey,
    parent: Option<BlockKey>,
}

/// One that is pinned meanwhile.
struct Held {
    leaving: Leaving,
    _pin: PinnedBlocks,
}

impl WriteJob {
    pub(super) fn run(self, inner: &Inner) {
        if let Some(disk) = &inner.disk {
            inner.write_keys(disk, &self.keys);
            inner.sync_if_many(disk);
        }
    }
}

impl Inner {
    /// Host blocks to fill. What has to leave for them goes to disk first, where the settings say
    /// so.
    pub(super) fn host_room(
        &self,
        blocks: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        let _demoting = self.disk.as_ref().map(Stored::demoting);
        self.host.pool.allocate_with(blocks, request, |leaving| {
            if let Some(disk) = &self.disk {
                self.demote(disk, leaving.iter().copied());
            }
        })
    }

    /// Evicts up to `blocks` blocks.
    pub(super) fn evict(&self, tier: Tier, blocks: usize) -> Result<usize, TierError> {
        match (tier, &self.disk) {
            (Tier::Host, _) => Ok(self.evict_host(blocks)),
            (Tier::Disk, Some(disk)) => {
                let leaving = disk.pool.evict(blocks, self.tick());
                disk.forget(leaving.ids());
                Ok(leaving.len())
            }
            _ => Err(TierError::NoSuchTier { tier }),
        }
    }

    fn evict_host(&self, blocks: usize) -> usize {
        let _demoting = self.disk.as_ref().map(Stored::demoting);
        let leaving = self.host.pool.evict(blocks, self.tick());
        if let Some(disk) = &self.disk {
            self.demote(disk, leaving.iter());
        }
        leaving.len()
    }

    /// Whether a block that leaves host memory is to be on disk.
    fn belongs_on_disk(&self, block: BlockId) -> bool {
        match self.settings.disk.as_ref().map(|disk| disk.writes) {
            None => false,
            Some(DiskWrites::OnEviction | DiskWrites::AtOnce) => true,
            Some(DiskWrites::AfterUses(uses)) => self.host.uses(block) >= uses,
        }
    }

    /// Forgets everything, but for blocks on disk that are in use.
    pub(super) fn clear(&self) -> Result<usize, TierError> {
        let mut gone = self.host.pool.clear().blocks;
        if let Some(disk) = &self.disk {
            let leaving = disk.pool.evict(usize::MAX, self.tick());
            disk.forget(leaving.ids());
            gone += leaving.len();
            drop(leaving);
            if !self.sync_disk(disk).durable {
                return Err(TierError::NotDurable);
            }
        }
        Ok(gone)
    }

    /// Brings everything to the disk that is only in host memory, or on its way from there.
    pub(super) fn flush(&self) -> FlushReport {
        let Some(disk) = &self.disk else {
            return FlushReport::default();
        };
        let mut stored = Vec::new();
        self.host.pool.list_stored(&mut stored);
        let mut keys: Vec<BlockKey> = stored.iter().map(|stored| stored.key).collect();
        keys.retain(|key| !disk.has(key));
        let written = self.write_keys(disk, &keys);
        // What left host memory before it was listed, or before it was held, others write.
        disk.wait_for_demotions();
        let synced = self.sync_disk(disk);
        FlushReport {
            written: written.saturating_sub(synced.lost),
            failed: keys.iter().filter(|key| !disk.has(key)).count(),
            durable: synced.durable,
        }
    }

    /// Writes host blocks that are not on disk yet, each after its ancestors. Returns how many.
    fn write_keys(&self, disk: &Stored, keys: &[BlockKey]) -> usize {
        let mut written = 0;
        for key in keys.iter().filter(|key| !disk.has(key)) {
            if let Some(held) = self.hold(key) {
                written += self.write_chain(disk, held.leaving);
            }
        }
        written
    }

    /// Writes evicted blocks that belong on disk and are not there yet.
    fn demote(&self, disk: &Stored, leaving: impl Iterator<Item = EvictedBlock>) {
        for EvictedBlock { block, key, parent } in leaving {
            if self.belongs_on_disk(block) && !disk.has(&key) {
                self.write_chain(disk, Leaving { block, key, parent });
            }
        }
        self.sync_if_many(disk);
    }

    fn sync_if_many(&self, disk: &Stored) {
        if disk.written() >= BLOCKS_PER_SYNC {
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
        let leaving = Leaving {
            block: pin.ids().first().copied()?,
            key: *key,
            parent: pin.parents().next()?,
        };
        Some(Held { leaving, _pin: pin })
    }

    /// Writes a block, after those before it that are in host memory and not on disk. Returns how
    /// many were written.
    fn write_chain(&self, disk: &Stored, last: Leaving) -> usize {
        let mut before = Vec::new();
        let mut parent = last.parent;
        while let Some(key) = parent.filter(|key| !disk.has(key)) {
            let Some(held) = self.hold(&key) else {
                break;
            };
            parent = held.leaving.parent;
            before.push(held);
        }
        let mut written = 0;
        for held in before.into_iter().rev() {
            written += usize::from(self.write(disk, &held.leaving));
        }
        written + usize::from(self.write(disk, &last))
    }

    /// Writes one block and makes it findable on disk; nothing where it is there already.
    fn write(&self, disk: &Stored, leaving: &Leaving) -> bool {
        // Two who write the same block would give one slot up while it holds the block.
        let _flight = disk.writes.board(leaving.key);
        if disk.has(&leaving.key) {
            return false;
        }
        let written = self.try_write(disk, leaving);
        match &written {
            Ok(()) => self.metrics.stored(Tier::Disk, 1),
            Err(error) => {
                self.metrics.move_failed(Tier::Host, Tier::Disk);
                log::warn!(
                    "block {} could not be written to disk: {error}",
                    leaving.key
                );
            }
        }
        written.is_ok()
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
            disk.forget(&slots);
        })?;
        let Some(&slot) = room.ids().first() else {
            return Ok(());
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
        disk.wrote(slot, tenant);
        let complete = room.complete(std::slice::from_ref(&key), leaving.parent);
        let complete = complete.map_err(|rejected| rejected.error)?;
        let registered = complete.register(&Claim {
            now: self.tick(),
            ..Claim::default()
        });
        let registered = registered.map_err(|rejected| rejected.error)?;
        assert!(
            registered.duplicates.is_empty(),
            "block {key} was written while somebody else wrote it"
        );
        Ok(())
    }
}
