//! The conformance suite of tiers on two writers and a tier over their parts: each write goes in halves to the
//! writers and is synced, everything else is what the parts give after a refresh.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId},
    pool::PinClaim,
};
use kvtile_layout::{
    CopyPlan, RangePair, Selection, Shape, Shard, StridedLayout, Word,
    identity::{Identity, LayoutIdentity},
};
use kvtile_testkit::tier::conformance::{OpenTierAt, check_tier};
use kvtile_tiers::{
    disk::{DiskSettings, DiskTier},
    parts::{FolderParts, PartFolderName, PartsSettings, PartsTier},
    tier::{
        BlockPieces, BlockRead, BlockWrite, GroupId, HostBlock, ReadReport, STORAGE_WORD,
        StoreIdentity, SyncReport, Tier, TierAbilities, TierAnswer, TierContext, TierGroup,
        TierHold, TierStats, WriteReport,
    },
};
use kvtile_transfer::{
    LayoutHandle, LeaseMode, PhysicalLayout, TransferManager, completion::Completion,
};

/// Room for 43 blocks of one page each.
const DISK_BYTES: u64 = 52 * 4096;

/// More blocks than a batch of the suite has.
const BATCH_BLOCKS: u64 = 256;

const GROUP: GroupId = GroupId(0);

fn ended<T: Clone>(completion: &Completion<T>) -> T {
    completion.wait_timeout(Duration::from_secs(20)).unwrap()
}

/// The rank of one half of the heads, and memory for its halves of blocks.
#[derive(Debug)]
struct HalfWriter {
    tier: DiskTier,
    manager: TransferManager,
    handle: LayoutHandle,
    /// Offsets in the whole block and in the half, and lengths.
    runs: Vec<(usize, usize, usize)>,
}

impl HalfWriter {
    fn open(folder: &Path, context: &TierContext, whole: &Shape, heads: u64) -> HalfWriter {
        let mut shard = Shard::whole(2, 2);
        shard.heads = kvtile_layout::AxisRange::new(heads, 1);
        let shape = whole.of_shard(shard).unwrap();
        let word: Word = STORAGE_WORD.parse().unwrap();
        let layout = PhysicalLayout::builder()
            .with_aligned_shape(shape.with_num_blocks(BATCH_BLOCKS).unwrap(), 4096)
            .layout(word.clone())
            .allocate_system()
            .build()
            .unwrap();
        let identity = StoreIdentity {
            logical: Identity::new("a-model", "main", &shape).unwrap(),
            block_layout: LayoutIdentity::of_block(layout.strided()),
            pieces: BlockPieces::of_layout(layout.strided()).unwrap(),
        };
        let apart = TierContext {
            groups: vec![TierGroup::new("kv", identity)],
            events: Arc::new(EventLog::new((1 << 16).try_into().unwrap()).unwrap()),
            ..context.clone()
        };
        let settings = DiskSettings::new(
            folder.join(PartFolderName::of(&shard).to_string()),
            DISK_BYTES,
        );
        let from = StridedLayout::resolve(&word, whole, 4096).unwrap();
        let selection = Selection::blocks(&[0], &[0], whole.page_size()).unwrap();
        let selection = selection.with_heads(RangePair {
            source: heads,
            destination: 0,
            count: 1,
        });
        let selection = selection.with_layers(RangePair::same(0, 2));
        let plan = CopyPlan::new(&from, layout.strided(), &selection).unwrap();
        let mut runs = Vec::new();
        plan.for_each_run(|from, to, bytes| {
            runs.push((from.offset as usize, to.offset as usize, bytes as usize));
        });
        let manager = TransferManager::new();
        HalfWriter {
            tier: DiskTier::open(&settings, &apart).unwrap(),
            handle: manager.register(layout).unwrap(),
            manager,
            runs,
        }
    }

    /// The half of a block, at place `at` of the memory.
    fn half(&self, block: &BlockWrite, at: usize) -> BlockWrite {
        let mut lease = self
            .manager
            .lease(self.handle, &[at], LeaseMode::Write)
            .unwrap();
        let bytes = lease.block_mut(at as u64).unwrap();
        let whole = block.from.bytes().unwrap();
        for &(from, to, length) in &self.runs {
            bytes[to..to + length].copy_from_slice(&whole[from..from + length]);
        }
        drop(lease);
        let lease = self
            .manager
            .lease(self.handle, &[at], LeaseMode::Read)
            .unwrap();
        BlockWrite {
            name: block.name,
            parent: block.parent,
            position: block.position,
            tenant: block.tenant,
            from: HostBlock::new(lease, Arc::new(())).unwrap(),
        }
    }
}

/// The ranks of two halves, and a rank with the whole model that reads their parts.
#[derive(Debug)]
struct HalvesWithParts {
    writers: [HalfWriter; 2],
    parts: PartsTier,
    /// Held during an operation on both writers, so that both have the same order of operations.
    turn: parking_lot::Mutex<()>,
}

impl HalvesWithParts {
    fn open(folder: PathBuf, context: &TierContext) -> HalvesWithParts {
        let whole = Shape::key_value(1, 2, 4, 2, 8, "f32").unwrap();
        let source = FolderParts::new(&folder, &whole.shard(), Duration::from_hours(1));
        let word = STORAGE_WORD.parse().unwrap();
        let settings = PartsSettings::new(Arc::new(source), whole.clone(), word);
        let writers = [0, 1].map(|heads| HalfWriter::open(&folder, context, &whole, heads));
        HalvesWithParts {
            writers,
            parts: PartsTier::open(settings, context).unwrap(),
            turn: parking_lot::Mutex::new(()),
        }
    }

    /// Makes the writers' changes visible to the parts.
    fn publish(&self) {
        for writer in &self.writers {
            let synced = ended(&writer.tier.sync());
            assert!(synced.failure.is_none() && synced.lost == 0, "{synced:?}");
        }
        let answer = ended(&self.parts.ask(GROUP, &[]));
        assert!(answer.failure.is_none(), "{answer:?}");
    }

    /// The same operation on both writers, which must have the same outcome.
    fn both<T: PartialEq + std::fmt::Debug>(&self, operation: impl Fn(&DiskTier) -> T) -> T {
        let _turn = self.turn.lock();
        let [first, second] = &self.writers;
        let outcome = operation(&first.tier);
        assert_eq!(outcome, operation(&second.tier));
        outcome
    }
}

impl Tier for HalvesWithParts {
    fn id(&self) -> TierId {
        self.parts.id()
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: true,
            is_durable: true,
            ..self.parts.abilities()
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        for writer in &self.writers {
            drop(writer.tier.find(group, keys, claim));
        }
        self.parts.find(group, keys, claim)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.parts.hold(group, keys)
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        self.parts.has(group, key)
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        self.parts.ask(group, keys)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        self.parts.read(blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let _turn = self.turn.lock();
        let reports = self.writers.each_ref().map(|writer| {
            let halves = blocks.iter().enumerate();
            let halves = halves.map(|(at, block)| writer.half(block, at));
            ended(&writer.tier.write(halves.collect()))
        });
        drop(blocks);
        self.publish();
        let [report, other] = reports;
        let is_ok =
            |report: &WriteReport| report.blocks.iter().map(Result::is_ok).collect::<Vec<_>>();
        assert_eq!(is_ok(&report), is_ok(&other));
        Completion::ended(0, report)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let removed = self.both(|tier| tier.forget(group, keys));
        self.publish();
        removed
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        let evicted = self.both(|tier| tier.evict(blocks, now));
        self.publish();
        evicted
    }

    fn clear(&self, now: Tick) -> usize {
        let evicted = self.both(|tier| tier.clear(now));
        self.publish();
        evicted
    }

    fn sync(&self) -> Completion<SyncReport> {
        for writer in &self.writers {
            ended(&writer.tier.sync());
        }
        self.writers[0].tier.sync()
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.both(|tier| tier.durable(group, keys))
    }

    fn stats(&self) -> TierStats {
        let mut stats = self.writers[0].tier.stats();
        stats.present = self.parts.stats().present;
        stats
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        self.parts.estimate(group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.parts.list(blocks);
    }

    fn maintain(&self) {
        for writer in &self.writers {
            writer.tier.maintain();
        }
        self.parts.maintain();
    }

    fn check_integrity(&self) {
        for writer in &self.writers {
            writer.tier.check_integrity();
        }
        self.parts.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn folder() -> OpenTierAt {
    let folder = tempfile::tempdir().unwrap();
    Box::new(move |context: &TierContext| {
        let tier = HalvesWithParts::open(folder.path().join("tier"), context);
        Arc::new(tier) as Arc<dyn Tier>
    })
}

#[test]
fn parts_without_threads_keep_the_contract() {
    check_tier(0, &folder);
}

#[test]
fn parts_with_threads_keep_the_contract() {
    check_tier(2, &folder);
}
