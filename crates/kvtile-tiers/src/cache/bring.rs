//! From disk to host memory: one block at a time, verified, and read once however many loads want it.

use std::time::Duration;

use kvtile_blocks::{
    BlockId, BlockKey,
    events::Tier,
    pool::{AllocateRequest, Claim, PinnedBlocks, TenantId},
};
use kvtile_layout::broken;
use kvtile_transfer::LeaseMode;

use super::{Inner, LoadStop, stored::Stored};
use crate::{disk::Miss, metrics::MissReason};

/// A block on disk that is wanted in host memory.
pub(super) struct Wanted {
    pub(super) slot: BlockId,
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
}

/// A block in host memory, pinned there.
pub(super) struct Brought {
    pub(super) block: PinnedBlocks,
    /// Otherwise another load had brought it.
    pub(super) was_read: bool,
}

impl Inner {
    /// Counts what arrived.
    pub(super) fn moved(&self, (from, to): (Tier, Tier), blocks: u64, bytes: u64, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.metrics.moved(from, to, blocks, bytes, nanoseconds);
    }

    /// One block from disk to host memory, pinned there.
    pub(super) fn bring_one(&self, disk: &Stored, wanted: &Wanted) -> Result<Brought, LoadStop> {
        let claim = Claim {
            now: self.tick(),
            ..Claim::default()
        };
        let key = std::slice::from_ref(&wanted.key);
        let _flight = self.flights.board(wanted.key);
        // Another load may have brought it while this one waited.
        let there = self.host.pool.pin(key, &claim).blocks;
        if !there.is_empty() {
            return Ok(Brought {
                block: there,
                was_read: false,
            });
        }
        let tenant = TenantId(disk.tenant(wanted.slot));
        let request = AllocateRequest {
            tenant,
            now: claim.now,
        };
        let room = self.host_room(1, &request);
        let room = room.map_err(|_| LoadStop::HostFull)?;
        let [block] = *room.ids() else {
            broken(format_args!(
                "{} host blocks for block {}",
                room.len(),
                wanted.key
            ))
        };
        self.read(disk, wanted, block)?;
        self.host.describe(block, wanted.position, tenant.0);
        let complete = room.complete(key, wanted.parent);
        let complete = complete.map_err(|rejected| LoadStop::Pool(rejected.error))?;
        let registered = complete.register(&claim);
        self.metrics.stored(Tier::Host, 1);
        let registered = registered.map_err(|rejected| LoadStop::Pool(rejected.error))?;
        self.anchor(&registered.blocks, wanted.parent);
        Ok(Brought {
            block: registered.blocks,
            was_read: true,
        })
    }

    /// Reads a slot into a host block and verifies it.
    pub(super) fn read(
        &self,
        disk: &Stored,
        wanted: &Wanted,
        block: BlockId,
    ) -> Result<(), LoadStop> {
        let lease = self.host.lease(&self.manager, block, LeaseMode::Write);
        let mut lease = lease.map_err(LoadStop::Transfer)?;
        let bytes = lease.block_mut(block.index() as u64);
        let bytes = bytes.map_err(LoadStop::Transfer)?;
        let start = self.clock.now();
        let Err(miss) = disk.store.read(wanted.slot.0, &wanted.key, bytes) else {
            let time = self.clock.now().saturating_sub(start);
            disk.rate.measured(self.block_bytes, time);
            self.metrics.checked(Tier::Disk, 1, 0);
            self.moved((Tier::Disk, Tier::Host), 1, self.block_bytes, time);
            return Ok(());
        };
        self.metrics.move_failed(Tier::Disk, Tier::Host);
        match &miss {
            Miss::Empty | Miss::WrongKey | Miss::Replaced => {
                self.metrics.lost(MissReason::Evicted, 1);
                return Err(LoadStop::Evicted);
            }
            Miss::Checksum | Miss::Torn | Miss::Truncated => {
                self.metrics.checked(Tier::Disk, 1, 1);
                self.metrics.lost(MissReason::Checksum, 1);
            }
            _ => self.metrics.lost(MissReason::ReadFailed, 1),
        }
        disk.drop_bad(wanted.slot, &wanted.key, &miss, self.clock.now());
        Err(LoadStop::Lost)
    }
}
