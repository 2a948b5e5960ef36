//! HIP, AMD's interface that mirrors CUDA, as data: its counterpart of each function of the table, and its limits.
//!
//! **Nothing uses it.** No option loads its library, and no device of it has been seen. It states what a second table needs:
//! names that change alone, calls that need other arguments, and functions that are absent.
//!
//! Sources: `hip_runtime_api.h` of ROCm/HIP at c5e11fc (2024-10), the table of ROCm/HIPIFY at 0141777 (2024-10),
//! and for batches the documentation of hipFORT, ROCm/clr issue 273, and the limits in vLLM's `simple_kv_offload`.

/// What HIP has for a function of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HipCounterpart {
    /// A function that takes the same arguments with the same values.
    Same(&'static str),
    /// A function that takes other arguments, or other values of them.
    Differs {
        /// Its name in the library.
        symbol: &'static str,
        /// What is different.
        difference: &'static str,
    },
    /// No function.
    Absent {
        /// What a caller does without it.
        instead: &'static str,
    },
}

impl HipCounterpart {
    /// The name in the library, if there is a function.
    #[must_use]
    pub fn symbol(self) -> Option<&'static str> {
        match self {
            HipCounterpart::Same(symbol) | HipCounterpart::Differs { symbol, .. } => Some(symbol),
            HipCounterpart::Absent { .. } => None,
        }
    }
}

/// Names of the library, the newest first.
pub const LIBRARIES: [&str; 2] = ["libamdhip64.so.7", "libamdhip64.so.6"];

/// Most copies of a batch. vLLM found faults above.
pub const BATCH_COPIES_MAX: usize = 8192;

/// Most sets of attributes of a batch, before ROCm 7.13: a batch with one is refused (801), so its sources are read in
/// the order of the stream.
pub const BATCH_ATTRIBUTES_MAX: usize = 0;

/// Runs below this size are copied no faster by a batch than one by one: up to ROCm 7.2 the call is a loop.
pub const BATCH_RUN_BYTES_MIN: usize = 256 << 10;

/// Lanes of a warp: 32 on RDNA, 64 on CDNA. The kernels' groups have at most 32 lanes and exchange nothing between lanes but
/// through shared memory and barriers, so that both are enough.
pub const WARP_LANES: [u32; 2] = [32, 64];

/// `HIP_LAUNCH_PARAM_END`, which is 0 for CUDA; the two other words of a launch are equal.
pub const LAUNCH_PARAM_END: usize = 3;

/// For each function of [`DriverTable`](crate::DriverTable) what HIP has, in the order of the table.
pub const COUNTERPARTS: &[(&str, HipCounterpart)] = {
    use HipCounterpart::{Absent, Differs, Same};
    &[
        ("cuInit", Same("hipInit")),
        (
            "cuDriverGetVersion",
            Differs {
                symbol: "hipDriverGetVersion",
                difference: "the number is the version of HIP: 10,000,000 * major + 100,000 * minor + patch",
            },
        ),
        ("cuGetErrorName", Same("hipDrvGetErrorName")),
        ("cuGetErrorString", Same("hipDrvGetErrorString")),
        ("cuDeviceGet", Same("hipDeviceGet")),
        ("cuDeviceGetCount", Same("hipGetDeviceCount")),
        ("cuDeviceGetName", Same("hipDeviceGetName")),
        (
            "cuDeviceGetAttribute",
            Differs {
                symbol: "hipDeviceGetAttribute",
                difference: "attributes have other numbers",
            },
        ),
        ("cuDeviceGetUuid_v2", Same("hipDeviceGetUuid")),
        ("cuDeviceTotalMem_v2", Same("hipDeviceTotalMem")),
        (
            "cuDevicePrimaryCtxRetain",
            Same("hipDevicePrimaryCtxRetain"),
        ),
        (
            "cuDevicePrimaryCtxRelease_v2",
            Same("hipDevicePrimaryCtxRelease"),
        ),
        ("cuCtxSetCurrent", Same("hipCtxSetCurrent")),
        ("cuCtxGetCurrent", Same("hipCtxGetCurrent")),
        ("cuMemAlloc_v2", Same("hipMalloc")),
        ("cuMemFree_v2", Same("hipFree")),
        ("cuMemHostAlloc", Same("hipHostAlloc")),
        ("cuMemFreeHost", Same("hipHostFree")),
        ("cuMemHostRegister_v2", Same("hipHostRegister")),
        ("cuMemHostUnregister", Same("hipHostUnregister")),
        (
            "cuMemHostGetDevicePointer_v2",
            Same("hipHostGetDevicePointer"),
        ),
        ("cuPointerGetAttributes", Same("hipDrvPointerGetAttributes")),
        ("cuMemGetInfo_v2", Same("hipMemGetInfo")),
        ("cuStreamCreate", Same("hipStreamCreateWithFlags")),
        ("cuStreamDestroy_v2", Same("hipStreamDestroy")),
        ("cuStreamSynchronize", Same("hipStreamSynchronize")),
        ("cuStreamQuery", Same("hipStreamQuery")),
        ("cuStreamWaitEvent", Same("hipStreamWaitEvent")),
        (
            "cuStreamGetCtx",
            Absent {
                instead: "hipStreamGetDevice returns the device of the stream, which is compared with the queue's",
            },
        ),
        ("cuEventCreate", Same("hipEventCreateWithFlags")),
        ("cuEventDestroy_v2", Same("hipEventDestroy")),
        ("cuEventRecord", Same("hipEventRecord")),
        ("cuEventQuery", Same("hipEventQuery")),
        ("cuEventSynchronize", Same("hipEventSynchronize")),
        (
            "cuMemcpyAsync",
            Differs {
                symbol: "hipMemcpyAsync",
                difference: "the direction in front of the stream: 4, by the addresses",
            },
        ),
        ("cuMemsetD8Async", Same("hipMemsetD8Async")),
        (
            "cuModuleLoadDataEx",
            Differs {
                symbol: "hipModuleLoadDataEx",
                difference: "a code object of the device's architecture, not PTX text",
            },
        ),
        ("cuModuleUnload", Same("hipModuleUnload")),
        ("cuModuleGetFunction", Same("hipModuleGetFunction")),
        ("cuFuncGetAttribute", Same("hipFuncGetAttribute")),
        (
            "cuLaunchKernel",
            Differs {
                symbol: "hipModuleLaunchKernel",
                difference: "the list of the parameters ends with 3",
            },
        ),
        (
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            Same("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor"),
        ),
        ("cuIpcGetMemHandle", Same("hipIpcGetMemHandle")),
        ("cuIpcOpenMemHandle_v2", Same("hipIpcOpenMemHandle")),
        ("cuIpcCloseMemHandle", Same("hipIpcCloseMemHandle")),
        (
            "cuMemcpyBatchAsync",
            Differs {
                symbol: "hipMemcpyBatchAsync",
                difference: "no attributes before ROCm 7.13, and at most 8192 copies",
            },
        ),
        (
            "cuMemcpyBatchAsync_v2",
            Absent {
                instead: "hipMemcpyBatchAsync has the arguments of the form of CUDA 12.8",
            },
        ),
    ]
};
