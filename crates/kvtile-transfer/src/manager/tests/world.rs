//! A manager over gated lanes, and helpers of the tests.

use std::sync::Arc;

use kvtile_layout::{Shape, Unit, Word};
use kvtile_testkit::gate::{PATIENCE, ShutGate};

use crate::{
    FillPattern, LayoutHandle, LeaseMode, PhysicalLayout, TransferCompletion, TransferError,
    TransferManager, TransferOptions, TransferReport,
    execute::{
        Lane, LaneThreads, Lanes, all_lanes,
        gated::{FlightMode, GatedLane},
    },
};

/// 1 MiB a block: too large for the caller's thread.
pub(super) fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 4, 16, 8, 512, Unit::raw(2).unwrap()).unwrap()
}

pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// A manager over gated lanes, with three layouts: two in memory and one in a file. One file
/// transfer runs at a time, unless a test sets more.
pub(super) struct LanesWorld {
    pub(super) manager: TransferManager,
    pub(super) memory: Arc<GatedLane>,
    pub(super) file: Arc<GatedLane>,
    /// The source, the destination in memory, and the file.
    pub(super) a: LayoutHandle,
    pub(super) b: LayoutHandle,
    pub(super) disk: LayoutHandle,
    pub(super) _folder: tempfile::TempDir,
}

pub(super) fn world(capacity: usize) -> LanesWorld {
    world_with(capacity, 1, FlightMode::OnItsThread)
}

pub(super) fn world_with(capacity: usize, files: usize, flying: FlightMode) -> LanesWorld {
    let [memory, file, ..] = all_lanes(LaneThreads {
        copy: 1,
        file: files,
    });
    let memory = GatedLane::over(memory, flying);
    let file = GatedLane::over(file, FlightMode::OnItsThread);
    let lanes: [Arc<dyn Lane>; 2] = [Arc::clone(&memory) as _, Arc::clone(&file) as _];
    let manager = TransferManager::over(Lanes::of(lanes, capacity));
    let folder = tempfile::tempdir().unwrap();
    let layout = |word: &str| {
        let builder = PhysicalLayout::builder().with_shape(shape(8));
        builder.layout(word.parse::<Word>().unwrap())
    };
    let disk = layout("BLKNHC").allocate_disk(Some(folder.path().join("blocks")));
    let [a, b, disk] = [
        layout("L|KBNHC").allocate_system().build(),
        layout("BHLKNC").allocate_system().build(),
        disk.build(),
    ]
    .map(|layout| manager.register(layout.unwrap()).unwrap());
    let ids: Vec<usize> = (0..8).collect();
    let pattern = FillPattern::Distinct { seed: 5 };
    manager.fill(a, &ids, pattern).unwrap();
    for handle in [b, disk] {
        manager
            .fill(handle, &ids, FillPattern::Constant(9))
            .unwrap();
    }
    LanesWorld {
        manager,
        memory,
        file,
        a,
        b,
        disk,
        _folder: folder,
    }
}

impl LanesWorld {
    pub(super) fn try_start(
        &self,
        to: LayoutHandle,
        blocks: &[usize],
    ) -> Result<TransferCompletion, TransferError> {
        let options = TransferOptions::new();
        let manager = &self.manager;
        manager.execute_transfer(self.a, blocks, to, blocks, options)
    }

    /// Starts a transfer from the first layout.
    pub(super) fn start(&self, to: LayoutHandle, blocks: &[usize]) -> TransferCompletion {
        self.try_start(to, blocks).unwrap()
    }

    /// Registers one more layout in memory, whose blocks and layers are contiguous.
    pub(super) fn flat(&self) -> LayoutHandle {
        let builder = PhysicalLayout::builder().with_shape(shape(8));
        let layout = builder.layout("BLKNHC".parse::<Word>().unwrap());
        let layout = layout.allocate_system().build().unwrap();
        self.manager.register(layout).unwrap()
    }

    /// Starts a transfer from the first layout to `to`, which stops at the gate of `gated`.
    pub(super) fn stop(
        &self,
        gated: &GatedLane,
        to: LayoutHandle,
        blocks: &[usize],
    ) -> (ShutGate, TransferCompletion) {
        let gate = gated.shut(1);
        let done = self.start(to, blocks);
        gate.wait_until_stopped(1);
        (gate, done)
    }

    /// Starts a transfer to the file, which stops at the gate.
    pub(super) fn stop_file(&self, blocks: &[usize]) -> (ShutGate, TransferCompletion) {
        self.stop(&self.file, self.disk, blocks)
    }

    /// Starts a transfer between memories, which stops at the gate.
    pub(super) fn stop_memory(&self, blocks: &[usize]) -> (ShutGate, TransferCompletion) {
        self.stop(&self.memory, self.b, blocks)
    }

    pub(super) fn is_free(&self, handle: LayoutHandle, block: usize, mode: LeaseMode) -> bool {
        self.manager.lease(handle, &[block], mode).is_ok()
    }

    pub(super) fn assert_copied(&self, to: LayoutHandle, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            let [from, to] = [self.a, to].map(|h| self.manager.block_digest(h, block).unwrap());
            assert_eq!(from, to, "block {block}");
        }
    }
}

/// The result of a transfer. Panics if the transfer does not end in time.
pub(super) fn end(done: &TransferCompletion) -> Result<TransferReport, TransferError> {
    let end = done.wait_timeout(PATIENCE);
    end.expect("the transfer does not end")
}

pub(super) fn arrives(done: &TransferCompletion) {
    end(done).unwrap();
}

/// Asserts equal blocks in two layouts that belong to no manager.
pub(super) fn assert_equal_outside(
    layouts: [PhysicalLayout; 2],
    blocks: impl IntoIterator<Item = usize>,
) {
    let manager = TransferManager::new();
    let handles = layouts.map(|layout| manager.register(layout).unwrap());
    for block in blocks {
        let [a, b] = handles.map(|h| manager.block_digest(h, block).unwrap());
        assert_eq!(a, b, "block {block}");
    }
}
