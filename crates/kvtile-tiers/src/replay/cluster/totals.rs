//! The totals of a replay on a cluster.

use super::{route::NodeLoad, store::ClusterStore};
use crate::replay::run::ReplayTotals;

/// The totals of a replay on a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterTotals {
    /// Requests, blocks and hits, wherever they were found.
    pub all: ReplayTotals,
    /// Hits in the host memory of the request's own node.
    pub host_blocks: u64,
    /// Hits on the disk of the request's own node.
    pub disk_blocks: u64,
    /// Hits in the shared tier.
    pub shared_blocks: u64,
    /// Blocks that nodes wrote from host memory to their disks.
    pub disk_written_blocks: u64,
    /// Bundles that nodes read from the shared tier.
    pub shared_gets: u64,
    /// Bundles that nodes wrote to the shared tier.
    pub shared_puts: u64,
    /// Bundles that the shared tier evicted.
    pub shared_evicted: u64,
    /// Bundles in the shared tier at the end.
    pub shared_values: u64,
    /// Most bundles in the shared tier at any time.
    pub shared_values_max: u64,
    /// Blocks of a bundle; 0 without a shared tier.
    pub bundle_blocks: u32,
    /// Nodes.
    pub nodes: u32,
    /// Most requests of a node.
    pub node_requests_max: u64,
    /// Prompt tokens that all nodes computed.
    pub computed_tokens: u64,
    /// Most prompt tokens that a node computed.
    pub node_computed_tokens_max: u64,
    /// Prompt tokens that were waiting at the request's node when it arrived, summed over the requests.
    pub queued_tokens: u64,
}

impl ClusterTotals {
    /// Requests of the busiest node over the mean.
    #[must_use]
    pub fn request_imbalance(&self) -> f64 {
        imbalance(self.node_requests_max, self.all.requests, self.nodes)
    }

    /// Computed tokens of the node that computed the most over the mean.
    #[must_use]
    pub fn computed_imbalance(&self) -> f64 {
        let most = self.node_computed_tokens_max;
        imbalance(most, self.computed_tokens, self.nodes)
    }

    /// Blocks that were read from the shared tier: whole bundles.
    #[must_use]
    pub fn shared_read_blocks(&self) -> u64 {
        self.shared_gets
            .saturating_mul(u64::from(self.bundle_blocks))
    }

    /// Blocks that were written to the shared tier.
    #[must_use]
    pub fn shared_written_blocks(&self) -> u64 {
        self.shared_puts
            .saturating_mul(u64::from(self.bundle_blocks))
    }

    /// Blocks that moved between tiers.
    #[must_use]
    pub fn moved_blocks(&self) -> u64 {
        let private = self.disk_blocks.saturating_add(self.disk_written_blocks);
        let shared = self.shared_read_blocks();
        private
            .saturating_add(shared)
            .saturating_add(self.shared_written_blocks())
    }

    /// Adds the load of the nodes and the counts of the shared tier.
    pub(super) fn finish(&mut self, loads: &[NodeLoad], store: Option<&ClusterStore>) {
        for load in loads {
            self.node_requests_max = self.node_requests_max.max(load.requests);
            self.computed_tokens += load.computed_tokens;
            let most = &mut self.node_computed_tokens_max;
            *most = (*most).max(load.computed_tokens);
        }
        if let Some(store) = store {
            self.shared_gets = store.gets;
            self.shared_puts = store.puts;
            self.shared_evicted = store.evicted;
            self.shared_values = store.stored();
            self.shared_values_max = store.stored_max;
        }
    }
}

/// `most` over the mean of `sum`; 1 where the sum is 0.
fn imbalance(most: u64, sum: u64, nodes: u32) -> f64 {
    match sum {
        0 => 1.0,
        sum => most as f64 * f64::from(nodes) / sum as f64,
    }
}
