//! Caches over groups that share stops: a model with full attention, two windows of one shape, and a state.

use std::{
    collections::HashSet, num::NonZeroU64, ops::Range, path::Path, sync::Arc, time::Duration,
};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_layout::{
    Axis, GroupRule, Plane, Shape, Unit,
    identity::{Fingerprint, Identity},
};
use kvtile_shared::{
    bundle::parse_bundle_name,
    folder::{FolderStore, FolderStoreSettings},
    memory::MemoryStore,
    store::{Deadline, SharedStore, ValueName},
    survey::{SurveySettings, survey},
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::{disk::SplitMix64, shared::SharedTierRig};
use kvtile_tiers::{
    cache::DiskSettings,
    groups::{
        CacheGroup, GroupCache, GroupCacheSettings, GroupMatch, GroupStoreOptions, LoadBlocks,
        StoreBlocks,
    },
    tier::{TierSettings, TierWrites},
};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};

use crate::caches::wait_for;

const NAMES: [&str; 4] = ["full", "window-a", "window-b", "state"];
const PATIENCE: Duration = Duration::from_secs(30);

/// Tokens of the window. The pages have 4 tokens, those of the state 8.
const WINDOW: u64 = 10;

/// Full pages of one bundle.
const BUNDLE: u32 = 2;

/// The stops that tests store.
const STOPS: [u64; 2] = [24, 40];

/// The values of these stops: bundles of full pages, pages of two windows, and states.
const VALUES: usize = 5 + 2 * 6 + 2;

fn page(group: usize) -> u64 {
    if group == 3 { 8 } else { 4 }
}

/// The pages of a group that a stop needs, from the meaning of the rules.
fn needed(group: usize, stop: u64) -> Range<u64> {
    match group {
        0 => 0..stop / 4,
        3 => stop / 8 - 1..stop / 8,
        _ => (stop + 1).saturating_sub(WINDOW) / 4..stop / 4,
    }
}

fn shape(group: usize) -> Shape {
    match group {
        0 => Shape::key_value(64, 2, 4, 2, 8, "f32").unwrap(),
        // Both windows have one identity.
        1 | 2 => Shape::key_value(64, 3, 4, 1, 8, "f32").unwrap(),
        _ => {
            let unit = Unit::new("f32", 4, 1).unwrap();
            let plane = Plane::new("state", unit).unwrap().extent(Axis::C, 40);
            Shape::new(64, 2, 8, vec![plane.per_page()]).unwrap()
        }
    }
}

fn chain(number: u32) -> Vec<BlockKey> {
    let key = |unit: u32| {
        let mut bytes = [7; 16];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[4..8].copy_from_slice(&unit.to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..12).map(key).collect()
}

/// A cache over a store, with its engine.
struct SharingEngine {
    manager: Arc<TransferManager>,
    handles: Vec<LayoutHandle>,
    cache: GroupCache,
    store: Arc<dyn SharedStore>,
}

impl SharingEngine {
    fn open(store: Arc<dyn SharedStore>, disk: Option<&Path>) -> SharingEngine {
        SharingEngine::open_with(store, disk, Some(BUNDLE))
    }

    fn open_with(
        store: Arc<dyn SharedStore>,
        disk: Option<&Path>,
        bundle: Option<u32>,
    ) -> SharingEngine {
        let manager = Arc::new(TransferManager::new());
        let layout = |group| {
            let builder = PhysicalLayout::builder().with_shape(shape(group));
            let word = if group < 3 { "L|BH(kCN,vNC)" } else { "L|BC" };
            builder.layout(word).allocate_system().build().unwrap()
        };
        let handles = (0..4).map(|group| manager.register(layout(group)).unwrap());
        let handles: Vec<LayoutHandle> = handles.collect();
        let groups = (0..4).map(|group| {
            let rule = match group {
                0 => GroupRule::Full,
                3 => GroupRule::Stop,
                _ => GroupRule::Window {
                    tokens: NonZeroU64::new(WINDOW).unwrap(),
                },
            };
            let identity = Identity::new("a-model", "main", &shape(group)).unwrap();
            CacheGroup::new(NAMES[group], rule, identity).share(1.0)
        });
        let mut settings = GroupCacheSettings::new(groups.collect()).host_bytes(4 << 20);
        if let Some(folder) = disk {
            settings = settings.disk(DiskSettings::new(folder, 8 << 20));
        }
        let tier = SharedTierSettings::new()
            .bundle_blocks(bundle)
            .read_within(Duration::from_secs(2))
            .absent_for(Duration::ZERO);
        let writes = TierSettings::default().writes(TierWrites::AtOnce);
        let cache = GroupCache::builder(settings)
            .tier(
                writes,
                SharedTier::opener(TierId::SHARED, Arc::clone(&store), tier),
            )
            .open_registered(Arc::clone(&manager), &handles)
            .unwrap();
        SharingEngine {
            manager,
            handles,
            cache,
            store,
        }
    }

    fn key(&self, group: usize, chain: &[BlockKey], page_number: u64) -> BlockKey {
        let end = (page_number + 1) * page(group) / self.cache.unit();
        chain[usize::try_from(end).unwrap() - 1]
    }

    fn fill(&self, group: usize, block: usize, key: Option<BlockKey>) {
        let pattern = match key {
            Some(key) => FillPattern::Distinct {
                seed: u64::from(key.as_bytes()[4]) * 1000
                    + u64::from(key.as_bytes()[0]) * 10
                    + group as u64,
            },
            None => FillPattern::Constant(0xa5),
        };
        self.manager
            .fill(self.handles[group], &[block], pattern)
            .unwrap();
    }

    fn digest(&self, group: usize, block: usize) -> Fingerprint {
        self.manager
            .block_digest(self.handles[group], block)
            .unwrap()
    }

    /// Stores both stops of a chain, and waits until the store has them.
    fn store(&self, chain: &[BlockKey]) {
        self.store_values(chain, VALUES);
    }

    /// As [`store`](Self::store); the store gets so many values.
    fn store_values(&self, chain: &[BlockKey], values: usize) {
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        for group in 0..4 {
            let pages = 0..STOPS[1] / page(group);
            let ids = (0..usize::try_from(pages.end).unwrap()).collect();
            for (page, block) in pages.zip(0..) {
                self.fill(group, block, Some(self.key(group, chain, page)));
            }
            blocks.push(ids);
        }
        let given: Vec<StoreBlocks<'_>> = (0..4)
            .map(|group| StoreBlocks::new(NAMES[group], 0, &blocks[group]))
            .collect();
        let options = GroupStoreOptions::new().stops(STOPS);
        let report = self
            .cache
            .store_with(chain, &given, &options)
            .unwrap()
            .wait();
        assert!(report.stopped().is_none(), "{report:?}");
        wait_for(&self.store, values);
    }

    fn seek(&self, chain: &[BlockKey]) -> GroupMatch {
        self.cache.seek(chain, PATIENCE).wait()
    }

    /// Loads a match and compares every page that the report promises.
    fn load(&self, chain: &[BlockKey], found: GroupMatch) -> u64 {
        let stop = found.stop();
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        for (group, name) in NAMES.iter().enumerate() {
            let count = found.needs(name, 0).unwrap().count();
            blocks.push((0..count).collect());
            (0..count).for_each(|block| self.fill(group, block, None));
        }
        let given: Vec<LoadBlocks<'_>> = (0..4)
            .map(|group| LoadBlocks::new(NAMES[group], &blocks[group]))
            .collect();
        let report = self.cache.load(found, &given).unwrap().wait();
        assert!(report.tokens == 0 || report.tokens == stop);
        if report.tokens == 0 {
            return 0;
        }
        for (group, name) in NAMES.iter().enumerate() {
            for (page, block) in needed(group, stop).zip(0..) {
                self.fill(group, 63, Some(self.key(group, chain, page)));
                let (came, expected) = (self.digest(group, block), self.digest(group, 63));
                assert_eq!(came, expected, "page {page} of {name}");
            }
        }
        report.tokens
    }
}

/// The values of a store for a chain, each with its group and the key of its last page. The groups are
/// told apart by what each must have; both windows need the same.
fn values_of(store: &dyn SharedStore, chain: &[BlockKey]) -> Vec<(usize, BlockKey, ValueName)> {
    let names = SharedTierRig::names(store).into_iter();
    let parsed: Vec<_> = names
        .filter_map(|name| Some((parse_bundle_name("", &name)?, name)))
        .collect();
    let keys_of = |identity: &str| -> HashSet<BlockKey> {
        let of = parsed.iter().filter(|(of, _)| of.identity == identity);
        of.map(|(of, _)| of.last).collect()
    };
    let mut windows: Vec<&str> = Vec::new();
    let values = parsed.iter().map(|(of, name)| {
        let group = match (of.blocks, keys_of(&of.identity).contains(&chain[4])) {
            (2, _) => 0,
            (_, false) => 3,
            (_, true) => {
                if !windows.contains(&&*of.identity) {
                    windows.push(&of.identity);
                }
                1 + windows.iter().position(|one| *one == of.identity).unwrap()
            }
        };
        (group, of.last, name.clone())
    });
    let values: Vec<_> = values.collect();
    assert_eq!(windows.len(), 2, "both windows have names of their own");
    values
}

fn folder(path: &Path) -> Arc<dyn SharedStore> {
    let settings = FolderStoreSettings::new().syncs(false);
    Arc::new(FolderStore::open(path, settings).unwrap())
}

#[test]
fn a_second_cache_finds_and_loads_the_stops_that_the_first_stored() {
    let path = tempfile::tempdir().unwrap();
    let memory = MemoryStore::new();
    for store in [
        Arc::clone(&memory) as Arc<dyn SharedStore>,
        folder(path.path()),
    ] {
        let first = SharingEngine::open(Arc::clone(&store), None);
        let (keys, other) = (chain(1), chain(2));
        first.store(&keys);
        assert_eq!(values_of(&*store, &keys).len(), VALUES);
        let found = survey(&*store, &SurveySettings::new()).unwrap();
        assert_eq!(found.manifests.len(), 4);
        assert!(found.manifests.values().all(Result::is_ok), "{found:?}");
        let second = SharingEngine::open(Arc::clone(&store), None);
        assert_eq!(second.cache.lookup(&keys).stop(), 0, "no query was made");
        let found = second.seek(&keys);
        assert_eq!((found.stop(), found.stops()), (40, vec![40, 24]));
        assert_eq!(second.load(&keys, found), 40);
        // Now it is in host memory.
        let found = second.cache.lookup(&keys);
        assert_eq!(second.load(&keys, found), 40);
        assert_eq!(second.seek(&other).stop(), 0);
        let options = kvtile_tiers::groups::StopOptions::new().at_most(39);
        let third = SharingEngine::open(Arc::clone(&store), None);
        let found = third.cache.seek_with(&keys, PATIENCE, &options).wait();
        assert_eq!(found.stop(), 24);
        assert_eq!(third.load(&keys, found), 24);
        third.cache.check_integrity();
    }
}

/// Where the settings do not say how many pages a value has, no stop waits for a value that is not whole.
#[test]
fn by_default_the_last_pages_before_a_stop_are_shared_too() {
    let path = tempfile::tempdir().unwrap();
    let memory = MemoryStore::new() as Arc<dyn SharedStore>;
    for store in [memory, folder(path.path())] {
        let open = || SharingEngine::open_with(Arc::clone(&store), None, None);
        open().store_values(&chain(1), 10 + 2 * 6 + 2);
        let second = open();
        let found = second.seek(&chain(1));
        assert_eq!((found.stop(), found.stops()), (40, vec![40, 24]));
        assert_eq!(second.load(&chain(1), found), 40);
    }
}

/// A seek never blocks, and ends at its time even if the store does not answer.
#[test]
fn a_seek_ends_at_its_time_and_without_a_shared_tier_at_once() {
    let store = MemoryStore::new() as Arc<dyn SharedStore>;
    let first = SharingEngine::open(Arc::clone(&store), None);
    first.store(&chain(1));
    let second = SharingEngine::open(store, None);
    let mut seek = second.cache.seek(&chain(1), Duration::ZERO);
    assert!(seek.is_ready());
    let mut seek = second.cache.seek(&chain(1), PATIENCE);
    assert!(seek.wait_timeout(PATIENCE));
    assert_eq!(seek.try_match().unwrap().stop(), 40);
    let closed = second.cache.seek(&chain(1), PATIENCE);
    drop(second);
    assert_eq!(closed.wait().stop(), 0);
    let groups = vec![CacheGroup::new(
        "full",
        GroupRule::Full,
        Identity::new("a-model", "main", &shape(0)).unwrap(),
    )];
    let engine = PhysicalLayout::builder()
        .with_shape(shape(0))
        .layout("BLKNHC");
    let engine = engine.allocate_system().build().unwrap();
    let alone = GroupCache::open(GroupCacheSettings::new(groups), vec![engine]).unwrap();
    assert!(alone.seek(&chain(1), PATIENCE).is_ready());
}

/// Any values of the store disappear, before the seek or between the seek and the load. Stops are compared
/// with a fold over the names that are left.
#[test]
fn a_lost_value_ends_the_stops_that_need_it_and_nothing_is_ever_wrong() {
    let keys = chain(3);
    let mut numbers = SplitMix64::new(11);
    let (mut stops, mut failed) = (HashSet::new(), 0);
    for round in 0..24 {
        let store = MemoryStore::new() as Arc<dyn SharedStore>;
        SharingEngine::open(Arc::clone(&store), None).store(&keys);
        let mut left = values_of(&*store, &keys);
        let mut remove = |left: &mut Vec<(usize, BlockKey, ValueName)>| {
            let (_, _, name) = left.swap_remove(numbers.index(left.len()));
            let by = Deadline::within(PATIENCE);
            assert_eq!(store.remove(&[name], by).unwrap(), 1);
        };
        let cache = SharingEngine::open(Arc::clone(&store), None);
        let naive = |left: &[(usize, BlockKey, ValueName)]| {
            let has = |group: usize, page: u64| {
                let bundle = if group == 0 { u64::from(BUNDLE) } else { 1 };
                let last = page / bundle * bundle + bundle - 1;
                let key = cache.key(group, &keys, last);
                left.iter()
                    .any(|(of, last, _)| (*of, *last) == (group, key))
            };
            let is_stop =
                |stop: &u64| (0..4).all(|group| needed(group, *stop).all(|page| has(group, page)));
            STOPS.iter().rev().copied().find(is_stop).unwrap_or(0)
        };
        (0..round % 4).for_each(|_| remove(&mut left));
        let found = cache.seek(&keys);
        assert_eq!(found.stop(), naive(&left), "{round}");
        stops.insert(found.stop());
        if round % 2 == 1 {
            remove(&mut left);
        }
        let wanted = found.stop();
        let loaded = cache.load(&keys, found);
        assert!(loaded == wanted || wanted > naive(&left), "{round}");
        failed += u64::from(loaded < wanted);
        // What was lost is not offered again, and what is left still is.
        let again = cache.seek(&keys);
        assert!(
            again.stop() >= naive(&left) && again.stop() <= wanted,
            "{round}"
        );
        let (wanted, loaded) = (again.stop(), cache.load(&keys, again));
        assert!(loaded == wanted || wanted > naive(&left), "{round}");
        cache.cache.check_integrity();
    }
    assert!(
        stops.len() == 3 && failed > 0,
        "{stops:?}, {failed} loads failed"
    );
}

#[test]
fn damaged_values_are_misses_of_the_whole_stop() {
    let path = tempfile::tempdir().unwrap();
    let keys = chain(1);
    SharingEngine::open(folder(path.path()), None).store(&keys);
    let values = values_of(&*folder(path.path()), &keys);
    // The last page of each group.
    for group in 0..4 {
        let cache = SharingEngine::open(folder(path.path()), None);
        let found = cache.seek(&keys);
        assert_eq!(found.stop(), 40, "group {group}");
        let of_group = values
            .iter()
            .find(|(of, last, _)| (*of, *last) == (group, keys[9]));
        let file = path.path().join(of_group.unwrap().2.as_str());
        let mut bytes = std::fs::read(&file).unwrap();
        let whole = bytes.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(cache.load(&keys, found), 0, "group {group}");
        let found = cache.seek(&keys);
        assert_eq!(cache.load(&keys, found), 24, "group {group}");
        drop(cache);
        std::fs::write(&file, &whole).unwrap();
    }
}

/// Set if this program is the other process of the test: the folder.
const FOLDER: &str = "KVTILE_TEST_SHARED_GROUPS";

/// The work of the other process; nothing in the process of the tests.
#[test]
fn other_process_over_groups() {
    if let Some(path) = std::env::var_os(FOLDER) {
        let disk = tempfile::tempdir().unwrap();
        SharingEngine::open(folder(Path::new(&path)), Some(disk.path())).store(&chain(1));
    }
}

/// The other process has a disk of its own too.
#[test]
fn a_cache_loads_a_stop_that_another_process_stored() {
    let path = tempfile::tempdir().unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "groups::other_process_over_groups"])
        .env(FOLDER, path.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let disk = tempfile::tempdir().unwrap();
    let cache = SharingEngine::open(folder(path.path()), Some(disk.path()));
    let found = cache.seek(&chain(1));
    assert_eq!(cache.load(&chain(1), found), 40);
}
