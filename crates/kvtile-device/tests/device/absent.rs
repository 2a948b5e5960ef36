//! What is missing or too old is a typed error that names what was tried: never a panic.

use kvtile_device::{
    DeviceError, DeviceMemory, DeviceOptions, Driver, DriverTable, DriverVersion, PinnedMemory,
    RegisterOptions, RegisteredMemory, cuda,
};
use kvtile_memory::SystemMemory;
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use std::ptr::NonNull;
use std::sync::Arc;

fn open(library: &str) -> DeviceError {
    let options = DeviceOptions {
        library: Some(library.into()),
    };
    Driver::open(&options).unwrap_err()
}

#[test]
fn a_library_that_is_absent_or_none_is_named_with_the_reason() {
    let error = open("/nonexistent/libcuda.so.1");
    let DeviceError::NoDriver { tried } = &error else {
        panic!("{error}");
    };
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0].library, "/nonexistent/libcuda.so.1");
    assert!(
        error
            .to_string()
            .starts_with("no CUDA driver: tried /nonexistent/libcuda.so.1: ")
    );
    // A file that is no library, and a library that is no driver.
    assert!(matches!(
        open("/proc/version"),
        DeviceError::NoDriver { .. }
    ));
    assert!(matches!(open("."), DeviceError::NoDriver { .. }));
    let error = open("libc.so.6");
    assert_eq!(
        error.to_string(),
        "libc.so.6 is no CUDA driver that kvtile can use: it lacks the function cuInit"
    );
}

/// On a machine without a driver the usual names are tried; with one, it opens or names what is missing.
#[test]
fn the_usual_names_are_tried() {
    match Driver::open(&DeviceOptions::default()) {
        Ok(driver) => assert!(driver.version() >= DriverVersion::OLDEST),
        Err(DeviceError::NoDriver { tried }) => {
            assert_eq!(tried[0].library, "libcuda.so.1");
            assert_eq!(tried.len(), 2);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[test]
fn an_old_driver_and_one_without_devices_are_refused_in_a_sentence() {
    let standin = Standin::start(StandinOptions {
        version: 11_030,
        ..StandinOptions::default()
    });
    assert_eq!(
        standin.driver().unwrap_err().to_string(),
        "the CUDA driver is of version 11.3; kvtile needs 11.4 or newer: update the driver"
    );
    drop(standin);
    let standin = Standin::start(StandinOptions {
        devices: 0,
        ..StandinOptions::default()
    });
    assert_eq!(
        standin.driver().unwrap_err().to_string(),
        "the CUDA driver 13.0 finds no device (CUDA_VISIBLE_DEVICES or the container may hide it)"
    );
    drop(standin);
    let standin = Standin::start(StandinOptions::default());
    let driver = standin.driver().unwrap();
    assert!(matches!(
        driver.device(7).unwrap_err(),
        DeviceError::UnknownDevice {
            ordinal: 7,
            count: 1
        }
    ));
    assert!(driver.device(u32::MAX).is_err());
}

#[test]
fn each_missing_symbol_is_named_and_newer_ones_may_be_absent() {
    let standin = Standin::start(StandinOptions::default());
    let whole = standin.table();
    let fill = |missing: &str| {
        let address = |symbol: &'static str| {
            let address = whole.address(symbol).filter(|_| symbol != missing);
            address.and_then(|address| NonNull::new(address.cast_mut()))
        };
        // SAFETY: the addresses are those of a table.
        unsafe { DriverTable::from_symbols(address) }
    };
    for symbol in DriverTable::REQUIRED {
        assert_eq!(fill(symbol).unwrap_err(), *symbol);
    }
    for symbol in DriverTable::OPTIONAL {
        let table = fill(symbol).unwrap();
        let absent = table.signatures().into_iter().filter(|s| !s.is_present);
        assert_eq!(absent.map(|s| s.symbol).collect::<Vec<_>>(), [*symbol]);
    }
    // SAFETY: the functions are those of the stand-in.
    assert!(unsafe { Driver::from_table(fill("").unwrap()) }.is_ok());
}

#[test]
fn memory_that_is_exhausted_is_an_error_with_the_request() {
    let standin = Standin::start(StandinOptions {
        device_bytes: 1 << 20,
        pinned_bytes: 1 << 20,
        ..StandinOptions::default()
    });
    let device = standin.driver().unwrap().device(0).unwrap();
    let half = DeviceMemory::allocate(&device, 600 << 10).unwrap();
    let error = DeviceMemory::allocate(&device, 600 << 10).unwrap_err();
    let expected = "cuMemAlloc_v2 has no memory left for 614400 bytes on device 0 (kvtile stand-in, no hardware)";
    assert_eq!(error.to_string(), expected);
    let info = device.memory_info().unwrap();
    assert_eq!(
        (info.free_bytes, info.total_bytes),
        ((1 << 20) - (600 << 10), 1 << 20)
    );
    let error = PinnedMemory::allocate(&device, 2 << 20).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::OutOfMemory {
                call: "cuMemHostAlloc",
                ..
            }
        ),
        "{error}"
    );
    // The third of four pieces does not fit: the first two are unregistered again.
    let options = RegisterOptions {
        piece_bytes: 384 << 10,
        threads: 1,
    };
    let system = Arc::new(SystemMemory::allocate(1536 << 10).unwrap());
    let error = RegisteredMemory::register(&device, system, options).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::OutOfMemory {
                call: "cuMemHostRegister_v2",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(standin.leaks().registrations, 0);
    drop((half, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn every_error_of_initialisation_has_its_name_and_call() {
    for (code, name) in [
        (999, "CUDA_ERROR_UNKNOWN (999)"),
        (304, "CUDA_ERROR_OPERATING_SYSTEM (304)"),
        (12345, "an error without a name (12345)"),
        (cuda::NO_DEVICE, "finds no device"),
    ] {
        let standin = Standin::start(StandinOptions::default());
        standin.fail("cuInit", 1, code);
        let error = standin.driver().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn devices_are_described_without_being_used() {
    let standin = Standin::start(StandinOptions {
        devices: 2,
        ..StandinOptions::default()
    });
    let driver = standin.driver().unwrap();
    assert_eq!(driver.device_count().unwrap(), 2);
    let description = driver.describe(1).unwrap();
    assert_eq!(description.name, "kvtile stand-in, no hardware");
    assert_eq!((description.ordinal, description.capability), (1, (8, 0)));
    assert_eq!(
        (description.bytes, description.is_unified),
        (64 << 20, true)
    );
    assert_eq!(description.uuid[15], 1);
    assert!(!standin.calls().contains_key("cuDevicePrimaryCtxRetain"));
}
