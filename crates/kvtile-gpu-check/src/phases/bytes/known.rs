//! Every known layout, from an engine's memory to dense blocks and back.

use kvtile_layout::{
    CopyPlan, Selection, StridedLayout,
    presets::{self, Preset, PresetLayout},
};
use kvtile_testkit::{Image, NaiveSelection, ReferenceLayout, naive_copy};

use super::{ByteArena, ByteChecks, PlannedBytes, WAYS};
use crate::{error::GpuCheckError, figures::MeasuredDirection, phases::PhaseContext};

/// The layouts of devices first: the phase may be cut short.
fn presets(context: &PhaseContext<'_>) -> Result<Vec<&'static Preset>, GpuCheckError> {
    let known = presets::all()?.iter();
    let mut known: Vec<&Preset> = known
        .filter(|preset| !matches!(preset.layout, PresetLayout::Refused(_)))
        .collect();
    known.sort_by_key(|preset| !preset.name.contains("/gpu/"));
    known.truncate(usize::try_from(context.settings.layouts).unwrap_or(usize::MAX));
    Ok(known)
}

pub(super) fn parts(context: &PhaseContext<'_>) -> Result<usize, GpuCheckError> {
    Ok(presets(context)?.len())
}

pub(super) fn run(
    context: &mut PhaseContext<'_>,
    arena: &ByteArena<'_>,
) -> Result<(), GpuCheckError> {
    let mut checks = ByteChecks::new("known layouts", &WAYS);
    let mut ended = Ok(());
    for preset in presets(context)? {
        if context.is_over() {
            break;
        }
        ended = both_ways(preset, arena, &mut checks);
        if ended.is_err() {
            break;
        }
        context.done += 1;
    }
    checks.finish(context);
    ended
}

fn both_ways(
    preset: &Preset,
    arena: &ByteArena<'_>,
    checks: &mut ByteChecks,
) -> Result<(), GpuCheckError> {
    let engine = preset.example()?;
    let dense = StridedLayout::canonical(engine.shape())?;
    let (reference, between) = (
        ReferenceLayout::from_strided(&engine)?,
        ReferenceLayout::from_strided(&dense)?,
    );
    let from = reference.filled(3)?;
    let store = planned((&engine, &reference), from, (&dense, &between))?;
    let stored = store.expected.clone();
    // The engine's memory is the device's.
    let is_store = |way| way != MeasuredDirection::HostToDevice;
    checks.transfer(arena, &store, is_store, || preset.name.clone())?;
    let load = planned((&dense, &between), stored, (&engine, &reference))?;
    let is_load = |way| way != MeasuredDirection::DeviceToHost;
    checks.transfer(arena, &load, is_load, || format!("to {}", preset.name))
}

/// All blocks from one layout to the other.
fn planned(
    (source, from_units): (&StridedLayout, &ReferenceLayout),
    from: Image,
    (destination, to_units): (&StridedLayout, &ReferenceLayout),
) -> Result<PlannedBytes, GpuCheckError> {
    let shape = source.shape();
    let blocks: Vec<u64> = (0..shape.num_blocks()).collect();
    let selection = Selection::blocks(&blocks, &blocks, shape.page_size())?;
    let plan = CopyPlan::new(source, destination, &selection)?;
    let to = to_units.poisoned()?;
    let mut expected = to.clone();
    let everything = NaiveSelection::everything(shape);
    let _bytes = naive_copy(from_units, &from, to_units, &mut expected, &everything)?;
    Ok(PlannedBytes {
        plan,
        from,
        to,
        expected,
        odd: (0, 0),
    })
}
