//! A replay target without bytes: the block pool alone.

use std::sync::Arc;

use kvtile_blocks::{
    BlockKey, BlocksError, Tick,
    policy::PolicySettings,
    pool::{AllocateRequest, BlockPool, EvictedBlock, PinClaim, PoolSettings},
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
        store_chain(&self.pool, (&self.keys, hits), claim, &mut |_| {})?;
        Ok(hits)
    }
}

/// Stores the blocks of a chain from position `at` on, behind blocks that are in the pool, as far as there is
/// room. Returns how many leading blocks of the chain are in the pool then. `leaving` gets the blocks that
/// the pool evicts, in eviction order.
pub(super) fn store_chain(
    pool: &Arc<BlockPool>,
    (keys, mut at): (&[BlockKey], usize),
    claim: &PinClaim,
    leaving: &mut dyn FnMut(&[EvictedBlock]),
) -> Result<usize, TierError> {
    let request = AllocateRequest {
        now: claim.now,
        ..AllocateRequest::default()
    };
    let before = at.checked_sub(1).and_then(|at| keys.get(at..=at));
    let mut parent = before.map(|key| pool.pin(key, claim).blocks);
    while at < keys.len() {
        let allocate = |blocks| pool.allocate_with(blocks, &request, |evicted| leaving(evicted));
        let Some(room) = chain_room(keys.len() - at, allocate) else {
            break;
        };
        let stored = keys.get(at..at + room.len()).unwrap_or_default();
        let before = at.checked_sub(1).and_then(|at| keys.get(at));
        at += room.len();
        let mut claim = *claim;
        claim.hints.partial_tail &= at == keys.len();
        let room = room.complete(stored, before.copied());
        let room = room.map_err(BlocksError::from)?;
        let mut blocks = room.register(&claim).map_err(BlocksError::from)?.blocks;
        parent = Some(blocks.split_off(blocks.len().saturating_sub(1)));
    }
    drop(parent);
    Ok(at)
}

/// The claim of a request on the blocks that it uses or stores.
pub(super) fn claim_of(request: &TraceRequest<'_>) -> PinClaim {
    let mut claim = PinClaim {
        now: Tick(request.timestamp_ms),
        ..PinClaim::default()
    };
    claim.hints.output_tokens = request.output_tokens;
    claim.hints.partial_tail = request.partial_tail;
    claim
}

impl ReplayTarget for DryCache {
    fn request(&mut self, request: &TraceRequest<'_>) -> Result<usize, TierError> {
        self.keys.clear();
        self.keys.extend(request.blocks.iter().map(key));
        let claim = claim_of(request);
        let hits = self.store_all(&claim)?;
        self.pool.maintain();
        Ok(hits)
    }
}

/// The key of a block of a trace.
pub(super) fn key(block: &u32) -> BlockKey {
    BlockKey::from_bytes(u128::from(*block).to_le_bytes())
}
