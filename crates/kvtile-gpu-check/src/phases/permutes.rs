//! Permutations between layouts of engines: on the device, and staged between host and device, beside the counts that
//! the interpreter makes of the same kernels.

use kvtile_kernels::{MOVE_PTX, MoveRegion, lower};
use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit};
use kvtile_ptx::{PtxAccessCounts, PtxCounts, PtxLaunch, PtxModule, PtxRanges};
use kvtile_random::SplitMix64;

use super::{
    PhaseContext,
    plans::{regions_in, room_of},
};
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, CountedKernels, MeasuredDirection, MeasuredRoute},
    goals::work,
    rig::{BufferPlace, PreparedCopies, RigQueueName},
};

const QUEUE: RigQueueName = RigQueueName::First;

/// Two layouts, and the class of goals that a copy between them belongs to.
struct PermutedPair {
    class: &'static str,
    from: &'static str,
    to: &'static str,
    element: u64,
}

const fn pair(
    class: &'static str,
    from: &'static str,
    to: &'static str,
    element: u64,
) -> PermutedPair {
    PermutedPair {
        class,
        from,
        to,
        element,
    }
}

/// The pairs of the kernels' table in `docs/devices.md`, those with goals first.
const PAIRS: [PermutedPair; 10] = [
    pair(work::PERMUTE_ROWS, "L|KBNHC", "BLKHNC", 2),
    pair(work::PERMUTE_ROWS, "BLKHNC", "L|BKNHC", 2),
    pair(work::PERMUTE_ELEMENTS, "BLKNHC", "L|BH(kCN,vNC)", 2),
    pair(work::PERMUTE_ELEMENTS, "L|BH(kCN,vNC)", "BLKNHC", 2),
    pair(work::PERMUTE_TILES, "L|KBHCNC8", "BLKNHC", 2),
    pair(work::PERMUTE_TILES, "BLKNHC", "L|KBHCNC8", 2),
    pair(work::PERMUTE_ROWS, "L|KBNHC", "BLKNHC", 2),
    pair("transpose of 1 byte", "L|BH(kCN,vNC)", "BLKNHC", 1),
    pair("transpose of 1 byte", "BLKNHC", "L|BH(kCN,vNC)", 1),
    pair("transpose of 4 bytes", "BLKNHC", "L|BH(kCN,vNC)", 4),
];

/// Sizes of a model: 8 heads, fewer where everything is small.
#[derive(Clone, Copy)]
struct PermutedSizes {
    blocks: u64,
    layers: u64,
    heads: u64,
}

impl PermutedPair {
    fn layouts(
        &self,
        sizes: PermutedSizes,
    ) -> Result<(StridedLayout, StridedLayout), GpuCheckError> {
        let unit = Unit::raw(self.element)?;
        let shape = Shape::key_value(sizes.blocks, sizes.layers, 16, sizes.heads, 128, unit)?;
        let layout = |word: &str| StridedLayout::resolve(&word.parse()?, &shape, 1);
        Ok((layout(self.from)?, layout(self.to)?))
    }

    fn title(&self) -> String {
        let (class, from, to) = (self.class, self.from, self.to);
        format!("{class}: {from} → {to}, {} bytes", self.element)
    }
}

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let largest = context.fitting(context.settings.largest_bytes, 3)?;
    let heads = if largest < 1 << 20 { 2 } else { 8 };
    context.planned = PAIRS.len() * MeasuredDirection::ALL.len();
    let kernels = PtxModule::parse(MOVE_PTX)?;
    for pair in &PAIRS {
        if context.is_over() {
            break;
        }
        let counts = pair.count(&kernels, heads)?;
        let layer_bytes = 2 * 16 * heads * 128 * pair.element;
        let layers = (largest as u64 / layer_bytes).clamp(1, 8);
        let sizes = PermutedSizes {
            blocks: (largest as u64 / (layers * layer_bytes)).max(1),
            layers,
            heads,
        };
        measure(context, pair, sizes, counts)?;
    }
    Ok(())
}

/// All blocks, in random order: in the device, from the host, to the host.
fn measure(
    context: &mut PhaseContext<'_>,
    pair: &PermutedPair,
    sizes: PermutedSizes,
    counts: CountedKernels,
) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let (source, destination) = pair.layouts(sizes)?;
    let blocks: Vec<u64> = (0..sizes.blocks).collect();
    let order = SplitMix64::new(context.settings.seed).order(blocks.len());
    let order: Vec<u64> = order.into_iter().map(|block| block as u64).collect();
    let selection = Selection::blocks(&blocks, &order, 16)?;
    let plan = CopyPlan::new(&source, &destination, &selection)?;
    let (from_bytes, to_bytes) = (room_of(&source), room_of(&destination));
    let from = rig.buffer(BufferPlace::Device, from_bytes)?;
    let to = rig.buffer(BufferPlace::Device, to_bytes)?;
    let host = rig.buffer(BufferPlace::Host, from_bytes.max(to_bytes))?;
    let program = rig.program(
        &plan,
        &regions_in(&from, &source),
        &regions_in(&to, &destination),
    )?;
    let load = PreparedCopies::whole(&from, &host, from_bytes)?;
    let store = PreparedCopies::whole(&host, &to, to_bytes)?;
    let grid = super::ceilings::full_grid(rig)?;
    for direction in [
        MeasuredDirection::Inside,
        MeasuredDirection::DeviceToHost,
        MeasuredDirection::HostToDevice,
    ] {
        let seconds = context.rounds().time(|| {
            if direction == MeasuredDirection::HostToDevice {
                rig.copy_each(QUEUE, &load)?;
            }
            rig.launch(QUEUE, &program, grid)?;
            if direction == MeasuredDirection::DeviceToHost {
                rig.copy_each(QUEUE, &store)?;
            }
            rig.synchronize(QUEUE)
        })?;
        let route = match direction {
            MeasuredDirection::Inside => MeasuredRoute::Kernel,
            _ => MeasuredRoute::Staged,
        };
        let title = format!("{} ({})", pair.title(), program.kernels().join(", "));
        let figure = CheckFigure::of(context.phase, title, seconds);
        context.add(CheckFigure {
            counts: Some(counts),
            ..figure.moved(plan.bytes(), direction, route)
        });
    }
    Ok(())
}

impl PermutedPair {
    /// The counts of two of four blocks of two layers, as the gates of the kernels count them.
    fn count(&self, kernels: &PtxModule, heads: u64) -> Result<CountedKernels, GpuCheckError> {
        let sizes = PermutedSizes {
            blocks: 4,
            layers: 2,
            heads,
        };
        let (source, destination) = self.layouts(sizes)?;
        let selection = Selection::blocks(&[3, 1], &[0, 2], 16)?;
        let plan = CopyPlan::new(&source, &destination, &selection)?;
        // Regions are far apart, and none begins where another one ends.
        let regions = |start: u64, layout: &StridedLayout| -> Vec<MoveRegion> {
            let starts = (0u64..).map(|region| start + (region << 24));
            let regions = starts.zip(layout.region_bytes());
            regions
                .map(|(address, &bytes)| MoveRegion { address, bytes })
                .collect()
        };
        const TABLES: u64 = 0x7e00_0000_0000;
        let from = regions(0x7f00_0000_0000, &source);
        let to = regions(0x7d00_0000_0000, &destination);
        let program = lower(&plan, &from, &to)?;
        let mut memory = PtxRanges::new();
        let empty = |region: &MoveRegion| vec![0; super::plans::to_usize(region.bytes)];
        for region in &from {
            memory = memory.readable(region.address, empty(region));
        }
        for region in &to {
            memory = memory.writable(region.address, empty(region));
        }
        let words = program.tables().iter().flat_map(|word| word.to_le_bytes());
        memory = memory.readable(TABLES, words.collect());
        let mut counts = PtxCounts::default();
        for launch in program.launches() {
            let launched = kernels.launch(
                &PtxLaunch {
                    kernel: launch.kernel().name(),
                    blocks: launch.blocks(4),
                    threads: launch.threads(),
                    shared_bytes: 0,
                    parameters: launch.parameters(TABLES).as_bytes(),
                    instructions_max: 1 << 28,
                },
                &mut memory,
            );
            counts.add(&launched?.counts);
        }
        Ok(counted(&counts, plan.bytes()))
    }
}

fn counted(counts: &PtxCounts, bytes: u64) -> CountedKernels {
    let ideal =
        |access: PtxAccessCounts| access.sectors_ideal as f64 / access.sectors.max(1) as f64;
    let shared = counts.shared;
    CountedKernels {
        instructions: counts.instructions as f64 / (bytes as f64 / 16.0),
        loads: ideal(counts.constant_loads),
        stores: ideal(counts.stores),
        passes: (shared.passes_ideal > 0)
            .then(|| shared.passes as f64 / shared.passes_ideal as f64),
    }
}
