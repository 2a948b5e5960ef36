//! Every known layout through the kernels' text, to one dense region and back, byte for byte.

use kvtile_layout::{
    CopyPlan, Selection, StridedLayout,
    presets::{self, Preset, PresetLayout},
};
use kvtile_testkit::{Image, NaiveSelection, ReferenceLayout, naive_copy};

use crate::run::{DevicePlacement, run_plan};

/// Copies all blocks from one side to the other and compares with the naive copy.
fn copy(source: &StridedLayout, from: &Image, destination: &StridedLayout, to: &Image) -> Image {
    let shape = source.shape();
    let blocks: Vec<u64> = (0..shape.num_blocks()).collect();
    let selection = Selection::blocks(&blocks, &blocks, shape.page_size()).unwrap();
    let plan = CopyPlan::new(source, destination, &selection).unwrap();
    let mut expected = to.clone();
    let everything = NaiveSelection::everything(shape);
    let reference = |layout| ReferenceLayout::from_strided(layout).unwrap();
    naive_copy(
        &reference(source),
        from,
        &reference(destination),
        &mut expected,
        &everything,
    )
    .unwrap();
    let done = run_plan(&plan, from, to, DevicePlacement::ALIGNED);
    assert!(done.destination == expected, "{plan}");
    done.destination
}

fn round_trip(preset: &Preset) {
    let engine = preset.example().unwrap();
    let dense = StridedLayout::canonical(engine.shape()).unwrap();
    let reference = ReferenceLayout::from_strided(&engine).unwrap();
    let between = ReferenceLayout::from_strided(&dense).unwrap();
    let from = reference.filled(3).unwrap();
    let stored = copy(&engine, &from, &dense, &between.poisoned().unwrap());
    let back = copy(&dense, &stored, &engine, &reference.poisoned().unwrap());
    assert!(back == from, "{}", preset.name);
}

#[test]
fn every_known_layout_survives_the_way_through_the_kernels() {
    let known = presets::all().unwrap().iter();
    let mut on_devices = 0;
    for preset in known.filter(|preset| !matches!(preset.layout, PresetLayout::Refused(_))) {
        on_devices += u32::from(preset.name.contains("/gpu/"));
        round_trip(preset);
    }
    assert!(on_devices >= 25, "{on_devices}");
}
