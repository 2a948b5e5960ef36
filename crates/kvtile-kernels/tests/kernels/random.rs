//! Random transfers through the kernels' text, compared with a copy unit by unit. `PROPTEST_CASES` sets their number.

use std::{cell::RefCell, collections::BTreeMap};

use kvtile_kernels::MoveKernel;
use kvtile_layout::{CopyPlan, LayoutError, PlanError, StridedLayout};
use kvtile_testkit::{
    generate::{LayoutCase, TransferCase, config, transfers},
    naive_copy,
};
use proptest::prelude::*;

use crate::run::{DevicePlacement, run_plan};

fn resolve(case: &LayoutCase) -> StridedLayout {
    StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap()
}

/// Starts of both sides that are aligned as the layouts need, and no better.
fn placement(case: &TransferCase, odd: (u64, u64), blocks: u32) -> DevicePlacement {
    let aligned = DevicePlacement::ALIGNED;
    DevicePlacement {
        source: aligned.source + odd.0 * case.src.alignment,
        destination: aligned.destination + odd.1 * case.dst.alignment,
        blocks,
    }
}

/// The kernels that ran; `None` if the planner refused the case.
fn run(case: &TransferCase, odd: (u64, u64), blocks: u32) -> Option<Vec<MoveKernel>> {
    let plan = CopyPlan::new(
        &resolve(&case.src),
        &resolve(&case.dst),
        &case.selection.selection(),
    );
    let plan = match plan {
        Ok(plan) => plan,
        Err(
            LayoutError::Plan(PlanError::NoCommonRefinement { .. })
            | LayoutError::Plan(PlanError::TooManyPieces { .. }),
        ) => return None,
        Err(error) => panic!("{error}"),
    };
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let (from, to) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let mut expected = to.clone();
    naive_copy(&src, &from, &dst, &mut expected, &case.selection).unwrap();
    let done = run_plan(&plan, &from, &to, placement(case, odd, blocks));
    assert!(
        done.destination == expected,
        "the destination is not what the naive copy makes; the plan was\n{plan}"
    );
    Some(
        done.program
            .launches()
            .iter()
            .map(|launch| launch.kernel())
            .collect(),
    )
}

#[test]
fn kernels_copy_what_the_naive_copy_copies_and_nothing_else() {
    let cases = (
        transfers(),
        prop::sample::select(vec![(0, 0), (0, 0), (1, 0), (3, 1)]),
        1..4u32,
    );
    let seen: RefCell<(u32, u32, BTreeMap<&str, u32>)> = RefCell::default();
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    runner
        .run(&cases, |(case, odd, blocks)| {
            let mut seen = seen.borrow_mut();
            seen.0 += 1;
            if let Some(kernels) = run(&case, odd, blocks) {
                seen.1 += 1;
                for kernel in kernels {
                    *seen.2.entry(kernel.name()).or_default() += 1;
                }
            }
            Ok(())
        })
        .unwrap();
    let (all, done, kernels) = seen.into_inner();
    eprintln!(
        "{done} of {all} transfers executed, the others refused by the planner; launches: {kernels:?}"
    );
    assert!(done * 10 > all * 8, "only {done} of {all} were executed");
    assert_eq!(kernels.len(), MoveKernel::ALL.len(), "{kernels:?}");
}
