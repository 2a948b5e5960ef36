//! A node of a replayed cluster, without bytes: the block pool of its host memory and that of its disk.

use std::{collections::HashMap, sync::Arc};

use kvtile_blocks::{
    BlockKey, BlocksError,
    pool::{AllocateRequest, BlockPool, EvictedBlock, PinClaim, PoolSettings},
};
use kvtile_layout::broken;

use super::settings::{ClusterSettings, ClusterWrites};
use crate::{TierError, replay::dry::store_chain};

/// Blocks that entered and left a node.
#[derive(Debug, Default)]
pub(super) struct NodeChanges {
    /// Evicted from host memory, in that order.
    pub(super) left_host: Vec<EvictedBlock>,
    /// Written to the disk.
    pub(super) disk_written: u64,
    /// Evicted from host memory or the disk, and now in neither.
    pub(super) left: Vec<u32>,
}

/// A node.
#[derive(Debug)]
pub(super) struct ClusterNode {
    host: Arc<BlockPool>,
    disk: Option<Arc<BlockPool>>,
    /// Requests that used each block, counted where the shared tier's writes depend on it.
    uses: HashMap<u32, u32>,
}

impl ClusterNode {
    /// An empty node. A pool never fills more blocks than the trace has.
    pub(super) fn new(settings: &ClusterSettings, distinct: u32) -> Result<ClusterNode, TierError> {
        let pool = |blocks: u32| {
            let blocks = blocks.min(distinct) as usize;
            let pool = PoolSettings::new().blocks(blocks);
            BlockPool::new(pool, |blocks| settings.policy.build(blocks))
        };
        let disk = match settings.disk_blocks {
            0 => None,
            blocks => Some(pool(blocks)?),
        };
        Ok(ClusterNode {
            host: pool(settings.host_blocks)?,
            disk,
            uses: HashMap::new(),
        })
    }

    /// Leading blocks in host memory, which are used.
    pub(super) fn find_host(&self, keys: &[BlockKey], claim: &PinClaim) -> usize {
        self.host.match_prefix(keys, claim).len()
    }

    /// Leading blocks on the disk, which are used.
    pub(super) fn find_disk(&self, keys: &[BlockKey], claim: &PinClaim) -> usize {
        let disk = self.disk.as_ref();
        disk.map_or(0, |disk| disk.match_prefix(keys, claim).len())
    }

    /// Stores a chain in host memory behind its `found` leading blocks, and writes what leaves host memory to
    /// the disk. Returns how many leading blocks are in host memory then.
    pub(super) fn store(
        &self,
        (keys, found): (&[BlockKey], usize),
        claim: &PinClaim,
        changes: &mut NodeChanges,
    ) -> Result<usize, TierError> {
        let left_host = &mut changes.left_host;
        left_host.clear();
        let leaving = &mut |evicted: &[EvictedBlock]| left_host.extend_from_slice(evicted);
        let held = store_chain(&self.host, (keys, found), claim, leaving)?;
        changes.left.clear();
        match &self.disk {
            Some(disk) => self.demote(disk, claim, changes)?,
            None => {
                let left = changes.left_host.iter().map(|evicted| number(&evicted.key));
                changes.left.extend(left);
            }
        }
        self.host.maintain();
        Ok(held)
    }

    /// Writes evicted blocks that are not on the disk to it, one after the other.
    fn demote(
        &self,
        disk: &Arc<BlockPool>,
        claim: &PinClaim,
        changes: &mut NodeChanges,
    ) -> Result<(), TierError> {
        let request = AllocateRequest {
            now: claim.now,
            ..AllocateRequest::default()
        };
        let mut from_disk = Vec::new();
        for evicted in &changes.left_host {
            if disk.has(&evicted.key) {
                continue;
            }
            let leaving = |gone: &[EvictedBlock]| from_disk.extend_from_slice(gone);
            let room = disk.allocate_with(1, &request, leaving)?;
            let room = room.complete(&[evicted.key], evicted.parent);
            let room = room.map_err(BlocksError::from)?;
            // Its hints ended with its time in host memory.
            let claim = PinClaim {
                now: claim.now,
                ..PinClaim::default()
            };
            drop(room.register(&claim).map_err(BlocksError::from)?);
            changes.disk_written += 1;
        }
        disk.maintain();
        let left = from_disk
            .iter()
            .filter(|evicted| !self.host.has(&evicted.key) && !disk.has(&evicted.key));
        changes
            .left
            .extend(left.map(|evicted| number(&evicted.key)));
        changes.left.sort_unstable();
        changes.left.dedup();
        Ok(())
    }

    /// Counts a request's uses of its blocks, after the node stored `held` of them.
    pub(super) fn count_uses(
        &mut self,
        (blocks, held): (&[u32], usize),
        writes: ClusterWrites,
        left_host: &[EvictedBlock],
    ) {
        let counted = match writes {
            ClusterWrites::First => 0,
            ClusterWrites::AfterUses(_) => blocks.len(),
            ClusterWrites::AfterCachedUses(_) => held,
        };
        if let ClusterWrites::AfterCachedUses(_) = writes {
            for evicted in left_host {
                self.uses.remove(&number(&evicted.key));
            }
        }
        for &block in blocks.iter().take(counted) {
            let uses = self.uses.entry(block).or_default();
            *uses = uses.saturating_add(1);
        }
    }

    /// Requests that used a block. No block has more than the one before it in its chain.
    pub(super) fn uses(&self, block: u32) -> u32 {
        self.uses.get(&block).copied().unwrap_or_default()
    }

    /// Whether host memory or the disk holds a block.
    #[cfg(test)]
    pub(super) fn holds(&self, key: &BlockKey) -> bool {
        self.host.has(key) || self.disk.as_ref().is_some_and(|disk| disk.has(key))
    }

    /// Checks its pools.
    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        self.host.check_integrity();
        if let Some(disk) = &self.disk {
            disk.check_integrity();
        }
    }
}

/// The number of a block of the trace.
fn number(key: &BlockKey) -> u32 {
    let number = u128::from_le_bytes(*key.as_bytes());
    match u32::try_from(number) {
        Ok(number) => number,
        Err(_) => broken(format_args!(
            "key {key} is not that of a block of the trace"
        )),
    }
}
