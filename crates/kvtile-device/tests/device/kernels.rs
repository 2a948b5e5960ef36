//! Modules and launches.

use crate::engine::{IncrementEngine, PTX};
use kvtile_device::{Device, DeviceError, DeviceMemory, LaunchShape};
use kvtile_standin::{Complaint, Standin, StandinLeaks, StandinOptions};
use std::sync::Arc;

fn start(seed: u64) -> (Standin, Device) {
    let standin = Standin::start(StandinOptions {
        kernels: Some(Arc::new(IncrementEngine)),
        ..StandinOptions::seeded(seed)
    });
    let device = standin.driver().unwrap().device(0).unwrap();
    (standin, device)
}

const SHAPE: LaunchShape = LaunchShape {
    grid: [2, 1, 1],
    block: [32, 1, 1],
    shared_bytes: 0,
};

#[test]
fn kernels_run_in_the_order_of_their_queue() {
    for seed in 0..50 {
        let (standin, device) = start(seed);
        let queue = device.queue().unwrap();
        let memory = DeviceMemory::allocate(&device, 100).unwrap();
        let kernel = device
            .load_module(PTX)
            .unwrap()
            .kernel("increment")
            .unwrap();
        assert_eq!(kernel.name(), "increment");
        let facts = kernel.facts().unwrap();
        assert_eq!((facts.threads_max, facts.local_bytes), (1024, 0));
        assert_eq!(kernel.blocks_per_multiprocessor(256, 0).unwrap(), 8);
        assert_eq!(kernel.blocks_per_multiprocessor(256, 80 << 10).unwrap(), 2);
        let parameters = crate::engine::parameters(memory.device_address(), 50);
        // SAFETY: the memory and the kernel live until the queue is idle.
        unsafe { queue.fill(memory.device_address(), 5, 100) }.unwrap();
        // SAFETY: as above; the parameters are those of the kernel.
        unsafe { queue.launch(&kernel, SHAPE, &parameters) }.unwrap();
        // SAFETY: as above.
        unsafe { queue.launch(&kernel, SHAPE, &parameters) }.unwrap();
        queue.synchronize().unwrap();
        let mut bytes = [0; 100];
        assert!(standin.peek(memory.device_address(), &mut bytes));
        let expected: Vec<u8> = (0..100)
            .map(|index| if index < 50 { 7 } else { 5 })
            .collect();
        assert_eq!(bytes.as_slice(), expected);
        assert_eq!(standin.complaints(), []);
        drop((kernel, memory, queue, device));
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn accesses_of_kernels_are_checked_for_their_order() {
    let (standin, device) = start(1);
    let (queue, other) = (device.queue().unwrap(), device.queue().unwrap());
    let memory = DeviceMemory::allocate(&device, 100).unwrap();
    let kernel = device
        .load_module(PTX)
        .unwrap()
        .kernel("increment")
        .unwrap();
    let start = memory.device_address();
    // SAFETY: memory of the stand-in; that there is no wait is the test.
    unsafe { queue.fill(start, 5, 100) }.unwrap();
    // SAFETY: as above.
    unsafe { other.launch(&kernel, SHAPE, &crate::engine::parameters(start, 50)) }.unwrap();
    queue.synchronize().unwrap();
    other.synchronize().unwrap();
    let complaints = standin.complaints();
    let found = complaints.iter().any(|complaint| {
        matches!(complaint, Complaint::Race { bytes: 50, .. })
            && complaint.to_string().contains("kernel increment on")
    });
    assert!(found, "{complaints:?}");
}

#[test]
fn a_kernel_that_leaves_its_memory_loses_the_device() {
    let (standin, device) = start(2);
    let queue = device.queue().unwrap();
    let memory = DeviceMemory::allocate(&device, 100).unwrap();
    let kernel = device
        .load_module(PTX)
        .unwrap()
        .kernel("increment")
        .unwrap();
    let parameters = crate::engine::parameters(memory.device_address() + 90, 50);
    // SAFETY: memory of the stand-in; that it ends is the test.
    let launched = unsafe { queue.launch(&kernel, SHAPE, &parameters) };
    let error = launched.and_then(|()| queue.synchronize()).unwrap_err();
    assert!(
        matches!(error, DeviceError::Lost { code: 700, .. }),
        "{error}"
    );
    drop((kernel, memory, queue, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn texts_and_launches_that_cannot_be_are_refused_with_the_reason() {
    let (standin, device) = start(3);
    let newer = PTX.replace("7.4", "9.5");
    assert_eq!(
        device.load_module(&newer).unwrap_err().to_string(),
        "the CUDA driver 13.0 is too old for PTX 9.5: update the driver"
    );
    assert_eq!(
        device
            .load_module(".version 7.4\nnonsense")
            .unwrap_err()
            .to_string(),
        "the driver refuses the PTX text (CUDA_ERROR_INVALID_PTX): line 1: no kernel"
    );
    let error = device.load_module("text").unwrap_err().to_string();
    assert!(error.contains("states no .version"), "{error}");
    let zero = device.load_module(".version 7.4\0").unwrap_err();
    assert_eq!(
        zero.to_string(),
        "cuModuleLoadDataEx cannot take PTX text with a zero byte at 12"
    );
    let module = device.load_module(PTX).unwrap();
    assert_eq!(
        module.kernel("decrement").unwrap_err().to_string(),
        "the module has no kernel decrement"
    );
    let kernel = module.kernel("increment").unwrap();
    assert!(kernel.blocks_per_multiprocessor(u32::MAX, 0).is_err());
    let queue = device.queue().unwrap();
    let parameters = crate::engine::parameters(0, 0);
    let shapes = [
        ([0, 1, 1], [32, 1, 1], parameters.as_slice()),
        ([1, 1, 1], [1025, 1, 1], parameters.as_slice()),
        ([1, 1, 1], [32, 1, 1], &parameters[..11]),
    ];
    for (grid, block, parameters) in shapes {
        let shape = LaunchShape {
            grid,
            block,
            shared_bytes: 0,
        };
        // SAFETY: refused.
        let error = unsafe { queue.launch(&kernel, shape, parameters) }.unwrap_err();
        assert!(
            error.to_string().contains("CUDA_ERROR_INVALID_VALUE (1)"),
            "{error}"
        );
    }
    drop((kernel, module, queue, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
    drop(standin);

    let standin = Standin::start(StandinOptions {
        devices: 2,
        kernels: Some(Arc::new(IncrementEngine)),
        ..StandinOptions::default()
    });
    let driver = standin.driver().unwrap();
    let kernel = driver.device(0).unwrap().load_module(PTX).unwrap();
    let kernel = kernel.kernel("increment").unwrap();
    let queue = driver.device(1).unwrap().queue().unwrap();
    // SAFETY: refused.
    let error = unsafe { queue.launch(&kernel, SHAPE, &parameters) }.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cuLaunchKernel cannot take a kernel of device 0"),
        "{error}"
    );
}
