//! The settings of a replayed cluster.

use kvtile_blocks::{policy::PolicySettings, pool::POOL_BLOCKS_MAX};

use crate::TierError;

/// Most nodes of a replayed cluster.
pub const CLUSTER_NODES_MAX: u32 = 1_000;

/// How requests are routed to the nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterRoute {
    /// To one node after the other.
    #[default]
    RoundRobin,
    /// To the node that holds the longest prefix of the request, in host memory and on disk together. Of
    /// several, and where no node holds any, to the one with the fewest requests so far, then the lowest number.
    Prefix,
    /// To the node with the longest prefix whose queue is at most 1.25 times the mean queue of all nodes plus
    /// the tokens that the prefix saves. Of several, and where no node qualifies, to the one with the shortest
    /// queue, then the fewest requests so far, then the lowest number.
    PrefixLoad,
}

/// When a node writes a bundle to the shared tier. It writes only what the tier does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterWrites {
    /// When the node has computed a block of the bundle.
    #[default]
    First,
    /// When this number of requests on the node have used each block of the bundle.
    AfterUses(u32),
    /// Like `AfterUses`, but the count of a block starts again when the node evicts it from host memory.
    AfterCachedUses(u32),
}

/// Which bundle a full shared tier evicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvicts {
    /// The one that was written longest ago.
    Age,
    /// The one whose last read or write is longest ago.
    #[default]
    Use,
}

/// The shared tier of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterShared {
    /// Blocks that it holds, rounded down to whole bundles; `None` for a tier that evicts nothing.
    pub capacity_blocks: Option<u64>,
    /// Consecutive blocks that one value holds. A bundle starts at a multiple of this number.
    pub bundle_blocks: u32,
    /// When nodes write.
    pub writes: ClusterWrites,
    /// What a full tier evicts.
    pub evicts: ClusterEvicts,
}

impl Default for ClusterShared {
    fn default() -> ClusterShared {
        ClusterShared {
            capacity_blocks: None,
            bundle_blocks: 1,
            writes: ClusterWrites::default(),
            evicts: ClusterEvicts::default(),
        }
    }
}

impl ClusterShared {
    /// Refuses values out of range.
    fn check(&self) -> Result<(), ClusterError> {
        in_range("bundle_blocks", self.bundle_blocks, 1, u32::MAX)?;
        if let ClusterWrites::AfterUses(uses) | ClusterWrites::AfterCachedUses(uses) = self.writes {
            in_range("writes", uses, 1, u32::MAX)?;
        }
        match self.capacity_blocks {
            Some(capacity_blocks) if capacity_blocks < u64::from(self.bundle_blocks) => {
                let bundle_blocks = self.bundle_blocks;
                Err(ClusterError::SharedTooSmall {
                    capacity_blocks,
                    bundle_blocks,
                })
            }
            _ => Ok(()),
        }
    }
}

/// The settings of a cluster: nodes with private host memory and disk, and a tier that all of them share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Nodes, from 1 to [`CLUSTER_NODES_MAX`].
    pub nodes: u32,
    /// Blocks of the host memory of each node.
    pub host_blocks: u32,
    /// Blocks of the disk of each node; 0 for none. The disk gets what host memory evicts.
    pub disk_blocks: u32,
    /// What host memory and disk evict.
    pub policy: PolicySettings,
    /// How requests are routed.
    pub route: ClusterRoute,
    /// Leading blocks that a node must hold to attract a request, from 1.
    pub route_blocks_min: u32,
    /// Prompt tokens that a node computes in a second: the speed at which its queue shrinks.
    pub tokens_per_second: u32,
    /// The shared tier.
    pub shared: Option<ClusterShared>,
}

impl ClusterSettings {
    /// Nodes without disk and shared tier, with the default policy, in turn.
    #[must_use]
    pub fn new(nodes: u32, host_blocks: u32) -> ClusterSettings {
        ClusterSettings {
            nodes,
            host_blocks,
            disk_blocks: 0,
            policy: PolicySettings::default(),
            route: ClusterRoute::default(),
            route_blocks_min: 1,
            tokens_per_second: 10_000,
            shared: None,
        }
    }

    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<(), ClusterError> {
        let ranges = [
            ("nodes", self.nodes, (1, CLUSTER_NODES_MAX)),
            ("host_blocks", self.host_blocks, (1, pool_max())),
            ("disk_blocks", self.disk_blocks, (0, pool_max())),
            ("route_blocks_min", self.route_blocks_min, (1, u32::MAX)),
            ("tokens_per_second", self.tokens_per_second, (1, u32::MAX)),
        ];
        for (name, value, (least, most)) in ranges {
            in_range(name, value, least, most)?;
        }
        self.shared.as_ref().map_or(Ok(()), ClusterShared::check)
    }
}

/// Most blocks of a pool.
fn pool_max() -> u32 {
    u32::try_from(POOL_BLOCKS_MAX).unwrap_or(u32::MAX)
}

fn in_range(name: &'static str, value: u32, least: u32, most: u32) -> Result<(), ClusterError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(ClusterError::OutOfRange {
            name,
            value,
            least,
            most,
        }),
    }
}

/// Why a trace was not replayed on a cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A setting out of its range.
    #[error("{name} is {value}; give {least} to {most}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The least value.
        least: u32,
        /// The largest value.
        most: u32,
    },
    /// A shared tier that holds no bundle.
    #[error(
        "a shared tier of {capacity_blocks} blocks holds no bundle of {bundle_blocks} blocks; give at least \
         {bundle_blocks} blocks or smaller bundles"
    )]
    SharedTooSmall {
        /// Blocks of the shared tier.
        capacity_blocks: u64,
        /// Blocks of a bundle.
        bundle_blocks: u32,
    },
    /// The pool of a node failed.
    #[error(transparent)]
    Tier(#[from] TierError),
}
