//! A small engine with four groups and its cache. The content of each page is derived from its group
//! and its key. The rules are computed here a second time, token by token.

use std::{collections::HashSet, num::NonZeroU64, path::Path, sync::Arc};

use kvtile_blocks::{
    BlockKey,
    events::{StoredBlock, TierId},
};
use kvtile_layout::{Axis, GroupRule, Plane, Shape, Unit, identity::Identity};
use kvtile_tiers::{
    TierError,
    cache::DiskSettings,
    disk::medium::Medium,
    groups::{
        CacheGroup, GroupCache, GroupCacheSettings, GroupLoadReport, GroupMatch, GroupOperation,
        GroupStoreOptions, GroupStoreReport, LoadBlocks, StoreBlocks,
    },
};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};

use super::keeper::{self, TestGroups};

/// Tokens of a unit of the chain, and of a page of most groups.
pub(crate) const UNIT: u64 = 4;
/// Tokens of a page of the state.
pub(crate) const STATE_PAGE: u64 = 8;
/// Tokens that the window's layers attend to.
pub(crate) const WINDOW: u64 = 10;
/// Tokens of a chunk.
pub(crate) const CHUNK: u64 = 16;
/// Blocks of each layout of the engine.
const ENGINE_BLOCKS: u64 = 128;
/// The block whose content is not part of any request.
const SCRATCH: usize = 127;

pub(crate) const NAMES: [&str; 4] = ["full", "window", "chunk", "state"];

fn tokens(count: u64) -> NonZeroU64 {
    NonZeroU64::new(count).unwrap()
}

pub(crate) fn rule(group: usize) -> GroupRule {
    match group {
        0 => GroupRule::Full,
        1 => GroupRule::Window {
            tokens: tokens(WINDOW),
        },
        2 => GroupRule::Chunk {
            tokens: tokens(CHUNK),
        },
        _ => GroupRule::Stop,
    }
}

pub(crate) fn page(group: usize) -> u64 {
    if group == 3 { STATE_PAGE } else { UNIT }
}

/// The pages of a group that a stop needs, from the meaning of the rules.
pub(crate) fn needed(group: usize, stop: u64) -> Vec<u64> {
    let is_needed = |token: u64| match group {
        0 => true,
        // The next token is at `stop` and attends to itself and to those before it.
        1 => token + WINDOW > stop,
        2 => token / CHUNK == stop / CHUNK,
        _ => token + 1 == stop,
    };
    let mut pages: Vec<u64> = (0..stop)
        .filter(|token| is_needed(*token))
        .map(|token| token / page(group))
        .collect();
    pages.dedup();
    pages
}

pub(crate) fn shape(group: usize) -> Shape {
    let unit = || Unit::new("f32", 4, 1).unwrap();
    if group < 3 {
        let (layers, heads) = [(2, 2), (3, 1), (1, 2)][group];
        return Shape::key_value(ENGINE_BLOCKS, layers, UNIT, heads, 8, unit()).unwrap();
    }
    let conv = Plane::new("conv", unit()).unwrap().extent(Axis::C, 24);
    let state = Plane::new("state", unit()).unwrap().extent(Axis::C, 40);
    let planes = vec![conv.per_page(), state.per_page()];
    Shape::new(ENGINE_BLOCKS, 2, STATE_PAGE, planes).unwrap()
}

fn word(group: usize) -> &'static str {
    if group < 3 { "L|BH(kCN,vNC)" } else { "L|BK" }
}

pub(crate) fn layout(group: usize) -> PhysicalLayout {
    let builder = PhysicalLayout::builder().with_shape(shape(group));
    let word: kvtile_layout::Word = if group < 3 {
        word(group).parse().unwrap()
    } else {
        "L|B(convC,stateC)".parse().unwrap()
    };
    builder.layout(word).allocate_system().build().unwrap()
}

pub(crate) fn identity(group: usize) -> Identity {
    Identity::new("a-model", "main", &shape(group)).unwrap()
}

/// Bytes of host memory that each page takes.
const STRIDE: u64 = 4096;

/// Settings with these numbers of host pages, and no threads.
pub(crate) fn settings(groups: &[usize], pages: &[u64]) -> GroupCacheSettings {
    let all = groups.iter().zip(pages).map(|(&group, &pages)| {
        let share = pages as f64;
        CacheGroup::new(NAMES[group], rule(group), identity(group)).share(share)
    });
    let pages: u64 = pages.iter().sum();
    let stops: u64 = groups.iter().map(|group| [1, 3, 4, 1][*group]).sum();
    GroupCacheSettings::new(all.collect())
        .host_bytes((pages + stops) * STRIDE)
        .workers(0)
}

pub(crate) fn with_disk(mut settings: GroupCacheSettings, folder: &Path) -> GroupCacheSettings {
    settings.disk = Some(DiskSettings::new(folder, 4 << 20));
    settings
}

/// The keys of a chain. Chains with equal numbers share their first `common` keys.
pub(crate) fn chain(number: u64, branch: u64, common: usize, units: usize) -> Vec<BlockKey> {
    let key = |unit: usize| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
        let of = if unit < common { 0 } else { 1 + branch };
        bytes[4..8].copy_from_slice(&u32::try_from(of).unwrap().to_le_bytes());
        bytes[8..].copy_from_slice(&(unit as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..units).map(key).collect()
}

fn seed(group: usize, key: &BlockKey) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ group as u64;
    for &byte in key.as_bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// The engine: a layout for each group.
#[derive(Clone)]
pub(crate) struct GroupEngine {
    pub(crate) manager: Arc<TransferManager>,
    pub(crate) groups: Vec<usize>,
    pub(crate) handles: Vec<LayoutHandle>,
}

/// Steps of a cache without threads until nothing is left to do.
pub(crate) fn settle(cache: &TestGroups) {
    while cache.step() {}
}

impl GroupEngine {
    pub(crate) fn new(groups: &[usize]) -> GroupEngine {
        let manager = Arc::new(TransferManager::new());
        let handles = groups
            .iter()
            .map(|&group| manager.register(layout(group)).unwrap());
        GroupEngine {
            handles: handles.collect(),
            groups: groups.to_vec(),
            manager,
        }
    }

    pub(crate) fn open(&self, settings: GroupCacheSettings) -> TestGroups {
        self.try_open(settings, None).unwrap()
    }

    /// Opens a cache, on another medium than a folder if one is given.
    pub(crate) fn try_open(
        &self,
        settings: GroupCacheSettings,
        medium: Option<Arc<dyn Medium>>,
    ) -> Result<TestGroups, TierError> {
        let handles: Vec<Option<LayoutHandle>> = self.handles.iter().copied().map(Some).collect();
        let engine = (Arc::clone(&self.manager), &handles[..]);
        keeper::open(settings, medium, engine)
    }

    /// Tokens of a key of the chain.
    fn unit(&self) -> u64 {
        self.groups.iter().map(|group| page(*group)).min().unwrap()
    }

    fn key(&self, at: usize, chain: &[BlockKey], page_number: u64) -> BlockKey {
        let end = (page_number + 1) * page(self.groups[at]) / self.unit();
        chain[usize::try_from(end).unwrap() - 1]
    }

    fn fill(&self, at: usize, block: usize, pattern: FillPattern) {
        self.manager
            .fill(self.handles[at], &[block], pattern)
            .unwrap();
    }

    /// Whether a block has the content of a page.
    fn holds(&self, at: usize, key: &BlockKey, block: usize) -> bool {
        let seed = seed(self.groups[at], key);
        self.fill(at, SCRATCH, FillPattern::Distinct { seed });
        let digest = |block| self.manager.block_digest(self.handles[at], block).unwrap();
        digest(block) == digest(SCRATCH)
    }

    /// Computes the pages of `chain` up to `stop` that the stops need, into the blocks from 0 on, and
    /// stores them.
    pub(crate) fn store(
        &self,
        cache: &TestGroups,
        chain: &[BlockKey],
        stops: &[u64],
    ) -> GroupStoreReport {
        let store = self.begin_store(cache, chain, stops);
        settle(cache);
        store.wait()
    }

    /// As [`store`](Self::store), without waiting.
    pub(crate) fn begin_store(
        &self,
        cache: &GroupCache,
        chain: &[BlockKey],
        stops: &[u64],
    ) -> GroupOperation<GroupStoreReport> {
        let last = stops.iter().copied().max().unwrap_or(0);
        let mut blocks: Vec<(u64, Vec<usize>)> = Vec::new();
        for (at, &group) in self.groups.iter().enumerate() {
            let pages: Vec<u64> = stops.iter().flat_map(|stop| needed(group, *stop)).collect();
            let first = pages.iter().copied().min().unwrap_or(0);
            let end = if pages.is_empty() {
                first
            } else {
                last / page(group)
            };
            let ids: Vec<usize> = (0..usize::try_from(end - first).unwrap()).collect();
            for (page, &block) in (first..end).zip(&ids) {
                let seed = seed(group, &self.key(at, chain, page));
                self.fill(at, block, FillPattern::Distinct { seed });
            }
            blocks.push((first, ids));
        }
        let of_groups = self.groups.iter().zip(&blocks);
        let given: Vec<StoreBlocks<'_>> = of_groups
            .map(|(&group, (first, ids))| StoreBlocks::new(NAMES[group], *first, ids))
            .collect();
        let options = GroupStoreOptions::new().stops(stops.iter().copied());
        cache.store_with(chain, &given, &options).unwrap()
    }

    /// Loads a match into the blocks from 0 on and checks every byte that the report promises.
    pub(crate) fn load(
        &self,
        cache: &TestGroups,
        chain: &[BlockKey],
        found: GroupMatch,
    ) -> GroupLoadReport {
        let stop = found.stop();
        let load = self.begin_load(cache, found);
        settle(cache);
        let report = load.wait();
        self.check_load(chain, stop, &report);
        report
    }

    /// Starts loading a match into the blocks from 0 on.
    pub(crate) fn begin_load(
        &self,
        cache: &GroupCache,
        found: GroupMatch,
    ) -> GroupOperation<GroupLoadReport> {
        let stop = found.stop();
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        for (at, &group) in self.groups.iter().enumerate() {
            let pages: Vec<u64> = found.needs(NAMES[group], 0).unwrap().collect();
            assert_eq!(pages, needed(group, stop), "{} at {stop}", NAMES[group]);
            let ids: Vec<usize> = (0..pages.len()).collect();
            for &block in &ids {
                self.fill(at, block, FillPattern::Constant(0xa5));
            }
            blocks.push(ids);
        }
        let of_groups = self.groups.iter().zip(&blocks);
        let given: Vec<LoadBlocks<'_>> = of_groups
            .map(|(&group, ids)| LoadBlocks::new(NAMES[group], ids))
            .collect();
        cache.load(found, &given).unwrap()
    }

    /// Checks the report of a load of the stop, and every byte that it promises.
    pub(crate) fn check_load(&self, chain: &[BlockKey], stop: u64, report: &GroupLoadReport) {
        assert!(report.tokens == 0 || report.tokens == stop, "{report:?}");
        assert_eq!(
            report.tokens == stop,
            report.stopped().is_none(),
            "{report:?}"
        );
        if report.tokens > 0 {
            self.check(chain, stop);
        }
    }

    /// Checks the pages that a stop needs in the blocks from 0 on.
    fn check(&self, chain: &[BlockKey], stop: u64) {
        for (at, &group) in self.groups.iter().enumerate() {
            for (page, block) in needed(group, stop).into_iter().zip(0..) {
                let key = self.key(at, chain, page);
                let name = NAMES[group];
                assert!(
                    self.holds(at, &key, block),
                    "page {page} of {name} at {stop}"
                );
            }
        }
    }

    /// The needed pages of a stop that are in no listing of stored pages, for messages.
    pub(crate) fn unlisted(
        &self,
        cache: &TestGroups,
        chain: &[BlockKey],
        stop: u64,
    ) -> Vec<(&'static str, u64)> {
        let stored = cache.snapshot().blocks;
        let mut unlisted = Vec::new();
        for (at, &group) in self.groups.iter().enumerate() {
            for page in needed(group, stop) {
                let key = self.key(at, chain, page);
                let mut stored = stored.iter();
                let name = |block: &StoredBlock| group_name(cache, block);
                if !stored.any(|block| name(block) == NAMES[group] && block.key == key) {
                    unlisted.push((NAMES[group], page));
                }
            }
        }
        unlisted
    }

    /// The usable stops of a chain, from a listing of all stored pages: the longest first.
    pub(crate) fn naive(&self, cache: &TestGroups, chain: &[BlockKey]) -> Vec<u64> {
        let stored = cache.snapshot().blocks.into_iter();
        let stored: HashSet<(String, BlockKey)> = stored
            .map(|block| (group_name(cache, &block), block.key))
            .collect();
        let unit = self.groups.iter().map(|group| page(*group)).max().unwrap();
        let most = chain.len() as u64 * self.unit() / unit;
        let is_stop = |stop: u64| {
            self.groups.iter().enumerate().all(|(at, &group)| {
                let pages = needed(group, stop).into_iter();
                let mut keys = pages.map(|page| self.key(at, chain, page));
                keys.all(|key| stored.contains(&(NAMES[group].to_owned(), key)))
            })
        };
        let stops = (1..=most).rev().map(|stop| stop * unit);
        stops.filter(|stop| is_stop(*stop)).collect()
    }
}

/// The name of the group of a stored page. A keeper may number the groups in another order.
pub(crate) fn group_name(cache: &TestGroups, block: &StoredBlock) -> String {
    let at = usize::try_from(block.group.0).unwrap();
    cache.groups()[at].name.clone()
}

/// The pages that host memory has of a group.
pub(crate) fn in_host(cache: &TestGroups, group: &str) -> u64 {
    cache.tier_stats(group, TierId::HOST).unwrap().present
}

/// A number from an environment variable.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
