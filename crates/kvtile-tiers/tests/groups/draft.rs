//! Groups of a draft model, and groups whose layouts come with each call.

use std::{collections::HashSet, sync::Arc};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_layout::identity::{GroupRole, ModelGroup, ModelIdentity};
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::{
    HasherOptions, TokenHasher,
    groups::{GroupCacheSettings, LoadBlocks, StoreBlocks},
};
use kvtile_transfer::LayoutHandle;

use super::{
    common::{GroupEngine, NAMES, chain, group_name, needed, page, rule, settings, settle, shape},
    keeper::{self, SLOWER, TestGroups},
};

/// A draft group decides nothing: whatever of it is stored or disappears, the stops are those of the
/// other groups, and it comes whole or not at all.
#[test]
fn stops_are_those_of_the_model_whatever_the_draft_group_has() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let mut all = 0;
    for seed in 0..40 / SLOWER.min(10) {
        let mut numbers = SplitMix64::new(seed);
        let mut settings = settings(&engine.groups, &[10, 2, 4]);
        settings.groups[1].role = GroupRole::Draft;
        let cache = engine.open(settings);
        let mut brought = 0;
        for _ in 0..40 {
            let keys = chain(numbers.below(3), numbers.below(2), 4, 12);
            match numbers.below(3) {
                0 => {
                    let stop = 8 * (1 + numbers.below(6));
                    engine.store(&cache, &keys, &[stop]);
                }
                1 => {
                    let group = ["full", "window", "state"][numbers.index(3)];
                    cache.evict(group, TierId::HOST, numbers.index(3)).unwrap();
                    settle(&cache);
                }
                _ => brought += look_up(&cache, &keys, seed),
            }
            cache.check_integrity();
        }
        all += brought;
    }
    assert!(
        all > 40 / SLOWER.min(10),
        "{all} lookups brought the draft group"
    );
}

/// Compares a lookup with the listing of all pages, and returns whether it brings the draft group.
fn look_up(cache: &TestGroups, keys: &[BlockKey], seed: u64) -> u64 {
    let stored = cache.snapshot().blocks.into_iter();
    let stored: HashSet<(String, BlockKey)> = stored
        .map(|block| (group_name(cache, &block), block.key))
        .collect();
    let has = |group: usize, stop: u64| {
        needed(group, stop).into_iter().all(|number| {
            let end = usize::try_from((number + 1) * page(group) / 4).unwrap();
            stored.contains(&(NAMES[group].to_owned(), keys[end - 1]))
        })
    };
    let stops = (1..=6).rev().map(|stop| stop * 8);
    let stops: Vec<u64> = stops.filter(|&stop| has(0, stop) && has(3, stop)).collect();
    let found = cache.lookup(keys);
    assert_eq!(found.stops(), stops, "seed {seed}");
    let stop = found.stop();
    assert_eq!(stop, stops.first().copied().unwrap_or(0), "seed {seed}");
    let window = found.needs("window", 0).unwrap();
    let whole = stop > 0 && has(1, stop);
    assert_eq!(!window.is_empty(), whole, "seed {seed}");
    let ids = |pages: u64| (0..usize::try_from(pages).unwrap()).collect::<Vec<usize>>();
    let (full, window) = (ids(stop / 4), ids(window.end - window.start));
    let state = ids(u64::from(stop > 0));
    let mut blocks = vec![
        LoadBlocks::new("full", &full),
        LoadBlocks::new("state", &state),
    ];
    // An engine may leave the draft group out.
    if seed.is_multiple_of(2) {
        blocks.push(LoadBlocks::new("window", &window));
    }
    let load = cache.load(found, &blocks).unwrap();
    settle(cache);
    let report = load.wait();
    assert_eq!((report.tokens, report.wanted), (stop, stop), "seed {seed}");
    u64::from(whole)
}

fn model(draft: bool) -> ModelIdentity {
    let group = |group: usize| ModelGroup::new(NAMES[group], rule(group), &shape(group)).unwrap();
    let mut groups = vec![group(3), group(0)];
    if draft {
        groups.push(group(1).with_role(GroupRole::Draft));
    }
    ModelIdentity::new("a-model", "main", groups).unwrap()
}

/// The settings of a model have its groups by name, its chain, and the keys of both are the same.
#[test]
fn a_model_gives_groups_roles_and_keys() {
    let engine = GroupEngine::new(&[0, 3, 1]);
    let cache = engine.open(GroupCacheSettings::of_model(&model(true)).workers(0));
    let groups: Vec<(&str, bool)> = cache
        .groups()
        .iter()
        .map(|g| (&*g.name, g.gates()))
        .collect();
    assert_eq!(groups, [("full", true), ("state", true), ("window", false)]);
    let tokens: Vec<u32> = (0..24).collect();
    let keys = cache
        .hasher(&HasherOptions::default())
        .unwrap()
        .keys(&tokens);
    let plain = model(false);
    let alone = TokenHasher::of_chain(
        plain.chain().as_bytes(),
        plain.unit(),
        &HasherOptions::default(),
    );
    assert_eq!(alone.unwrap().keys(&tokens), keys);
    assert_eq!((cache.unit(), cache.stop_unit(), keys.len()), (4, 8, 6));
    let mut only = GroupCacheSettings::of_model(&model(true));
    only.groups.retain(|group| group.role == GroupRole::Draft);
    let one = [Some(engine.handles[0])];
    let refused = keeper::open(only, None, (Arc::clone(&engine.manager), &one));
    let refused = refused.err().unwrap().to_string();
    assert!(
        refused.contains("all 1 groups are of a draft model"),
        "{refused}"
    );
}

/// Without layouts of the engine, each call gives those of its blocks.
#[test]
fn calls_bring_their_layouts() {
    let engine = GroupEngine::new(&[0, 3]);
    let cache = |handles: &[Option<LayoutHandle>]| {
        let settings = settings(&[0, 3], &[12, 4]);
        let engine = (Arc::clone(&engine.manager), handles);
        keeper::open(settings, None, engine).unwrap()
    };
    let cache = cache(&[None, Some(engine.handles[1])]);
    let keys = chain(1, 0, 0, 4);
    let full = StoreBlocks::new("full", 0, &[0, 1, 2, 3]);
    let state = StoreBlocks::new("state", 1, &[0]);
    let refused = cache.store(&keys, &[full, state], 16).err().unwrap();
    assert!(
        refused.to_string().contains("\"full\" have no layout"),
        "{refused}"
    );
    let other = full.layout(engine.handles[1]);
    let refused = cache.store(&keys, &[other, state], 16).err().unwrap();
    assert!(refused.to_string().contains("differs"), "{refused}");
    let store = cache.store(&keys, &[full.layout(engine.handles[0]), state], 16);
    settle(&cache);
    assert_eq!(store.unwrap().wait().stored(), 5);
    let full = LoadBlocks::new("full", &[4, 5, 6, 7]);
    let state = LoadBlocks::new("state", &[1]);
    let refused = cache
        .load(cache.lookup(&keys), &[full, state])
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("\"full\" have no layout"),
        "{refused}"
    );
    let load = cache.load(
        cache.lookup(&keys),
        &[full.layout(engine.handles[0]), state],
    );
    settle(&cache);
    assert_eq!(load.unwrap().wait().tokens, 16);
    let digest = |block| {
        engine
            .manager
            .block_digest(engine.handles[0], block)
            .unwrap()
    };
    assert_eq!(digest(7), digest(3));
    // The engine's layout outlives a cache that only borrows it.
    drop(cache);
    assert!(engine.manager.layout(engine.handles[1]).is_ok());
}
