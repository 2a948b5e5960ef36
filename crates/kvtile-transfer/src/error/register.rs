//! A layout that cannot be registered, or a handle that is not registered.

use thiserror::Error;

/// A layout that cannot be registered, or a handle that is not registered.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The layout is remote and cannot be read or written. Its addresses and sizes can be computed;
    /// a transport reaches its memory.
    #[error(
        "this layout is remote (agent {agent:?}): its memory is in another process, and this one \
         cannot read or write it"
    )]
    RemoteLayout {
        /// Name of the agent that owns it.
        agent: String,
    },
    /// The handle belongs to another manager, or its layout was unregistered.
    #[error("layout handle {handle} is not registered here")]
    UnknownHandle {
        /// The handle.
        handle: String,
    },
    /// The layout has leased blocks and cannot be unregistered.
    #[error("{leases} leases are held on layout {handle}; wait for its transfers first")]
    LayoutInUse {
        /// The handle.
        handle: String,
        /// Number of leases.
        leases: usize,
    },
    /// The layout has more blocks than the ledger has memory for.
    #[error("not enough memory to track {blocks} blocks")]
    TooManyBlocks {
        /// Number of blocks.
        blocks: u64,
    },
    /// The layout is already registered.
    #[error("this layout is registered as {handle} already; use that handle")]
    AlreadyRegistered {
        /// Its handle.
        handle: String,
    },
    /// The memory belongs to a layout of another manager.
    #[error("memory at {addr:#x} belongs to a layout of another manager; register both in one")]
    ManagedElsewhere {
        /// Start of the region.
        addr: u64,
    },
}
