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
/// Policies that know chains get them from the first block on; where room is made by giving up the
/// end of the chain that is being stored, the rest of it is not stored. The others get the last block
/// of a request first: then the head of a chain is the last to go, which is how one uses them best.
#[derive(Debug)]
pub struct DryCache {
    pool: Arc<BlockPool>,
    keeps_prefixes: bool,
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
        let mut keeps_prefixes = false;
        let pool = BlockPool::new(settings, |blocks| {
            let policy = policy.build(blocks);
            keeps_prefixes = policy.keeps_prefixes();
            policy
        })?;
        Ok(DryCache {
            pool,
            keeps_prefixes,
            keys: Vec::new(),
        })
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// From the first block on; how many were stored before.
    fn store_forward(&self, claim: &Claim) -> Result<usize, TierError> {
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

    /// From the last block on.
    fn store_backward(&self, claim: &Claim) -> Result<usize, TierError> {
        let hits = self.pool.peek(&self.keys);
        for key in self.keys.iter().rev() {
            let one = std::slice::from_ref(key);
            if self.pool.match_prefix(one, claim).is_empty() {
                self.store(key, None, claim)?;
            }
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
        if parent.is_some_and(|parent| self.pool.peek(std::slice::from_ref(parent)) == 0) {
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
        let hits = if self.keeps_prefixes {
            self.store_forward(&claim)?
        } else {
            self.store_backward(&claim)?
        };
        self.pool.maintain();
        Ok(hits)
    }
}

fn key(block: &u32) -> BlockKey {
    BlockKey::from_bytes(u128::from(*block).to_le_bytes())
}
