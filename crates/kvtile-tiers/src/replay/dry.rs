//! A replay target without bytes: the block pool alone.

use std::sync::Arc;

use kvtile_blocks::{
    BlockKey, BlocksError, Tick,
    policy::PolicySettings,
    pool::{AllocateRequest, BlockPool, PinClaim, PoolSettings},
};

use super::{run::ReplayTarget, trace::TraceRequest};
use crate::{TierError, room::chain_room};

/// A pool whose blocks have no bytes, with the cache's rule for storing: a chain is stored from its first block
/// on, its ancestors stay pinned, and where there is no room for the whole chain, its head is stored.
#[derive(Debug)]
pub struct DryCache {
    pool: Arc<BlockPool>,
    keys: Vec<BlockKey>,
}

impl DryCache {
    /// An empty cache of `capacity` blocks.
    ///
    /// # Errors
    /// The pool's errors: a capacity of 0, or above its maximum.
    pub fn new(policy: &PolicySettings, capacity: u32) -> Result<DryCache, TierError> {
        let settings = PoolSettings::new().blocks(capacity as usize);
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks))?;
        let keys = Vec::new();
        Ok(DryCache { pool, keys })
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Uses or stores the keys, and returns how many leading ones were cached before.
    fn store_all(&self, claim: &PinClaim) -> Result<usize, TierError> {
        let hits = self.pool.match_prefix(&self.keys, claim).len();
        let request = AllocateRequest {
            now: claim.now,
            ..AllocateRequest::default()
        };
        let mut at = hits;
        let before = at.checked_sub(1).and_then(|at| self.keys.get(at..=at));
        let mut parent = before.map(|key| self.pool.pin(key, claim).blocks);
        while at < self.keys.len() {
            let allocate = |blocks| self.pool.allocate(blocks, &request);
            let Some(room) = chain_room(self.keys.len() - at, allocate) else {
                break;
            };
            let keys = self.keys.get(at..at + room.len()).unwrap_or_default();
            let before = at.checked_sub(1).and_then(|at| self.keys.get(at));
            at += room.len();
            let mut claim = *claim;
            claim.hints.partial_tail &= at == self.keys.len();
            let room = room.complete(keys, before.copied());
            let room = room.map_err(BlocksError::from)?;
            let mut blocks = room.register(&claim).map_err(BlocksError::from)?.blocks;
            parent = Some(blocks.split_off(blocks.len().saturating_sub(1)));
        }
        drop(parent);
        Ok(hits)
    }
}

impl ReplayTarget for DryCache {
    fn request(&mut self, request: &TraceRequest<'_>) -> Result<usize, TierError> {
        self.keys.clear();
        self.keys.extend(request.blocks.iter().map(key));
        let mut claim = PinClaim {
            now: Tick(request.timestamp_ms),
            ..PinClaim::default()
        };
        claim.hints.output_tokens = request.output_tokens;
        claim.hints.partial_tail = request.partial_tail;
        let hits = self.store_all(&claim)?;
        self.pool.maintain();
        Ok(hits)
    }
}

fn key(block: &u32) -> BlockKey {
    BlockKey::from_bytes(u128::from(*block).to_le_bytes())
}
