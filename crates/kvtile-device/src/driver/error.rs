//! The error type of the crate.

use super::version::DriverVersion;
use kvtile_memory::{MemoryError, StorageKind};
use std::fmt;

/// Why a driver, a device, or memory of a device could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No driver library could be loaded.
    #[error("no CUDA driver: {}", list(tried))]
    NoDriver {
        /// Each library that was tried, with the loader's reason.
        tried: Vec<TriedLibrary>,
    },
    /// A library was loaded that lacks a function of every supported driver.
    #[error("{library} is no CUDA driver that kvtile can use: it lacks the function {symbol}")]
    MissingSymbol {
        /// The library.
        library: String,
        /// The function.
        symbol: &'static str,
    },
    /// The driver is older than the oldest that kvtile uses.
    #[error(
        "the CUDA driver is of version {has}; kvtile needs {needs} or newer: update the driver"
    )]
    TooOld {
        /// The oldest version that kvtile uses.
        needs: DriverVersion,
        /// The version of the driver.
        has: DriverVersion,
    },
    /// The driver finds no device.
    #[error(
        "the CUDA driver {version} finds no device (CUDA_VISIBLE_DEVICES or the container may hide it)"
    )]
    NoDevice {
        /// The version of the driver.
        version: DriverVersion,
    },
    /// No device has this ordinal.
    #[error("there is no device {ordinal}: the driver has {count}, numbered from 0")]
    UnknownDevice {
        /// The requested ordinal.
        ordinal: u32,
        /// How many devices there are.
        count: u32,
    },
    /// The driver has no memory of the requested kind left.
    #[error("{call} has no memory left for {facts}")]
    OutOfMemory {
        /// The function of the driver.
        call: &'static str,
        /// The request.
        facts: String,
    },
    /// The driver refuses PTX of this version.
    #[error("the CUDA driver {version} is too old for PTX {ptx}: update the driver")]
    NewerPtx {
        /// The version in the text.
        ptx: String,
        /// The version of the driver.
        version: DriverVersion,
    },
    /// The driver does not accept PTX text.
    #[error("the driver refuses the PTX text ({name}): {log}")]
    RefusedPtx {
        /// The driver's name for the error.
        name: String,
        /// The log of the driver's compiler.
        log: String,
    },
    /// The module has no such kernel.
    #[error("the module has no kernel {kernel}")]
    NoKernel {
        /// The requested name.
        kernel: String,
    },
    /// The device failed; the driver refuses all later work of this process on it.
    #[error(
        "device {ordinal} is lost since {call} returned {name} ({code}); only a new process can use it"
    )]
    Lost {
        /// Ordinal of the device.
        ordinal: u32,
        /// The function that reported it first.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// The error.
        code: u32,
    },
    /// The process is a forked child of the one that opened the driver.
    #[error(
        "process {opened_by} opened the CUDA driver, and this process {here} was forked from it; CUDA does not \
         survive a fork: start the child with spawn"
    )]
    Forked {
        /// The process that opened the driver.
        opened_by: u32,
        /// This process.
        here: u32,
    },
    /// A region whose kind of memory cannot be registered.
    #[error("{kind} cannot be registered with a device; only memory of this process can")]
    NotRegistrable {
        /// The kind.
        kind: StorageKind,
    },
    /// The size of a piece of registered memory is not a whole number of pages.
    #[error(
        "registered memory cannot be cut every {piece_bytes} bytes: it needs a multiple of {page_bytes}"
    )]
    PieceSize {
        /// The requested size, in bytes.
        piece_bytes: usize,
        /// The size of a page, in bytes.
        page_bytes: usize,
    },
    /// An address is not what its owner claims.
    #[error("address {address:#x} is not {bytes} bytes of memory of device {ordinal}: {found}")]
    NotDeviceMemory {
        /// The address.
        address: u64,
        /// The claimed size, in bytes.
        bytes: usize,
        /// The claimed device.
        ordinal: u32,
        /// What the driver knows about the address.
        found: String,
    },
    /// A stream belongs to another context than the device's primary context.
    #[error("the stream {stream:#x} does not belong to the primary context of device {ordinal}")]
    ForeignStream {
        /// The handle.
        stream: usize,
        /// Ordinal of the device.
        ordinal: u32,
    },
    /// The arguments of a launch or a copy cannot be given to the driver.
    #[error("{call} cannot take {facts}")]
    InvalidArgument {
        /// The function of the driver.
        call: &'static str,
        /// The argument.
        facts: String,
    },
    /// Any other error of the driver.
    #[error("{call} failed with {name} ({code}): {text}; {facts}")]
    Call {
        /// The function of the driver.
        call: &'static str,
        /// The error.
        code: u32,
        /// The driver's name for it.
        name: String,
        /// The driver's description.
        text: String,
        /// The arguments that matter.
        facts: String,
    },
    /// Host memory could not be made, or a region cannot have this size.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A library that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriedLibrary {
    /// Its name or path.
    pub library: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for TriedLibrary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.library, self.reason)
    }
}

fn list(tried: &[TriedLibrary]) -> String {
    let tried: Vec<String> = tried.iter().map(TriedLibrary::to_string).collect();
    format!("tried {}", tried.join("; "))
}
