//! What transfers cost the caller, when the first layer is there, and what pinned memory costs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_bench::machine::MachineFacts;
use kvtile_device::{RegisterOptions, RegisteredMemory, SourceOrder};
use kvtile_layout::{CopyPlan, CopyPlanner, PlanSettings, Selection, Shape, StridedLayout};
use kvtile_random::SplitMix64;

use super::{
    PhaseContext,
    plans::{copies_of, regions_in, room_of},
};
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    goals::work,
    measure::RoundSpread,
    rig::{BufferPlace, CopyRange, PreparedCopies, Rig, RigBuffer, RigQueueName},
};

const QUEUE: RigQueueName = RigQueueName::First;
/// Bytes of a small transfer.
const SMALL_BYTES: usize = 4096;
/// Threads that touch memory before it is registered; 0 means all processors.
const THREADS: [usize; 4] = [0, 1, 8, 16];

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    context.planned = 6 + 2 + THREADS.len();
    let prefix = Prefix::new(context)?;
    enqueueing(context, &prefix)?;
    by_layers(context, &prefix)?;
    small_transfers(context)?;
    pinned_memory(context)
}

/// 64 blocks of 32 layers, of an engine with a region for each layer, and in dense blocks of the host; fewer and smaller
/// ones where everything is small.
struct Prefix {
    engine: StridedLayout,
    pool: StridedLayout,
    selection: Selection,
    device: RigBuffer,
    slot: RigBuffer,
    host: RigBuffer,
}

impl Prefix {
    fn new(context: &PhaseContext<'_>) -> Result<Prefix, GpuCheckError> {
        let largest = context.fitting(context.settings.largest_bytes, 3)?;
        let (blocks, layers, heads) = match largest {
            ..0x80_0000 => (4, 4, 1),
            0x80_0000..0x800_0000 => (16, 8, 8),
            _ => (64, 32, 8),
        };
        let shape = Shape::key_value(blocks, layers, 16, heads, 128, "bf16")?;
        let layout = |word: &str| StridedLayout::resolve(&word.parse()?, &shape, 1);
        let (engine, pool) = (layout("L|KBNHC")?, layout("BLKNHC")?);
        let all: Vec<u64> = (0..blocks).collect();
        let order = SplitMix64::new(context.settings.seed).order(all.len());
        let order: Vec<u64> = order.into_iter().map(|block| block as u64).collect();
        let rig = context.rig;
        Ok(Prefix {
            selection: Selection::blocks(&order, &all, 16)?,
            device: rig.buffer(BufferPlace::Device, room_of(&engine))?,
            slot: rig.buffer(BufferPlace::Device, room_of(&pool))?,
            host: rig.buffer(BufferPlace::Host, room_of(&pool))?,
            engine,
            pool,
        })
    }
}

/// The time of calls alone: what they enqueue is awaited outside of it.
fn calls(
    context: &PhaseContext<'_>,
    mut call: impl FnMut() -> Result<(), GpuCheckError>,
) -> Result<RoundSpread, GpuCheckError> {
    let mut times = Vec::new();
    for round in 0..=context.settings.rounds.max(1) {
        let start = Instant::now();
        call()?;
        let time = start.elapsed();
        context.rig.idle()?;
        // The first call is the warm-up.
        if round > 0 {
            times.push(time.as_secs_f64());
        }
    }
    Ok(RoundSpread::of(times, 1))
}

/// Planning, and the calls of a store by batch and by way of a slot.
fn enqueueing(context: &mut PhaseContext<'_>, prefix: &Prefix) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let plan = || CopyPlan::new(&prefix.engine, &prefix.pool, &prefix.selection);
    let seconds = calls(context, || {
        let _plan = plan()?;
        Ok(())
    })?;
    let plan = plan()?;
    let add = |context: &mut PhaseContext<'_>, title: &str, seconds, route| {
        let figure = CheckFigure::of(context.phase, title, seconds);
        context.add(CheckFigure {
            route,
            direction: Some(MeasuredDirection::DeviceToHost),
            run_bytes: Some(plan.run_bytes().0),
            pieces: Some(plan.runs()),
            ..figure
        });
    };
    add(context, "planning the blocks of a prefix", seconds, None);
    let (device, host) = (
        regions_in(&prefix.device, &prefix.engine),
        regions_in(&prefix.host, &prefix.pool),
    );
    let copies = copies_of(&plan, &device, &host);
    let mut batch = PreparedCopies::new(&prefix.host, &prefix.device, &copies)?;
    let seconds = calls(context, || {
        rig.copy_batch(QUEUE, &mut batch, SourceOrder::Queue)
    })?;
    add(context, work::ENQUEUE, seconds, Some(MeasuredRoute::Batch));
    let slot = regions_in(&prefix.slot, &prefix.pool);
    let program = rig.program(&plan, &device, &slot)?;
    let whole = PreparedCopies::whole(&prefix.host, &prefix.slot, room_of(&prefix.pool))?;
    let grid = super::ceilings::full_grid(rig)?;
    let seconds = calls(context, || {
        rig.launch(QUEUE, &program, grid)?;
        rig.copy_each(QUEUE, &whole)
    })?;
    add(context, work::ENQUEUE, seconds, Some(MeasuredRoute::Staged));
    Ok(())
}

/// A load with a mark behind each layer: when the first is passed, and when all are.
fn by_layers(context: &mut PhaseContext<'_>, prefix: &Prefix) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let mut planner = CopyPlanner::new(
        Arc::new(prefix.pool.clone()),
        Arc::new(prefix.engine.clone()),
        PlanSettings::new(),
    )?;
    let pairs = prefix.selection.pairs.iter().map(|pair| {
        let mut pair = *pair;
        std::mem::swap(&mut pair.source_block, &mut pair.destination_block);
        pair
    });
    let plans = planner.plan_layers(pairs)?;
    let (host, device) = (
        regions_in(&prefix.host, &prefix.pool),
        regions_in(&prefix.device, &prefix.engine),
    );
    let mut layers = Vec::new();
    for plan in plans.iter() {
        let copies = copies_of(&plan, &host, &device);
        layers.push(PreparedCopies::new(&prefix.device, &prefix.host, &copies)?);
    }
    let (mut first, mut whole) = (Vec::new(), Vec::new());
    for round in 0..=context.settings.rounds.max(1) {
        let (begun, ended) = load_layers(rig, &mut layers)?;
        if round > 0 {
            first.push(begun.as_secs_f64());
            whole.push(ended.as_secs_f64());
        }
    }
    let layer_bytes = plans.bytes() / plans.layers().max(1);
    for (title, times, bytes) in [
        (work::FIRST_LAYER, first, layer_bytes),
        (work::WHOLE_BY_LAYERS, whole, plans.bytes()),
    ] {
        let figure = CheckFigure::of(context.phase, title, RoundSpread::of(times, 1));
        context.add(figure.moved(
            bytes,
            MeasuredDirection::HostToDevice,
            MeasuredRoute::BatchAny,
        ));
    }
    Ok(())
}

fn load_layers(
    rig: &Rig,
    layers: &mut [PreparedCopies],
) -> Result<(Duration, Duration), GpuCheckError> {
    let start = Instant::now();
    let mut behind_first = None;
    let mut first = None;
    for layer in layers {
        rig.copy_batch(QUEUE, layer, SourceOrder::Any)?;
        let behind = rig.record(QUEUE)?;
        // The first layer may arrive while later ones are enqueued.
        let mark = behind_first.get_or_insert(behind);
        if first.is_none() && mark.is_passed()? {
            first = Some(start.elapsed());
        }
    }
    if let (None, Some(mark)) = (first, &behind_first) {
        mark.wait()?;
    }
    let first = first.unwrap_or_else(|| start.elapsed());
    rig.synchronize(QUEUE)?;
    Ok((first, start.elapsed()))
}

/// Many small transfers, a call each.
fn small_transfers(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let count = (context.settings.largest_bytes / SMALL_BYTES).clamp(4, 10_000);
    let bytes = count * SMALL_BYTES;
    let host = rig.buffer(BufferPlace::Host, bytes)?;
    let device = rig.buffer(BufferPlace::Device, bytes)?;
    let copies: Vec<CopyRange> = (0..count)
        .map(|index| CopyRange {
            to: index * SMALL_BYTES,
            from: (count - 1 - index) * SMALL_BYTES,
            bytes: SMALL_BYTES,
        })
        .collect();
    let copies = PreparedCopies::new(&device, &host, &copies)?;
    let seconds = context.rounds().time(|| {
        rig.copy_each(QUEUE, &copies)?;
        rig.synchronize(QUEUE)
    })?;
    let title = format!("{count} transfers of {SMALL_BYTES} bytes");
    let figure = CheckFigure::of(context.phase, title, seconds);
    let figure = figure.moved(
        bytes as u64,
        MeasuredDirection::HostToDevice,
        MeasuredRoute::Loop,
    );
    context.add(CheckFigure {
        run_bytes: Some(SMALL_BYTES as u64),
        pieces: Some(count as u64),
        ..figure
    });
    Ok(())
}

/// Pinned memory, by registration and by the driver. It takes seconds, so each is done once.
fn pinned_memory(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let available = MachineFacts::available_bytes().unwrap_or(0);
    let available = usize::try_from(available).unwrap_or(usize::MAX) / 4;
    let bytes = context
        .settings
        .pinned_bytes
        .min(available.max(SMALL_BYTES));
    let add = |context: &mut PhaseContext<'_>, title: String, start: Instant| {
        let seconds = RoundSpread::of(vec![start.elapsed().as_secs_f64()], 1);
        let mut figure = CheckFigure::of(context.phase, title, seconds);
        figure.bytes = bytes as u64;
        context.add(figure);
    };
    let rig = context.rig;
    for threads in THREADS {
        if context.is_over() {
            return Ok(());
        }
        let options = RegisterOptions {
            threads,
            ..RegisterOptions::default()
        };
        let start = Instant::now();
        let memory = RegisteredMemory::allocate(rig.device(), bytes, options, |_| {})?;
        let title = match threads {
            0 => work::REGISTER.to_owned(),
            _ => format!("{}, {threads} threads", work::REGISTER),
        };
        add(context, title, start);
        drop(memory);
    }
    let start = Instant::now();
    let memory = rig.buffer(BufferPlace::Host, bytes)?;
    add(context, work::ALLOCATE.to_owned(), start);
    let chunk = vec![0xa5; bytes.min(1 << 20)];
    let start = Instant::now();
    let mut at = 0;
    while at < bytes {
        let part = chunk.get(..chunk.len().min(bytes - at)).unwrap_or(&chunk);
        rig.write(&memory, at, part)?;
        at += part.len();
    }
    add(context, work::TOUCH.to_owned(), start);
    Ok(())
}
