//! The error type of the crate.

use std::path::PathBuf;

use kvtile_device::DeviceError;
use kvtile_kernels::LowerError;
use kvtile_layout::LayoutError;
use kvtile_memory::MemoryError;
use kvtile_ptx::{PtxLaunchError, PtxTextError};
use kvtile_testkit::TestkitError;
use kvtile_transfer::TransferError;
use thiserror::Error;

/// Why a phase, or the whole check, could not go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GpuCheckError {
    /// The driver, the device or memory of it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A layout or a plan.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A plan without a program.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// Memory of the host.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A transfer of kvtile.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The naive reference.
    #[error(transparent)]
    Reference(#[from] TestkitError),
    /// The text of the kernels, in the interpreter.
    #[error(transparent)]
    Text(#[from] PtxTextError),
    /// A launch in the interpreter.
    #[error(transparent)]
    Interpreter(#[from] PtxLaunchError),
    /// A report that cannot be written.
    #[error("cannot write {path}: {reason}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A random case that the generator cannot make.
    #[error("the generator of cases gives up: {reason}")]
    NoCase {
        /// Its reason.
        reason: String,
    },
    /// A range outside of its buffer.
    #[error("bytes {start} to {end} of a buffer of {bytes} bytes")]
    OutsideBuffer {
        /// First byte.
        start: usize,
        /// The byte behind the last one.
        end: usize,
        /// Bytes of the buffer.
        bytes: usize,
    },
    /// Copies whose destinations overlap each other or a source.
    #[error("copies that overlap each other")]
    OverlappingCopies,
    /// A buffer of another rig.
    #[error("a buffer of another device")]
    ForeignBuffer,
    /// The host accesses a buffer of the device.
    #[error("the host cannot access memory of the device")]
    NotHostMemory,
    /// Memory that a transfer still uses after it has ended.
    #[error("a transfer that has ended still uses its memory")]
    StillInUse,
    /// A kernel that the module lacks.
    #[error("the module has no kernel {kernel}")]
    NoKernel {
        /// Its name.
        kernel: &'static str,
    },
    /// A device with too little free memory.
    #[error("{needed} bytes of device memory are needed, and {free} are free")]
    NoRoom {
        /// The bytes that the smallest measurement needs.
        needed: usize,
        /// Free bytes.
        free: usize,
    },
}
