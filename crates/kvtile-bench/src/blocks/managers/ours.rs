//! kvtile's own pool as a contender.

use std::sync::Arc;

use kvtile_blocks::{
    BlockKey, BlocksError,
    policy::PolicyKind,
    pool::{AllocateRequest, BlockPool, MutableBlocks, PinClaim, PinnedBlocks},
};

use super::{CHAIN, ContenderOrder, HashChain, PoolContender};
use crate::blocks::pool::new_pool;

/// A pool of kvtile.
struct OwnPool {
    pool: Arc<BlockPool>,
    policy: PolicyKind,
    /// Whether it runs the policy's deferred maintenance before it evicts, as a cache's background
    /// thread does.
    maintained: bool,
    chains: Vec<Vec<BlockKey>>,
    allocated: Vec<MutableBlocks>,
    kept: Vec<PinnedBlocks>,
}

/// A pool with this policy.
pub(super) fn contender(
    policy: PolicyKind,
    maintained: bool,
    chains: &[HashChain],
) -> Result<Box<dyn PoolContender>, BlocksError> {
    let key = |hash: &u64| BlockKey::from_opaque(&hash.to_le_bytes());
    let keys = |chain: &HashChain| chain.iter().map(key).collect();
    Ok(Box::new(OwnPool {
        pool: new_pool(policy, chains.len() * CHAIN)?,
        policy,
        maintained,
        chains: chains.iter().map(keys).collect(),
        allocated: Vec::with_capacity(chains.len()),
        kept: Vec::with_capacity(2 * chains.len()),
    }))
}

impl OwnPool {
    fn keys(&self, chain: usize) -> &[BlockKey] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }
}

impl PoolContender for OwnPool {
    fn manager(&self) -> &'static str {
        "kvtile"
    }

    fn order_name(&self) -> &'static str {
        if self.maintained {
            "gittins, maintained"
        } else {
            self.policy.name()
        }
    }

    fn order(&self) -> ContenderOrder {
        match self.policy {
            PolicyKind::Lru => ContenderOrder::Lru,
            _ => ContenderOrder::Default,
        }
    }

    fn allocate(&mut self) -> usize {
        let Ok(blocks) = self.pool.allocate(CHAIN, &AllocateRequest::default()) else {
            return 0;
        };
        let count = blocks.len();
        self.allocated.push(blocks);
        count
    }

    fn register(&mut self, chain: usize) -> usize {
        let Some(blocks) = self.allocated.pop() else {
            return 0;
        };
        let complete = blocks.complete(self.keys(chain), None);
        let complete = complete.map_err(BlocksError::from);
        let registered = complete.and_then(|blocks| {
            blocks
                .register(&PinClaim::default())
                .map_err(BlocksError::from)
        });
        let Ok(registered) = registered else { return 0 };
        let count = registered.blocks.len();
        self.kept.push(registered.blocks);
        count
    }

    fn find_and_keep(&mut self, chain: usize) -> usize {
        let found = self
            .pool
            .match_prefix(self.keys(chain), &PinClaim::default());
        let count = found.len();
        self.kept.push(found);
        count
    }

    fn find(&self, chain: usize) -> usize {
        let found = self
            .pool
            .match_prefix(self.keys(chain), &PinClaim::default());
        found.len()
    }

    fn maintain(&mut self) -> bool {
        self.maintained && {
            self.pool.maintain();
            true
        }
    }

    fn let_go(&mut self) {
        self.kept.clear();
        self.allocated.clear();
    }
}
