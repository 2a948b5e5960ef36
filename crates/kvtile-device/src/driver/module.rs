//! Kernels: PTX text that the driver compiles for a device.

use super::context::{Device, DriverHandle};
use super::cuda;
use super::error::DeviceError;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;

/// Bytes for the log of the driver's compiler.
const LOG_BYTES: usize = 8 << 10;

/// PTX text that the driver has compiled for a device; unloaded with its last kernel.
#[derive(Clone)]
pub struct KernelModule {
    loaded: Arc<LoadedModule>,
}

struct LoadedModule {
    device: Device,
    module: DriverHandle,
}

/// A kernel of a module.
#[derive(Clone)]
pub struct DeviceKernel {
    module: KernelModule,
    function: DriverHandle,
    name: Arc<str>,
}

/// What the driver's compiler made of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFacts {
    /// Threads that a block may have.
    pub threads_max: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that the kernel declares.
    pub shared_bytes: u32,
    /// Bytes of memory of a thread outside of registers: 0 unless registers were spilled.
    pub local_bytes: u32,
}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of shared memory besides those that the kernel declares.
    pub shared_bytes: u32,
}

impl Device {
    /// Compiles PTX text for this device.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NewerPtx`] if the driver is too old for the text, [`DeviceError::RefusedPtx`] with the log of the
    /// compiler, [`DeviceError::InvalidArgument`] for a text with a zero byte; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn load_module(&self, ptx: &str) -> Result<KernelModule, DeviceError> {
        let text = zero_ended(ptx, "cuModuleLoadDataEx", "PTX text")?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut module = std::ptr::null_mut();
        let mut options = [cuda::JIT_ERROR_LOG, cuda::JIT_ERROR_LOG_BYTES];
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            std::ptr::without_provenance_mut::<c_void>(LOG_BYTES),
        ];
        let facts = format_args!("{} bytes of PTX text", ptx.len());
        let loaded = self.shared.call("cuModuleLoadDataEx", facts, |table| {
            let image = text.as_ptr().cast::<c_void>();
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            // SAFETY: the text ends with zero; there are two options with two values, the second of which is the size
            // of the buffer of the first.
            unsafe { (table.module_load)(&raw mut module, image, 2, options, values) }
        });
        match loaded {
            Ok(()) => Ok(KernelModule {
                loaded: Arc::new(LoadedModule {
                    device: self.clone(),
                    module: DriverHandle(module),
                }),
            }),
            Err(DeviceError::Call { code, .. }) if code == cuda::UNSUPPORTED_PTX_VERSION => {
                Err(DeviceError::NewerPtx {
                    ptx: version_of(ptx).to_owned(),
                    version: self.driver_version(),
                })
            }
            Err(DeviceError::Call { code, name, .. }) if code == cuda::INVALID_PTX => {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let log = log.get(..end).unwrap_or_default();
                Err(DeviceError::RefusedPtx {
                    name,
                    log: String::from_utf8_lossy(log).trim().to_owned(),
                })
            }
            Err(error) => Err(error),
        }
    }
}

impl KernelModule {
    /// The kernel with this name.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoKernel`], [`DeviceError::InvalidArgument`] for a name with a zero byte; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn kernel(&self, name: &str) -> Result<DeviceKernel, DeviceError> {
        let text = zero_ended(name, "cuModuleGetFunction", "the name of a kernel")?;
        let mut function = std::ptr::null_mut();
        let (module, facts) = (self.loaded.module, format_args!("kernel {name}"));
        let shared = &self.loaded.device.shared;
        let found = shared.call("cuModuleGetFunction", facts, |table| {
            // SAFETY: `function` is a place for one handle, the module is loaded, and the name ends with zero.
            unsafe { (table.module_function)(&raw mut function, module.0, text.as_ptr()) }
        });
        match found {
            Ok(()) => Ok(DeviceKernel {
                module: self.clone(),
                function: DriverHandle(function),
                name: name.into(),
            }),
            Err(DeviceError::Call { code, .. }) if code == cuda::NOT_FOUND => {
                Err(DeviceError::NoKernel {
                    kernel: name.to_owned(),
                })
            }
            Err(error) => Err(error),
        }
    }
}

impl DeviceKernel {
    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.module.loaded.device
    }

    /// Its name in the module.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the driver's compiler made of it.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn facts(&self) -> Result<KernelFacts, DeviceError> {
        Ok(KernelFacts {
            threads_max: self.attribute(cuda::FUNCTION_THREADS_MAX)?,
            registers: self.attribute(cuda::FUNCTION_REGISTERS)?,
            shared_bytes: self.attribute(cuda::FUNCTION_SHARED_BYTES)?,
            local_bytes: self.attribute(cuda::FUNCTION_LOCAL_BYTES)?,
        })
    }

    /// How many blocks of `threads` threads with `shared_bytes` bytes of additional shared memory a multiprocessor
    /// holds at once.
    ///
    /// # Errors
    ///
    /// [`DeviceError::InvalidArgument`] for more than `i32::MAX` threads; the driver's error, [`DeviceError::Lost`],
    /// [`DeviceError::Forked`].
    pub fn blocks_per_multiprocessor(
        &self,
        threads: u32,
        shared_bytes: usize,
    ) -> Result<u32, DeviceError> {
        let call = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
        let block = i32::try_from(threads).map_err(|_| DeviceError::InvalidArgument {
            call,
            facts: format!("blocks of {threads} threads"),
        })?;
        let mut blocks = 0;
        let function = self.function;
        let facts = format_args!("{self:?} with {threads} threads and {shared_bytes} bytes");
        self.device().shared.call(call, facts, |table| {
            // SAFETY: `blocks` is a place for one number, and the module of the function is loaded.
            unsafe { (table.occupancy)(&raw mut blocks, function.0, block, shared_bytes) }
        })?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    pub(super) fn handle(&self) -> DriverHandle {
        self.function
    }

    fn attribute(&self, attribute: u32) -> Result<u32, DeviceError> {
        let mut number = 0;
        let function = self.function;
        let facts = format_args!("attribute {attribute} of {self:?}");
        let shared = &self.device().shared;
        shared.call("cuFuncGetAttribute", facts, |table| {
            // SAFETY: `number` is a place for one number, and the module of the function is loaded.
            unsafe { (table.function_attribute)(&raw mut number, attribute, function.0) }
        })?;
        Ok(u32::try_from(number).unwrap_or(0))
    }
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        let module = self.module;
        // SAFETY: no kernel of the module is left, and it is unloaded once.
        self.device
            .shared
            .release(|table| unsafe { (table.module_unload)(module.0) });
    }
}

impl fmt::Debug for KernelModule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a module of {:?}", self.loaded.device)
    }
}

impl fmt::Debug for DeviceKernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kernel {}", self.name)
    }
}

/// A text for the driver.
fn zero_ended(text: &str, call: &'static str, what: &str) -> Result<CString, DeviceError> {
    CString::new(text).map_err(|error| DeviceError::InvalidArgument {
        call,
        facts: format!("{what} with a zero byte at {}", error.nul_position()),
    })
}

/// The version that PTX text states.
fn version_of(ptx: &str) -> &str {
    let mut lines = ptx.lines().map(str::trim);
    let version = lines.find_map(|line| line.strip_prefix(".version"));
    version.map_or("of an unknown version", str::trim)
}
