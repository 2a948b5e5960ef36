//! Parts whose reads run on threads of their own, which a gate stops: reads of a block's parts are in progress at the same
//! time, share little memory without waiting for each other in a circle, and leave none of it behind.

use std::{any::Any, path::Path, sync::Arc, thread, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{StoredBlock, TierId},
    pool::PinClaim,
};
use kvtile_layout::Shard;
use kvtile_testkit::gate::Gate;
use kvtile_tiers::{
    TierError,
    cache::{Cache, TierWrites},
    parts::{FolderParts, PartFolderName, PartSource, PartsSettings, PartsTier},
    tier::{
        BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities, TierAnswer,
        TierContext, TierHold, TierMiss, TierSettings, TierStats, WriteReport,
    },
};
use kvtile_transfer::completion::{Completer, Completion};

use crate::{
    common::{HEADS, LAYERS, Rank, chain, grid, shard, written},
    model::{STORAGE_WORD, model},
};

/// More than the memory of an engine and of its cache: some blocks are read from parts in each round.
const ROUNDS: u32 = 12;

/// The parts of a folder, read by threads that pass a gate.
#[derive(Debug)]
struct GatedParts {
    parts: FolderParts,
    gate: Arc<Gate>,
    /// A part whose reads fail at once.
    failing: Option<PartFolderName>,
}

impl PartSource for GatedParts {
    fn tier(&self) -> Result<TierId, TierError> {
        self.parts.tier()
    }

    fn place(&self) -> String {
        self.parts.place()
    }

    fn list(&self) -> Result<Vec<PartFolderName>, TierError> {
        self.parts.list()
    }

    fn list_after(&self) -> Duration {
        self.parts.list_after()
    }

    fn refresh_after(&self) -> Duration {
        self.parts.refresh_after()
    }

    fn needs_keys(&self) -> bool {
        self.parts.needs_keys()
    }

    fn open(
        &self,
        part: &PartFolderName,
        context: &TierContext,
    ) -> Result<Arc<dyn Tier>, TierError> {
        Ok(Arc::new(GatedPart {
            inner: self.parts.open(part, context)?,
            gate: Arc::clone(&self.gate),
            fails: self.failing == Some(*part),
        }))
    }
}

#[derive(Debug)]
struct GatedPart {
    inner: Arc<dyn Tier>,
    gate: Arc<Gate>,
    fails: bool,
}

impl Tier for GatedPart {
    fn id(&self) -> TierId {
        self.inner.id()
    }

    fn abilities(&self) -> TierAbilities {
        self.inner.abilities()
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.inner.find(group, keys, claim)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.inner.hold(group, keys)
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        self.inner.has(group, key)
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        self.inner.ask(group, keys)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let (inner, gate) = (Arc::clone(&self.inner), Arc::clone(&self.gate));
        let fails = self.fails;
        thread::spawn(move || {
            if fails {
                let what = "on purpose".to_owned();
                let misses = blocks
                    .iter()
                    .map(|_| Err(TierMiss::Damaged { what: what.clone() }));
                let report = ReadReport {
                    blocks: misses.collect(),
                    elapsed: Duration::ZERO,
                };
                drop(blocks);
                return completer.finish(report);
            }
            gate.pass();
            completer.finish(inner.read(blocks).wait());
        });
        completion
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        self.inner.write(blocks)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        self.inner.forget(group, keys)
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        self.inner.evict(blocks, now)
    }

    fn clear(&self, now: Tick) -> usize {
        self.inner.clear(now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        self.inner.sync()
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.inner.durable(group, keys)
    }

    fn stats(&self) -> TierStats {
        self.inner.stats()
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        self.inner.estimate(group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.inner.list(blocks);
    }

    fn maintain(&self) {
        self.inner.maintain();
    }

    fn check_integrity(&self) {
        self.inner.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A reader of the whole model with memory for one block of each size of parts, or for many.
fn reader(folder: &Path, staging_bytes: u64, failing: Option<Shard>) -> (Rank, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let whole = Shard::whole(LAYERS, HEADS);
    let rank = Rank::of(whole, |settings, engine| {
        let source = Arc::new(GatedParts {
            parts: FolderParts::new(folder, &whole, Duration::ZERO),
            gate: Arc::clone(&gate),
            failing: failing.map(|shard| PartFolderName::of(&shard)),
        });
        let parts = PartsSettings::new(source, model(1), STORAGE_WORD.parse().unwrap());
        let parts = parts.staging_bytes(staging_bytes);
        let opener = move |context: &TierContext| {
            Ok(Arc::new(PartsTier::open(parts, context)?) as Arc<dyn Tier>)
        };
        let never = TierSettings::default().writes(TierWrites::Never);
        let builder = Cache::builder(settings).tier(never, opener);
        builder.open(engine).unwrap()
    });
    (rank, gate)
}

/// Two halves of the first layers and all heads of the last ones: parts of two sizes.
fn mixed() -> Vec<Shard> {
    let halves = [0..4, 4..8].map(|heads| shard(0..2, heads));
    [halves.as_slice(), &[shard(2..LAYERS, 0..HEADS)]].concat()
}

#[test]
fn the_parts_of_a_block_are_read_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &grid(1, 4), 1, 1);
    let (rank, gate) = reader(folder.path(), 64 << 20, None);
    thread::scope(|scope| {
        let shut = gate.shut(4);
        let came = scope.spawn(|| rank.load(1, 1));
        // All four have begun, and none has ended.
        shut.wait_until_stopped(4);
        assert_eq!(rank.parts().unwrap().staged_blocks(), 4);
        shut.open();
        assert_eq!(came.join().unwrap(), 1);
    });
    assert_eq!(rank.parts().unwrap().parts_stats().part_reads, 4);
    assert_eq!(rank.parts().unwrap().staged_blocks(), 0);
}

#[test]
fn readers_share_memory_for_one_block_of_each_size() {
    let folder = tempfile::tempdir().unwrap();
    for prompt in [1, 2] {
        written(folder.path(), &mixed(), prompt, 4);
    }
    let (first, _) = reader(folder.path(), 1, None);
    let parts = first.parts().unwrap();
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            let readers = [1, 2].map(|prompt| {
                let keys = chain(first.shard, prompt, 4);
                let cache = &first.cache;
                scope.spawn(move || {
                    let found = cache.lookup(&keys);
                    let start = 8 * (prompt as usize - 1);
                    let to: Vec<usize> = (start..start + found.blocks()).collect();
                    let loaded = cache.load(found, &to).unwrap();
                    loaded
                        .wait_timeout(Duration::from_secs(20))
                        .map(|report| report.blocks)
                })
            });
            for reader in readers {
                assert_eq!(
                    reader.join().unwrap(),
                    Some(4),
                    "readers wait for each other"
                );
            }
        });
        assert_eq!(parts.staged_blocks(), 0);
        first
            .cache
            .evict(kvtile_blocks::events::TierId::HOST, 8)
            .unwrap();
    }
    assert_eq!(
        parts.parts_stats().part_reads,
        u64::from(ROUNDS) * 2 * 4 * 3
    );
    assert_eq!(first.load(1, 4), 4);
}

#[test]
fn a_failing_part_beside_a_slow_one_is_a_miss_and_keeps_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &grid(1, 2), 1, 2);
    for failing in grid(1, 2) {
        for staging_bytes in [1, 64 << 20] {
            let (rank, gate) = reader(folder.path(), staging_bytes, Some(failing));
            let parts = rank.parts().unwrap();
            thread::scope(|scope| {
                let shut = gate.shut(1);
                let came = scope.spawn(|| rank.load(1, 2));
                // With memory for one block, the failing part may make the block a miss before the slow one begins.
                if staging_bytes > 1 {
                    shut.wait_until_stopped(1);
                    thread::sleep(Duration::from_millis(20));
                }
                shut.open();
                assert_eq!(came.join().unwrap(), 0);
            });
            assert_eq!(parts.staged_blocks(), 0);
            let stats = parts.parts_stats();
            assert_eq!((stats.assembled, stats.damaged), (0, 2), "{stats:?}");
        }
    }
}
