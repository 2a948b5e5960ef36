//! Plans between random layouts, executed run by run, against the copy of one unit after the other.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{CopyPlan, LayoutError, PlanError, Shape, StridedLayout, Unit, Word};
use kvtile_testkit::{
    NaivePair, NaiveSelection, execute,
    generate::{LayoutCase, TransferCase, config, transfers},
    naive_copy,
};
use proptest::prelude::*;

fn resolve(case: &LayoutCase) -> StridedLayout {
    StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap()
}

/// Executes the plan and the naive copy on equal images and compares every byte, padding included.
fn assert_planned_as_copied(case: &TransferCase, source_order: bool) {
    let mut selection = case.selection.selection();
    selection.source_order = source_order;
    let plan = CopyPlan::new(&resolve(&case.src), &resolve(&case.dst), &selection);
    let plan = match plan {
        Ok(plan) => plan,
        Err(
            LayoutError::Plan(PlanError::NoCommonRefinement { .. })
            | LayoutError::Plan(PlanError::TooManyPieces { .. }),
        ) => return,
        Err(error) => panic!("{error}"),
    };
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let from = src.filled(1).unwrap();
    let mut expected = dst.filled(2).unwrap();
    let mut planned = expected.clone();
    let bytes = naive_copy(&src, &from, &dst, &mut expected, &case.selection).unwrap();
    assert_eq!(plan.bytes(), bytes);
    assert_eq!(execute(&plan, &from, &mut planned).unwrap(), bytes);
    assert!(
        planned == expected,
        "the images differ; the plan was\n{plan}"
    );
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn a_plan_copies_what_the_naive_copy_copies(case in transfers()) {
        assert_planned_as_copied(&case, false);
    }

    #[test]
    fn a_plan_in_source_order_copies_the_same(case in transfers()) {
        assert_planned_as_copied(&case, true);
    }
}

/// Refusals are allowed above only while they stay rare, and the cases must differ.
#[test]
fn generated_transfers_use_what_a_selection_offers() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut counts = [0; 7];
    for _ in 0..400 {
        let case = transfers().new_tree(&mut runner).unwrap().current();
        let selection = case.selection.selection();
        let plan = CopyPlan::new(&resolve(&case.src), &resolve(&case.dst), &selection);
        let heads = case.selection.heads;
        let seen = [
            plan.is_err(),
            plan.is_ok_and(|plan| plan.classes().iter().any(|c| c.blocks_per_pair > 1)),
            case.src.shape.page_size() != case.dst.shape.page_size(),
            case.selection
                .pairs
                .iter()
                .any(|p| p.src_token != p.dst_token),
            case.selection.layers.src_start != case.selection.layers.dst_start,
            heads.src_start != heads.dst_start,
            case.src.shape.num_heads() != case.dst.shape.num_heads(),
        ];
        for (count, seen) in counts.iter_mut().zip(seen) {
            *count += u32::from(seen);
        }
    }
    let [refused, others @ ..] = counts;
    assert!(refused < 60, "{counts:?}");
    assert!(others.iter().all(|&count| count >= 20), "{counts:?}");
}

/// Planes may cut the tokens at moduli that do not divide each other: then the phase of a token is
/// known only modulo their common multiple.
#[test]
fn planes_with_incommensurable_tiles_of_tokens_copy_any_tokens() {
    let shape = Shape::key_value(3, 2, 24, 2, 2, Unit::raw(2).unwrap()).unwrap();
    let layout = |word: &str| LayoutCase {
        shape: shape.clone(),
        word: Word::parse(word).unwrap(),
        alignment: 1,
    };
    let (src, dst) = (layout("LB(kNHN4C,vNHN6C)"), layout("BL(kHNCN4,vHNCN6)"));
    let mut selection = NaiveSelection::blocks(&shape, &[]);
    for (i, tokens) in [(0u64, 2u64), (1, 4), (2, 5)] {
        selection
            .pairs
            .extend([0, 6, 16].map(|dst_token| NaivePair {
                src_block: 2 - i,
                src_token: 4 * i + dst_token % 11,
                dst_block: i,
                dst_token,
                tokens,
            }));
    }
    let case = TransferCase {
        src,
        dst,
        selection,
    };
    assert_planned_as_copied(&case, false);
    assert_planned_as_copied(&case, true);
}
