//! Regions that do not fit a layout.

use kvtile_memory::StorageKind;
use thiserror::Error;

/// Regions that do not fit a layout.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// The number of regions differs from the layout's.
    #[error("{given} regions for a layout of {needed}")]
    RegionCount {
        /// Regions given.
        given: usize,
        /// Regions of the layout.
        needed: usize,
    },
    /// A region is smaller than its part of the layout.
    #[error("region {region} has {have} bytes, the layout needs {need}")]
    RegionTooSmall {
        /// Index of the region.
        region: usize,
        /// Its size in bytes.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// A region does not start at a multiple of the layout's alignment.
    #[error("region {region} starts at {addr:#x}, which is not a multiple of {alignment} bytes")]
    RegionMisaligned {
        /// Index of the region.
        region: usize,
        /// Its address, or its offset in a file.
        addr: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// Two regions of one layout share bytes.
    #[error(
        "regions {first} and {second} share bytes in {kind}; each region needs bytes of its own"
    )]
    RegionsOverlap {
        /// Index of one region.
        first: usize,
        /// Index of the other.
        second: usize,
        /// The kind of their storage.
        kind: StorageKind,
    },
    /// The regions of one layout are of different kinds.
    #[error("one layout over {first} and {second}; its regions must be of one kind")]
    MixedStorage {
        /// Kind of the first region.
        first: StorageKind,
        /// The other kind.
        second: StorageKind,
    },
    /// The CPU of this process cannot reach the memory, and it is not memory of a device that was allocated or imported
    /// through `kvtile-device`.
    #[error(
        "{kind} cannot be read or written by this process; device memory is reached by transfers where it was allocated \
         or imported as a region of the device crate"
    )]
    NotReachable {
        /// The kind.
        kind: StorageKind,
    },
    /// A region is not registered with the NIXL agent, or as another memory type than the first
    /// region.
    #[error("region {region} is not registered with agent {agent:?} like the others; register it")]
    NotRegistered {
        /// Index of the region.
        region: usize,
        /// Name of the agent.
        agent: String,
    },
}
