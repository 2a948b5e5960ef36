//! The seam between the stand-in and what executes kernels.
//!
//! The stand-in knows when a kernel runs and which memory exists; an engine knows PTX. All accesses of a kernel to
//! global memory go through [`KernelMemory`], so the stand-in records them for the order checker itself.

use std::ops::Range;

/// Executes kernels for the stand-in.
pub trait KernelEngine: Send + Sync {
    /// The kernels of PTX text. The stand-in has checked the version that the text states before.
    ///
    /// # Errors
    ///
    /// The reason why the text is refused, for the log of the driver's compiler.
    fn entries(&self, ptx: &str) -> Result<Vec<KernelEntry>, String>;

    /// Runs all blocks of a launch.
    ///
    /// # Errors
    ///
    /// The first fault, which loses the device.
    fn launch(
        &self,
        launch: &KernelLaunch<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), KernelFault>;
}

/// A kernel of PTX text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEntry {
    /// Its name.
    pub name: String,
    /// The bytes of each parameter in the packed buffer of all parameters.
    pub parameters: Vec<Range<usize>>,
    /// Bytes of shared memory that it declares.
    pub shared_bytes: u32,
    /// Threads that a block may have.
    pub threads_max: u32,
}

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct KernelLaunch<'a> {
    /// The text of the module, the same for all its launches.
    pub ptx: &'a str,
    /// The name of the kernel.
    pub kernel: &'a str,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of shared memory besides those that the kernel declares.
    pub shared_bytes: u32,
    /// The packed bytes of all parameters.
    pub parameters: &'a [u8],
}

/// Global memory by address.
pub trait KernelMemory {
    /// Reads bytes; false if they do not lie inside one allocation that the device reaches.
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool;

    /// Writes bytes; false if they do not lie inside one writable allocation that the device reaches.
    fn write(&mut self, address: u64, from: &[u8]) -> bool;
}

/// Why a kernel stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelFault {
    /// An access outside of all memory.
    IllegalAddress {
        /// Where.
        address: u64,
        /// How many bytes.
        bytes: u32,
        /// Whether it was a write.
        write: bool,
    },
    /// An address that is no multiple of the size of the access.
    Misaligned {
        /// Where.
        address: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// An instruction that cannot be executed, or a barrier that not all threads reach.
    IllegalInstruction {
        /// Which.
        message: String,
    },
    /// The kernel did not end.
    Timeout {
        /// Instructions that were executed.
        instructions: u64,
    },
}
