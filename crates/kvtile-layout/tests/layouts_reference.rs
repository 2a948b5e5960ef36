//! Words, resolved to digits, against the reference that walks them with a cursor.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{Axis, PlanePer, Shape, StridedLayout, UnitIndex, Word};
use kvtile_testkit::{
    ReferenceLayout,
    generate::{LayoutCase, config, layouts, mangled},
};
use proptest::prelude::*;

fn resolve(case: &LayoutCase) -> StridedLayout {
    StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap()
}

/// Every unit lies at its reference place, and the regions have the reference size.
fn assert_same(layout: &StridedLayout, reference: &ReferenceLayout) {
    assert_eq!(layout.region_bytes(), reference.region_bytes());
    for unit in reference.units() {
        let plane = layout.shape().planes()[unit.plane].name().as_str();
        let mut index = UnitIndex::new();
        for &(axis, i) in &unit.index {
            index = index.at(axis, i);
        }
        let found = layout.locate(plane, &index).unwrap();
        assert_eq!(
            (found.region, found.offset),
            (unit.place.region as u64, unit.place.offset),
            "plane {plane} at {:?}",
            unit.index
        );
    }
}

fn resolved(text: &str, shape: &Shape) -> Option<StridedLayout> {
    let word = Word::parse(text).ok()?;
    StridedLayout::resolve(&word, shape, 1).ok()
}

proptest! {
    #![proptest_config(config(800))]

    #[test]
    fn every_unit_lies_where_the_cursor_puts_it(case in layouts()) {
        assert_same(&resolve(&case), &case.reference().unwrap());
    }

    /// Pitfall 7: no two units share a byte, and none leaves its region.
    #[test]
    fn units_do_not_overlap(case in layouts()) {
        prop_assert!(case.reference().unwrap().used_bytes().is_some());
        let layout = resolve(&case);
        prop_assert!(layout.is_injective());
        let located = ReferenceLayout::from_strided(&layout).unwrap();
        prop_assert!(located.used_bytes().is_some());
    }

    /// Pitfall 4: the layout applies the alignment.
    #[test]
    fn blocks_start_at_multiples_of_the_alignment(case in layouts()) {
        let layout = resolve(&case);
        for (_, piece) in layout.planes() {
            for digit in piece.digits().iter().filter(|d| d.axis == Axis::B) {
                prop_assert_eq!(digit.step.bytes % case.alignment, 0, "{:?}", digit);
            }
        }
    }

    #[test]
    fn words_print_as_they_parse(case in layouts()) {
        let text = case.word.to_string();
        let word = Word::parse(&text).unwrap();
        prop_assert_eq!(&word, &case.word);
        prop_assert_eq!(word.to_string(), text);
        prop_assert!(!word.long_form().is_empty());
    }

    /// Pitfall 5: invalid words are refused, with the same verdict as the reference.
    #[test]
    fn mangled_words_are_refused_or_mean_what_the_cursor_finds(
        (case, text) in layouts().prop_flat_map(|case| {
            let text = mangled(&case.word.to_string());
            (Just(case), text)
        })
    ) {
        let Ok(word) = Word::parse(&text) else {
            return Ok(());
        };
        prop_assert_eq!(Word::parse(&word.to_string()), Ok(word.clone()));
        let reference = ReferenceLayout::new(&word, &case.shape, 1);
        let layout = StridedLayout::resolve(&word, &case.shape, 1);
        match (layout, reference) {
            (Ok(layout), Ok(reference)) => assert_same(&layout, &reference),
            (Err(_), Err(_)) => {}
            (layout, reference) => prop_assert!(
                false, "{}: {:?}, the reference gives {:?}",
                word, layout.err(), reference.err()
            ),
        }
    }
}

/// Like the first C of `C(s,kC32)`.
fn shares_a_digit_of_different_units(layout: &StridedLayout) -> bool {
    let digits = || layout.pieces().iter().flat_map(|piece| piece.digits());
    digits().any(|a| digits().any(|b| a.axis == b.axis && a.step == b.step && a.low != b.low))
}

/// If the generator only produced simple words, the tests above would prove little.
#[test]
fn generated_words_use_the_whole_language() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut counts = [0; 11];
    for _ in 0..400 {
        let case = layouts().new_tree(&mut runner).unwrap().current();
        let text = case.word.to_string();
        let seen = [
            text.contains('|'),
            text.contains('('),
            text.contains('K'),
            text.contains('@'),
            text.contains('='),
            text.chars().any(|c| c.is_ascii_digit()),
            case.shape.planes().len() > 2,
            case.shape
                .planes()
                .iter()
                .any(|p| p.per() == PlanePer::Page),
            case.shape
                .planes()
                .iter()
                .any(|p| matches!(p.per(), PlanePer::Every(_))),
            text.matches('|').count() > 1,
            shares_a_digit_of_different_units(&resolve(&case)),
        ];
        for (count, seen) in counts.iter_mut().zip(seen) {
            *count += u32::from(seen);
        }
        assert!(resolved(&text, &case.shape).is_some(), "{text}");
    }
    assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
}
