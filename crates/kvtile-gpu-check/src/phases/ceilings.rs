//! The fastest copies of the machine, which all ratios refer to, and the least that work on a device costs.

use kvtile_kernels::MOVE_PTX;
use kvtile_layout::{CopyPlan, Selection};

use super::PhaseContext;
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    goals::work,
    rig::{BufferPlace, PreparedCopies, PreparedProgram, Rig, RigQueueName, RigRegion},
};

const FIRST: RigQueueName = RigQueueName::First;

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    context.planned = 9;
    between(context)?;
    inside(context)?;
    fixed(context)
}

/// Between host and device: one way, the other way, both at once.
fn between(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let bytes = context.fitting(context.settings.largest_bytes, 2)?;
    let buffer = |place| rig.buffer(place, bytes);
    let (host, device) = (buffer(BufferPlace::Host)?, buffer(BufferPlace::Device)?);
    let load = PreparedCopies::whole(&device, &host, bytes)?;
    for (direction, copies) in [
        (MeasuredDirection::HostToDevice, &load),
        (
            MeasuredDirection::DeviceToHost,
            &PreparedCopies::whole(&host, &device, bytes)?,
        ),
    ] {
        let seconds = context.rounds().time(|| {
            rig.copy_each(FIRST, copies)?;
            rig.synchronize(FIRST)
        })?;
        let figure = CheckFigure::of(context.phase, work::ONE_COPY, seconds);
        context.add(figure.moved(bytes as u64, direction, MeasuredRoute::Copy));
    }
    let (from, to) = (buffer(BufferPlace::Device)?, buffer(BufferPlace::Host)?);
    let store = PreparedCopies::whole(&to, &from, bytes)?;
    let seconds = context.rounds().time(|| {
        rig.copy_each(FIRST, &load)?;
        rig.copy_each(RigQueueName::Second, &store)?;
        rig.idle()
    })?;
    let mut figure = CheckFigure::of(context.phase, work::BOTH_WAYS, seconds);
    figure.bytes = 2 * bytes as u64;
    let faster = [
        MeasuredDirection::HostToDevice,
        MeasuredDirection::DeviceToHost,
    ]
    .into_iter()
    .filter_map(|direction| context.ceiling(direction))
    .max_by(f64::total_cmp);
    figure.ratio = figure
        .bytes_per_second()
        .zip(faster)
        .map(|(rate, faster)| rate / faster);
    context.add(figure);
    Ok(())
}

/// Inside the device: the driver's copy, and a kernel that copies rows without permuting.
fn inside(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let bytes = context.fitting(context.settings.inside_bytes, 2)?;
    let buffer = || rig.buffer(BufferPlace::Device, bytes);
    let (from, to) = (buffer()?, buffer()?);
    let copies = PreparedCopies::whole(&to, &from, bytes)?;
    let seconds = context.rounds().time(|| {
        rig.copy_each(FIRST, &copies)?;
        rig.synchronize(FIRST)
    })?;
    let figure = CheckFigure::of(context.phase, work::ONE_COPY, seconds);
    context.add(figure.moved(bytes as u64, MeasuredDirection::Inside, MeasuredRoute::Copy));
    // The kernel's share is a quarter: an interpreter in place of a device takes long.
    let program = rows(
        rig,
        &RigRegion::whole(&from),
        &RigRegion::whole(&to),
        bytes / 4,
    )?;
    let blocks = full_grid(rig)?;
    let seconds = context.rounds().time(|| {
        rig.launch(FIRST, &program, blocks)?;
        rig.synchronize(FIRST)
    })?;
    let figure = CheckFigure::of(context.phase, work::ROWS, seconds);
    let mut figure = figure.moved(
        program.bytes(),
        MeasuredDirection::Inside,
        MeasuredRoute::Kernel,
    );
    figure.blocks = Some(blocks);
    context.add(figure);
    Ok(())
}

/// What work costs that moves nothing to speak of.
fn fixed(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let buffer = || rig.buffer(BufferPlace::Device, 4096);
    let (from, to) = (buffer()?, buffer()?);
    let program = rows(rig, &RigRegion::whole(&from), &RigRegion::whole(&to), 4096)?;
    let seconds = context.rounds().time(|| {
        rig.launch(FIRST, &program, 1)?;
        rig.synchronize(FIRST)
    })?;
    context.add(CheckFigure::of(context.phase, work::LAUNCH, seconds));
    let seconds = context.rounds().time(|| rig.launch(FIRST, &program, 1))?;
    rig.idle()?;
    context.add(CheckFigure::of(context.phase, work::LAUNCH_CALL, seconds));
    let seconds = context.rounds().time(|| Ok(rig.record(FIRST)?.wait()?))?;
    context.add(CheckFigure::of(context.phase, work::EVENT, seconds));
    let device = rig.device();
    let once = super::RoundSettings {
        rounds: 3,
        shortest: std::time::Duration::ZERO,
        ..context.rounds()
    };
    let seconds = once.time(|| {
        let _module = device.load_module(MOVE_PTX)?;
        Ok(())
    })?;
    context.add(CheckFigure::of(context.phase, work::COMPILE, seconds));
    Ok(())
}

/// A program that copies the first bytes of a region as one run.
pub(super) fn rows(
    rig: &Rig,
    from: &RigRegion,
    to: &RigRegion,
    bytes: usize,
) -> Result<PreparedProgram, GpuCheckError> {
    let layout = super::plans::run_blocks(1, bytes)?;
    let plan = CopyPlan::new(&layout, &layout, &Selection::blocks(&[0], &[0], 1)?)?;
    rig.program(&plan, std::slice::from_ref(from), std::slice::from_ref(to))
}

/// As many blocks as all multiprocessors hold at once.
pub(super) fn full_grid(rig: &Rig) -> Result<u32, GpuCheckError> {
    let kernel = kvtile_kernels::MoveKernel::ALL.into_iter().next();
    let blocks = match kernel {
        Some(kernel) => rig.kernel(kernel)?.blocks_per_multiprocessor(256, 0)?,
        None => 1,
    };
    let multiprocessors = rig.device().description().multiprocessors;
    Ok(blocks.max(1).saturating_mul(multiprocessors.max(1)))
}
