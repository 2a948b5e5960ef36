//! The stand-in as a library, through the loader that loads real drivers.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "shared/driver_library.rs"]
mod driver_library;

use kvtile_device::{
    BatchRoute, CopyBatch, DeviceMemory, DeviceOptions, Driver, PinnedMemory, RegisterOptions,
    RegisteredMemory, SourceOrder,
};
use kvtile_memory::{MemoryRegion, SystemMemory};
use std::process::Command;
use std::sync::Arc;

#[test]
fn a_driver_is_loaded_by_its_file_and_copies_there_and_back() {
    let options = DeviceOptions {
        library: Some(driver_library::library()),
    };
    let driver = Driver::open(&options).unwrap();
    assert_eq!(driver.version().to_string(), "13.0");
    let device = driver.device(0).unwrap();
    let mut system = SystemMemory::allocate(10_000).unwrap();
    for (byte, value) in system.as_mut_slice().iter_mut().zip((0..=250).cycle()) {
        *byte = value;
    }
    let expected = system.as_mut_slice().to_vec();
    let source = RegisteredMemory::register(&device, Arc::new(system), RegisterOptions::default());
    let source = source.unwrap();
    let memory = DeviceMemory::allocate(&device, 10_000).unwrap();
    let target = PinnedMemory::allocate(&device, 10_000).unwrap();
    let queue = device.queue().unwrap();
    let mut batch = CopyBatch::default();
    for (address, bytes) in source.device_ranges(0..5000) {
        batch.push(memory.device_address(), address, bytes);
    }
    for (address, bytes) in source.device_ranges(5000..10_000) {
        batch.push(memory.device_address() + 5000, address, bytes);
    }
    // SAFETY: the memory is of this test alone and lives until the mark is passed.
    let route = unsafe { queue.copy_batch(&mut batch, SourceOrder::Any) }.unwrap();
    assert_eq!(route, BatchRoute::OneCall);
    let (to, from) = (target.device_address(), memory.device_address());
    // SAFETY: as above.
    unsafe { queue.copy(to, from, 10_000) }.unwrap();
    queue.record().unwrap().wait().unwrap();
    let start: *const u8 = std::ptr::with_exposed_provenance(target.addr());
    // SAFETY: memory of this process that no work uses any more.
    let copied = unsafe { std::slice::from_raw_parts(start, 10_000) };
    assert!(copied == expected);
}

/// A child with the library in the place of the usual name finds it there.
#[test]
fn a_driver_in_the_search_path_is_found_by_its_usual_name() {
    const CHILD: &str = "KVTILE_STANDIN_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let driver = Driver::open(&DeviceOptions::default()).unwrap();
        let description = driver.describe(0).unwrap();
        assert_eq!(description.name, "kvtile stand-in, no hardware");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        driver_library::library(),
        folder.path().join("libcuda.so.1"),
    )
    .unwrap();
    let name = "a_driver_in_the_search_path_is_found_by_its_usual_name";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}");
    assert!(
        String::from_utf8_lossy(&child.stdout).contains("1 passed"),
        "{text}"
    );
}
