//! Random transfers between memory and files through a manager, compared with a copy unit by unit.
//! Every byte of the destination is compared, including padding and other blocks.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{PLACES, StoragePlace, over_image};
use kvtile_layout::{LayoutError, PlanError, tradition::ConfigError};
use kvtile_testkit::{
    generate::{TransferCase, config, transfers},
    naive_copy,
};
use kvtile_transfer::{
    DescriptorError, PhysicalLayout, TransferError, TransferManager, TransferOptions,
};
use proptest::prelude::*;

/// The execution of a case.
#[derive(Clone, Copy, Debug)]
struct TransferManner {
    from: StoragePlace,
    to: StoragePlace,
    verify: bool,
    layer_by_layer: Option<bool>,
}

fn manners() -> impl Strategy<Value = TransferManner> {
    let places = || prop::sample::select(PLACES.as_slice());
    (places(), places(), any::<bool>(), any::<Option<bool>>()).prop_map(
        |(from, to, verify, layer_by_layer)| TransferManner {
            from,
            to,
            verify,
            layer_by_layer,
        },
    )
}

/// The outcome of a case.
struct CaseOutcome {
    /// Whether it was copied; otherwise the planner refused it.
    executed: bool,
    /// Whether no layout config describes its source or its destination.
    no_config: bool,
}

/// Whether no config describes `layout`. Asserts that the error names the violated constraint.
fn has_no_config(layout: &PhysicalLayout) -> bool {
    match layout.config() {
        Ok(_) => false,
        Err(TransferError::Descriptor(DescriptorError::NoLayoutConfig { constraint })) => {
            let LayoutError::Config(ConfigError::NoInnerDim { bytes, page_size }) = *constraint
            else {
                panic!("{constraint}");
            };
            assert_ne!(bytes % page_size, 0);
            true
        }
        Err(error) => panic!("{error}"),
    }
}

/// Every layout of a case is built, with any planes: a word that resolves can be bound. Only the
/// planner may refuse a case. It refuses only two words that split an axis at moduli without a
/// common refinement, or into more pieces than a plan may have.
fn run(case: &TransferCase, manner: TransferManner, folder: &std::path::Path) -> CaseOutcome {
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let from_image = src.filled(1).unwrap();
    let to_image = dst.filled(2).unwrap();
    let (from, from_store) = over_image(&case.src, &from_image, manner.from, folder).unwrap();
    let (to, to_store) = over_image(&case.dst, &to_image, manner.to, folder).unwrap();
    let no_config = has_no_config(&from) | has_no_config(&to);
    let manager = TransferManager::new();
    let (from, to) = (
        manager.register(from).unwrap(),
        manager.register(to).unwrap(),
    );
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
            assert_eq!(report.bytes, bytes);
            assert_eq!(report.verified, manner.verify);
            for layer in 0..completion.num_layers() {
                completion.wait_layer(layer).unwrap();
            }
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
    assert!(from_store.image() == from_image, "the source was written");
    assert!(
        to_store.image() == expected,
        "the destination is not what the naive copy makes"
    );
    CaseOutcome {
        executed,
        no_config,
    }
}

#[test]
fn a_transfer_copies_what_the_naive_copy_copies_and_nothing_else() {
    let folder = common::folder();
    let mut runner = proptest::test_runner::TestRunner::new(config(1200));
    let (mut done, mut all, mut copied_without_config) = (0, 0, 0);
    let counts = std::cell::RefCell::new((&mut done, &mut all, &mut copied_without_config));
    runner
        .run(&(transfers(), manners()), |(case, manner)| {
            let outcome = run(&case, manner, folder.path());
            let mut counts = counts.borrow_mut();
            *counts.0 += u32::from(outcome.executed);
            *counts.1 += 1;
            *counts.2 += u32::from(outcome.executed && outcome.no_config);
            Ok(())
        })
        .unwrap();
    assert!(done * 10 > all * 6, "only {done} of {all} were executed");
    assert!(
        copied_without_config * 20 > all,
        "only {copied_without_config} of {all} copied a layout that no config describes"
    );
    eprintln!(
        "{done} of {all} transfers executed, {copied_without_config} of them of layouts that no \
         config describes, the others refused by the planner"
    );
}
