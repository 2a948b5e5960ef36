//! Requests and settings that are refused, with the values in the message.

use kvtile_layout::GroupRule;
use kvtile_tiers::{
    TierError,
    groups::{
        CacheGroup, GroupCache, GroupCacheSettings, GroupStoreOptions, LoadBlocks, StoreBlocks,
    },
};

use super::common::{GroupEngine, chain, identity, layout, settings};

fn refused<T>(result: Result<T, TierError>, words: &[&str]) {
    let error = result.err().unwrap().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} has no {word:?}");
    }
}

#[test]
fn requests_that_cannot_be_meant_are_refused_before_anything_begins() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let cache = engine.open(settings(&[0, 1, 3], &[32, 8, 8]));
    let keys = chain(1, 0, 0, 8);
    let full = StoreBlocks::new("full", 0, &[0, 1, 2, 3]);
    refused(
        cache.store(&keys, &[full], 12),
        &["12", "multiples of 8", "32"],
    );
    refused(cache.store(&keys, &[full], 40), &["40", "32"]);
    refused(cache.store(&keys, &[full], 0), &["stop at 0"]);
    refused(cache.store(&keys, &[full, full], 16), &["full", "twice"]);
    let unknown = StoreBlocks::new("ful", 0, &[0]);
    refused(
        cache.store(&keys, &[unknown], 16),
        &["\"ful\"", "full", "window", "state"],
    );
    let state = StoreBlocks::new("state", 1, &[0]);
    let none = GroupStoreOptions::new();
    refused(cache.store_with(&keys, &[state], &none), &["state", "stop"]);
    let far = StoreBlocks::new("window", 7, &[0, 1]);
    refused(
        cache.store(&keys, &[far], 16),
        &["2 blocks from block 7", "8 keys"],
    );
    let outside = StoreBlocks::new("full", 0, &[128]);
    refused(cache.store(&keys, &[state, outside], 16), &["128"]);
    let twice = StoreBlocks::new("full", 0, &[3, 3]);
    refused(cache.store(&keys, &[twice], 16), &["3 is twice"]);

    engine.store(&cache, &keys, &[16]);
    let load = |blocks: &[LoadBlocks<'_>]| cache.load(cache.lookup(&keys), blocks);
    let full = LoadBlocks::new("full", &[0, 1, 2, 3]);
    let window = LoadBlocks::new("window", &[0, 1, 2]);
    refused(
        load(&[full, window]),
        &["0 blocks", "state", "16 tokens", "1 to 2"],
    );
    let short = LoadBlocks::new("window", &[0, 1]);
    let state = LoadBlocks::new("state", &[0]);
    refused(
        load(&[full, short, state]),
        &["2 blocks", "window", "1 to 4"],
    );
    refused(load(&[full, window, state, state]), &["state", "twice"]);
    refused(
        load(&[full, window, LoadBlocks::new("state", &[128])]),
        &["128"],
    );
    let other = engine.open(settings(&[0, 1, 3], &[32, 8, 8]));
    refused(
        other.load(cache.lookup(&keys), &[full, window, state]),
        &["another cache"],
    );
    refused(
        cache.lookup(&keys).needs("states", 0),
        &["\"states\"", "full", "window"],
    );
    assert_eq!(cache.load(cache.lookup(&[]), &[]).unwrap().wait().tokens, 0);
}

#[test]
fn a_match_of_a_closed_cache_is_empty_and_cannot_be_loaded() {
    let engine = GroupEngine::new(&[0, 3]);
    let cache = engine.open(settings(&[0, 3], &[32, 8]));
    let keys = chain(1, 0, 0, 4);
    engine.store(&cache, &keys, &[16]);
    let found = cache.lookup(&keys);
    cache.close();
    assert_eq!(found.stops(), [0; 0]);
    refused(found.needs("full", 0), &["closed"]);
    assert_eq!(found.back_to(8).stop(), 0);
}

#[test]
fn settings_that_no_cache_can_have_are_refused() {
    let open = |settings: GroupCacheSettings, layouts: &[usize]| {
        let layouts = layouts.iter().map(|group| layout(*group));
        GroupCache::open(settings, layouts.collect())
    };
    refused(
        open(GroupCacheSettings::new(Vec::new()), &[]),
        &["groups is 0"],
    );
    refused(
        open(settings(&[0, 1], &[8, 8]), &[0]),
        &["1 layouts for 2 groups"],
    );
    refused(open(settings(&[0, 1], &[8, 8]), &[1, 0]), &["planes.k.H"]);
    refused(
        open(settings(&[0, 0], &[8, 8]), &[0, 0]),
        &["full", "two groups"],
    );
    let small = settings(&[0, 1], &[8, 8]).host_bytes(4096);
    refused(open(small, &[0, 1]), &["4096", "16384"]);
    let shares = vec![CacheGroup::new("full", GroupRule::Full, identity(0)).share(0.0)];
    refused(
        open(GroupCacheSettings::new(shares), &[0]),
        &["full", "share"],
    );
    let name = vec![CacheGroup::new("", GroupRule::Full, identity(0))];
    refused(open(GroupCacheSettings::new(name), &[0]), &["name"]);
}

#[test]
fn keys_differ_by_the_rules_of_the_groups_and_not_by_their_order() {
    let keys = |groups: &[usize], rule: Option<GroupRule>| {
        let engine = GroupEngine::new(groups);
        let mut settings = settings(groups, &[8, 8]);
        if let Some(rule) = rule {
            settings.groups[1].rule = rule;
        }
        let cache = engine.open(settings);
        let hasher = cache.hasher(&Default::default()).unwrap();
        hasher.keys(&(0..16).collect::<Vec<u32>>())
    };
    let plain = keys(&[0, 3], None);
    assert_eq!(plain.len(), 4);
    assert_eq!(keys(&[3, 0], None), plain);
    assert_ne!(keys(&[0, 3], Some(GroupRule::Full)), plain);
    assert_ne!(keys(&[0, 1], None), plain);
}
