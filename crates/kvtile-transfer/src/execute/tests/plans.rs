//! Random plans between random layouts in memory, on every level, with both kinds of stores, on
//! one thread and several.

use std::sync::Arc;

use kvtile_layout::{CopyPlan, LayoutError, PlanError, StridedLayout};
use kvtile_memory::{OwnedMemoryRegion, SystemMemory};
use kvtile_testkit::{
    Image,
    generate::{LayoutCase, TransferCase, config, transfers},
    naive_copy,
};

use super::{
    super::{
        bound::BoundLayout,
        memory::{copy::copy_plan, pool::CopyPool},
    },
    manners,
};

/// The layout of `case` over memory that holds `image`.
fn bound(case: &LayoutCase, image: &Image) -> (BoundLayout, Vec<Arc<SystemMemory>>) {
    let memory: Vec<Arc<SystemMemory>> = image
        .iter()
        .map(|bytes| {
            let options = SystemMemory::options().huge_pages(false);
            let mut memory = options.allocate(bytes.len()).unwrap();
            memory.as_mut_slice().copy_from_slice(bytes);
            Arc::new(memory)
        })
        .collect();
    let regions = memory.iter();
    let regions = regions.map(|m| Arc::clone(m) as OwnedMemoryRegion);
    let layout = StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap();
    let bound = BoundLayout::new(Arc::new(layout), regions.collect()).unwrap();
    (bound, memory)
}

fn image(bound: BoundLayout, memory: Vec<Arc<SystemMemory>>) -> Image {
    drop(bound);
    let bytes = |memory: Arc<SystemMemory>| Arc::into_inner(memory).unwrap();
    let regions = memory.into_iter().map(bytes);
    regions.map(|mut m| m.as_mut_slice().to_vec()).collect()
}

/// Returns whether the planner accepted the case.
fn check(case: &TransferCase, pool: &CopyPool) -> bool {
    let (source, destination) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let from_image = source.filled(1).unwrap();
    let to_image = destination.filled(2).unwrap();
    let mut expected = to_image.clone();
    for (index, manner) in manners().into_iter().enumerate() {
        let (from, _memory) = bound(&case.src, &from_image);
        let (to, written) = bound(&case.dst, &to_image);
        let plan = CopyPlan::new(from.layout(), to.layout(), &case.selection.selection());
        let plan = match plan {
            Ok(plan) => plan,
            Err(
                LayoutError::Plan(PlanError::NoCommonRefinement { .. })
                | LayoutError::Plan(PlanError::TooManyPieces { .. })
                | LayoutError::Plan(PlanError::DestinationOverlaps { .. }),
            ) => return false,
            Err(error) => panic!("{error}"),
        };
        if index == 0 {
            let selection = &case.selection;
            naive_copy(&source, &from_image, &destination, &mut expected, selection).unwrap();
        }
        let shared = pool.share(plan.bytes()).map(|share| (pool, share));
        for share in [None, shared] {
            // SAFETY: the plan was made from these two, and nothing else refers to their memory.
            unsafe { copy_plan(&plan, (&from, &to), manner, share) }.unwrap();
        }
        assert!(image(to, written) == expected, "{manner:?}");
    }
    true
}

#[test]
fn every_manner_of_copying_makes_what_the_naive_copy_makes() {
    let pool = CopyPool::eager(3);
    let mut runner = proptest::test_runner::TestRunner::new(config(300));
    let (mut done, mut all) = (0, 0);
    let counts = std::cell::RefCell::new((&mut done, &mut all));
    runner
        .run(&transfers(), |case| {
            let checked = check(&case, &pool);
            let mut counts = counts.borrow_mut();
            *counts.0 += u32::from(checked);
            *counts.1 += 1;
            Ok(())
        })
        .unwrap();
    assert!(done * 10 > all * 6, "only {done} of {all} were executed");
}

/// Long runs and many blocks, so that threads share cells, segments and chunks.
#[test]
fn threads_share_a_plan_and_leave_nothing_out() {
    use kvtile_layout::{Selection, Shape, Unit};
    let shape = Shape::key_value(12, 3, 16, 5, 40, Unit::named("bf16").unwrap()).unwrap();
    let pairs = [
        ("BLKNHC", "BLKNHC"),
        ("L|KBNHC", "BHLKNC"),
        ("L|BH(kCN,vNC)", "BLKNHC"),
        ("BLKNHC", "L|BH(kCN,vNC)"),
        ("BNLKHC", "L|KBHCNC4"),
    ];
    let (ids, shuffled): (Vec<u64>, Vec<u64>) = (0..12).map(|i| (i, i * 7 % 12)).unzip();
    let pool = CopyPool::eager(4);
    let share = |plan: &CopyPlan| pool.share(plan.bytes()).map(|share| (&pool, share));
    for (from_word, to_word) in pairs {
        let case = |word: &str| LayoutCase {
            shape: shape.clone(),
            word: word.parse().unwrap(),
            alignment: 64,
        };
        let (from_case, to_case) = (case(from_word), case(to_word));
        let reference = from_case.reference().unwrap();
        let from_image = reference.filled(7).unwrap();
        let expected = to_case.reference().unwrap().filled(7).unwrap();
        let to_poison = to_case.reference().unwrap().poisoned().unwrap();
        let from_poison = reference.poisoned().unwrap();
        for to_ids in [&ids, &shuffled] {
            for manner in manners() {
                let (from, _memory) = bound(&from_case, &from_image);
                let (to, written) = bound(&to_case, &to_poison);
                let (back, returned) = bound(&from_case, &from_poison);
                let there = Selection::blocks(&ids, to_ids, 16).unwrap();
                let home = Selection::blocks(to_ids, &ids, 16).unwrap();
                let plan = CopyPlan::new(from.layout(), to.layout(), &there).unwrap();
                // SAFETY: the plan was made from these two, and nothing else refers to their
                // memory.
                unsafe { copy_plan(&plan, (&from, &to), manner, share(&plan)) }.unwrap();
                let plan = CopyPlan::new(to.layout(), back.layout(), &home).unwrap();
                // SAFETY: as above.
                unsafe { copy_plan(&plan, (&to, &back), manner, share(&plan)) }.unwrap();
                assert!(image(back, returned) == from_image, "{from_word} {to_word}");
                if to_ids == &ids {
                    assert!(image(to, written) == expected, "{from_word} {to_word}");
                }
            }
        }
    }
}
