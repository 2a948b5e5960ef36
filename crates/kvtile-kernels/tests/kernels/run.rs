//! Runs the program of a plan over images, with the interpreter in place of a device.

use std::sync::LazyLock;

use kvtile_kernels::{MOVE_PTX, MoveProgram, MoveRegion, lower};
use kvtile_layout::CopyPlan;
use kvtile_ptx::{PtxCounts, PtxLaunch, PtxLaunchError, PtxModule, PtxRanges};
use kvtile_testkit::Image;

pub(crate) static KERNELS: LazyLock<PtxModule> =
    LazyLock::new(|| PtxModule::parse(MOVE_PTX).unwrap());

/// The distance between regions: no region reaches the next one, nor the guard before it.
const BETWEEN_REGIONS: u64 = 1 << 24;

/// The place of the tables.
const TABLES: u64 = 0x7e00_0000_0000;

/// Where the regions of each side start, and the most blocks of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DevicePlacement {
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) blocks: u32,
}

impl DevicePlacement {
    /// Regions that start as a device allocates them.
    pub(crate) const ALIGNED: DevicePlacement = DevicePlacement {
        source: 0x7f00_0000_0000,
        destination: 0x7d00_0000_0000,
        blocks: 4,
    };

    pub(crate) fn regions(start: u64, image: &Image) -> Vec<MoveRegion> {
        let addresses = (0u64..).map(|region| start + region * BETWEEN_REGIONS);
        let regions = addresses.zip(image).map(|(address, bytes)| MoveRegion {
            address,
            bytes: bytes.len() as u64,
        });
        regions.collect()
    }
}

/// What a program did.
pub(crate) struct DeviceRun {
    pub(crate) program: MoveProgram,
    pub(crate) destination: Image,
    pub(crate) counts: PtxCounts,
}

/// Executes `plan` and checks that each of its bytes is written once.
pub(crate) fn run_plan(
    plan: &CopyPlan,
    from: &Image,
    to: &Image,
    placement: DevicePlacement,
) -> DeviceRun {
    let (done, memory) = run_kernels(&KERNELS, plan, (from, to), placement)
        .unwrap_or_else(|fault| panic!("{fault}\n{plan}"));
    assert_eq!(memory.written_twice(), None, "{plan}");
    assert_eq!(memory.written_bytes(), plan.bytes(), "{plan}");
    done
}

/// Executes `plan` with the kernels of any text.
pub(crate) fn run_kernels(
    kernels: &PtxModule,
    plan: &CopyPlan,
    (from, to): (&Image, &Image),
    placement: DevicePlacement,
) -> Result<(DeviceRun, PtxRanges), PtxLaunchError> {
    let sources = DevicePlacement::regions(placement.source, from);
    let destinations = DevicePlacement::regions(placement.destination, to);
    let program = lower(plan, &sources, &destinations).unwrap();
    assert_eq!(program.bytes(), plan.bytes());
    let mut memory = PtxRanges::new();
    for (region, bytes) in sources.iter().zip(from) {
        memory = memory.readable(region.address, bytes.clone());
    }
    for (region, bytes) in destinations.iter().zip(to) {
        memory = memory.writable(region.address, bytes.clone());
    }
    let (memory, counts) = launch_all(kernels, &program, memory, placement.blocks)?;
    let bytes = |region: &MoveRegion| memory.bytes(region.address).unwrap().to_vec();
    let done = DeviceRun {
        destination: destinations.iter().map(bytes).collect(),
        program,
        counts,
    };
    Ok((done, memory))
}

/// Executes all launches of a program over `memory`, which then has its tables too.
pub(crate) fn launch_all(
    kernels: &PtxModule,
    program: &MoveProgram,
    memory: PtxRanges,
    blocks: u32,
) -> Result<(PtxRanges, PtxCounts), PtxLaunchError> {
    let words = program.tables().iter().flat_map(|word| word.to_le_bytes());
    let mut memory = memory.readable(TABLES, words.collect());
    let mut counts = PtxCounts::default();
    for launch in program.launches() {
        let report = kernels.launch(
            &PtxLaunch {
                kernel: launch.kernel().name(),
                blocks: launch.blocks(blocks),
                threads: launch.threads(),
                shared_bytes: 0,
                parameters: launch.parameters(TABLES).as_bytes(),
                instructions_max: 1 << 28,
            },
            &mut memory,
        );
        counts.add(&report?.counts);
    }
    Ok((memory, counts))
}
