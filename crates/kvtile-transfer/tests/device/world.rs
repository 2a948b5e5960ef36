//! A manager with layouts on a device, in pinned memory and in memory that is not pinned, under the stand-in driver. The unit
//! tests of the waits use this file too.

use std::sync::{Arc, OnceLock};

use kvtile_device::{Device, DeviceMemory, DeviceQueue};
use kvtile_layout::{Shape, Unit, tradition::LayoutSpec};
use kvtile_memory::MemoryRegion;
use kvtile_standin::{PtxEngine, Standin, StandinOptions, kernel::KernelEngine};
use kvtile_transfer::{
    FillPattern, HasLayout, LayoutHandle, PhysicalLayout, PhysicalLayoutBuilder, TransferError,
    TransferManager,
};

pub(crate) const LAYERS: u64 = 4;
pub(crate) const BLOCKS: u64 = 6;

pub(crate) fn layout(word: &str) -> PhysicalLayoutBuilder<HasLayout> {
    let shape = Shape::key_value(BLOCKS, LAYERS, 8, 2, 16, Unit::raw(2).unwrap()).unwrap();
    let builder = PhysicalLayout::builder().with_shape(shape);
    builder.layout(word.parse::<LayoutSpec>().unwrap())
}

/// A manager with an engine's layout on a device, a pinned pool and a pool that is not pinned.
pub(crate) struct DeviceWorld {
    pub(crate) manager: TransferManager,
    pub(crate) engine: LayoutHandle,
    pub(crate) pinned: LayoutHandle,
    pub(crate) pageable: LayoutHandle,
    pub(crate) stream: DeviceQueue,
    pub(crate) device: Device,
}

impl DeviceWorld {
    pub(crate) fn new(standin: &Standin) -> Result<DeviceWorld, TransferError> {
        let device = standin.driver()?.device(0)?;
        let manager = TransferManager::new();
        let engine = manager.register(layout("L|KBNHC").allocate_device(&device).build()?)?;
        let pinned = manager.register(layout("BLKNHC").allocate_pinned(&device).build()?)?;
        let pageable = manager.register(layout("BLKNHC").allocate_system().build()?)?;
        Ok(DeviceWorld {
            engine,
            pinned,
            pageable,
            manager,
            stream: device.queue()?,
            device,
        })
    }

    pub(crate) fn fill(&self, handle: LayoutHandle, pattern: FillPattern) {
        let blocks: Vec<usize> = (0..6).collect();
        self.manager.fill(handle, &blocks, pattern).unwrap();
    }

    /// Enqueues on the stream that all of `memory` becomes `value`, for tests of the order of such work.
    pub(crate) fn fill_on_stream(&self, memory: &DeviceMemory, value: u8) {
        // SAFETY: memory of the stand-in, which lives until the stream is idle; whether it is in use is what a test is about.
        unsafe {
            self.stream
                .fill(memory.device_address(), value, memory.size())
        }
        .unwrap();
    }

    /// Enqueues a copy on the stream, for tests of the order of such work.
    pub(crate) fn copy_on_stream(&self, to: u64, from: u64, bytes: usize) {
        // SAFETY: as in `fill_on_stream`.
        unsafe { self.stream.copy(to, from, bytes) }.unwrap();
    }

    pub(crate) fn digests(&self, handle: LayoutHandle, blocks: &[usize]) -> Vec<String> {
        let digests = blocks.iter().map(|&block| {
            let digest = self.manager.block_digest(handle, block).unwrap();
            digest.to_string()
        });
        digests.collect()
    }
}

/// The interpreter of kernels, which keeps their text from case to case.
pub(crate) fn kernels() -> Arc<dyn KernelEngine> {
    static ENGINE: OnceLock<Arc<PtxEngine>> = OnceLock::new();
    Arc::clone(ENGINE.get_or_init(Arc::default)) as _
}

/// A stand-in that executes kernels.
pub(crate) fn with_kernels(seed: u64) -> Standin {
    Standin::start(StandinOptions {
        kernels: Some(kernels()),
        ..StandinOptions::seeded(seed)
    })
}

/// Bytes from one layer of the engine to the next.
pub(crate) const LAYER_STRIDE: usize = 8192;
/// As [`DeviceWorld`], with the memory of the engine at hand.
pub(crate) fn engine_world(standin: &Standin) -> (DeviceWorld, Arc<DeviceMemory>) {
    let mut world = DeviceWorld::new(standin).unwrap();
    // Regions start at pages.
    let size = 4 * LAYER_STRIDE;
    let memory = Arc::new(DeviceMemory::allocate(&world.device, size).unwrap());
    let engine = layout("L|KBNHC").over_memory(Arc::clone(&memory) as _);
    world.engine = world.manager.register(engine.build().unwrap()).unwrap();
    (world, memory)
}
