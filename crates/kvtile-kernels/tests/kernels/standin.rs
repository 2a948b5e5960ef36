//! Programs through the driver's calls: the text loaded as a module, tables copied in front of the launches, all under
//! the stand-in driver with its checker of the order of accesses.

use std::sync::Arc;

use kvtile_device::{
    Device, DeviceKernel, DeviceMemory, DeviceQueue, KernelModule, LaunchShape, PinnedMemory,
};
use kvtile_kernels::{MOVE_PTX, MoveKernel, MoveProgram, MoveRegion, lower};
use kvtile_layout::{CopyPlan, Selection, Shape, StridedLayout, Unit};
use kvtile_memory::MemoryRegion;
use kvtile_standin::{Complaint, PtxEngine, Standin, StandinLeaks, StandinOptions};
use kvtile_testkit::{Image, NaiveSelection, ReferenceLayout, naive_copy};

/// The words of both sides, from an engine with a region for each layer to one region, and back.
const WORDS: [(&str, &str); 3] = [
    ("L|KBNHC", "BLKHNC"),
    ("BLKNHC", "L|BH(kCN,vNC)"),
    ("L|KBHCNC8", "BLKNHC"),
];

fn start(seed: u64) -> (Standin, Device, Arc<PtxEngine>) {
    let engine = Arc::new(PtxEngine::new());
    let standin = Standin::start(StandinOptions {
        kernels: Some(Arc::clone(&engine) as _),
        ..StandinOptions::seeded(seed)
    });
    let device = standin.driver().unwrap().device(0).unwrap();
    (standin, device, engine)
}

/// The regions of an image in memory of the device.
struct DeviceImage {
    memory: Vec<DeviceMemory>,
}

impl DeviceImage {
    fn new(standin: &Standin, device: &Device, image: &Image) -> DeviceImage {
        let regions = image.iter().map(|bytes| {
            let memory = DeviceMemory::allocate(device, bytes.len()).unwrap();
            assert!(standin.poke(memory.device_address(), bytes));
            memory
        });
        DeviceImage {
            memory: regions.collect(),
        }
    }

    fn regions(&self) -> Vec<MoveRegion> {
        let regions = self.memory.iter().map(|memory| MoveRegion {
            address: memory.device_address(),
            bytes: memory.size() as u64,
        });
        regions.collect()
    }

    fn bytes(&self, standin: &Standin) -> Image {
        let regions = self.memory.iter().map(|memory| {
            let mut bytes = vec![0; memory.size()];
            assert!(standin.peek(memory.device_address(), &mut bytes));
            bytes
        });
        regions.collect()
    }
}

/// A plan with its images and what the naive copy makes of them.
struct PlannedCopy {
    plan: CopyPlan,
    from: Image,
    to: Image,
    expected: Image,
}

impl PlannedCopy {
    fn new(from: &str, to: &str) -> PlannedCopy {
        let shape = Shape::key_value(5, 3, 8, 2, 32, Unit::raw(2).unwrap()).unwrap();
        let layout =
            |word: &str| StridedLayout::resolve(&word.parse().unwrap(), &shape, 1).unwrap();
        let (source, destination) = (layout(from), layout(to));
        let selection = Selection::blocks(&[3, 1, 4], &[0, 4, 2], 8).unwrap();
        let plan = CopyPlan::new(&source, &destination, &selection).unwrap();
        let reference = |layout| ReferenceLayout::from_strided(layout).unwrap();
        let (source, destination) = (reference(&source), reference(&destination));
        let (from, to) = (source.filled(1).unwrap(), destination.poisoned().unwrap());
        let mut expected = to.clone();
        let naive = NaiveSelection::of(&selection, &shape, &shape);
        naive_copy(&source, &from, &destination, &mut expected, &naive).unwrap();
        PlannedCopy {
            plan,
            from,
            to,
            expected,
        }
    }
}

/// A program whose tables are in pinned memory, with a place for them on the device.
struct LoadedProgram {
    program: MoveProgram,
    module: KernelModule,
    pinned: PinnedMemory,
    tables: DeviceMemory,
}

impl LoadedProgram {
    fn new(standin: &Standin, device: &Device, program: MoveProgram) -> LoadedProgram {
        let words = program.tables().iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = words.collect();
        let pinned = PinnedMemory::allocate(device, bytes.len()).unwrap();
        assert!(standin.poke(pinned.device_address(), &bytes));
        LoadedProgram {
            program,
            module: device.load_module(MOVE_PTX).unwrap(),
            tables: DeviceMemory::allocate(device, bytes.len()).unwrap(),
            pinned,
        }
    }

    fn kernel(&self, kernel: MoveKernel) -> DeviceKernel {
        self.module.kernel(kernel.name()).unwrap()
    }

    fn copy_tables(&self, queue: &DeviceQueue) {
        let (to, from) = (self.tables.device_address(), self.pinned.device_address());
        // SAFETY: both live until the caller has synchronized the queue.
        unsafe { queue.copy(to, from, self.tables.size()) }.unwrap();
    }

    fn launch(&self, queue: &DeviceQueue) {
        for launch in self.program.launches() {
            let shape = LaunchShape {
                grid: [launch.blocks(3), 1, 1],
                block: [launch.threads(), 1, 1],
                shared_bytes: 0,
            };
            let parameters = launch.parameters(self.tables.device_address());
            let kernel = self.kernel(launch.kernel());
            // SAFETY: the lowering has checked that the launch stays in its regions, which the caller keeps until the
            // queue is idle.
            unsafe { queue.launch(&kernel, shape, parameters.as_bytes()) }.unwrap();
        }
    }
}

#[test]
fn programs_copy_between_regions_of_a_device() {
    for (seed, (from, to)) in (1..).zip(WORDS.iter().flat_map(|&(a, b)| [(a, b), (b, a)])) {
        let (standin, device, engine) = start(seed);
        let copy = PlannedCopy::new(from, to);
        let source = DeviceImage::new(&standin, &device, &copy.from);
        let destination = DeviceImage::new(&standin, &device, &copy.to);
        let program = lower(&copy.plan, &source.regions(), &destination.regions()).unwrap();
        let loaded = LoadedProgram::new(&standin, &device, program);
        let queue = device.queue().unwrap();
        loaded.copy_tables(&queue);
        loaded.launch(&queue);
        queue.synchronize().unwrap();
        assert!(
            destination.bytes(&standin) == copy.expected,
            "{from} → {to}"
        );
        assert_eq!(standin.complaints(), [], "{from} → {to}");
        let counts = engine.counts();
        assert!(
            counts.instructions > 0 && counts.loads.bytes > 0,
            "{counts:?}"
        );
        drop((source, destination, loaded, queue, device));
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn a_launch_that_does_not_wait_for_its_tables_is_found() {
    let (standin, device, _) = start(9);
    let copy = PlannedCopy::new("L|KBNHC", "BLKHNC");
    let source = DeviceImage::new(&standin, &device, &copy.from);
    let destination = DeviceImage::new(&standin, &device, &copy.to);
    let program = lower(&copy.plan, &source.regions(), &destination.regions()).unwrap();
    let loaded = LoadedProgram::new(&standin, &device, program);
    // With the right tables in place already, the launch stays in its regions however the copy runs.
    let (queue, other) = (device.queue().unwrap(), device.queue().unwrap());
    let words = loaded
        .program
        .tables()
        .iter()
        .flat_map(|word| word.to_le_bytes());
    assert!(standin.poke(loaded.tables.device_address(), &words.collect::<Vec<u8>>()));
    loaded.copy_tables(&queue);
    loaded.launch(&other);
    queue.synchronize().unwrap();
    other.synchronize().unwrap();
    let complaints = standin.complaints();
    let found = complaints.iter().any(|complaint| {
        matches!(complaint, Complaint::Race { .. })
            && complaint.to_string().contains("kernel rows_16 on")
    });
    assert!(found, "{complaints:?}");
}
