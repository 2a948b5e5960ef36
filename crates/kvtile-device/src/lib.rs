//! Devices: the CUDA driver loaded at run time, queues, marks, kernels, and memory that devices reach.
//!
//! **Not run on hardware.** Everything here has been run against a stand-in driver alone.
//!
//! Nothing is needed to build, and nothing of the driver is linked: [`Driver::open`] loads its library and fills a
//! table of functions ([`DriverTable`]). What is missing is a typed [`DeviceError`] that names what was tried. The
//! crate knows addresses and bytes; it does not know layouts, blocks or plans.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Driver`] | the loaded driver; lists and describes devices |
//! | [`Device`] | a device in use: its primary context, current only during a call |
//! | [`DeviceQueue`] | work in order: copies, batches of copies, fills, kernels; owned, or an engine's stream |
//! | [`DeviceMark`] | a point in a queue that hosts and other queues wait for |
//! | [`KernelModule`], [`DeviceKernel`] | PTX text, compiled for a device |
//! | [`DeviceMemory`], [`ImportedMemory`] | regions of device memory, own and of other owners |
//! | [`PinnedMemory`], [`RegisteredMemory`] | regions of host memory that devices reach |
//!
//! The order of a queue is the only order: a copy that needs what another queue wrote waits for a mark of that queue
//! ([`DeviceQueue::wait`]), and a host that reads what a queue wrote waits for a mark too ([`DeviceMark::wait`]).
//!
//! A device that failed ([`DeviceError::Lost`]) is lost for the process. A process that was forked from the one that
//! opened the driver gets [`DeviceError::Forked`] from each call, and releases nothing.
//!
//! ```
//! use kvtile_device::{DeviceError, DeviceOptions, Driver};
//!
//! match Driver::open(&DeviceOptions::default()) {
//!     Ok(driver) => println!("CUDA {}, {} devices", driver.version(), driver.device_count()?),
//!     Err(error) => println!("no devices: {error}"),
//! }
//! # Ok::<(), DeviceError>(())
//! ```

mod driver;
mod memory;

pub use driver::{
    BatchRoute, CopyBatch, Device, DeviceDescription, DeviceError, DeviceKernel, DeviceMark,
    DeviceMemoryInfo, DeviceOptions, DeviceQueue, Driver, DriverTable, DriverVersion,
    FunctionSignature, KernelFacts, KernelModule, LaunchShape, SourceOrder, TriedLibrary, cuda,
    hip,
};
pub use memory::{
    DeviceMemory, DevicePiece, ImportedMemory, IpcMemoryHandle, PinnedMemory, RegisterOptions,
    RegisteredMemory,
};
