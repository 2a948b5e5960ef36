//! Layouts from explicit digits: they equal those from the word, and an overlapping layout never
//! counts as disjoint.
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{
    AddressStep, Axis, CopyPlan, Digit, LayoutError, PlanError, PlaneDigits, ResolveError,
    Selection, Shape, StridedLayout, Unit, Word,
};
use kvtile_testkit::{
    NaiveSelection, ReferenceLayout, execute,
    generate::{Choices, LayoutCase, choices, config, layouts},
    naive_copy,
};
use proptest::prelude::*;

fn resolve(case: &LayoutCase) -> StridedLayout {
    StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap()
}

/// The pieces of a layout as explicit digits in another order.
fn given(layout: &StridedLayout, choices: &mut Choices) -> Vec<PlaneDigits> {
    let planes = layout.planes().map(|(plane, piece)| PlaneDigits {
        plane: plane.name().to_string(),
        region: piece.region(),
        offset: piece.offset(),
        digits: choices.shuffled(piece.digits().to_vec()),
    });
    planes.collect()
}

fn from_digits(layout: &StridedLayout, planes: &[PlaneDigits]) -> StridedLayout {
    let bytes = layout.region_bytes();
    StridedLayout::from_digits(layout.shape(), planes, bytes, layout.alignment()).unwrap()
}

/// Changes a few steps and offsets to others that occur, to zero, or by a few bytes. The regions
/// have room for the result.
fn disturbed(planes: &mut [PlaneDigits], choices: &mut Choices) {
    let all: Vec<u64> = planes
        .iter()
        .flat_map(|plane| plane.digits.iter().map(|digit| digit.step.bytes))
        .chain([0])
        .collect();
    for plane in planes {
        if choices.once_in(4) {
            plane.offset += choices.pick(&[1, 2, 8]);
        }
        for digit in &mut plane.digits {
            if !digit.step.is_local() {
                // A step to another region may change the offset too.
                if choices.once_in(3) {
                    digit.step.bytes = choices.pick(&all);
                }
            } else if choices.once_in(3) {
                let near = digit.step.bytes.saturating_sub(choices.below(3));
                let another = choices.pick(&all);
                digit.step = AddressStep::bytes(choices.pick(&[another, near]));
            }
        }
    }
}

fn everything(shape: &Shape) -> Selection {
    let blocks: Vec<u64> = (0..shape.num_blocks()).collect();
    Selection::blocks(&blocks, &blocks, shape.page_size()).unwrap()
}

fn roomy(layout: &StridedLayout) -> Vec<u64> {
    layout
        .region_bytes()
        .iter()
        .map(|bytes| 40 * bytes + 4096)
        .collect()
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn digits_in_any_order_are_the_layout_of_the_word((case, mut choices) in (layouts(), choices())) {
        let layout = resolve(&case);
        let same = from_digits(&layout, &given(&layout, &mut choices));
        prop_assert!(same.same_places(&layout));
        let (a, b) = (ReferenceLayout::from_strided(&layout), ReferenceLayout::from_strided(&same));
        prop_assert_eq!(a.unwrap(), b.unwrap());
    }

    /// Pitfall 7: a layout that counts as disjoint is disjoint; every other one is refused as a
    /// destination.
    #[test]
    fn overlap_is_never_overlooked((case, mut choices) in (layouts(), choices())) {
        let layout = resolve(&case);
        let mut planes = given(&layout, &mut choices);
        disturbed(&mut planes, &mut choices);
        let bytes = roomy(&layout);
        let other = StridedLayout::from_digits(&case.shape, &planes, &bytes, 1);
        let Ok(other) = other else {
            return Ok(());
        };
        let reference = ReferenceLayout::from_strided(&other).unwrap();
        let plan = CopyPlan::new(&layout, &other, &everything(&case.shape));
        if reference.used_bytes().is_none() {
            prop_assert!(!other.is_injective(), "{}", other.describe());
            let refused = matches!(plan, Err(LayoutError::Plan(PlanError::DestinationOverlaps { .. })));
            prop_assert!(refused);
        }
    }

    /// A source may repeat or overlap itself; a destination with a proof may have any strides.
    #[test]
    fn plans_from_explicit_strides_copy_what_the_naive_copy_copies(
        (case, mut choices) in (layouts(), choices())
    ) {
        let layout = resolve(&case);
        let mut planes = given(&layout, &mut choices);
        disturbed(&mut planes, &mut choices);
        let bytes = roomy(&layout);
        let Ok(other) = StridedLayout::from_digits(&case.shape, &planes, &bytes, 1) else {
            return Ok(());
        };
        for (src, dst) in [(&other, &layout), (&layout, &other)] {
            let Ok(plan) = CopyPlan::new(src, dst, &everything(&case.shape)) else {
                continue;
            };
            let (src, dst) = (
                ReferenceLayout::from_strided(src).unwrap(),
                ReferenceLayout::from_strided(dst).unwrap(),
            );
            let from = src.filled(1).unwrap();
            let mut expected = dst.poisoned().unwrap();
            let mut planned = expected.clone();
            let all = NaiveSelection::everything(&case.shape);
            naive_copy(&src, &from, &dst, &mut expected, &all).unwrap();
            execute(&plan, &from, &mut planned).unwrap();
            prop_assert!(planned == expected, "{plan}");
        }
    }
}

/// In region 1 both planes have bytes 4 to 8, since the step of `k` to it moves 4 bytes as well.
#[test]
fn steps_to_another_region_that_move_bytes_are_seen() {
    let shape = Shape::key_value(2, 1, 1, 1, 2, Unit::raw(2).unwrap()).unwrap();
    let injective = |k_moves, v_offset| {
        let plane = |name: &str, offset, bytes| {
            let digit = |axis, step| Digit {
                axis,
                low: 1,
                extent: 2,
                step,
            };
            PlaneDigits {
                plane: name.to_owned(),
                region: 0,
                offset,
                digits: vec![
                    digit(Axis::B, AddressStep { regions: 1, bytes }),
                    digit(Axis::C, AddressStep::bytes(2)),
                ],
            }
        };
        let planes = [plane("k", 0, k_moves), plane("v", v_offset, 0)];
        let layout = StridedLayout::from_digits(&shape, &planes, &[32, 32], 1).unwrap();
        layout.is_injective()
    };
    assert!(!injective(4, 4));
    assert!(injective(0, 4));
    assert!(injective(4, 8));
}

/// The proof is sufficient, not necessary: it must accept the layouts in common use.
#[test]
fn most_layouts_of_words_are_proved_free_of_overlap_from_their_digits() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut unproved = Vec::new();
    for _ in 0..400 {
        let case = layouts().new_tree(&mut runner).unwrap().current();
        let layout = resolve(&case);
        let planes = given(&layout, &mut Choices::new(Vec::new()));
        if !from_digits(&layout, &planes).is_injective() {
            unproved.push(case.word.to_string());
        }
    }
    assert!(unproved.len() <= 20, "{}: {unproved:?}", unproved.len());
}

/// Digits that would reach past a region or do not make up an axis are refused, not wrapped.
#[test]
fn digits_that_reach_too_far_are_refused() {
    let shape = Shape::key_value(2, 1, 4, 1, 4, Unit::raw(2).unwrap()).unwrap();
    let word = Word::parse("BLKNHC").unwrap();
    let layout = StridedLayout::resolve(&word, &shape, 1).unwrap();
    let attempt = |change: &dyn Fn(&mut PlaneDigits)| {
        let mut planes = given(&layout, &mut Choices::new(Vec::new()));
        planes.iter_mut().take(1).for_each(change);
        StridedLayout::from_digits(layout.shape(), &planes, layout.region_bytes(), 1)
    };
    let outside = |result: Result<StridedLayout, LayoutError>| {
        matches!(
            result,
            Err(LayoutError::Resolve(ResolveError::OutsideRegion { .. }))
        )
    };
    assert!(attempt(&|_| {}).is_ok());
    assert!(outside(attempt(&|plane| plane.offset = u64::MAX)));
    assert!(outside(attempt(&|plane| plane.offset += 128)));
    assert!(outside(attempt(&|plane| plane.region = 1)));
    assert!(outside(attempt(&|plane| {
        plane
            .digits
            .iter_mut()
            .for_each(|d: &mut Digit| d.step = AddressStep::bytes(u64::MAX));
    })));
    let short = attempt(&|plane| {
        plane.digits.pop();
    });
    assert!(matches!(
        short,
        Err(LayoutError::Resolve(ResolveError::DigitsIncomplete { .. }))
    ));
}
