//! Planes with one entry for several tokens: compressed KV, and scales that a run of tokens shares.
#![expect(clippy::unwrap_used, reason = "tests")]

use kvtile_layout::{
    Axis, BlockPair, CopyPlan, LayoutError, PlanError, Plane, PlanePer, Selection, Shape,
    ShapeError, StridedLayout, Unit, UnitIndex, Word,
};
use serde_json::json;

/// Compressed KV of `every` tokens an entry beside a plane per token.
fn compressed(page_size: u64, every: u64) -> Result<Shape, LayoutError> {
    let token = Plane::new("k", Unit::named("bf16").unwrap())?.extent(Axis::C, 8);
    let state = Plane::new("c", Unit::new("state", 584, 1)?)?.every(every);
    Shape::new(6, 2, page_size, vec![token, state])
}

fn layout(word: &str, shape: &Shape) -> StridedLayout {
    StridedLayout::resolve(&Word::parse(word).unwrap(), shape, 1).unwrap()
}

#[test]
fn a_page_has_an_entry_for_each_run_of_tokens() {
    let shape = compressed(16, 4).unwrap();
    let plane = shape.planes().last().unwrap();
    assert_eq!(plane.per(), PlanePer::Every(4));
    assert_eq!(shape.extent(plane, Axis::N), 4);
    assert_eq!(shape.block_bytes().unwrap(), 2 * (16 * 8 * 2 + 4 * 584));
    let layout = layout("BL(kNC,cN)", &shape);
    let at = |n| {
        layout
            .locate("c", &UnitIndex::new().at(Axis::N, n))
            .unwrap()
    };
    assert_eq!(at(3).offset - at(0).offset, 3 * 584);
    assert!(
        layout
            .locate("c", &UnitIndex::new().at(Axis::N, 4))
            .is_err()
    );
    // One entry a token is the plain plane.
    assert_eq!(
        compressed(16, 1).unwrap().planes().last().unwrap().per(),
        PlanePer::Token
    );
}

#[test]
fn pages_that_would_cut_an_entry_are_refused() {
    let error = compressed(18, 4).unwrap_err();
    let expected = "pages of 18 tokens, and plane c has one entry every 4 tokens; the page size must be a multiple";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(
        compressed(16, 0).unwrap_err(),
        LayoutError::Shape(ShapeError::PlaneEvery { tokens: 0, .. })
    ));
}

#[test]
fn ranges_of_tokens_must_not_cut_an_entry() {
    let (source, destination) = (compressed(16, 4).unwrap(), compressed(8, 4).unwrap());
    let source = layout("BL(kNC,cN)", &source);
    let destination = layout("L|B(cN,kNC)", &destination);
    let pair = |source_token, destination_token, tokens| BlockPair {
        source_block: 2,
        source_token,
        destination_block: 5,
        destination_token,
        tokens,
    };
    let plan = |pair| {
        let mut selection = Selection::blocks(&[0], &[0], 8).unwrap();
        selection.pairs = vec![pair];
        CopyPlan::new(&source, &destination, &selection)
    };
    let bytes = |plan: CopyPlan| plan.bytes();
    assert_eq!(bytes(plan(pair(4, 0, 8)).unwrap()), 2 * (8 * 16 + 2 * 584));
    assert_eq!(bytes(plan(pair(12, 4, 4)).unwrap()), 2 * (4 * 16 + 584));
    for cut in [pair(2, 0, 4), pair(4, 2, 4), pair(0, 0, 6)] {
        let error = plan(cut).unwrap_err();
        assert!(
            matches!(
                error,
                LayoutError::Plan(PlanError::EntryCut { every: 4, .. })
            ),
            "{error}"
        );
    }
}

#[test]
fn planes_with_other_entries_do_not_match() {
    let (four, two) = (compressed(16, 4).unwrap(), compressed(16, 2).unwrap());
    let selection = Selection::blocks(&[0], &[0], 16).unwrap();
    let word = "BL(kNC,cN)";
    let error = CopyPlan::new(&layout(word, &four), &layout(word, &two), &selection).unwrap_err();
    assert_eq!(
        error.to_string(),
        "entries of plane c: one every 4 tokens in the source, one every 2 tokens in the destination; a copy \
         converts nothing"
    );
}

#[test]
fn the_serialised_form_is_that_of_planes_per_token_with_the_tokens_of_an_entry() {
    let unit = json!(Unit::named("bf16").unwrap());
    let plane = |per_token, every| {
        serde_json::from_value::<Plane>(json!({
            "name": "c", "unit": unit, "per_token": per_token, "every": every, "extents": [["C", 8]]
        }))
    };
    let four = plane(true, Some(4)).unwrap();
    assert_eq!(four.per(), PlanePer::Every(4));
    let again = serde_json::to_value(&four).unwrap();
    assert_eq!(serde_json::from_value::<Plane>(again).unwrap(), four);
    // Planes that have no such entries are written as before.
    let text = serde_json::to_value(plane(true, None).unwrap()).unwrap();
    assert_eq!(
        text,
        json!({"name": "c", "unit": unit, "per_token": true, "extents": [["C", 8]]})
    );
    assert!(plane(false, Some(4)).is_err());
    assert!(plane(true, Some(0)).is_err());
}
