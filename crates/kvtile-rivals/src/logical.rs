//! `kvbm-logical`, the block manager of NVIDIA Dynamo.
//!
//! Its default keeps inactive blocks by lineage and evicts the leaf that became inactive longest
//! ago; its LRU ignores lineage. It runs without frequency tracking and without events, both off by
//! default; kvtile's pool runs without events too.

use kvbm_logical::{
    BlockManager, BlockRegistry, CompleteBlock, ImmutableBlock, MutableBlock, SequenceHash,
    manager::BlockManagerConfigBuilder,
};
use kvtile_bench::{
    BenchError,
    blocks::{CHAIN, ContenderOrder, HashChain, PoolContender},
};

const NAME: &str = "kvbm-logical 1.6.1";

/// Tokens per block; the measurements do not depend on it.
const BLOCK_TOKENS: usize = 16;

/// The metadata type that distinguishes its pools.
#[derive(Clone, Debug)]
struct LogicalTier;

/// A manager of blocks.
struct LogicalManager {
    manager: BlockManager<LogicalTier>,
    order: ContenderOrder,
    chains: Vec<Vec<SequenceHash>>,
    allocated: Vec<Vec<MutableBlock<LogicalTier>>>,
    kept: Vec<Vec<ImmutableBlock<LogicalTier>>>,
}

/// With its default backend.
pub(crate) fn with_its_default(chains: &[HashChain]) -> Result<Box<dyn PoolContender>, BenchError> {
    contender(chains, ContenderOrder::Default, |builder| builder)
}

/// With its LRU backend.
pub(crate) fn with_lru(chains: &[HashChain]) -> Result<Box<dyn PoolContender>, BenchError> {
    let lru = BlockManagerConfigBuilder::with_lru_backend;
    contender(chains, ContenderOrder::Lru, lru)
}

fn contender(
    chains: &[HashChain],
    order: ContenderOrder,
    backend: fn(BlockManagerConfigBuilder<LogicalTier>) -> BlockManagerConfigBuilder<LogicalTier>,
) -> Result<Box<dyn PoolContender>, BenchError> {
    let builder = BlockManager::<LogicalTier>::builder()
        .block_count(chains.len() * CHAIN)
        .block_size(BLOCK_TOKENS)
        .registry(BlockRegistry::new());
    let manager = backend(builder).build();
    let manager = manager.map_err(|source| BenchError::Rival {
        name: NAME,
        source: Box::new(source),
    })?;
    Ok(Box::new(LogicalManager {
        manager,
        order,
        chains: chains.iter().map(keys).collect(),
        allocated: Vec::with_capacity(chains.len()),
        kept: Vec::with_capacity(2 * chains.len()),
    }))
}

/// Its keys: hash and position of a block, and the hash of the preceding block.
fn keys(chain: &HashChain) -> Vec<SequenceHash> {
    let mut before = None;
    let positions = (0_u64..).zip(chain);
    let key = |(position, &hash)| {
        let key = SequenceHash::new(hash, before, position);
        before = Some(hash);
        key
    };
    positions.map(key).collect()
}

impl LogicalManager {
    fn keys(&self, chain: usize) -> &[SequenceHash] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }
}

impl PoolContender for LogicalManager {
    fn manager(&self) -> &'static str {
        NAME
    }

    fn order_name(&self) -> &'static str {
        match self.order {
            ContenderOrder::Default => "lineage",
            ContenderOrder::Lru => "lru",
        }
    }

    fn order(&self) -> ContenderOrder {
        self.order
    }

    fn allocate(&mut self) -> usize {
        let blocks = self.manager.allocate_blocks(CHAIN).unwrap_or_default();
        let count = blocks.len();
        self.allocated.push(blocks);
        count
    }

    fn register(&mut self, chain: usize) -> usize {
        let blocks = self.allocated.pop().unwrap_or_default();
        let pairs = blocks.into_iter().zip(self.keys(chain));
        let staged = pairs.filter_map(|(block, key)| block.stage(*key, BLOCK_TOKENS).ok());
        let complete: Vec<CompleteBlock<LogicalTier>> = staged.collect();
        let registered = self.manager.register_blocks(complete);
        let count = registered.len();
        self.kept.push(registered);
        count
    }

    fn find_and_keep(&mut self, chain: usize) -> usize {
        let found = self.manager.match_blocks(self.keys(chain));
        let count = found.len();
        self.kept.push(found);
        count
    }

    fn find(&self, chain: usize) -> usize {
        self.manager.match_blocks(self.keys(chain)).len()
    }

    fn let_go(&mut self) {
        self.kept.clear();
        self.allocated.clear();
    }
}
