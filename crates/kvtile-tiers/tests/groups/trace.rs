//! How many tokens of a trace a cache over groups serves, with pools of several sizes.
//!
//! `KVTILE_GROUPS_TRACE=conversation.jsonl` replays the first `KVTILE_GROUPS_REQUESTS` requests (default
//! 1,500) of a trace in the format of Mooncake. Each block of the trace is one state page and two full pages.

use std::fs;

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_tiers::groups::{GroupStoreOptions, StoreBlocks};

use super::{
    common::{GroupEngine, NAMES, UNIT, in_host, needed, number, page, settings, settle},
    keeper::TestGroups,
};

/// Blocks of the trace that fit in the engine's layout.
const BLOCKS_MAX: usize = 31;

fn chains(path: &str, requests: usize) -> Vec<Vec<BlockKey>> {
    let text = fs::read_to_string(path).unwrap();
    let chain = |line: &str| -> Vec<BlockKey> {
        let (_, ids) = line.split_once("\"hash_ids\": [").unwrap();
        let (ids, _) = ids.split_once(']').unwrap();
        let (_, tokens) = line.split_once("\"input_length\": ").unwrap();
        let (tokens, _) = tokens.split_once(',').unwrap();
        // The last block of most requests is not whole.
        let whole = tokens.parse::<usize>().unwrap() / 512;
        let ids = ids.split(", ").map(|id| id.parse::<u64>().unwrap());
        let keys = ids.take(whole.min(BLOCKS_MAX)).flat_map(|id| {
            (0..2_u64).map(move |half| {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&id.to_le_bytes());
                bytes[8..].copy_from_slice(&half.to_le_bytes());
                BlockKey::from_bytes(bytes)
            })
        });
        keys.collect()
    };
    let mut chains: Vec<Vec<BlockKey>> = text.lines().take(requests).map(chain).collect();
    chains.retain(|chain| !chain.is_empty());
    chains
}

/// Stores the stops of a chain, without content.
fn store(engine: &GroupEngine, cache: &TestGroups, chain: &[BlockKey], stops: &[u64]) {
    let last = stops.iter().copied().max().unwrap();
    let blocks: Vec<(u64, Vec<usize>)> = engine
        .groups
        .iter()
        .map(|&group| {
            let first = stops.iter().flat_map(|stop| needed(group, *stop)).min();
            let pages = first.unwrap()..last / page(group);
            (pages.start, (0..pages.count()).collect())
        })
        .collect();
    let of_groups = engine.groups.iter().zip(&blocks);
    let given: Vec<StoreBlocks<'_>> = of_groups
        .map(|(&group, (first, ids))| StoreBlocks::new(NAMES[group], *first, ids))
        .collect();
    let options = GroupStoreOptions::new().stops(stops.iter().copied());
    let stored = cache.store_with(chain, &given, &options).unwrap();
    settle(cache);
    drop(stored.wait());
}

#[test]
fn tokens_of_a_trace() {
    let Ok(path) = std::env::var("KVTILE_GROUPS_TRACE") else {
        return;
    };
    let requests = number("KVTILE_GROUPS_REQUESTS").unwrap_or(1500);
    let chains = chains(&path, usize::try_from(requests).unwrap());
    for pages in [
        [600, 60, 20],
        [2000, 120, 40],
        [2000, 300, 100],
        [2000, 600, 200],
        [6000, 300, 100],
    ] {
        let engine = GroupEngine::new(&[0, 1, 3]);
        let mut hits = Vec::new();
        for whole_stops in [false, true] {
            let cache = engine.open(settings(&[0, 1, 3], &pages));
            let (mut hit, mut all) = (0, 0);
            for chain in &chains {
                let tokens = chain.len() as u64 * UNIT;
                let found = cache.lookup(chain);
                (hit, all) = (hit + found.stop(), all + tokens);
                let mut stops: Vec<u64> = found.branch().into_iter().collect();
                stops.push(tokens);
                drop(found);
                if whole_stops {
                    make_room(&cache, stops.len() as u64);
                }
                store(&engine, &cache, chain, &stops);
            }
            cache.check_integrity();
            let known = cache.stats().known_stops;
            let host: Vec<u64> = ["full", "window", "state"]
                .map(|name| in_host(&cache, name))
                .into();
            println!(
                "{pages:?} whole stops {whole_stops}: {hit} of {all} tokens, {known} stops, {host:?} pages"
            );
            hits.push(hit);
        }
        assert!(hits.iter().all(|hit| *hit > 0), "{pages:?}: {hits:?}");
    }
}

/// Makes room for stops by evicting whole ones: one page, and the rest of its stops with it.
fn make_room(cache: &TestGroups, stops: u64) {
    for (name, of_stop) in [("window", 3), ("state", 1)] {
        let pages = cache.tier_stats(name, TierId::HOST).unwrap().capacity;
        while in_host(cache, name) + of_stop * stops > pages && in_host(cache, name) > 0 {
            if cache.evict(name, TierId::HOST, 1).unwrap() == 0 {
                break;
            }
            settle(cache);
        }
    }
}
