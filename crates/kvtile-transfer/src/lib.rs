//! Layouts bound to memory, their descriptors, and the execution of copy plans.
//!
//! | module | what it is |
//! | --- | --- |
//! | `physical` | a layout, the regions under it, and the typed builder that brings them together |
//! | `descriptor` | what another process is told of a layout: JSON, and hostile when it comes in |
//! | `manager` | transfers and their completions |
//! | `lease` | registered layouts, leases on their blocks, and what may be executed because of them |
//! | `completion` | how work that takes time announces layers and its end |
//! | `execute` | moving the bytes: lanes, each with a queue of its own |
//! | `saved` | caches in files: layout, identity, checksums and blocks |
//!
//! It knows nothing of token hashes or of policies: which block is worth keeping is decided above.

pub mod completion;
mod descriptor;
mod error;
mod execute;
mod lease;
mod manager;
mod physical;
pub mod saved;
mod sync;

pub use descriptor::{DESCRIPTOR_BYTES_MAX, LayoutDescriptor};
pub use error::TransferError;
pub use execute::{FileBatch, FileIo, FileRead, FileWay, FileWrite, TransferReport};
pub use lease::{BlockLease, LayoutHandle, LeaseMode};
pub use manager::{
    FillPattern, TransferCompletion, TransferManager, TransferManagerBuilder, TransferOptions,
};
pub use physical::{
    DescribedLayout, DescribedOrder, FullyContiguousLayout, HasConfig, HasLayout, HasMemory,
    LayerSeparateLayout, Layout, NeedsConfig, NixlMetadata, PhysicalLayout, PhysicalLayoutBuilder,
    WordLayout,
};
