//! Layouts bound to memory, their descriptors, and the execution of copy plans.
//!
//! | module | what it is |
//! | --- | --- |
//! | `physical` | a layout, the regions under it, and the typed builder that brings them together |
//! | `descriptor` | what another process is told of a layout: JSON, and hostile when it comes in |
//! | `manager` | registered layouts, leases on their blocks, transfers and their completions |
//! | `completion` | how work that takes time announces layers and its end |
//! | `execute` | moving the bytes: the only unsafe code here |
//! | `saved` | caches in files: layout, identity, checksums and blocks |
//!
//! It knows nothing of token hashes or of policies: which block is worth keeping is decided above.

pub mod completion;
mod descriptor;
mod error;
mod execute;
mod manager;
mod physical;
pub mod saved;

pub use descriptor::{DESCRIPTOR_BYTES_MAX, LayoutDescriptor};
pub use error::TransferError;
pub use execute::{BlockLease, FileBatch, FileIo, FileRead, FileWay, FileWrite, LeaseMode};
pub use manager::{
    FillPattern, LayoutHandle, TransferCompletion, TransferManager, TransferManagerBuilder,
    TransferOptions, TransferReport,
};
pub use physical::{
    FullyContiguousLayout, HasConfig, HasLayout, HasMemory, LayerSeparateLayout, Layout,
    NeedsConfig, NixlMetadata, PhysicalLayout, PhysicalLayoutBuilder, WordLayout,
};
