//! Layouts bound to memory, their descriptors, and the execution of copy plans.
//!
//! | module | what it is |
//! | --- | --- |
//! | `physical` | a layout, the regions under it, and the typed builder that brings them together |
//! | `descriptor` | the JSON that describes a layout to another process; incoming JSON is untrusted |
//! | `manager` | transfers and their completions |
//! | `lease` | registered layouts, leases on their blocks, and the transfers that leases make sound |
//! | `completion` | completions: per-layer progress and the final result |
//! | `execute` | moves the bytes: lanes, each with its own queue |
//! | `saved` | caches in files: layout, identity, checksums and blocks |
//!
//! The crate knows neither token hashes nor policies: the layers above decide which blocks to keep.

/// Unit tests share files with the tests of the public surface.
#[cfg(test)]
#[cfg(not(loom))]
extern crate self as kvtile_transfer;

pub mod completion;
mod descriptor;
mod error;
mod execute;
mod lease;
mod manager;
mod physical;
pub mod saved;
mod sync;

/// A point in the work of a device, which transfers wait for and wait on.
pub use kvtile_device::DeviceMark;

pub use descriptor::{DESCRIPTOR_BYTES_MAX, LayoutDescriptor};
pub use error::{
    BindError, CopyError, DescriptorError, LeaseError, RegisterError, SavedError, TransferError,
};
pub use execute::{DeviceRoute, FileBatch, FileIo, FileRead, FileWay, FileWrite, TransferReport};
pub use lease::{BlockLease, LayoutHandle, LeaseMode};
pub use manager::{
    EnqueuedLayer, FillPattern, TransferCompletion, TransferManager, TransferManagerBuilder,
    TransferOptions,
};
pub use physical::{
    DescribedLayout, DescribedOrder, FullyContiguousLayout, HasConfig, HasLayout, HasMemory,
    LayerSeparateLayout, Layout, NeedsConfig, NixlMetadata, PhysicalLayout, PhysicalLayoutBuilder,
    WordLayout,
};
