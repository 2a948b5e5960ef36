//! Types, structures and constants of the CUDA driver API, as `cuda.h` defines them.
//!
//! Only what the table of functions needs. A test compares sizes, values and signatures with another project's
//! generated bindings.

use std::ffi::c_void;

/// `CUresult`: 0 is success.
pub type CudaResult = u32;
/// `CUdevice`.
pub type CudaDevice = i32;
/// `CUdeviceptr`: an address that devices use. With unified addressing it is valid for pinned host memory too.
pub type CudaAddress = u64;
/// `CUcontext`.
pub type CudaContext = *mut c_void;
/// `CUstream`.
pub type CudaStream = *mut c_void;
/// `CUevent`.
pub type CudaEvent = *mut c_void;
/// `CUmodule`.
pub type CudaModule = *mut c_void;
/// `CUfunction`.
pub type CudaFunction = *mut c_void;

/// `CUuuid`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CudaUuid {
    /// The bytes in the order in which they are printed.
    pub bytes: [u8; 16],
}

/// `CUmemLocation`: a hint for managed memory, which kvtile does not use.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CudaLocation {
    /// 0: no hint.
    pub kind: u32,
    /// Ordinal of the device or number of the NUMA node.
    pub id: i32,
}

/// `CUmemcpyAttributes`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CudaCopyAttributes {
    /// [`SOURCE_ORDER_STREAM`] or [`SOURCE_ORDER_ANY`].
    pub source_order: u32,
    /// Hint for the source.
    pub source_hint: CudaLocation,
    /// Hint for the destination.
    pub destination_hint: CudaLocation,
    /// 0, or 1 to prefer overlap with kernels.
    pub flags: u32,
}

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaIpcHandle {
    /// Opaque bytes.
    pub reserved: [u8; 64],
}

/// `CUDA_SUCCESS`.
pub const SUCCESS: CudaResult = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
pub const INVALID_VALUE: CudaResult = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub const OUT_OF_MEMORY: CudaResult = 2;
/// `CUDA_ERROR_NOT_INITIALIZED`.
pub const NOT_INITIALIZED: CudaResult = 3;
/// `CUDA_ERROR_NO_DEVICE`.
pub const NO_DEVICE: CudaResult = 100;
/// `CUDA_ERROR_INVALID_DEVICE`.
pub const INVALID_DEVICE: CudaResult = 101;
/// `CUDA_ERROR_INVALID_CONTEXT`.
pub const INVALID_CONTEXT: CudaResult = 201;
/// `CUDA_ERROR_ECC_UNCORRECTABLE`.
pub const ECC_UNCORRECTABLE: CudaResult = 214;
/// `CUDA_ERROR_INVALID_PTX`.
pub const INVALID_PTX: CudaResult = 218;
/// `CUDA_ERROR_NVLINK_UNCORRECTABLE`.
pub const NVLINK_UNCORRECTABLE: CudaResult = 220;
/// `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`.
pub const UNSUPPORTED_PTX_VERSION: CudaResult = 222;
/// `CUDA_ERROR_CONTAINED`.
pub const CONTAINED: CudaResult = 226;
/// `CUDA_ERROR_INVALID_HANDLE`.
pub const INVALID_HANDLE: CudaResult = 400;
/// `CUDA_ERROR_NOT_FOUND`.
pub const NOT_FOUND: CudaResult = 500;
/// `CUDA_ERROR_NOT_READY`.
pub const NOT_READY: CudaResult = 600;
/// `CUDA_ERROR_ILLEGAL_ADDRESS`.
pub const ILLEGAL_ADDRESS: CudaResult = 700;
/// `CUDA_ERROR_LAUNCH_TIMEOUT`.
pub const LAUNCH_TIMEOUT: CudaResult = 702;
/// `CUDA_ERROR_ASSERT`.
pub const ASSERT: CudaResult = 710;
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`.
pub const ALREADY_REGISTERED: CudaResult = 712;
/// `CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED`.
pub const NOT_REGISTERED: CudaResult = 713;
/// `CUDA_ERROR_HARDWARE_STACK_ERROR`.
pub const HARDWARE_STACK_ERROR: CudaResult = 714;
/// `CUDA_ERROR_ILLEGAL_INSTRUCTION`.
pub const ILLEGAL_INSTRUCTION: CudaResult = 715;
/// `CUDA_ERROR_MISALIGNED_ADDRESS`.
pub const MISALIGNED_ADDRESS: CudaResult = 716;
/// `CUDA_ERROR_INVALID_ADDRESS_SPACE`.
pub const INVALID_ADDRESS_SPACE: CudaResult = 717;
/// `CUDA_ERROR_INVALID_PC`.
pub const INVALID_PC: CudaResult = 718;
/// `CUDA_ERROR_LAUNCH_FAILED`.
pub const LAUNCH_FAILED: CudaResult = 719;
/// `CUDA_ERROR_TENSOR_MEMORY_LEAK`.
pub const TENSOR_MEMORY_LEAK: CudaResult = 721;

/// Errors after which a context cannot be used: all later work in the process returns the same error.
pub const STICKY: [CudaResult; 13] = [
    ECC_UNCORRECTABLE,
    NVLINK_UNCORRECTABLE,
    CONTAINED,
    ILLEGAL_ADDRESS,
    LAUNCH_TIMEOUT,
    ASSERT,
    HARDWARE_STACK_ERROR,
    ILLEGAL_INSTRUCTION,
    MISALIGNED_ADDRESS,
    INVALID_ADDRESS_SPACE,
    INVALID_PC,
    LAUNCH_FAILED,
    TENSOR_MEMORY_LEAK,
];

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub const ATTRIBUTE_MULTIPROCESSORS: u32 = 16;
/// `CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT`.
pub const ATTRIBUTE_COPY_ENGINES: u32 = 40;
/// `CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING`.
pub const ATTRIBUTE_UNIFIED_ADDRESSING: u32 = 41;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub const ATTRIBUTE_CAPABILITY_MAJOR: u32 = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub const ATTRIBUTE_CAPABILITY_MINOR: u32 = 76;

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
pub const HOST_ALLOC_FLAGS: u32 = 1 | 2;
/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`.
pub const HOST_REGISTER_FLAGS: u32 = 1 | 2;
/// `CU_MEMHOSTREGISTER_READ_ONLY`.
pub const HOST_REGISTER_READ_ONLY: u32 = 8;
/// `CU_STREAM_NON_BLOCKING`: no order with the legacy default stream.
pub const STREAM_NON_BLOCKING: u32 = 1;
/// `CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING`.
pub const EVENT_FLAGS: u32 = 1 | 2;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
pub const IPC_LAZY_PEER_ACCESS: u32 = 1;

/// `CU_STREAM_LEGACY`, besides a null stream.
pub const STREAM_LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`.
pub const STREAM_PER_THREAD: usize = 2;

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
pub const POINTER_MEMORY_TYPE: u32 = 2;
/// `CU_POINTER_ATTRIBUTE_BUFFER_ID`.
pub const POINTER_BUFFER_ID: u32 = 7;
/// `CU_POINTER_ATTRIBUTE_IS_MANAGED`.
pub const POINTER_IS_MANAGED: u32 = 8;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
pub const POINTER_DEVICE_ORDINAL: u32 = 9;
/// `CU_POINTER_ATTRIBUTE_RANGE_START_ADDR`.
pub const POINTER_RANGE_START: u32 = 11;
/// `CU_POINTER_ATTRIBUTE_RANGE_SIZE`.
pub const POINTER_RANGE_SIZE: u32 = 12;
/// `CU_MEMORYTYPE_HOST`.
pub const MEMORY_TYPE_HOST: u32 = 1;
/// `CU_MEMORYTYPE_DEVICE`.
pub const MEMORY_TYPE_DEVICE: u32 = 2;

/// `CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`: the source is read in the order of the stream.
pub const SOURCE_ORDER_STREAM: u32 = 1;
/// `CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL`: the source is read before the call returns.
pub const SOURCE_ORDER_DURING_CALL: u32 = 2;
/// `CU_MEMCPY_SRC_ACCESS_ORDER_ANY`: the source may be read at any time from the call on.
pub const SOURCE_ORDER_ANY: u32 = 3;

/// `CU_JIT_ERROR_LOG_BUFFER`.
pub const JIT_ERROR_LOG: u32 = 5;
/// `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
pub const JIT_ERROR_LOG_BYTES: u32 = 6;

/// `CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK`.
pub const FUNCTION_THREADS_MAX: u32 = 0;
/// `CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES`.
pub const FUNCTION_SHARED_BYTES: u32 = 1;
/// `CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES`.
pub const FUNCTION_LOCAL_BYTES: u32 = 3;
/// `CU_FUNC_ATTRIBUTE_NUM_REGS`.
pub const FUNCTION_REGISTERS: u32 = 4;

/// `CU_LAUNCH_PARAM_END`.
pub const LAUNCH_PARAM_END: usize = 0;
/// `CU_LAUNCH_PARAM_BUFFER_POINTER`.
pub const LAUNCH_PARAM_BUFFER: usize = 1;
/// `CU_LAUNCH_PARAM_BUFFER_SIZE`.
pub const LAUNCH_PARAM_BUFFER_SIZE: usize = 2;
