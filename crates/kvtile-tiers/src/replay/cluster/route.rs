//! Routing of requests to the nodes of a replayed cluster.
//!
//! The router knows what each node holds. All choices are made with whole numbers, so that every machine
//! routes equally.

use super::settings::{ClusterRoute, ClusterSettings};
use crate::replay::trace::TraceRequest;

/// The load of a node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NodeLoad {
    pub(super) requests: u64,
    pub(super) blocks: u64,
    pub(super) computed_tokens: u64,
    /// When the node has computed all its requests, in thousandths of tokens since time 0.
    idle_at: u128,
}

impl NodeLoad {
    /// Tokens that wait to be computed, in thousandths.
    fn queue(&self, now: u128) -> u128 {
        self.idle_at.saturating_sub(now)
    }
}

/// The router.
#[derive(Debug)]
pub(super) struct ClusterRouter {
    route: ClusterRoute,
    blocks_min: usize,
    tokens_per_second: u32,
    page_size: u64,
    turn: usize,
    pub(super) loads: Vec<NodeLoad>,
    /// The nodes that hold each block of the trace; empty for routes that do not depend on it.
    holders: Vec<Vec<u32>>,
    /// Tokens that waited at the selected nodes when requests arrived, in thousandths.
    pub(super) queued: u128,
}

impl ClusterRouter {
    pub(super) fn new(
        settings: &ClusterSettings,
        distinct: usize,
        page_size: u32,
    ) -> ClusterRouter {
        let holders = match settings.route {
            ClusterRoute::RoundRobin => Vec::new(),
            ClusterRoute::Prefix | ClusterRoute::PrefixLoad => vec![Vec::new(); distinct],
        };
        ClusterRouter {
            route: settings.route,
            blocks_min: settings.route_blocks_min as usize,
            tokens_per_second: settings.tokens_per_second,
            page_size: u64::from(page_size),
            turn: 0,
            loads: vec![NodeLoad::default(); settings.nodes as usize],
            holders,
            queued: 0,
        }
    }

    /// The node for a request.
    pub(super) fn node(&mut self, request: &TraceRequest<'_>) -> usize {
        let now = self.now(request);
        let node = match self.route {
            ClusterRoute::RoundRobin => {
                let node = self.turn;
                self.turn = (node + 1) % self.loads.len().max(1);
                node
            }
            ClusterRoute::Prefix => self.by_prefix(request),
            ClusterRoute::PrefixLoad => self.by_prefix_and_load(request, now),
        };
        let queue = self.loads.get(node).map_or(0, |load| load.queue(now));
        self.queued += queue;
        node
    }

    /// Adds a request to the load of its node.
    pub(super) fn served(&mut self, node: usize, request: &TraceRequest<'_>, hit_tokens: u64) {
        let now = self.now(request);
        let computed = u64::from(request.input_tokens).saturating_sub(hit_tokens);
        if let Some(load) = self.loads.get_mut(node) {
            load.requests += 1;
            load.blocks += request.blocks.len() as u64;
            load.computed_tokens += computed;
            load.idle_at = load.idle_at.max(now) + u128::from(computed) * 1000;
        }
    }

    /// The node holds these blocks from now on.
    pub(super) fn entered(&mut self, node: usize, blocks: &[u32]) {
        let Ok(node) = u32::try_from(node) else {
            return;
        };
        for &block in blocks {
            if let Some(holders) = self.holders.get_mut(block as usize)
                && !holders.contains(&node)
            {
                holders.push(node);
            }
        }
    }

    /// The node holds these blocks no longer.
    pub(super) fn left(&mut self, node: usize, blocks: &[u32]) {
        for &block in blocks {
            let Some(holders) = self.holders.get_mut(block as usize) else {
                continue;
            };
            let at = holders.iter().position(|&holder| holder as usize == node);
            if let Some(at) = at {
                holders.swap_remove(at);
            }
        }
    }

    /// The time in thousandths of tokens that a busy node computes until then.
    fn now(&self, request: &TraceRequest<'_>) -> u128 {
        u128::from(request.timestamp_ms) * u128::from(self.tokens_per_second)
    }

    pub(super) fn holders(&self, block: u32) -> &[u32] {
        self.holders.get(block as usize).map_or(&[], Vec::as_slice)
    }

    /// Nodes with a prefix of the request and its blocks, the longest prefix first. A node appears again with
    /// each shorter prefix.
    fn prefixes<'a>(
        &'a self,
        request: &TraceRequest<'a>,
    ) -> impl Iterator<Item = (usize, &'a [u32])> {
        let blocks = request.blocks;
        // Nodes evict no block before those that follow it, so each prefix has all nodes of longer ones.
        let held = blocks.partition_point(|&block| !self.holders(block).is_empty());
        let prefixes = blocks.get(..held).unwrap_or_default().iter().enumerate();
        let long = prefixes.skip(self.blocks_min.saturating_sub(1)).rev();
        long.map(|(at, &block)| (at + 1, self.holders(block)))
    }

    fn by_prefix(&self, request: &TraceRequest<'_>) -> usize {
        let nodes = self.prefixes(request).next().map(|(_, nodes)| nodes);
        let rank = |node: usize| {
            let requests = self.loads.get(node).map_or(u64::MAX, |load| load.requests);
            (requests, node)
        };
        match nodes {
            Some(nodes) => nodes
                .iter()
                .map(|&node| node as usize)
                .min_by_key(|node| rank(*node)),
            None => (0..self.loads.len()).min_by_key(|node| rank(*node)),
        }
        .unwrap_or_default()
    }

    fn by_prefix_and_load(&self, request: &TraceRequest<'_>, now: u128) -> usize {
        let count = self.loads.len() as u128;
        let sum: u128 = self.loads.iter().map(|load| load.queue(now)).sum();
        let queue = |node: usize| {
            self.loads
                .get(node)
                .map_or(u128::MAX, |load| load.queue(now))
        };
        let rank = |node: &usize| {
            let requests = self.loads.get(*node).map_or(u64::MAX, |load| load.requests);
            (queue(*node), requests, *node)
        };
        for (blocks, nodes) in self.prefixes(request) {
            let saved = (blocks as u64 * self.page_size).min(u64::from(request.input_tokens));
            // queue <= 5 / 4 * sum / count + saved, in whole numbers.
            let most = 5 * sum + 4 * count * u128::from(saved) * 1000;
            let fits = |node: &usize| 4 * count * queue(*node) <= most;
            let nodes = nodes.iter().map(|&node| node as usize);
            if let Some(node) = nodes.filter(fits).min_by_key(rank) {
                return node;
            }
        }
        (0..self.loads.len()).min_by_key(rank).unwrap_or_default()
    }
}
