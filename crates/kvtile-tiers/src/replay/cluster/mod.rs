//! Replays of traces on a cluster: nodes with private host memory and disks, and a tier that all of them share.
//!
//! | module | what it is |
//! | --- | --- |
//! | `settings` | nodes, routes, and the shared tier |
//! | `route` | which node serves a request |
//! | `node` | host memory and disk of a node: block pools without bytes |
//! | `store` | the shared tier: bundles, puts, gets, evictions |
//! | `totals` | hits by place, moved blocks, load of the nodes |
//!
//! A request is served by one node. Its leading blocks are found in the node's host memory, then on its disk
//! and in the shared tier, in turns. Found and computed blocks are stored in host memory as far as there is
//! room. What host memory evicts goes to the disk. Then the node writes complete bundles to the shared tier,
//! from host memory.
//!
//! The module knows no time but the trace's. A read from a tier takes none.

mod node;
mod route;
mod settings;
mod store;
mod totals;

#[cfg(test)]
mod tests;

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use self::{
    node::{ClusterNode, NodeChanges},
    route::ClusterRouter,
    store::ClusterStore,
};
pub use self::{
    settings::{
        CLUSTER_NODES_MAX, ClusterError, ClusterEvicts, ClusterRoute, ClusterSettings,
        ClusterShared, ClusterWrites,
    },
    totals::ClusterTotals,
};
use super::{
    dry::{claim_of, key},
    trace::{Trace, TraceRequest},
};
use crate::TierError;

/// Replays a trace on a cluster. Calls `progress` after each request with the number of requests so far.
///
/// # Errors
/// A setting that is out of range.
pub fn replay_cluster(
    trace: &Trace,
    settings: &ClusterSettings,
    progress: &mut dyn FnMut(u64),
) -> Result<ClusterTotals, ClusterError> {
    settings.check()?;
    let mut cluster = Cluster::new(trace, settings);
    for request in trace.requests() {
        cluster.serve(&request)?;
        progress(cluster.totals.all.requests);
    }
    Ok(cluster.finish())
}

/// A cluster during a replay.
struct Cluster<'a> {
    settings: &'a ClusterSettings,
    distinct: u32,
    page_size: u32,
    /// Nodes; `None` before the first request of a node.
    nodes: Vec<Option<ClusterNode>>,
    router: ClusterRouter,
    store: Option<ClusterStore>,
    keys: Vec<BlockKey>,
    changes: NodeChanges,
    totals: ClusterTotals,
}

impl<'a> Cluster<'a> {
    fn new(trace: &Trace, settings: &'a ClusterSettings) -> Cluster<'a> {
        let distinct = trace.distinct_blocks();
        let shared = settings.shared.as_ref();
        Cluster {
            settings,
            distinct: u32::try_from(distinct).unwrap_or(u32::MAX),
            page_size: trace.page_size(),
            nodes: (0..settings.nodes).map(|_| None).collect(),
            router: ClusterRouter::new(settings, distinct, trace.page_size()),
            store: shared.map(|shared| ClusterStore::new(shared, distinct)),
            keys: Vec::new(),
            changes: NodeChanges::default(),
            totals: ClusterTotals {
                nodes: settings.nodes,
                bundle_blocks: shared.map_or(0, |shared| shared.bundle_blocks),
                ..ClusterTotals::default()
            },
        }
    }

    fn serve(&mut self, request: &TraceRequest<'_>) -> Result<(), TierError> {
        let at = self.router.node(request);
        self.keys.clear();
        self.keys.extend(request.blocks.iter().map(key));
        let claim = claim_of(request);
        let Some(place) = self.nodes.get_mut(at) else {
            broken(format_args!(
                "the router selected node {at} of {}",
                self.settings.nodes
            ))
        };
        let node = match place {
            Some(node) => node,
            None => place.insert(ClusterNode::new(self.settings, self.distinct)?),
        };
        let host = node.find_host(&self.keys, &claim);
        self.totals.host_blocks += host as u64;
        let mut found = host;
        loop {
            let keys = self.keys.get(found..).unwrap_or_default();
            let disk = node.find_disk(keys, &claim);
            self.totals.disk_blocks += disk as u64;
            found += disk;
            let store = self.store.as_mut();
            let end = store.map_or(found, |store| store.read(request.blocks, found));
            self.totals.shared_blocks += (end - found) as u64;
            if end == found {
                break;
            }
            found = end;
        }
        let held = node.store((&self.keys, host), &claim, &mut self.changes)?;
        self.router.left(at, &self.changes.left);
        let entered = request.blocks.get(host..held).unwrap_or_default();
        self.router.entered(at, entered);
        if let Some(store) = &mut self.store {
            let uses = (request.blocks, held);
            node.count_uses(uses, store.writes, &self.changes.left_host);
            write_bundles(store, node, request.blocks, (found, held));
        }
        let hit_tokens = self.totals.all.hit_tokens;
        self.totals.all.count(request, found, self.page_size);
        let hit_tokens = self.totals.all.hit_tokens - hit_tokens;
        self.router.served(at, request, hit_tokens);
        Ok(())
    }

    fn finish(mut self) -> ClusterTotals {
        self.totals.disk_written_blocks = self.changes.disk_written;
        let queued = self.router.queued / 1000;
        self.totals.queued_tokens = u64::try_from(queued).unwrap_or(u64::MAX);
        self.totals.finish(&self.router.loads, self.store.as_ref());
        self.totals
    }
}

/// Writes the bundles that are due, of a request with `found` blocks that were found and `held` in host memory.
fn write_bundles(
    store: &mut ClusterStore,
    node: &ClusterNode,
    blocks: &[u32],
    (found, held): (usize, usize),
) {
    for end in store.ends(held) {
        let Some(&last) = end.checked_sub(1).and_then(|last| blocks.get(last)) else {
            break;
        };
        let is_due = match store.writes {
            ClusterWrites::First => end > found,
            ClusterWrites::AfterUses(uses) | ClusterWrites::AfterCachedUses(uses) => {
                node.uses(last) >= uses
            }
        };
        if is_due {
            store.put(last);
        }
    }
}
