//! Random transfers between a device and every kind of memory, compared with a copy unit by unit. Every byte of both
//! sides is compared, including padding and other blocks.

use std::path::Path;

use kvtile_layout::{LayoutError, PlanError};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_testkit::{
    generate::{TransferCase, config, transfers},
    naive_copy,
};
use kvtile_transfer::{DeviceRoute, TransferError, TransferManager, TransferOptions};
use proptest::prelude::*;

use crate::{
    places::{DevicePlace, place},
    world::kernels,
};

/// The execution of a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceManner {
    pub(crate) from: DevicePlace,
    pub(crate) to: DevicePlace,
    pub(crate) verify: bool,
    pub(crate) layer_by_layer: Option<bool>,
    pub(crate) seed: u64,
    pub(crate) version: i32,
    /// Whether the device executes kernels.
    pub(crate) kernels: bool,
    pub(crate) route: Option<DeviceRoute>,
}

const PAIRS: [(DevicePlace, DevicePlace); 11] = {
    use DevicePlace::{Device, File, Pageable, Pinned, Registered};
    [
        (Device, Pinned),
        (Pinned, Device),
        (Device, Registered),
        (Registered, Device),
        (Device, Device),
        (Device, Pageable),
        (Pageable, Device),
        (Device, Pinned),
        (Pinned, Device),
        (Device, File),
        (File, Device),
    ]
};

fn manners() -> impl Strategy<Value = DeviceManner> {
    let pairs = prop::sample::select(PAIRS.as_slice());
    let versions = prop::sample::select([13_000, 13_000, 12_080, 12_000].as_slice());
    let routes = prop::sample::select(
        [
            None,
            Some(DeviceRoute::CopyEngine),
            Some(DeviceRoute::Kernel),
            Some(DeviceRoute::Staged),
        ]
        .as_slice(),
    );
    let how = (
        prop::bool::weighted(0.2),
        any::<Option<bool>>(),
        prop::bool::weighted(0.8),
    );
    (pairs, how, any::<u64>(), versions, routes).prop_map(
        |((from, to), (verify, layer_by_layer, kernels), seed, version, route)| DeviceManner {
            from,
            to,
            verify,
            layer_by_layer,
            seed,
            version,
            kernels,
            route,
        },
    )
}

/// What became of the cases.
#[derive(Default)]
struct CaseCounts {
    /// Cases that the planner accepted.
    done: u32,
    all: u32,
    /// Of those that prefer kernels between a device and pinned memory: launched, and all.
    by_kernel: (u32, u32),
    /// As above, for staged ones.
    staged: (u32, u32),
}

/// Executes a case; `None` if the planner refused it, else how many kernels were launched.
pub(crate) fn run(case: &TransferCase, manner: DeviceManner, folder: &Path) -> Option<u64> {
    let standin = Standin::start(StandinOptions {
        version: manner.version,
        aliases: manner.seed.is_multiple_of(2),
        kernels: manner.kernels.then(kernels),
        ..StandinOptions::seeded(manner.seed)
    });
    let device = standin.driver().unwrap().device(0).unwrap();
    let foreign = device.queue().unwrap();
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let (from_image, to_image) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let (from, from_store) = place(
        &case.src,
        &from_image,
        manner.from,
        (&standin, &device, folder),
    );
    let (to, to_store) = place(&case.dst, &to_image, manner.to, (&standin, &device, folder));
    let manager = TransferManager::new();
    let [from, to] = [from, to].map(|layout| manager.register(layout).unwrap());
    let mut options = TransferOptions::new().verify(manner.verify);
    if let Some(layer_by_layer) = manner.layer_by_layer {
        options = options.layer_by_layer(layer_by_layer);
    }
    if let Some(route) = manner.route {
        options = options.route(route);
    }
    let mut expected = to_image.clone();
    let started = manager.execute_selection(from, to, case.selection.selection(), options);
    let executed = match started {
        Ok(completion) => {
            let report = completion.wait().unwrap();
            let bytes =
                naive_copy(&src, &from_image, &dst, &mut expected, &case.selection).unwrap();
            assert_eq!((report.bytes, report.verified), (bytes, manner.verify));
            for layer in 0..completion.num_layers() {
                completion.wait_layer(layer).unwrap();
            }
            from_store.touch(&standin, &foreign, true);
            to_store.touch(&standin, &foreign, false);
            true
        }
        Err(TransferError::Layout(
            LayoutError::Plan(PlanError::NoCommonRefinement { .. })
            | LayoutError::Plan(PlanError::TooManyPieces { .. }),
        )) => false,
        Err(error) => panic!("{error}"),
    };
    drop(manager.unregister(from).unwrap());
    drop(manager.unregister(to).unwrap());
    drop(manager);
    let from = from_store.image(&standin, &from_image, case.src.alignment);
    assert!(from == from_image, "the source was written");
    let to = to_store.image(&standin, &to_image, case.dst.alignment);
    assert!(
        to == expected,
        "the destination is not what the naive copy makes"
    );
    assert_eq!(standin.complaints(), []);
    drop((foreign, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
    let launches = standin.calls().get("cuLaunchKernel").copied();
    executed.then_some(launches.unwrap_or(0))
}

/// 300 cases in CI; `PROPTEST_CASES` sets another number.
#[test]
fn a_transfer_with_a_device_copies_what_the_naive_copy_copies_and_nothing_else() {
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let folder = crate::common::folder();
    let counts = std::cell::RefCell::new(CaseCounts::default());
    runner
        .run(&(transfers(), manners()), |(case, manner)| {
            let launched = run(&case, manner, folder.path());
            let mut counts = counts.borrow_mut();
            counts.all += 1;
            let Some(launches) = launched else {
                return Ok(());
            };
            counts.done += 1;
            let is_pinned = [manner.from, manner.to].contains(&DevicePlace::Pinned);
            let counted = match manner.route {
                Some(DeviceRoute::Kernel) => &mut counts.by_kernel,
                Some(DeviceRoute::Staged) => &mut counts.staged,
                _ => return Ok(()),
            };
            if is_pinned && manner.kernels {
                counted.0 += u32::from(launches > 0);
                counted.1 += 1;
            }
            Ok(())
        })
        .unwrap();
    let counts = counts.into_inner();
    let (done, all) = (counts.done, counts.all);
    assert!(done * 10 > all * 6, "only {done} of {all} were executed");
    let ((kernel, of_kernel), (staged, of_staged)) = (counts.by_kernel, counts.staged);
    assert_eq!(kernel, of_kernel, "kernels were launched");
    assert!(
        staged * 4 > of_staged,
        "{staged} of {of_staged} were staged"
    );
    eprintln!(
        "{done} of {all} transfers executed, the others refused by the planner; {kernel} by kernels, {staged} of \
         {of_staged} staged"
    );
}
