//! Every known layout parses, resolves, equals the reference, and survives the way through the
//! canonical order and back byte for byte, by the naive copy and by plans.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use kvtile_layout::{
    Axis, CopyPlan, LayoutError, PlanError, Selection, Shape, StridedLayout, Word,
    presets::{self, Evidence, Preset, PresetError, PresetLayout},
};
use kvtile_testkit::{
    Image, NaiveSelection, ReferenceLayout, check, check_padding, execute, naive_copy,
};

/// A layout with its reference.
struct PresetSide {
    layout: StridedLayout,
    reference: ReferenceLayout,
}

impl PresetSide {
    fn of_word(text: &str, shape: &Shape) -> PresetSide {
        let word = Word::parse(text).unwrap();
        PresetSide {
            layout: StridedLayout::resolve(&word, shape, 1).unwrap(),
            reference: ReferenceLayout::new(&word, shape, 1).unwrap(),
        }
    }

    fn of_layout(layout: StridedLayout) -> PresetSide {
        let reference = ReferenceLayout::from_strided(&layout).unwrap();
        PresetSide { layout, reference }
    }

    fn of_preset(preset: &Preset) -> PresetSide {
        let layout = preset.example().unwrap();
        match (preset.word(), &preset.shape) {
            (Some(word), Some(shape)) => PresetSide {
                layout,
                reference: ReferenceLayout::new(word, shape, 1).unwrap(),
            },
            _ => PresetSide::of_layout(layout),
        }
    }
}

/// One way to copy all blocks of one side to the same blocks of another.
type BlockCopy = fn(&PresetSide, &Image, &PresetSide, &mut Image);

fn naively(src: &PresetSide, from: &Image, dst: &PresetSide, to: &mut Image) {
    let everything = NaiveSelection::everything(src.layout.shape());
    naive_copy(&src.reference, from, &dst.reference, to, &everything).unwrap();
}

fn by_plan(src: &PresetSide, from: &Image, dst: &PresetSide, to: &mut Image) {
    let shape = src.layout.shape();
    let blocks: Vec<u64> = (0..shape.num_blocks()).collect();
    let selection = Selection::blocks(&blocks, &blocks, shape.page_size()).unwrap();
    for selection in [selection.clone(), selection.in_source_order()] {
        let plan = CopyPlan::new(&src.layout, &dst.layout, &selection).unwrap();
        assert_eq!(plan.bytes(), shape.total_bytes().unwrap());
        execute(&plan, from, to).unwrap();
    }
}

/// Every byte of `side` arrives in `via` at its place and comes back, and no copy writes padding.
fn assert_round_trip(side: &PresetSide, via: &PresetSide, copy: BlockCopy) {
    let from = side.reference.filled(3).unwrap();
    let mut between = via.reference.poisoned().unwrap();
    copy(side, &from, via, &mut between);
    check(&via.reference, &between, 3).unwrap();
    let mut back = side.reference.poisoned().unwrap();
    copy(via, &between, side, &mut back);
    check_padding(&side.reference, &back).unwrap();
    assert!(back == from);
}

/// Token-major inside every plane: `BLKNHC` and all further axes of the planes.
fn token_major(shape: &Shape) -> String {
    let declared = |letter: &char| {
        let axis = Axis::new(*letter).unwrap();
        !axis.is_standard() && shape.knows(axis)
    };
    let others: String = ('A'..='Z').filter(declared).collect();
    format!("BLKNHC{others}")
}

fn with_layouts() -> impl Iterator<Item = (&'static Preset, &'static Shape)> {
    let all = presets::all().unwrap().iter();
    all.filter_map(|preset| Some((preset, preset.shape.as_ref()?)))
}

#[test]
fn every_preset_is_what_the_reference_walks() {
    for (preset, shape) in with_layouts() {
        let Some(word) = preset.word() else {
            continue;
        };
        assert_eq!(&Word::parse(&word.to_string()).unwrap(), word);
        let layout = preset.example().unwrap();
        let walked = ReferenceLayout::new(word, shape, 1).unwrap();
        let located = ReferenceLayout::from_strided(&layout).unwrap();
        assert_eq!(
            walked.region_bytes(),
            located.region_bytes(),
            "{}",
            preset.name
        );
        for unit in walked.units() {
            let plane = shape.planes().get(unit.plane).unwrap().name().as_str();
            let place = located.place(plane, &unit.index).unwrap();
            assert_eq!(
                place, unit.place,
                "{}: {plane} {:?}",
                preset.name, unit.index
            );
        }
    }
}

#[test]
fn every_preset_has_a_place_of_its_own_for_every_byte() {
    for (preset, _) in with_layouts() {
        let side = PresetSide::of_preset(preset);
        assert!(side.layout.is_injective(), "{}", preset.name);
        assert!(side.reference.used_bytes().is_some(), "{}", preset.name);
    }
}

#[test]
fn every_preset_goes_through_the_token_major_order_and_back() {
    for (preset, shape) in with_layouts() {
        let via = PresetSide::of_word(&token_major(shape), shape);
        for copy in [naively, by_plan] as [BlockCopy; 2] {
            assert_round_trip(&PresetSide::of_preset(preset), &via, copy);
        }
    }
}

#[test]
fn every_preset_goes_through_the_canonical_layout_and_back() {
    for (preset, shape) in with_layouts() {
        let via = PresetSide::of_layout(StridedLayout::canonical(shape).unwrap());
        for copy in [naively, by_plan] as [BlockCopy; 2] {
            assert_round_trip(&PresetSide::of_preset(preset), &via, copy);
        }
    }
}

/// Every two words of K and V convert into each other directly, for a shape that fits the tiles of
/// all of them.
#[test]
fn every_layout_of_keys_and_values_converts_into_every_other() {
    let tiled = presets::find("vllm:LBHNC/cpu/bf16/amx").unwrap();
    let shape = tiled.shape.clone().unwrap().with_num_blocks(1).unwrap();
    let words: BTreeSet<String> = with_layouts()
        .filter_map(|(preset, _)| preset.word())
        .filter(|word| StridedLayout::resolve(word, &shape, 1).is_ok())
        .map(Word::to_string)
        .collect();
    assert!(words.len() > 40, "{words:?}");
    let sides: Vec<PresetSide> = words
        .iter()
        .map(|word| PresetSide::of_word(word, &shape))
        .collect();
    for src in &sides {
        let from = src.reference.filled(5).unwrap();
        for dst in &sides {
            let mut to = dst.reference.poisoned().unwrap();
            by_plan(src, &from, dst, &mut to);
            check(&dst.reference, &to, 5).unwrap();
        }
    }
}

#[test]
fn names_are_unique_found_and_of_one_form() {
    let all = presets::all().unwrap();
    assert!(all.len() > 100, "{}", all.len());
    let names: BTreeSet<&str> = all.iter().map(|preset| preset.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
    for preset in all {
        let (engine, rest) = preset.name.split_once(':').unwrap();
        assert!(!engine.is_empty() && !rest.is_empty());
        assert!(rest.split('/').all(|part| !part.is_empty()) && rest.split('/').count() <= 4);
        assert_eq!(presets::find(&preset.name).unwrap(), preset);
        assert!(!preset.source.is_empty() && !preset.case.is_empty());
    }
}

#[test]
fn an_unknown_name_suggests_those_that_resemble_it() {
    let error = presets::find("vllm:LBHNC/cpu/bf16").unwrap_err();
    let LayoutError::Preset(PresetError::Unknown { close, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(close.len(), 3);
    assert!(
        close
            .iter()
            .all(|name| name.starts_with("vllm:LBHNC/cpu/bf16/")),
        "{error}"
    );
    assert!(
        presets::find("nothing")
            .unwrap_err()
            .to_string()
            .contains("list them")
    );
}

/// Exactly the rows with this evidence were run. A new row here requires a comparison of bytes.
#[test]
fn only_rows_that_were_run_claim_checked_bytes() {
    let all = presets::all().unwrap().iter();
    let checked: Vec<&str> = all
        .filter(|preset| preset.evidence.bytes_checked())
        .map(|preset| preset.name.as_str())
        .collect();
    assert_eq!(
        checked,
        [
            "vllm:LBHNC/cpu/bf16/vec",
            "vllm:LBHNC/cpu/bf16/vec16",
            "vllm:LBHNC/cpu/bf16/amx",
            "vllm:LBHNC/cpu/f32/vec",
            "vllm:LBHNC/cpu/f32/vec16",
            "transformers:dynamic/any/bf16",
            "transformers:static/any/bf16",
        ]
    );
    for evidence in [Evidence::Strides, Evidence::Read, Evidence::Excerpt] {
        assert!(evidence.to_string().contains("bytes unchecked"));
    }
}

#[test]
fn a_quantised_cache_whose_scales_span_all_tokens_is_refused() {
    let preset = presets::find("transformers:quantised/any").unwrap();
    assert!(matches!(preset.layout, PresetLayout::Refused(_)));
    let error = preset.example().unwrap_err();
    assert!(error.to_string().contains("has no layout"), "{error}");
    let shape = presets::find("tradition:fully-contiguous")
        .unwrap()
        .shape
        .clone()
        .unwrap();
    let error = preset.resolve(&shape, 1).unwrap_err();
    assert!(
        error.to_string().contains("scales span all tokens"),
        "{error}"
    );
}

/// Pitfall 6: an unknown interior is copied whole or refused, and never goes into another one.
#[test]
fn an_unknown_interior_is_copied_whole_or_refused() {
    let preset = presets::find("vllm:LBHNC/cpu/bf16/neon").unwrap();
    let layout = preset.example().unwrap();
    let mut selection = Selection::blocks(&[0], &[1], layout.shape().page_size()).unwrap();
    CopyPlan::new(&layout, &layout, &selection).unwrap();
    for pair in &mut selection.pairs {
        pair.tokens -= 1;
    }
    let error = CopyPlan::new(&layout, &layout, &selection).unwrap_err();
    assert!(
        matches!(error, LayoutError::Plan(PlanError::PlaneNotPerToken { .. })),
        "{error}"
    );
    let known = presets::find("vllm:LBHNC/cpu/bf16/vec")
        .unwrap()
        .example()
        .unwrap();
    let whole = Selection::blocks(&[0], &[1], known.shape().page_size()).unwrap();
    let error = CopyPlan::new(&known, &layout, &whole).unwrap_err();
    assert!(
        matches!(error, LayoutError::Plan(PlanError::PlaneNotInSource { .. })),
        "{error}"
    );
}

#[test]
fn explicit_strides_are_for_their_own_shape() {
    let preset = presets::find("vllm:offload-region/cpu-offload/bf16").unwrap();
    let shape = preset.shape.clone().unwrap();
    let layout = preset.example().unwrap();
    assert_eq!(layout.pieces()[0].offset(), 512);
    let error = preset
        .resolve(&shape.with_num_blocks(9).unwrap(), 1)
        .unwrap_err();
    let expected = PresetError::OneShape {
        name: preset.name.clone(),
    };
    assert_eq!(error, expected.into());
}

#[test]
fn units_of_quantised_rows_add_up() {
    let bytes = |name: &str| {
        let shape = presets::find(name).unwrap().shape.clone().unwrap();
        shape.block_bytes().unwrap() / shape.num_layers() / shape.page_size()
    };
    assert_eq!(bytes("vllm:mla/flashmla-sparse/fp8_ds_mla"), 656);
    assert_eq!(bytes("vllm:indexer/flashmla-sparse/fp8"), 132);
    assert_eq!(bytes("llama.cpp:flash-attention/any/q8_0"), 2 * 2 * 2 * 34);
    assert_eq!(bytes("llama.cpp:flash-attention/any/q4_0"), 2 * 2 * 2 * 18);
    let named = presets::find("vllm:mla-v4/flashmla-sparse/fp8").unwrap();
    for region in named.example().unwrap().region_bytes() {
        assert_eq!(region % 576, 0);
    }
    let (one, two) = ("vllm:mla/mla/bf16", "vllm:mla-split/mla/bf16");
    assert_eq!(bytes(one), bytes(two));
}
