//! A folder with a writer and followers, and blocks whose bytes follow from their keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, GroupId, Tick,
    events::{EventLog, StoredBlock},
    pool::PinClaim,
};
use kvtile_testkit::tier::{HostMemory, content};
use kvtile_tiers::{
    TierError,
    cache::SystemClock,
    disk::{
        DiskFollower, DiskSettings, DiskTier, StoreIdentity,
        medium::{FolderMedium, Medium},
    },
    tier::{BlockName, BlockRead, BlockWrite, Tier, TierContext, TierGroup, TierMiss},
};
use kvtile_transfer::completion::Completion;

/// The only group.
pub(crate) const GROUP: GroupId = GroupId(0);

/// Room for 43 blocks of one page each.
pub(crate) const DISK_BYTES: u64 = 52 * 4096;

/// The longest wait for a completion.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The tenant of all blocks.
pub(crate) const TENANT: u32 = 7;

/// A block of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainBlock {
    pub(crate) key: BlockKey,
    pub(crate) parent: Option<BlockKey>,
    pub(crate) position: u32,
}

/// The first `blocks` blocks of chain `number`.
pub(crate) fn chain(number: u64, blocks: u32) -> Vec<ChainBlock> {
    let key = |position: u32| {
        let mut bytes = [0x5a; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..12].copy_from_slice(&position.to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    let block = |position: u32| ChainBlock {
        key: key(position),
        parent: position.checked_sub(1).map(key),
        position,
    };
    (0..blocks).map(block).collect()
}

pub(crate) fn keys(blocks: &[ChainBlock]) -> Vec<BlockKey> {
    blocks.iter().map(|block| block.key).collect()
}

pub(crate) fn name(key: BlockKey) -> BlockName {
    BlockName { group: GROUP, key }
}

/// Waits for the end of a batch.
pub(crate) fn ended<T: Clone>(completion: &Completion<T>) -> T {
    completion.wait_timeout(PATIENCE).unwrap()
}

/// A temporary folder, and host memory for the batches of its tiers.
pub(crate) struct FollowRig {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) host: HostMemory,
    pub(crate) threads: usize,
}

impl FollowRig {
    pub(crate) fn new(threads: usize) -> FollowRig {
        FollowRig {
            folder: tempfile::tempdir().unwrap(),
            host: HostMemory::new(256).unwrap(),
            threads,
        }
    }

    /// The followed folder, which a writer creates.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("kv")
    }

    pub(crate) fn identity(&self) -> &StoreIdentity {
        self.host.identity()
    }

    pub(crate) fn context(&self) -> TierContext {
        self.context_of(self.identity().clone())
    }

    pub(crate) fn context_of(&self, identity: StoreIdentity) -> TierContext {
        context_of(identity, self.threads)
    }

    pub(crate) fn settings(&self, bytes: u64) -> DiskSettings {
        DiskSettings::new(self.path(), bytes).refresh_after(Duration::ZERO)
    }

    pub(crate) fn writer(&self) -> FolderWriter<'_> {
        self.writer_of(DISK_BYTES)
    }

    pub(crate) fn writer_of(&self, bytes: u64) -> FolderWriter<'_> {
        let tier = DiskTier::open(&self.settings(bytes), &self.context()).unwrap();
        FolderWriter {
            tier,
            host: &self.host,
        }
    }

    pub(crate) fn try_follower(
        &self,
        context: &TierContext,
    ) -> Result<FolderReader<'_>, TierError> {
        let tier = DiskFollower::open(&self.settings(DISK_BYTES), context)?;
        let host = &self.host;
        Ok(FolderReader { tier, host })
    }

    pub(crate) fn follower(&self) -> FolderReader<'_> {
        self.try_follower(&self.context()).unwrap()
    }

    pub(crate) fn follower_on(
        &self,
        medium: Arc<dyn Medium>,
    ) -> Result<FolderReader<'_>, TierError> {
        let tier = DiskFollower::open_on(medium, &self.settings(DISK_BYTES), &self.context())?;
        let host = &self.host;
        Ok(FolderReader { tier, host })
    }

    pub(crate) fn writes(&self, blocks: &[ChainBlock]) -> Vec<BlockWrite> {
        writes(&self.host, blocks)
    }

    /// Removes all blocks and the manifest.
    pub(crate) fn clear(&self) {
        kvtile_tiers::disk::clear(&FolderMedium::new(self.path())).unwrap();
    }

    /// The content of each file of the folder, and when it was last written.
    pub(crate) fn files(&self) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
        files_of(&self.path())
    }
}

pub(crate) fn context_of(identity: StoreIdentity, threads: usize) -> TierContext {
    let events = 1 << 16;
    TierContext {
        groups: vec![TierGroup::new("kv", identity)],
        events: Arc::new(EventLog::new(events.try_into().unwrap()).unwrap()),
        clock: Arc::new(SystemClock::default()),
        threads,
    }
}

fn files_of(path: &Path) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let file = |entry: std::fs::DirEntry| {
        let modified = entry.metadata().unwrap().modified().unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), (bytes, modified))
    };
    entries.map(file).collect()
}

/// A batch that writes blocks with the content of their keys.
pub(crate) fn writes(host: &HostMemory, blocks: &[ChainBlock]) -> Vec<BlockWrite> {
    let write = |block: &ChainBlock| {
        let (_, from) = host.filled(&name(block.key));
        BlockWrite {
            name: name(block.key),
            parent: block.parent,
            position: block.position,
            tenant: TENANT,
            from,
        }
    };
    blocks.iter().map(write).collect()
}

/// The tier of the process that writes.
pub(crate) struct FolderWriter<'a> {
    pub(crate) tier: DiskTier,
    host: &'a HostMemory,
}

impl FolderWriter<'_> {
    /// Writes blocks; returns how many the tier took.
    pub(crate) fn write(&self, blocks: &[ChainBlock]) -> usize {
        let report = ended(&self.tier.write(writes(self.host, blocks)));
        report
            .blocks
            .iter()
            .filter(|outcome| outcome.is_ok())
            .count()
    }

    pub(crate) fn sync(&self) {
        let report = ended(&self.tier.sync());
        assert!(report.failure.is_none() && report.lost == 0, "{report:?}");
    }

    /// Writes blocks, all of which the tier must take, and syncs.
    pub(crate) fn store(&self, blocks: &[ChainBlock]) {
        assert_eq!(self.write(blocks), blocks.len());
        self.sync();
    }

    /// Removes blocks and syncs.
    pub(crate) fn forget(&self, blocks: &[ChainBlock]) {
        assert_eq!(self.tier.forget(GROUP, &keys(blocks)), blocks.len());
        self.sync();
    }

    pub(crate) fn list(&self) -> BTreeSet<(BlockKey, Option<BlockKey>)> {
        list(&self.tier)
    }
}

/// A follower with host memory for its reads.
pub(crate) struct FolderReader<'a> {
    pub(crate) tier: DiskFollower,
    host: &'a HostMemory,
}

impl<'a> FolderReader<'a> {
    pub(crate) fn new(tier: DiskFollower, host: &'a HostMemory) -> FolderReader<'a> {
        FolderReader { tier, host }
    }

    /// The number of leading blocks after a refresh, which must succeed.
    pub(crate) fn fresh(&self, blocks: &[ChainBlock]) -> usize {
        let answer = ended(&self.tier.ask(GROUP, &keys(blocks)));
        assert!(answer.failure.is_none(), "{answer:?}");
        self.tier.check_integrity();
        assert_eq!(self.held(blocks), answer.leading);
        answer.leading
    }

    /// The number of leading blocks of the index as it is.
    pub(crate) fn held(&self, blocks: &[ChainBlock]) -> usize {
        let hold = self.tier.hold(GROUP, &keys(blocks));
        hold.map_or(0, |hold| hold.blocks())
    }

    /// The number of leading blocks that a lookup finds; it may start a refresh.
    pub(crate) fn found(&self, blocks: &[ChainBlock]) -> usize {
        let found = self.tier.find(GROUP, &keys(blocks), &PinClaim::default());
        found.map_or(0, |hold| hold.blocks())
    }

    /// Waits until lookups find `wanted` leading blocks.
    pub(crate) fn until_found(&self, blocks: &[ChainBlock], wanted: usize) {
        let start = Instant::now();
        while self.found(blocks) != wanted {
            assert!(start.elapsed() < PATIENCE, "lookups do not find {wanted}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads blocks, and compares every byte of those that come.
    pub(crate) fn read(&self, blocks: &[ChainBlock]) -> Vec<Result<(), TierMiss>> {
        let read = |block: &ChainBlock| {
            let (reserved, into) = self.host.empty();
            let name = name(block.key);
            (reserved, BlockRead { name, into })
        };
        let (reserved, batch): (Vec<_>, Vec<_>) = blocks.iter().map(read).unzip();
        let report = ended(&self.tier.read(batch));
        assert_eq!(report.blocks.len(), blocks.len());
        let each = report.blocks.iter().zip(blocks).zip(&reserved);
        each.map(|((outcome, block), reserved)| {
            assert!(reserved.is_let_go(), "the batch keeps its memory");
            outcome.clone()?;
            let expected = content(&name(block.key), self.host.block_bytes());
            assert!(
                self.host.bytes(reserved) == expected,
                "wrong bytes: {block:?}"
            );
            Ok(())
        })
        .collect()
    }

    /// Reads blocks that must all come.
    pub(crate) fn read_all(&self, blocks: &[ChainBlock]) {
        for (outcome, block) in self.read(blocks).iter().zip(blocks) {
            assert!(outcome.is_ok(), "{block:?}: {outcome:?}");
        }
    }

    /// Reads blocks that must all be absent.
    pub(crate) fn read_none(&self, blocks: &[ChainBlock]) {
        for (outcome, block) in self.read(blocks).iter().zip(blocks) {
            let is_absent = matches!(outcome, Err(TierMiss::Absent));
            assert!(is_absent, "{block:?}: {outcome:?}");
        }
    }

    pub(crate) fn list(&self) -> BTreeSet<(BlockKey, Option<BlockKey>)> {
        list(&self.tier)
    }
}

fn list(tier: &dyn Tier) -> BTreeSet<(BlockKey, Option<BlockKey>)> {
    let mut listed: Vec<StoredBlock> = Vec::new();
    tier.list(&mut listed);
    let blocks: BTreeSet<_> = listed
        .iter()
        .map(|block| (block.key, block.parent))
        .collect();
    assert_eq!(blocks.len(), listed.len(), "a block is listed twice");
    blocks
}

/// The moment of an eviction.
pub(crate) const NOW: Tick = Tick(0);
