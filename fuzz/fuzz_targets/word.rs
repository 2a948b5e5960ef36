//! Parses arbitrary text as a word. A word prints as it was written, resolves or is refused, and a
//! resolved layout can be planned to the canonical order.
#![no_main]

use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit, Word};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(word) = Word::parse(text) else {
        return;
    };
    assert_eq!(Word::parse(&word.to_string()).as_ref(), Ok(&word));
    assert!(!word.long_form().is_empty());
    let unit = Unit::named("bf16").expect("a known unit");
    let shape = Shape::key_value(3, 2, 16, 4, 8, &unit).expect("a small shape");
    let Ok(layout) = StridedLayout::resolve(&word, &shape, 1) else {
        return;
    };
    let canonical = StridedLayout::canonical(&shape).expect("a small shape");
    let selection = Selection::blocks(&[0, 2], &[1, 2], 16).expect("lists of equal length");
    let plan = CopyPlan::new(&layout, &canonical, &selection).expect("the canonical order takes all");
    assert_eq!(plan.bytes(), 2 * shape.block_bytes().expect("a small shape"));
});
