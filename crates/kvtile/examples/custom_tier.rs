//! A custom tier below the cache: a pool in memory that several caches share, so that one engine
//! loads blocks that another engine stored. A tier over a database or a network has the same
//! methods; it starts transfers in `read` and `write`, and completes them later.
//!
//! ```sh
//! cargo run -p kvtile --example custom_tier
//! ```

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile::{
    BlockKey, Cache, CacheSettings, Completion, FillPattern, Fingerprint, Identity, PhysicalLayout,
    Shape, TierId, TokenHasher,
    blocks::{GroupId, Tick, events::StoredBlock, events::TierKind, pool::PinClaim},
    tiers::tier::{
        AnswerTime, BlockName, BlockRead, BlockWrite, NotWritten, PromisedHold, ReadReport,
        ReadSuccess, RefusedBlocks, SyncReport, Tier, TierAbilities, TierContext, TierHold,
        TierMiss, TierSettings, TierStats, WriteReport, WriteSuccess,
    },
};
use parking_lot::Mutex;

pub(crate) type SharedPool = Arc<Mutex<HashMap<BlockName, PooledBlock>>>;

#[derive(Debug)]
pub(crate) struct PooledBlock {
    bytes: Vec<u8>,
    checksum: u64,
    parent: Option<BlockKey>,
    tenant: u32,
}

/// One cache's view of a pool.
#[derive(Debug)]
pub(crate) struct PoolTier {
    id: TierId,
    pool: SharedPool,
    context: TierContext,
    removed: AtomicU64,
}

impl PoolTier {
    pub(crate) fn open(id: TierId, pool: SharedPool, context: &TierContext) -> Arc<dyn Tier> {
        Arc::new(PoolTier {
            id,
            pool,
            context: context.clone(),
            removed: AtomicU64::new(0),
        })
    }

    fn read_one(&self, mut block: BlockRead) -> Result<ReadSuccess, TierMiss> {
        let pool = self.pool.lock();
        let found = pool.get(&block.name).ok_or(TierMiss::Absent)?;
        let into = block.into.bytes_mut();
        into.map_err(|error| TierMiss::Failed(error.into()))?
            .copy_from_slice(&found.bytes);
        let checksum = Some(found.checksum); // the cache verifies the bytes
        Ok(ReadSuccess { checksum })
    }

    fn write_one(&self, block: &BlockWrite) -> Result<WriteSuccess, NotWritten> {
        let mut pool = self.pool.lock();
        let BlockName { group, key } = block.name;
        if pool.contains_key(&block.name) {
            return Ok(WriteSuccess::Present);
        }
        let parent = block.parent.map(|key| BlockName { group, key });
        if parent.is_some_and(|parent| !pool.contains_key(&parent)) {
            return Err(NotWritten::NoParent);
        }
        let bytes = block.from.bytes();
        let pooled = PooledBlock {
            bytes: bytes
                .map_err(|error| NotWritten::Failed(error.into()))?
                .to_vec(),
            checksum: block.checksum().map_err(NotWritten::Failed)?,
            parent: block.parent,
            tenant: block.tenant,
        };
        pool.insert(block.name, pooled);
        let events = &self.context.events;
        events.stored(self.id, group, block.parent, &[key]);
        Ok(WriteSuccess::New)
    }

    fn remove(&self, pool: &mut HashMap<BlockName, PooledBlock>, names: Vec<BlockName>) -> usize {
        let mut removed = 0;
        for name in names {
            if pool.remove(&name).is_some() {
                let events = &self.context.events;
                events.removed(self.id, name.group, &[name.key]);
                removed += 1;
            }
        }
        self.removed.fetch_add(removed as u64, Ordering::Relaxed);
        removed
    }
}

impl Tier for PoolTier {
    fn id(&self) -> TierId {
        self.id
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: false,
            is_durable: false,
            is_shared: true,
            verifies: false,
            reads_pieces: false,
            answers: AnswerTime::AtOnce,
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        _claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.hold(group, keys) // no eviction policy, so no uses are counted
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let pool = self.pool.lock();
        let found = keys
            .iter()
            .map_while(|&key| pool.get(&BlockName { group, key }));
        // A shared tier promises nothing: the read decides.
        PromisedHold::of(found.map(|block| (block.parent, block.tenant)))
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        let start = self.context.clock.now();
        let blocks = blocks.into_iter().map(|block| self.read_one(block));
        let blocks = blocks.collect();
        let elapsed = self.context.clock.now().saturating_sub(start);
        Completion::ended(0, ReadReport { blocks, elapsed })
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let start = self.context.clock.now();
        let mut refused = RefusedBlocks::default();
        let write = |block: BlockWrite| {
            let may = refused.check(&block);
            let outcome = may.and_then(|()| self.write_one(&block));
            refused.note(block.name, &outcome);
            outcome
        };
        let blocks = blocks.into_iter().map(write).collect();
        let elapsed = self.context.clock.now().saturating_sub(start);
        Completion::ended(0, WriteReport { blocks, elapsed })
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let names = keys.iter().map(|&key| BlockName { group, key });
        self.remove(&mut self.pool.lock(), names.collect())
    }

    fn evict(&self, blocks: usize, _now: Tick) -> usize {
        let mut pool = self.pool.lock();
        let mut evicted = 0;
        while evicted < blocks {
            // A block is of no use without its parent, so leaves are evicted first.
            let parent = |(name, block): (&BlockName, &PooledBlock)| {
                block.parent.map(|key| BlockName { key, ..*name })
            };
            let parents: HashSet<BlockName> = pool.iter().filter_map(parent).collect();
            let leaf = pool.keys().find(|name| !parents.contains(name)).copied();
            match leaf {
                Some(leaf) => evicted += self.remove(&mut pool, vec![leaf]),
                None => break,
            }
        }
        evicted
    }

    fn clear(&self, _now: Tick) -> usize {
        let mut pool = self.pool.lock();
        let names = pool.keys().copied().collect();
        self.remove(&mut pool, names)
    }

    fn sync(&self) -> Completion<SyncReport> {
        Completion::ended(0, SyncReport::default())
    }

    fn durable(&self, _group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        vec![false; keys.len()]
    }

    fn stats(&self) -> TierStats {
        let mut stats = TierStats::default();
        stats.present = self.pool.lock().len() as u64;
        stats.removed = self.removed.load(Ordering::Relaxed);
        stats
    }

    fn estimate(&self, _group: GroupId, _blocks: usize) -> Option<Duration> {
        None // not measured
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        let pool = self.pool.lock();
        blocks.extend(pool.iter().map(|(name, block)| StoredBlock {
            tier: self.id,
            group: name.group,
            key: name.key,
            parent: block.parent,
        }));
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let id = TierId::new(TierKind::Remote, "pool")?;
    let shape = Shape::key_value(32, 4, 16, 2, 64, "bf16")?;
    let identity = Identity::new("a-model", "main", &shape)?;
    let keys = TokenHasher::new(&identity)?.keys(&(0..64).collect::<Vec<u32>>());

    // One pool for each model and order of stored blocks; the fingerprints name them.
    let pools: Arc<Mutex<HashMap<Vec<Fingerprint>, SharedPool>>> = Arc::default();
    let open = |layout: &str| -> Result<Cache, Box<dyn Error>> {
        let engine = PhysicalLayout::builder().with_shape(shape.clone());
        let pools = Arc::clone(&pools);
        let settings = CacheSettings::new(identity.clone()).host_bytes(16 << 20);
        let cache = Cache::builder(settings).tier(TierSettings::default(), move |context| {
            // A cache has one group today.
            let stored = context.groups.iter().map(|group| &group.identity);
            let names = stored.flat_map(|stored| {
                [
                    stored.logical.fingerprint(),
                    stored.block_layout.fingerprint(),
                ]
            });
            let names: Vec<Fingerprint> = names.collect();
            let pool = Arc::clone(pools.lock().entry(names).or_default());
            Ok(PoolTier::open(id, pool, context))
        });
        Ok(cache.open(engine.layout(layout).allocate_system().build()?)?)
    };

    // One engine stores four blocks. On eviction from host memory the cache writes them to the pool.
    let first = open("L|BH(kCN,vNC)")?;
    let pattern = FillPattern::Distinct { seed: 1 };
    first
        .manager()
        .fill(first.engine(), &[0, 1, 2, 3], pattern)?;
    first.store(&keys, &[0, 1, 2, 3])?.wait();
    assert_eq!(first.evict(TierId::HOST, 4)?, 4);

    // Another engine, with another layout, loads them.
    let second = open("BLKNHC")?;
    let load = second.load(second.lookup(&keys), &[8, 9, 10, 11])?;
    println!("{} blocks from the pool", load.wait().blocks_from(id));
    assert_eq!(load.wait().blocks_from(id), 4);
    let stored = first.manager().block_digest(first.engine(), 3)?;
    assert_eq!(stored, second.manager().block_digest(second.engine(), 11)?);

    // The pool is cleared: what is still in host memory is found, the rest is a miss.
    assert_eq!(first.clear()?, 4);
    assert_eq!(first.lookup(&keys).blocks(), 0);
    Ok(())
}
