//! A cache without bytes: the block pool that every cache has, and nothing else.

use std::sync::Arc;

use kvtile_blocks::{
    BlockKey, BlocksError, Tick,
    policy::PolicySettings,
    pool::{AllocateRequest, BlockPool, Claim, PoolSettings},
};

use super::{run::ReplayTarget, trace::Request};
use crate::TierError;

/// A pool whose blocks hold nothing.
///
/// A chain is stored from the first block on; where room is made by giving up the end of the chain that is
/// being stored, the rest of it is not stored.
#[derive(Debug)]
pub struct DryCache {
    pool: Arc<BlockPool>,
    keys: Vec<BlockKey>,
}

impl DryCache {
    /// An empty cache of `capacity` blocks.
    ///
    /// # Errors
    /// What the pool refuses: no blocks, or more than it can count.
    pub fn new(policy: &PolicySettings, capacity: u32) -> Result<DryCache, TierError> {
        let settings = PoolSettings {
            blocks: capacity as usize,
            ..PoolSettings::default()
        };
        let pool = BlockPool::new(settings, |blocks| policy.build(blocks))?;
        let keys = Vec::new();
        Ok(DryCache { pool, keys })
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Uses and stores the keys; how many were stored before.
    fn store_all(&self, claim: &Claim) -> Result<usize, TierError> {
        let hits = self.pool.match_prefix(&self.keys, claim).len();
        let mut parent = hits.checked_sub(1).and_then(|last| self.keys.get(last));
        let missing = self.keys.get(hits..).unwrap_or_default();
        for (at, key) in missing.iter().enumerate() {
            let mut claim = *claim;
            claim.hints.partial_tail &= at + 1 == missing.len();
            if !self.store(key, parent, &claim)? {
                break;
            }
            parent = Some(key);
        }
        Ok(hits)
    }

    /// Stores a block; false where its parent was given up for it.
    fn store(
        &self,
        key: &BlockKey,
        parent: Option<&BlockKey>,
        claim: &Claim,
    ) -> Result<bool, TierError> {
        let request = AllocateRequest {
            now: claim.now,
            ..AllocateRequest::default()
        };
        let block = self.pool.allocate(1, &request)?;
        if parent.is_some_and(|parent| !self.pool.has(parent)) {
            return Ok(false);
        }
        let block = block.complete(std::slice::from_ref(key), parent.copied());
        let block = block.map_err(BlocksError::from)?;
        drop(block.register(claim).map_err(BlocksError::from)?);
        Ok(true)
    }
}

impl ReplayTarget for DryCache {
    fn request(&mut self, request: &Request<'_>) -> Result<usize, TierError> {
        self.keys.clear();
        self.keys.extend(request.blocks.iter().map(key));
        let mut claim = Claim {
            now: Tick(request.timestamp_ms),
            ..Claim::default()
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
