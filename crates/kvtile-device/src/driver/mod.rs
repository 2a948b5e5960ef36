//! The driver: its functions, how they are called, and the objects that it owns.
//!
//! All unsafe code for calls of the driver is in this room and in that of memory. It knows nothing of layouts,
//! blocks or plans: it copies ranges of addresses.

mod call;
mod context;
pub mod cuda;
mod error;
pub mod hip;
mod load;
mod mark;
mod module;
mod open;
mod queue;
mod table;
mod version;

pub use context::{Device, DeviceDescription, DeviceMemoryInfo};
pub use error::{DeviceError, TriedLibrary};
pub use load::DeviceOptions;
pub use mark::DeviceMark;
pub use module::{DeviceKernel, KernelFacts, KernelModule, LaunchShape};
pub use open::Driver;
pub use queue::{BatchRoute, CopyBatch, DeviceQueue, SourceOrder};
pub use table::{DriverTable, FunctionSignature};
pub use version::DriverVersion;
