//! Random transfers between a device and every kind of memory, compared with a copy unit by unit. Every byte of both
//! sides is compared, including padding and other blocks.

use kvtile_layout::{LayoutError, PlanError};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_testkit::{
    generate::{TransferCase, config, transfers},
    naive_copy,
};
use kvtile_transfer::{TransferError, TransferManager, TransferOptions};
use proptest::prelude::*;

use crate::places::{DevicePlace, place};

/// The execution of a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceManner {
    pub(crate) from: DevicePlace,
    pub(crate) to: DevicePlace,
    pub(crate) verify: bool,
    pub(crate) layer_by_layer: Option<bool>,
    pub(crate) seed: u64,
    pub(crate) version: i32,
}

const PAIRS: [(DevicePlace, DevicePlace); 8] = {
    use DevicePlace::{Device, Pageable, Pinned, Registered};
    [
        (Device, Pinned),
        (Pinned, Device),
        (Device, Registered),
        (Registered, Device),
        (Device, Device),
        (Device, Pageable),
        (Pageable, Device),
        (Device, Pinned),
    ]
};

fn manners() -> impl Strategy<Value = DeviceManner> {
    let pairs = prop::sample::select(PAIRS.as_slice());
    let versions = prop::sample::select([13_000, 13_000, 12_080, 12_000].as_slice());
    (
        pairs,
        prop::bool::weighted(0.2),
        any::<Option<bool>>(),
        any::<u64>(),
        versions,
    )
        .prop_map(
            |((from, to), verify, layer_by_layer, seed, version)| DeviceManner {
                from,
                to,
                verify,
                layer_by_layer,
                seed,
                version,
            },
        )
}

/// Executes a case; whether the planner accepted it.
pub(crate) fn run(case: &TransferCase, manner: DeviceManner) -> bool {
    let standin = Standin::start(StandinOptions {
        version: manner.version,
        aliases: manner.seed.is_multiple_of(2),
        ..StandinOptions::seeded(manner.seed)
    });
    let device = standin.driver().unwrap().device(0).unwrap();
    let foreign = device.queue().unwrap();
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let (from_image, to_image) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let (from, from_store) = place(&case.src, &from_image, manner.from, (&standin, &device));
    let (to, to_store) = place(&case.dst, &to_image, manner.to, (&standin, &device));
    let manager = TransferManager::new();
    let [from, to] = [from, to].map(|layout| manager.register(layout).unwrap());
    let mut options = TransferOptions::new().verify(manner.verify);
    if let Some(layer_by_layer) = manner.layer_by_layer {
        options = options.layer_by_layer(layer_by_layer);
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
    executed
}

/// 300 cases in CI; `PROPTEST_CASES` sets another number.
#[test]
fn a_transfer_with_a_device_copies_what_the_naive_copy_copies_and_nothing_else() {
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let (done, all) = (std::cell::Cell::new(0u32), std::cell::Cell::new(0u32));
    runner
        .run(&(transfers(), manners()), |(case, manner)| {
            done.set(done.get() + u32::from(run(&case, manner)));
            all.set(all.get() + 1);
            Ok(())
        })
        .unwrap();
    let (done, all) = (done.get(), all.get());
    assert!(done * 10 > all * 6, "only {done} of {all} were executed");
    eprintln!("{done} of {all} transfers executed, the others refused by the planner");
}
