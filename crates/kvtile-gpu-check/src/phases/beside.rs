//! A kernel that copies rows inside the device on all multiprocessors, alone and beside transfers of the other queue.
//!
//! It represents work that needs all bandwidth of the device's memory, not matrix products.

use std::time::{Duration, Instant};

use super::{PhaseContext, ceilings};
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    measure::RoundSpread,
    rig::{BufferPlace, PreparedCopies, PreparedProgram, Rig, RigQueueName, RigRegion},
};

const KERNEL: RigQueueName = RigQueueName::First;
const TRANSFER: RigQueueName = RigQueueName::Second;
/// Blocks of a kernel that reaches the host.
const BLOCKS: u32 = 4;

/// What runs beside the kernel.
enum Neighbour {
    Nothing,
    Copy(PreparedCopies),
    Kernel(PreparedProgram),
}

impl Neighbour {
    fn enqueue(&self, rig: &Rig) -> Result<(), GpuCheckError> {
        match self {
            Neighbour::Nothing => Ok(()),
            Neighbour::Copy(copies) => rig.copy_each(TRANSFER, copies),
            Neighbour::Kernel(program) => rig.launch(TRANSFER, program, BLOCKS),
        }
    }

    fn route(&self) -> Option<MeasuredRoute> {
        match self {
            Neighbour::Nothing => None,
            Neighbour::Copy(_) => Some(MeasuredRoute::Copy),
            Neighbour::Kernel(_) => Some(MeasuredRoute::Kernel),
        }
    }
}

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let bytes = context.fitting(context.settings.largest_bytes, 4)?;
    let device = || rig.buffer(BufferPlace::Device, bytes);
    let (from, to, other) = (device()?, device()?, device()?);
    let host = rig.buffer(BufferPlace::Host, bytes)?;
    let whole = RigRegion::whole;
    let kernel = ceilings::rows(rig, &whole(&from), &whole(&to), bytes)?;
    let neighbours = [
        (None, Neighbour::Nothing),
        (
            Some(MeasuredDirection::HostToDevice),
            Neighbour::Copy(PreparedCopies::whole(&other, &host, bytes)?),
        ),
        (
            Some(MeasuredDirection::DeviceToHost),
            Neighbour::Copy(PreparedCopies::whole(&host, &other, bytes)?),
        ),
        (
            Some(MeasuredDirection::HostToDevice),
            Neighbour::Kernel(ceilings::rows(rig, &whole(&host), &whole(&other), bytes)?),
        ),
        (
            Some(MeasuredDirection::DeviceToHost),
            Neighbour::Kernel(ceilings::rows(rig, &whole(&other), &whole(&host), bytes)?),
        ),
    ];
    context.planned = neighbours.len();
    let mut alone = None;
    for (direction, neighbour) in &neighbours {
        if context.is_over() {
            break;
        }
        let seconds = rounds(context, &kernel, neighbour)?;
        let title = match neighbour {
            Neighbour::Nothing => "a kernel that copies rows, alone",
            _ => "this kernel beside a transfer",
        };
        let first = *alone.get_or_insert(seconds.median);
        let figure = CheckFigure::of(context.phase, title, seconds);
        context.add(CheckFigure {
            direction: *direction,
            route: neighbour.route(),
            blocks: matches!(neighbour, Neighbour::Kernel(_)).then_some(BLOCKS),
            ratio: (seconds.median > 0.0).then(|| first / seconds.median),
            ..figure
        });
    }
    Ok(())
}

/// Times of the kernel, each while the neighbour runs. The kernel is repeated for about half of the neighbour's time,
/// so that it ends first.
fn rounds(
    context: &PhaseContext<'_>,
    kernel: &PreparedProgram,
    neighbour: &Neighbour,
) -> Result<RoundSpread, GpuCheckError> {
    let rig = context.rig;
    let grid = ceilings::full_grid(rig)?;
    let timed = |work: &dyn Fn() -> Result<(), GpuCheckError>| -> Result<Duration, GpuCheckError> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    };
    let other = timed(&|| {
        neighbour.enqueue(rig)?;
        rig.synchronize(TRANSFER)
    })?;
    let launch = || {
        rig.launch(KERNEL, kernel, grid)?;
        rig.synchronize(KERNEL)
    };
    // The first launch is slower.
    launch()?;
    let once = timed(&launch)?;
    let repeats = match neighbour {
        // About as many as beside a transfer, because the wait at the end is divided among them.
        Neighbour::Nothing => 16,
        _ => (other.as_nanos() / 2) / once.as_nanos().max(1),
    };
    let repeats = u32::try_from(repeats).unwrap_or(u32::MAX).clamp(1, 100);
    let mut times = Vec::new();
    for _ in 0..context.settings.rounds.max(1) {
        neighbour.enqueue(rig)?;
        let time = timed(&|| {
            for _ in 0..repeats {
                rig.launch(KERNEL, kernel, grid)?;
            }
            rig.synchronize(KERNEL)
        })?;
        rig.idle()?;
        times.push(time.as_secs_f64() / f64::from(repeats));
        if Instant::now() >= context.deadline {
            break;
        }
    }
    Ok(RoundSpread::of(times, repeats))
}
