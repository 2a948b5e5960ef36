//! The errors of layouts, descriptors, transfers and saved caches.

mod bind;
mod copy;
mod descriptor;
mod lease;
mod register;
mod saved;

pub use bind::BindError;
pub use copy::CopyError;
pub use descriptor::DescriptorError;
pub use lease::LeaseError;
pub use register::RegisterError;
pub use saved::SavedError;

use std::sync::Arc;

use kvtile_device::DeviceError;
use kvtile_layout::LayoutError;
use kvtile_memory::MemoryError;
use thiserror::Error;

/// An error of binding a layout, of a descriptor, of a transfer or of a saved cache.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A layout, a selection or a plan was refused.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Memory or a file failed.
    #[error(transparent)]
    Memory(Arc<MemoryError>),
    /// A device or its driver failed.
    #[error(transparent)]
    Device(Arc<DeviceError>),
    /// Regions that do not fit a layout.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A descriptor that cannot be made or read.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// A layout that cannot be registered, or a handle that is not registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Blocks whose leases conflict.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A transfer that is refused or that failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A file that is no saved cache, or that cannot become one.
    #[error(transparent)]
    Saved(#[from] SavedError),
}

impl From<MemoryError> for TransferError {
    fn from(error: MemoryError) -> TransferError {
        TransferError::Memory(Arc::new(error))
    }
}

impl From<DeviceError> for TransferError {
    fn from(error: DeviceError) -> TransferError {
        TransferError::Device(Arc::new(error))
    }
}
