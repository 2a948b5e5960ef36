//! Runs of many sizes and numbers, between dense blocks of the host and scattered ones of the device, by every route.

use kvtile_device::SourceOrder;

use super::{
    PhaseContext,
    plans::{ScatteredRuns, copies_of, regions_in, room_of},
};
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    goals::work,
    rig::{BufferPlace, PreparedCopies, PreparedProgram, Rig, RigBuffer, RigQueueName},
};

/// Numbers of runs, the most telling first: a phase may be cut short.
const PIECES: [usize; 4] = [256, 4096, 65_536, 16];
/// Beyond so many runs, copying them one by one takes too long to measure.
const LOOP_MAX: usize = 4096;
const RUN_BYTES_MIN: usize = 256;
const RUN_BYTES_MAX: usize = 2 << 20;
/// Blocks of kernels that reach the host.
const BLOCKS: [u32; 5] = [4, 8, 2, 12, 1];
const QUEUE: RigQueueName = RigQueueName::First;
const WAYS: [MeasuredDirection; 2] = [
    MeasuredDirection::HostToDevice,
    MeasuredDirection::DeviceToHost,
];

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    // The scattered blocks take twice the bytes, and the slot once.
    let largest = context.fitting(context.settings.largest_bytes, 4)?;
    let rig = context.rig;
    let buffers = SweepBuffers {
        host: rig.buffer(BufferPlace::Host, largest)?,
        device: rig.buffer(BufferPlace::Device, 2 * largest)?,
        slot: rig.buffer(BufferPlace::Device, largest)?,
    };
    let cells: Vec<(usize, usize)> = PIECES
        .into_iter()
        .flat_map(|pieces| run_sizes().map(move |run| (pieces, run)))
        .filter(|(pieces, run)| pieces * run <= largest)
        .collect();
    let of_cell = |(pieces, _): &(usize, usize)| -> usize {
        WAYS.map(|way| routes(way, *pieces).len()).iter().sum()
    };
    context.planned = cells.iter().map(of_cell).sum();
    let blocks = super::ceilings::full_grid(rig)?;
    for (pieces, run_bytes) in cells {
        let runs = ScatteredRuns::new(pieces, run_bytes, context.settings.seed)?;
        for direction in WAYS {
            let mut cell = SweepCell::new(rig, &buffers, &runs, direction, blocks)?;
            for (route, blocks) in routes(direction, pieces) {
                if context.is_over() {
                    return Ok(());
                }
                let seconds = context.rounds().time(|| {
                    cell.enqueue(rig, route, blocks)?;
                    rig.synchronize(QUEUE)
                })?;
                let figure = CheckFigure::of(context.phase, work::RUNS, seconds);
                let figure = figure.moved((pieces * run_bytes) as u64, direction, route);
                context.add(CheckFigure {
                    blocks,
                    run_bytes: Some(run_bytes as u64),
                    pieces: Some(pieces as u64),
                    ..figure
                });
            }
        }
    }
    // All cells are measured.
    Ok(())
}

/// Sizes of runs, each twice the one before.
fn run_sizes() -> impl Iterator<Item = usize> {
    let doubled = std::iter::successors(Some(RUN_BYTES_MIN), |run| Some(2 * run));
    doubled.take_while(|run| *run <= RUN_BYTES_MAX)
}

/// Routes of a direction, kernels with their blocks.
fn routes(direction: MeasuredDirection, pieces: usize) -> Vec<(MeasuredRoute, Option<u32>)> {
    let mut routes = vec![(MeasuredRoute::Staged, None), (MeasuredRoute::Batch, None)];
    if direction == MeasuredDirection::HostToDevice {
        routes.push((MeasuredRoute::BatchAny, None));
    }
    routes.extend(BLOCKS.map(|blocks| (MeasuredRoute::Kernel, Some(blocks))));
    if pieces <= LOOP_MAX {
        routes.push((MeasuredRoute::Loop, None));
    }
    routes
}

struct SweepBuffers {
    host: RigBuffer,
    device: RigBuffer,
    /// Where staged transfers are dense on the device.
    slot: RigBuffer,
}

/// One size in one direction, prepared for all routes.
struct SweepCell {
    direction: MeasuredDirection,
    runs: PreparedCopies,
    whole: PreparedCopies,
    staged: PreparedProgram,
    direct: PreparedProgram,
    blocks: u32,
}

impl SweepCell {
    fn new(
        rig: &Rig,
        buffers: &SweepBuffers,
        runs: &ScatteredRuns,
        direction: MeasuredDirection,
        blocks: u32,
    ) -> Result<SweepCell, GpuCheckError> {
        let device = regions_in(&buffers.device, &runs.scattered);
        let host = regions_in(&buffers.host, &runs.dense);
        let slot = regions_in(&buffers.slot, &runs.dense);
        let bytes = room_of(&runs.dense);
        let is_load = direction == MeasuredDirection::HostToDevice;
        let (plan, from, to) = match is_load {
            true => (&runs.load, &host, &device),
            false => (&runs.store, &device, &host),
        };
        let (from_buffer, to_buffer) = match is_load {
            true => (&buffers.host, &buffers.device),
            false => (&buffers.device, &buffers.host),
        };
        Ok(SweepCell {
            direction,
            runs: PreparedCopies::new(to_buffer, from_buffer, &copies_of(plan, from, to))?,
            whole: match is_load {
                true => PreparedCopies::whole(&buffers.slot, &buffers.host, bytes)?,
                false => PreparedCopies::whole(&buffers.host, &buffers.slot, bytes)?,
            },
            staged: match is_load {
                true => rig.program(plan, &slot, to)?,
                false => rig.program(plan, from, &slot)?,
            },
            direct: rig.program(plan, from, to)?,
            blocks,
        })
    }

    fn enqueue(
        &mut self,
        rig: &Rig,
        route: MeasuredRoute,
        blocks: Option<u32>,
    ) -> Result<(), GpuCheckError> {
        match route {
            MeasuredRoute::Loop => rig.copy_each(QUEUE, &self.runs),
            MeasuredRoute::Batch => rig.copy_batch(QUEUE, &mut self.runs, SourceOrder::Queue),
            MeasuredRoute::BatchAny => rig.copy_batch(QUEUE, &mut self.runs, SourceOrder::Any),
            MeasuredRoute::Kernel => rig.launch(QUEUE, &self.direct, blocks.unwrap_or(1)),
            MeasuredRoute::Staged if self.direction == MeasuredDirection::HostToDevice => {
                rig.copy_each(QUEUE, &self.whole)?;
                rig.launch(QUEUE, &self.staged, self.blocks)
            }
            MeasuredRoute::Staged => {
                rig.launch(QUEUE, &self.staged, self.blocks)?;
                rig.copy_each(QUEUE, &self.whole)
            }
            MeasuredRoute::Copy | MeasuredRoute::Manager => rig.copy_each(QUEUE, &self.whole),
        }
    }
}
