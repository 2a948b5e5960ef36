//! Blocks whose leases conflict.

use std::ops::Range;

use thiserror::Error;

/// Blocks whose leases conflict.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The same block is source and destination.
    #[error("block {block} is both read and written; copy to other blocks")]
    SameBlock {
        /// The block.
        block: u64,
    },
    /// Another lease holds the block, or some of its layers.
    #[error("block {block} of layout {handle} is {held}; wait for it before it is {wanted}")]
    BlockLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// `being written` or `being read`.
        held: &'static str,
        /// `read` or `written`.
        wanted: &'static str,
    },
    /// The lease does not hold the requested block.
    #[error("block {block} of layout {handle} is not part of this lease")]
    NotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
    },
    /// The lease holds the block, but not the requested layer.
    #[error(
        "layer {layer} of block {block} of layout {handle} is not part of this lease, which holds layers {layers:?}"
    )]
    LayerNotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// The requested layer.
        layer: u64,
        /// The layers of the lease.
        layers: Range<u64>,
    },
    /// The lease holds only some layers, and the whole block was requested.
    #[error(
        "this lease holds layers {layers:?} of the {num_layers} of block {block} of layout {handle}, \
         and the whole block was requested"
    )]
    BlockPartlyLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// The layers of the lease.
        layers: Range<u64>,
        /// Layers of the layout.
        num_layers: u64,
    },
    /// A slice of shared memory was requested.
    #[error(
        "blocks in shared memory cannot be lent as slices, because another process may change \
         them; copy them to memory of this process first"
    )]
    SharedPages,
}
