//! The declarations of the driver equal those that another project generated from the vendor's header.
//!
//! Its functions are named here, and none is called.

use cudarc::driver::sys;
use kvtile_device::{DriverTable, cuda};
use std::collections::BTreeMap;

/// Sizes and alignments of the arguments of a function.
type ArgumentShapes = Vec<(usize, usize)>;

macro_rules! shapes {
    ($($name:ident: $($argument:ident)*;)*) => {
        $(
            /// The arguments of a function that returns an error.
            fn $name<$($argument),*>(
                _: unsafe fn($($argument),*) -> sys::CUresult,
            ) -> ArgumentShapes {
                vec![$((size_of::<$argument>(), align_of::<$argument>())),*]
            }
        )*
    };
}

shapes! {
    of_1: A;
    of_2: A B;
    of_3: A B C;
    of_4: A B C D;
    of_5: A B C D E;
    of_8: A B C D E F G H;
    of_11: A B C D E F G H I J K;
}

fn generated() -> BTreeMap<&'static str, ArgumentShapes> {
    let devices = [
        ("cuInit", of_1(sys::cuInit)),
        ("cuDriverGetVersion", of_1(sys::cuDriverGetVersion)),
        ("cuGetErrorName", of_2(sys::cuGetErrorName)),
        ("cuGetErrorString", of_2(sys::cuGetErrorString)),
        ("cuDeviceGet", of_2(sys::cuDeviceGet)),
        ("cuDeviceGetCount", of_1(sys::cuDeviceGetCount)),
        ("cuDeviceGetName", of_3(sys::cuDeviceGetName)),
        ("cuDeviceGetAttribute", of_3(sys::cuDeviceGetAttribute)),
        ("cuDeviceGetUuid_v2", of_2(sys::cuDeviceGetUuid_v2)),
        ("cuDeviceTotalMem_v2", of_2(sys::cuDeviceTotalMem_v2)),
        (
            "cuDevicePrimaryCtxRetain",
            of_2(sys::cuDevicePrimaryCtxRetain),
        ),
        (
            "cuDevicePrimaryCtxRelease_v2",
            of_1(sys::cuDevicePrimaryCtxRelease_v2),
        ),
        ("cuCtxSetCurrent", of_1(sys::cuCtxSetCurrent)),
        ("cuCtxGetCurrent", of_1(sys::cuCtxGetCurrent)),
    ];
    let memory = [
        ("cuMemAlloc_v2", of_2(sys::cuMemAlloc_v2)),
        ("cuMemFree_v2", of_1(sys::cuMemFree_v2)),
        ("cuMemHostAlloc", of_3(sys::cuMemHostAlloc)),
        ("cuMemFreeHost", of_1(sys::cuMemFreeHost)),
        ("cuMemHostRegister_v2", of_3(sys::cuMemHostRegister_v2)),
        ("cuMemHostUnregister", of_1(sys::cuMemHostUnregister)),
        (
            "cuMemHostGetDevicePointer_v2",
            of_3(sys::cuMemHostGetDevicePointer_v2),
        ),
        ("cuPointerGetAttributes", of_4(sys::cuPointerGetAttributes)),
        ("cuMemGetInfo_v2", of_2(sys::cuMemGetInfo_v2)),
        ("cuIpcGetMemHandle", of_2(sys::cuIpcGetMemHandle)),
        ("cuIpcOpenMemHandle_v2", of_3(sys::cuIpcOpenMemHandle_v2)),
        ("cuIpcCloseMemHandle", of_1(sys::cuIpcCloseMemHandle)),
    ];
    let work = [
        ("cuStreamCreate", of_2(sys::cuStreamCreate)),
        ("cuStreamDestroy_v2", of_1(sys::cuStreamDestroy_v2)),
        ("cuStreamSynchronize", of_1(sys::cuStreamSynchronize)),
        ("cuStreamQuery", of_1(sys::cuStreamQuery)),
        ("cuStreamWaitEvent", of_3(sys::cuStreamWaitEvent)),
        ("cuStreamGetCtx", of_2(sys::cuStreamGetCtx)),
        ("cuEventCreate", of_2(sys::cuEventCreate)),
        ("cuEventDestroy_v2", of_1(sys::cuEventDestroy_v2)),
        ("cuEventRecord", of_2(sys::cuEventRecord)),
        ("cuEventQuery", of_1(sys::cuEventQuery)),
        ("cuEventSynchronize", of_1(sys::cuEventSynchronize)),
        ("cuMemcpyAsync", of_4(sys::cuMemcpyAsync)),
        ("cuMemcpyBatchAsync_v2", of_8(sys::cuMemcpyBatchAsync_v2)),
        ("cuMemsetD8Async", of_4(sys::cuMemsetD8Async)),
        ("cuModuleLoadDataEx", of_5(sys::cuModuleLoadDataEx)),
        ("cuModuleUnload", of_1(sys::cuModuleUnload)),
        ("cuModuleGetFunction", of_3(sys::cuModuleGetFunction)),
        ("cuFuncGetAttribute", of_3(sys::cuFuncGetAttribute)),
        ("cuLaunchKernel", of_11(sys::cuLaunchKernel)),
        (
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            of_4(sys::cuOccupancyMaxActiveBlocksPerMultiprocessor),
        ),
    ];
    devices.into_iter().chain(memory).chain(work).collect()
}

#[test]
fn functions_have_the_arguments_of_the_header() {
    let generated = generated();
    let declared = DriverTable::declared();
    let mut compared = 0;
    for function in &declared {
        let symbol = function.symbol;
        let mut expected = generated.get(symbol).cloned();
        if symbol == "cuMemcpyBatchAsync" {
            // The bindings have one form of the two. The older one has a place for an index before the stream.
            let mut arguments = generated["cuMemcpyBatchAsync_v2"].clone();
            arguments.insert(7, (size_of::<*mut usize>(), align_of::<*mut usize>()));
            expected = Some(arguments);
        }
        assert_eq!(Some(&function.arguments), expected.as_ref(), "{symbol}");
        compared += 1;
    }
    assert_eq!(
        compared,
        DriverTable::REQUIRED.len() + DriverTable::OPTIONAL.len()
    );
    assert_eq!(size_of::<sys::CUresult>(), size_of::<cuda::CudaResult>());
}

#[test]
fn structures_have_the_layout_of_the_header() {
    fn same<Ours, Theirs>() {
        assert_eq!(size_of::<Ours>(), size_of::<Theirs>());
        assert_eq!(align_of::<Ours>(), align_of::<Theirs>());
    }
    same::<cuda::CudaUuid, sys::CUuuid>();
    same::<cuda::CudaLocation, sys::CUmemLocation>();
    same::<cuda::CudaCopyAttributes, sys::CUmemcpyAttributes>();
    same::<cuda::CudaIpcHandle, sys::CUipcMemHandle>();
    same::<cuda::CudaAddress, sys::CUdeviceptr>();
    same::<cuda::CudaDevice, sys::CUdevice>();
    let ours = std::mem::offset_of!(cuda::CudaCopyAttributes, destination_hint);
    assert_eq!(
        ours,
        std::mem::offset_of!(sys::CUmemcpyAttributes, dstLocHint)
    );
    let ours = std::mem::offset_of!(cuda::CudaCopyAttributes, flags);
    assert_eq!(ours, std::mem::offset_of!(sys::CUmemcpyAttributes, flags));
    let ours = std::mem::offset_of!(cuda::CudaLocation, id);
    assert_eq!(ours, std::mem::offset_of!(sys::CUmemLocation, id));
}

#[test]
fn errors_have_the_numbers_of_the_header() {
    use sys::CUresult as E;
    for (ours, theirs) in [
        (cuda::SUCCESS, E::CUDA_SUCCESS),
        (cuda::INVALID_VALUE, E::CUDA_ERROR_INVALID_VALUE),
        (cuda::OUT_OF_MEMORY, E::CUDA_ERROR_OUT_OF_MEMORY),
        (cuda::NOT_INITIALIZED, E::CUDA_ERROR_NOT_INITIALIZED),
        (cuda::NO_DEVICE, E::CUDA_ERROR_NO_DEVICE),
        (cuda::INVALID_DEVICE, E::CUDA_ERROR_INVALID_DEVICE),
        (cuda::INVALID_CONTEXT, E::CUDA_ERROR_INVALID_CONTEXT),
        (cuda::ECC_UNCORRECTABLE, E::CUDA_ERROR_ECC_UNCORRECTABLE),
        (cuda::INVALID_PTX, E::CUDA_ERROR_INVALID_PTX),
        (
            cuda::NVLINK_UNCORRECTABLE,
            E::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        ),
        (
            cuda::UNSUPPORTED_PTX_VERSION,
            E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        ),
        (cuda::CONTAINED, E::CUDA_ERROR_CONTAINED),
        (cuda::INVALID_HANDLE, E::CUDA_ERROR_INVALID_HANDLE),
        (cuda::NOT_FOUND, E::CUDA_ERROR_NOT_FOUND),
        (cuda::NOT_READY, E::CUDA_ERROR_NOT_READY),
        (cuda::ILLEGAL_ADDRESS, E::CUDA_ERROR_ILLEGAL_ADDRESS),
        (cuda::LAUNCH_TIMEOUT, E::CUDA_ERROR_LAUNCH_TIMEOUT),
        (cuda::ASSERT, E::CUDA_ERROR_ASSERT),
        (
            cuda::ALREADY_REGISTERED,
            E::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
        ),
        (
            cuda::NOT_REGISTERED,
            E::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
        ),
        (
            cuda::HARDWARE_STACK_ERROR,
            E::CUDA_ERROR_HARDWARE_STACK_ERROR,
        ),
        (cuda::ILLEGAL_INSTRUCTION, E::CUDA_ERROR_ILLEGAL_INSTRUCTION),
        (cuda::MISALIGNED_ADDRESS, E::CUDA_ERROR_MISALIGNED_ADDRESS),
        (
            cuda::INVALID_ADDRESS_SPACE,
            E::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        ),
        (cuda::INVALID_PC, E::CUDA_ERROR_INVALID_PC),
        (cuda::LAUNCH_FAILED, E::CUDA_ERROR_LAUNCH_FAILED),
        (cuda::TENSOR_MEMORY_LEAK, E::CUDA_ERROR_TENSOR_MEMORY_LEAK),
    ] {
        assert_eq!(ours, theirs as u32, "{theirs:?}");
    }
}

#[test]
fn attributes_have_the_numbers_of_the_header() {
    use sys::{CUdevice_attribute_enum as D, CUfunction_attribute_enum as F};
    let one = |ours: u32, theirs: u32| assert_eq!(ours, theirs);
    one(
        cuda::ATTRIBUTE_MULTIPROCESSORS,
        D::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as u32,
    );
    one(
        cuda::ATTRIBUTE_COPY_ENGINES,
        D::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT as u32,
    );
    one(
        cuda::ATTRIBUTE_UNIFIED_ADDRESSING,
        D::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING as u32,
    );
    one(
        cuda::ATTRIBUTE_CAPABILITY_MAJOR,
        D::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as u32,
    );
    one(
        cuda::ATTRIBUTE_CAPABILITY_MINOR,
        D::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as u32,
    );
    one(
        cuda::FUNCTION_THREADS_MAX,
        F::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as u32,
    );
    one(
        cuda::FUNCTION_SHARED_BYTES,
        F::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as u32,
    );
    one(
        cuda::FUNCTION_LOCAL_BYTES,
        F::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES as u32,
    );
    one(
        cuda::FUNCTION_REGISTERS,
        F::CU_FUNC_ATTRIBUTE_NUM_REGS as u32,
    );
}

#[test]
fn facts_of_pointers_have_the_numbers_of_the_header() {
    use sys::CUpointer_attribute_enum as P;
    let one = |ours: u32, theirs: u32| assert_eq!(ours, theirs);
    one(
        cuda::POINTER_MEMORY_TYPE,
        P::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as u32,
    );
    one(
        cuda::POINTER_BUFFER_ID,
        P::CU_POINTER_ATTRIBUTE_BUFFER_ID as u32,
    );
    one(
        cuda::POINTER_IS_MANAGED,
        P::CU_POINTER_ATTRIBUTE_IS_MANAGED as u32,
    );
    one(
        cuda::POINTER_DEVICE_ORDINAL,
        P::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as u32,
    );
    one(
        cuda::POINTER_RANGE_START,
        P::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR as u32,
    );
    one(
        cuda::POINTER_RANGE_SIZE,
        P::CU_POINTER_ATTRIBUTE_RANGE_SIZE as u32,
    );
    one(
        cuda::MEMORY_TYPE_HOST,
        sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST as u32,
    );
    one(
        cuda::MEMORY_TYPE_DEVICE,
        sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32,
    );
}

#[test]
fn flags_and_options_have_the_numbers_of_the_header() {
    let one = |ours: u32, theirs: u32| assert_eq!(ours, theirs);
    one(
        cuda::STREAM_NON_BLOCKING,
        sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32,
    );
    one(
        cuda::EVENT_FLAGS,
        sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32
            | sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32,
    );
    one(
        cuda::HOST_ALLOC_FLAGS,
        sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP,
    );
    one(
        cuda::HOST_REGISTER_FLAGS,
        sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP,
    );
    one(
        cuda::HOST_REGISTER_READ_ONLY,
        sys::CU_MEMHOSTREGISTER_READ_ONLY,
    );
    one(
        cuda::IPC_LAZY_PEER_ACCESS,
        sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32,
    );
    let order = |ours: u32, theirs: sys::CUmemcpySrcAccessOrder| assert_eq!(ours, theirs as u32);
    use sys::CUmemcpySrcAccessOrder as O;
    order(
        cuda::SOURCE_ORDER_STREAM,
        O::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
    );
    order(
        cuda::SOURCE_ORDER_DURING_CALL,
        O::CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL,
    );
    order(cuda::SOURCE_ORDER_ANY, O::CU_MEMCPY_SRC_ACCESS_ORDER_ANY);
    one(
        cuda::JIT_ERROR_LOG,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER as u32,
    );
    one(
        cuda::JIT_ERROR_LOG_BYTES,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as u32,
    );
}
