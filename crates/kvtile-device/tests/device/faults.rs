//! Every function of the driver fails once at each of its calls: an error that names it, and nothing is left behind.

use crate::engine::{IncrementEngine, PTX};
use crate::scenario::Pipeline;
use kvtile_device::{DeviceError, DriverTable, ImportedMemory, LaunchShape, cuda};
use kvtile_memory::MemoryRegion;
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use std::collections::BTreeSet;
use std::sync::Arc;

fn options(version: i32) -> StandinOptions {
    StandinOptions {
        version,
        kernels: Some(Arc::new(IncrementEngine)),
        ..StandinOptions::seeded(11)
    }
}

/// Uses every function of the table.
fn use_everything(standin: &Standin) -> Result<(), DeviceError> {
    let driver = standin.driver()?;
    let pipeline = Pipeline::new(&driver, 4)?;
    // SAFETY: it lives as long as the pipeline.
    let engine = unsafe { pipeline.device.adopt_queue(pipeline.copies.as_raw()) }?;
    let bounded = pipeline.finish();
    drop(engine);
    bounded?;
    assert_eq!(pipeline.bytes(), pipeline.expected());
    let module = pipeline.device.load_module(PTX)?;
    let kernel = module.kernel("increment")?;
    kernel.facts()?;
    kernel.blocks_per_multiprocessor(32, 0)?;
    let shape = LaunchShape {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
    };
    let parameters = crate::engine::parameters(pipeline.first.device_address(), 32);
    // SAFETY: the parameters are those of the kernel, and the memory lives until the queue is idle.
    let launched = unsafe { pipeline.moves.launch(&kernel, shape, &parameters) };
    // What was enqueued before an error has ended before memory is freed.
    let ended = pipeline.moves.synchronize();
    launched?;
    ended?;
    let handle = pipeline.first.export()?;
    // SAFETY: the memory outlives the region, and nothing uses either.
    let opened = unsafe { ImportedMemory::open(&pipeline.device, &handle) }?;
    assert_eq!(opened.size(), pipeline.first.size());
    pipeline.device.memory_info()?;
    Ok(())
}

#[test]
fn the_scenario_uses_every_function() {
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for version in [12_000, 12_080, 13_000] {
        let standin = Standin::start(options(version));
        use_everything(&standin).unwrap();
        used.extend(standin.calls().keys());
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
    let all: BTreeSet<&str> = DriverTable::REQUIRED
        .iter()
        .chain(DriverTable::OPTIONAL)
        .copied()
        .collect();
    let rest: Vec<&&str> = all.difference(&used).collect();
    // The names of errors are used where a call fails.
    assert_eq!(rest, [&"cuGetErrorName", &"cuGetErrorString"]);
}

#[test]
fn each_function_fails_at_each_of_its_calls_and_nothing_leaks() {
    let mut tried = 0;
    for version in [12_000, 12_080, 13_000] {
        let standin = Standin::start(options(version));
        use_everything(&standin).unwrap();
        let calls = standin.calls();
        drop(standin);
        for (function, count) in calls {
            for nth in 1..=count {
                for code in [cuda::OUT_OF_MEMORY, 999, cuda::LAUNCH_FAILED] {
                    let standin = Standin::start(options(version));
                    standin.fail(function, nth, code);
                    let result = use_everything(&standin);
                    let what = format!("{function} call {nth} of {count} with {code} on {version}");
                    check(&result, function, code, &what);
                    assert_eq!(standin.leaks(), StandinLeaks::default(), "{what}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

/// Functions that release something, and those that restore a context: their errors stop nothing.
const SILENT: [&str; 9] = [
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuIpcCloseMemHandle",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostUnregister",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
];

fn check(result: &Result<(), DeviceError>, function: &str, code: u32, what: &str) {
    let Err(error) = result else {
        // The context may be the caller's that was restored, or made current for a release.
        assert!(
            SILENT.contains(&function) || function == "cuCtxGetCurrent",
            "{what}"
        );
        return;
    };
    let text = error.to_string();
    match error {
        DeviceError::Call {
            call, code: found, ..
        } => {
            assert_eq!((*call, *found), (function, code), "{what}: {text}");
        }
        DeviceError::OutOfMemory { call, .. } => assert_eq!(*call, function, "{what}: {text}"),
        DeviceError::Lost {
            call, code: found, ..
        } => {
            let by_release = SILENT.contains(&function) || function == "cuCtxGetCurrent";
            assert!(*call == function || by_release, "{what}: {text}");
            assert_eq!(*found, code, "{what}: {text}");
        }
        other => assert_eq!(other.to_string(), "an error of the call", "{what}"),
    }
}
