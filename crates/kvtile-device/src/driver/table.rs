//! The driver as a table of function pointers, and how the table is filled by names.
//!
//! The table is the seam for tests and for drivers of other vendors: the rest of the crate calls through it and
//! nothing else. It does not know where the functions come from.

use super::cuda::{
    CudaAddress, CudaContext, CudaCopyAttributes, CudaDevice, CudaEvent, CudaFunction,
    CudaIpcHandle, CudaModule, CudaResult, CudaStream, CudaUuid,
};
use std::ffi::{c_char, c_void};

/// Declares the table, the names of its functions, and how it is filled.
macro_rules! driver_table {
    (
        required { $($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($arg:ty),* $(,)?);)* }
        optional { $($(#[$odoc:meta])* $ofield:ident = $osymbol:literal: fn($($oarg:ty),* $(,)?);)* }
    ) => {
        /// The functions of the driver.
        ///
        /// Optional functions came with a later driver than the oldest that kvtile uses.
        #[derive(Debug, Clone, Copy)]
        pub struct DriverTable {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($arg),*) -> CudaResult,)*
            $($(#[$odoc])* pub $ofield: Option<unsafe extern "C" fn($($oarg),*) -> CudaResult>,)*
        }

        impl DriverTable {
            /// Symbols that every supported driver has.
            pub const REQUIRED: &[&str] = &[$($symbol),*];
            /// Symbols that newer drivers have.
            pub const OPTIONAL: &[&str] = &[$($osymbol),*];

            /// Fills the table from `symbol`.
            ///
            /// # Errors
            ///
            /// The first required symbol without an address.
            ///
            /// # Safety
            ///
            /// An address that `symbol` returns for a name is a function with the signature that `cuda.h` gives
            /// this name, and stays callable as long as the table is used.
            pub unsafe fn from_symbols(
                symbol: impl Fn(&'static str) -> Option<std::ptr::NonNull<c_void>>,
            ) -> Result<DriverTable, &'static str> {
                Ok(DriverTable {
                    $($field: {
                        let address = symbol($symbol).ok_or($symbol)?;
                        // SAFETY: the caller guarantees that this is the address of a function of this signature,
                        // and function pointers have the size of data pointers on Linux.
                        unsafe {
                            std::mem::transmute::<
                                std::ptr::NonNull<c_void>,
                                unsafe extern "C" fn($($arg),*) -> CudaResult,
                            >(address)
                        }
                    },)*
                    $($ofield: symbol($osymbol).map(|address| {
                        // SAFETY: as above.
                        unsafe {
                            std::mem::transmute::<
                                std::ptr::NonNull<c_void>,
                                unsafe extern "C" fn($($oarg),*) -> CudaResult,
                            >(address)
                        }
                    }),)*
                })
            }

            /// For each function its symbol, the sizes and alignments of its arguments, and whether it is present.
            #[must_use]
            pub fn signatures(&self) -> Vec<FunctionSignature> {
                vec![
                    $(FunctionSignature {
                        symbol: $symbol,
                        arguments: vec![$((size_of::<$arg>(), align_of::<$arg>())),*],
                        is_present: true,
                    },)*
                    $(FunctionSignature {
                        symbol: $osymbol,
                        arguments: vec![$((size_of::<$oarg>(), align_of::<$oarg>())),*],
                        is_present: self.$ofield.is_some(),
                    },)*
                ]
            }

            /// The address of a function of the table by its symbol.
            #[must_use]
            pub fn address(&self, symbol: &str) -> Option<*const c_void> {
                match symbol {
                    $($symbol => Some(self.$field as *const c_void),)*
                    $($osymbol => self.$ofield.map(|function| function as *const c_void),)*
                    _ => None,
                }
            }
        }
    };
}

/// The shape of a function of the table: what the calling convention needs to agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionSignature {
    /// Its name in the library.
    pub symbol: &'static str,
    /// Size and alignment of each argument, in bytes.
    pub arguments: Vec<(usize, usize)>,
    /// Whether this driver has it.
    pub is_present: bool,
}

driver_table! {
    required {
        /// Initialises the driver in this process.
        init = "cuInit": fn(u32);
        /// The newest CUDA version that the driver knows, as 1000 * major + 10 * minor.
        driver_version = "cuDriverGetVersion": fn(*mut i32);
        /// The name of an error.
        error_name = "cuGetErrorName": fn(CudaResult, *mut *const c_char);
        /// The description of an error.
        error_text = "cuGetErrorString": fn(CudaResult, *mut *const c_char);

        /// The device with an ordinal.
        device_get = "cuDeviceGet": fn(*mut CudaDevice, i32);
        /// The number of devices.
        device_count = "cuDeviceGetCount": fn(*mut i32);
        /// The name of a device.
        device_name = "cuDeviceGetName": fn(*mut c_char, i32, CudaDevice);
        /// One number about a device.
        device_attribute = "cuDeviceGetAttribute": fn(*mut i32, u32, CudaDevice);
        /// The identity of a device, of its instance under MIG.
        device_uuid = "cuDeviceGetUuid_v2": fn(*mut CudaUuid, CudaDevice);
        /// Bytes of memory of a device.
        device_bytes = "cuDeviceTotalMem_v2": fn(*mut usize, CudaDevice);

        /// Takes a reference to the primary context.
        context_retain = "cuDevicePrimaryCtxRetain": fn(*mut CudaContext, CudaDevice);
        /// Drops a reference to the primary context.
        context_release = "cuDevicePrimaryCtxRelease_v2": fn(CudaDevice);
        /// Makes a context current in the calling thread.
        context_set = "cuCtxSetCurrent": fn(CudaContext);
        /// The current context of the calling thread.
        context_get = "cuCtxGetCurrent": fn(*mut CudaContext);

        /// Allocates device memory.
        memory_allocate = "cuMemAlloc_v2": fn(*mut CudaAddress, usize);
        /// Frees device memory.
        memory_free = "cuMemFree_v2": fn(CudaAddress);
        /// Allocates pinned host memory.
        host_allocate = "cuMemHostAlloc": fn(*mut *mut c_void, usize, u32);
        /// Frees pinned host memory.
        host_free = "cuMemFreeHost": fn(*mut c_void);
        /// Pins existing host memory.
        host_register = "cuMemHostRegister_v2": fn(*mut c_void, usize, u32);
        /// Unpins it.
        host_unregister = "cuMemHostUnregister": fn(*mut c_void);
        /// The address by which devices reach pinned host memory.
        host_address = "cuMemHostGetDevicePointer_v2": fn(*mut CudaAddress, *mut c_void, u32);
        /// What the driver knows about an address.
        pointer_attributes = "cuPointerGetAttributes": fn(u32, *mut u32, *mut *mut c_void, CudaAddress);
        /// Free and total bytes of the current device.
        memory_info = "cuMemGetInfo_v2": fn(*mut usize, *mut usize);

        /// Creates a stream.
        stream_create = "cuStreamCreate": fn(*mut CudaStream, u32);
        /// Destroys a stream; its work goes on.
        stream_destroy = "cuStreamDestroy_v2": fn(CudaStream);
        /// Waits until the work of a stream has ended.
        stream_synchronize = "cuStreamSynchronize": fn(CudaStream);
        /// Whether the work of a stream has ended.
        stream_query = "cuStreamQuery": fn(CudaStream);
        /// Lets later work of a stream wait for an event.
        stream_wait = "cuStreamWaitEvent": fn(CudaStream, CudaEvent, u32);
        /// The context of a stream.
        stream_context = "cuStreamGetCtx": fn(CudaStream, *mut CudaContext);

        /// Creates an event.
        event_create = "cuEventCreate": fn(*mut CudaEvent, u32);
        /// Destroys an event.
        event_destroy = "cuEventDestroy_v2": fn(CudaEvent);
        /// Records an event behind the work of a stream.
        event_record = "cuEventRecord": fn(CudaEvent, CudaStream);
        /// Whether what was recorded has ended.
        event_query = "cuEventQuery": fn(CudaEvent);
        /// Waits until what was recorded has ended.
        event_synchronize = "cuEventSynchronize": fn(CudaEvent);

        /// Copies between any two addresses.
        copy = "cuMemcpyAsync": fn(CudaAddress, CudaAddress, usize, CudaStream);
        /// Fills bytes.
        fill = "cuMemsetD8Async": fn(CudaAddress, u8, usize, CudaStream);

        /// Loads a module from PTX text.
        module_load = "cuModuleLoadDataEx":
            fn(*mut CudaModule, *const c_void, u32, *mut u32, *mut *mut c_void);
        /// Unloads a module.
        module_unload = "cuModuleUnload": fn(CudaModule);
        /// A kernel of a module.
        module_function = "cuModuleGetFunction": fn(*mut CudaFunction, CudaModule, *const c_char);
        /// One number about a kernel.
        function_attribute = "cuFuncGetAttribute": fn(*mut i32, u32, CudaFunction);
        /// Launches a kernel.
        launch = "cuLaunchKernel": fn(
            CudaFunction, u32, u32, u32, u32, u32, u32, u32, CudaStream, *mut *mut c_void, *mut *mut c_void,
        );
        /// Blocks of a kernel that a multiprocessor holds at once.
        occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor": fn(*mut i32, CudaFunction, i32, usize);

        /// A handle by which another process opens device memory.
        ipc_export = "cuIpcGetMemHandle": fn(*mut CudaIpcHandle, CudaAddress);
        /// Opens device memory of another process.
        ipc_open = "cuIpcOpenMemHandle_v2": fn(*mut CudaAddress, CudaIpcHandle, u32);
        /// Closes it.
        ipc_close = "cuIpcCloseMemHandle": fn(CudaAddress);
    }
    optional {
        /// Many copies in one call, in the form of CUDA 12.8 and 12.9, which reports the entry that failed.
        copy_batch_12 = "cuMemcpyBatchAsync": fn(
            *mut CudaAddress, *mut CudaAddress, *mut usize, usize,
            *mut CudaCopyAttributes, *mut usize, usize, *mut usize, CudaStream,
        );
        /// Many copies in one call, in the form of CUDA 13.
        copy_batch = "cuMemcpyBatchAsync_v2": fn(
            *mut CudaAddress, *mut CudaAddress, *mut usize, usize,
            *mut CudaCopyAttributes, *mut usize, usize, CudaStream,
        );
    }
}
