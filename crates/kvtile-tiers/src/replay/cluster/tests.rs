//! The cluster against a naive second implementation, on small random traces.

use std::collections::HashMap;

use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_random::SplitMix64;

use super::*;
use crate::replay::{DryCache, Workload, generate, infinite, replay, trace::TraceRow};

/// A private tier written for clarity: its blocks from the least recently used to the most recently used one.
struct NaivePrivate {
    blocks: usize,
    queue: Vec<u32>,
}

impl NaivePrivate {
    fn has(&self, block: u32) -> bool {
        self.queue.contains(&block)
    }

    fn touch_all(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            self.queue.retain(|&other| other != block);
            self.queue.push(block);
        }
    }

    /// Stores a block. Returns whether there was room, and the leaf that was evicted for it.
    fn insert(
        &mut self,
        block: u32,
        before: Option<u32>,
        parents: &[Option<u32>],
    ) -> (bool, Option<u32>) {
        let mut evicted = None;
        if self.queue.len() == self.blocks {
            let is_leaf = |block: u32| {
                let mut others = self.queue.iter();
                !others.any(|&other| parents[other as usize] == Some(block))
            };
            let mut leaves = self.queue.iter().copied();
            let Some(leaf) = leaves.find(|&leaf| is_leaf(leaf) && Some(leaf) != before) else {
                return (false, None);
            };
            self.queue.retain(|&other| other != leaf);
            evicted = Some(leaf);
        }
        self.queue.push(block);
        (true, evicted)
    }
}

/// A cluster written for clarity: LRU in linear lists, and routes from the nodes' contents.
struct NaiveCluster {
    settings: ClusterSettings,
    page_size: u64,
    parents: Vec<Option<u32>>,
    hosts: Vec<NaivePrivate>,
    disks: Vec<NaivePrivate>,
    /// Arrival in ms and computed tokens of each request of a node.
    served: Vec<Vec<(u64, u64)>>,
    uses: HashMap<(usize, u32), u32>,
    /// Last blocks of stored bundles, the first one to evict first.
    shared: Vec<u32>,
    totals: ClusterTotals,
}

impl NaiveCluster {
    fn new(trace: &Trace, settings: &ClusterSettings) -> NaiveCluster {
        let mut parents = vec![None; trace.distinct_blocks()];
        for request in trace.requests() {
            for pair in request.blocks.windows(2) {
                parents[pair[1] as usize] = Some(pair[0]);
            }
        }
        let private = |blocks: u32| {
            let tier = |_| NaivePrivate {
                blocks: usize::try_from(blocks).unwrap(),
                queue: Vec::new(),
            };
            (0..settings.nodes).map(tier).collect()
        };
        let mut totals = ClusterTotals {
            nodes: settings.nodes,
            ..ClusterTotals::default()
        };
        totals.bundle_blocks = settings.shared.map_or(0, |shared| shared.bundle_blocks);
        NaiveCluster {
            settings: *settings,
            page_size: u64::from(trace.page_size()),
            parents,
            hosts: private(settings.host_blocks),
            disks: private(settings.disk_blocks),
            served: vec![Vec::new(); usize::try_from(settings.nodes).unwrap()],
            uses: HashMap::new(),
            shared: Vec::new(),
            totals,
        }
    }

    fn holds(&self, node: usize, block: u32) -> bool {
        self.hosts[node].has(block) || self.disks[node].has(block)
    }

    /// Thousandths of tokens that wait at a node.
    fn queue(&self, node: usize, now_ms: u64) -> u128 {
        let rate = u128::from(self.settings.tokens_per_second);
        let mut idle_at = 0;
        for &(at, tokens) in &self.served[node] {
            idle_at = idle_at.max(u128::from(at) * rate) + u128::from(tokens) * 1000;
        }
        idle_at.saturating_sub(u128::from(now_ms) * rate)
    }

    fn route(&self, request: &TraceRequest<'_>) -> usize {
        let nodes = 0..self.hosts.len();
        let requests = |node: usize| self.served[node].len();
        let queue = |node: usize| self.queue(node, request.timestamp_ms);
        let mean = nodes.clone().map(queue).sum::<u128>() as f64 / nodes.len() as f64;
        let prefix = |node: usize| {
            let held = request
                .blocks
                .iter()
                .take_while(|&&block| self.holds(node, block));
            let held = held.count();
            match held >= self.settings.route_blocks_min as usize {
                true => held,
                false => 0,
            }
        };
        match self.settings.route {
            ClusterRoute::RoundRobin => {
                let served: usize = nodes.clone().map(requests).sum();
                served % nodes.len()
            }
            ClusterRoute::Prefix => {
                let longest = nodes.clone().map(prefix).max().unwrap();
                let best = nodes.filter(|&node| prefix(node) == longest);
                best.min_by_key(|&node| (requests(node), node)).unwrap()
            }
            ClusterRoute::PrefixLoad => {
                let fits = |node: &usize| {
                    let saved = prefix(*node) as u64 * self.page_size;
                    let saved = saved.min(u64::from(request.input_tokens));
                    prefix(*node) > 0 && queue(*node) as f64 <= 1.25 * mean + saved as f64 * 1000.0
                };
                let longest = nodes.clone().filter(fits).map(prefix).max();
                let best = nodes.filter(|node| match longest {
                    Some(longest) => fits(node) && prefix(*node) == longest,
                    None => true,
                });
                best.min_by_key(|&node| (queue(node), requests(node), node))
                    .unwrap()
            }
        }
    }

    /// The end of the prefix after bundles from the shared tier.
    fn read_shared(&mut self, blocks: &[u32], mut found: usize) -> usize {
        let Some(shared) = self.settings.shared else {
            return found;
        };
        let bundle = usize::try_from(shared.bundle_blocks).unwrap();
        while let Some(last) = blocks.get(found / bundle * bundle + bundle - 1)
            && self.shared.contains(last)
        {
            if shared.evicts == ClusterEvicts::Use {
                self.shared.retain(|other| other != last);
                self.shared.push(*last);
            }
            self.totals.shared_gets += 1;
            found = found / bundle * bundle + bundle;
        }
        found
    }

    fn store(&mut self, node: usize, blocks: &[u32], host: usize) -> usize {
        let mut held = host;
        let mut left = Vec::new();
        while held < blocks.len() {
            let before = held.checked_sub(1).map(|before| blocks[before]);
            let stored = self.hosts[node].insert(blocks[held], before, &self.parents);
            if !stored.0 {
                break;
            }
            left.extend(stored.1);
            held += 1;
        }
        for &block in &left {
            let cached = self.settings.shared.map(|shared| shared.writes);
            if let Some(ClusterWrites::AfterCachedUses(_)) = cached {
                self.uses.remove(&(node, block));
            }
            if self.settings.disk_blocks > 0 && !self.disks[node].has(block) {
                self.disks[node].insert(block, None, &self.parents);
                self.totals.disk_written_blocks += 1;
            }
        }
        held
    }

    fn write_shared(&mut self, node: usize, blocks: &[u32], (found, held): (usize, usize)) {
        let Some(shared) = self.settings.shared else {
            return;
        };
        let only_held = matches!(shared.writes, ClusterWrites::AfterCachedUses(_));
        for (at, &block) in blocks.iter().enumerate() {
            if at < held || !only_held {
                *self.uses.entry((node, block)).or_default() += 1;
            }
        }
        let bundle = usize::try_from(shared.bundle_blocks).unwrap();
        for (number, blocks) in blocks[..held].chunks_exact(bundle).enumerate() {
            let used = |uses: u32| {
                blocks
                    .iter()
                    .all(|block| self.uses[&(node, *block)] >= uses)
            };
            let is_due = match shared.writes {
                ClusterWrites::First => (number + 1) * bundle > found,
                ClusterWrites::AfterUses(uses) | ClusterWrites::AfterCachedUses(uses) => used(uses),
            };
            let last = *blocks.last().unwrap();
            if !is_due || self.shared.contains(&last) {
                continue;
            }
            if shared.capacity_blocks.is_some_and(|capacity| {
                (self.shared.len() as u64 + 1) * u64::from(shared.bundle_blocks) > capacity
            }) {
                self.shared.remove(0);
                self.totals.shared_evicted += 1;
            }
            self.shared.push(last);
            self.totals.shared_puts += 1;
            let most = &mut self.totals.shared_values_max;
            *most = (*most).max(self.shared.len() as u64);
        }
    }

    fn serve(&mut self, request: &TraceRequest<'_>) {
        let node = self.route(request);
        let queued = u64::try_from(self.queue(node, request.timestamp_ms)).unwrap();
        self.totals.queued_tokens += queued;
        let blocks = request.blocks;
        let host = blocks
            .iter()
            .take_while(|&&block| self.hosts[node].has(block))
            .count();
        self.hosts[node].touch_all(&blocks[..host]);
        self.totals.host_blocks += host as u64;
        let mut found = host;
        loop {
            let disk = &mut self.disks[node];
            let behind = blocks[found..].iter();
            let count = behind.take_while(|&&block| disk.has(block)).count();
            disk.touch_all(&blocks[found..found + count]);
            self.totals.disk_blocks += count as u64;
            found += count;
            let end = self.read_shared(blocks, found);
            self.totals.shared_blocks += (end - found) as u64;
            if end == found {
                break;
            }
            found = end;
        }
        let held = self.store(node, blocks, host);
        self.write_shared(node, blocks, (found, held));
        let page_size = u32::try_from(self.page_size).unwrap();
        self.totals.all.count(request, found, page_size);
        let tokens = u64::from(request.input_tokens);
        let hit = (found as u64 * self.page_size).min(tokens);
        self.served[node].push((request.timestamp_ms, tokens - hit));
    }

    fn finish(mut self) -> ClusterTotals {
        self.totals.queued_tokens /= 1000;
        self.totals.shared_values = self.shared.len() as u64;
        for served in &self.served {
            let computed = served.iter().map(|(_, tokens)| tokens).sum();
            self.totals.computed_tokens += computed;
            let most = self.totals.node_computed_tokens_max.max(computed);
            self.totals.node_computed_tokens_max = most;
            let most = self.totals.node_requests_max.max(served.len() as u64);
            self.totals.node_requests_max = most;
        }
        self.totals
    }
}

/// Requests of up to 9 blocks of 4 tokens, each of which continues a prefix of an earlier one or begins anew.
fn random_trace(random: &mut SplitMix64, requests: usize) -> Trace {
    let mut chains: Vec<Vec<u64>> = vec![vec![]];
    let mut next_id = 0;
    let mut now = 0;
    let mut rows = Vec::new();
    for _ in 0..requests {
        let chain = &chains[random.index(chains.len())];
        let mut ids = chain[..random.index(chain.len() + 1)].to_vec();
        for _ in 0..random.below(5) {
            if ids.len() < 9 {
                ids.push(next_id);
                next_id += 1;
            }
        }
        now += random.below(30);
        let full = u32::try_from(ids.len()).unwrap() * 4;
        let tail = u32::try_from(random.below(4))
            .unwrap()
            .min(full.saturating_sub(1));
        rows.push(TraceRow {
            timestamp: now,
            input_length: full - tail,
            output_length: 1,
            hash_ids: ids.clone(),
            page_size: None,
        });
        chains.push(ids);
    }
    rows.push(TraceRow {
        timestamp: now,
        input_length: 4,
        output_length: 1,
        hash_ids: vec![next_id],
        page_size: None,
    });
    Trace::of_rows(&rows, 4).unwrap()
}

fn random_settings(random: &mut SplitMix64) -> ClusterSettings {
    let small = |random: &mut SplitMix64, end: u64| u32::try_from(random.below(end)).unwrap();
    let route = [
        ClusterRoute::RoundRobin,
        ClusterRoute::Prefix,
        ClusterRoute::PrefixLoad,
    ];
    let uses = 1 + small(random, 3);
    let writes = [
        ClusterWrites::First,
        ClusterWrites::AfterUses(uses),
        ClusterWrites::AfterCachedUses(uses),
    ];
    let bundle_blocks = 1 + small(random, 4);
    let room = u64::from(bundle_blocks) + random.below(40);
    let shared = ClusterShared {
        capacity_blocks: (!random.once_in(3)).then_some(room),
        bundle_blocks,
        writes: writes[random.index(3)],
        evicts: [ClusterEvicts::Age, ClusterEvicts::Use][random.index(2)],
    };
    let disk_blocks = [0, 1 + small(random, 20)][random.index(2)];
    ClusterSettings {
        disk_blocks,
        policy: PolicySettings::from(PolicyKind::Lru),
        route: route[random.index(3)],
        route_blocks_min: 1 + small(random, 3),
        tokens_per_second: 1 + small(random, 2_000),
        shared: (!random.once_in(4)).then_some(shared),
        ..ClusterSettings::new(1 + small(random, 5), 1 + small(random, 16))
    }
}

/// The router knows what each node holds.
fn check_holders(cluster: &Cluster<'_>) {
    if cluster.settings.route == ClusterRoute::RoundRobin {
        return;
    }
    for block in 0..cluster.distinct {
        let holds =
            |node: &Option<ClusterNode>| node.as_ref().is_some_and(|node| node.holds(&key(&block)));
        let nodes = (0_u32..)
            .zip(&cluster.nodes)
            .filter(|(_, node)| holds(node));
        let nodes: Vec<u32> = nodes.map(|(number, _)| number).collect();
        let mut holders = cluster.router.holders(block).to_vec();
        holders.sort_unstable();
        assert_eq!(holders, nodes, "block {block}");
    }
}

#[test]
fn a_cluster_does_what_the_naive_one_does() {
    let (mut shared_hits, mut disk_hits, mut evicted) = (0, 0, 0);
    for seed in 0..400 {
        let mut random = SplitMix64::new(seed);
        let trace = random_trace(&mut random, 60);
        let settings = random_settings(&mut random);
        println!("seed {seed}: {settings:?}");
        let mut cluster = Cluster::new(&trace, &settings);
        let mut naive = NaiveCluster::new(&trace, &settings);
        for request in trace.requests() {
            cluster.serve(&request).unwrap();
            naive.serve(&request);
            check_holders(&cluster);
            cluster
                .nodes
                .iter()
                .flatten()
                .for_each(ClusterNode::check_integrity);
        }
        let totals = cluster.finish();
        assert_eq!(totals, naive.finish(), "seed {seed}");
        assert_eq!(
            totals.all.hit_blocks,
            totals.host_blocks + totals.disk_blocks + totals.shared_blocks
        );
        shared_hits += totals.shared_blocks;
        disk_hits += totals.disk_blocks;
        evicted += totals.shared_evicted;
    }
    // The seeds reach what they are meant to compare.
    assert!(shared_hits > 1000 && disk_hits > 1000 && evicted > 1000);
}

#[test]
fn a_cluster_equals_the_naive_one_on_generated_workloads() {
    for (workload, seed) in Workload::ALL.into_iter().zip(1..) {
        let trace = generate(workload, 60, seed).unwrap();
        for route in [ClusterRoute::Prefix, ClusterRoute::PrefixLoad] {
            let settings = ClusterSettings {
                disk_blocks: 100,
                policy: PolicySettings::from(PolicyKind::Lru),
                route,
                shared: Some(ClusterShared {
                    capacity_blocks: Some(500),
                    bundle_blocks: 4,
                    ..ClusterShared::default()
                }),
                ..ClusterSettings::new(3, 80)
            };
            let mut naive = NaiveCluster::new(&trace, &settings);
            trace.requests().for_each(|request| naive.serve(&request));
            let totals = replay_cluster(&trace, &settings, &mut |_| {}).unwrap();
            assert_eq!(totals, naive.finish(), "{workload:?} {route:?}");
        }
    }
}

#[test]
fn one_node_alone_is_a_dry_cache_and_an_unbounded_shared_tier_hits_all_there_is() {
    let trace = generate(Workload::Service, 400, 3).unwrap();
    for kind in PolicyKind::ALL {
        let policy = PolicySettings::from(kind);
        let mut cache = DryCache::new(&policy, 500).unwrap();
        let dry = replay(&trace, &mut cache, &mut |_| {}).unwrap();
        let alone = ClusterSettings {
            policy,
            ..ClusterSettings::new(1, 500)
        };
        let totals = replay_cluster(&trace, &alone, &mut |_| {}).unwrap();
        assert_eq!(totals.all, dry, "{kind:?}");
        let shared = ClusterSettings {
            shared: Some(ClusterShared::default()),
            policy,
            ..ClusterSettings::new(7, 500)
        };
        let totals = replay_cluster(&trace, &shared, &mut |_| {}).unwrap();
        assert_eq!(totals.all, infinite(&trace), "{kind:?}");
        assert_eq!(totals.shared_puts, trace.distinct_blocks() as u64);
        assert_eq!(totals.shared_values, totals.shared_puts);
    }
}

#[test]
fn settings_out_of_range_are_refused_with_their_range() {
    let trace = generate(Workload::Chat, 3, 1).unwrap();
    let refused = |settings: ClusterSettings| {
        let refused = replay_cluster(&trace, &settings, &mut |_| {});
        refused.unwrap_err().to_string()
    };
    let small = ClusterSettings::new(2, 10);
    assert_eq!(
        refused(ClusterSettings::new(0, 10)),
        "nodes is 0; give 1 to 1000"
    );
    assert_eq!(
        refused(ClusterSettings::new(1_001, 10)),
        "nodes is 1001; give 1 to 1000"
    );
    assert!(refused(ClusterSettings::new(1, 0)).starts_with("host_blocks is 0"));
    let with = |shared: ClusterShared| ClusterSettings {
        shared: Some(shared),
        ..small
    };
    let default = ClusterShared::default();
    let none = ClusterShared {
        bundle_blocks: 0,
        ..default
    };
    assert!(refused(with(none)).starts_with("bundle_blocks is 0"));
    let unused = ClusterShared {
        writes: ClusterWrites::AfterUses(0),
        ..default
    };
    assert!(refused(with(unused)).starts_with("writes is 0"));
    let narrow = ClusterShared {
        capacity_blocks: Some(7),
        bundle_blocks: 8,
        ..default
    };
    assert!(refused(with(narrow)).contains("7 blocks holds no bundle of 8"));
}
