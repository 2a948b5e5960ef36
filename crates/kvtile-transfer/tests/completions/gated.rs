//! A file whose transfers stop at a gate, and panic on demand.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use kvtile_layout::Word;
use kvtile_memory::{FileMemory, MemoryRegion, OwnedMemoryRegion, StorageKind};
use kvtile_testkit::gate::{Gate, ShutGate};
use kvtile_transfer::{
    FillPattern, LayoutHandle, PhysicalLayout, TransferCompletion, TransferManager, TransferOptions,
};

use crate::{
    common::{self, in_memory},
    shape,
};

/// A file with a gate.
#[derive(Debug)]
pub(crate) struct GatedFile {
    file: FileMemory,
    gate: Arc<Gate>,
    pub(crate) panics: AtomicBool,
}

// SAFETY: it adds no guarantees of its own: every method calls the file, which guarantees it, and
// `as_any` is that `FileMemory`. That `addr` blocks or panics does not change its result.
unsafe impl MemoryRegion for GatedFile {
    fn addr(&self) -> usize {
        // Only the threads of the file lane have this name.
        if thread::current().name() == Some("kvtile-file") {
            self.gate.pass();
            assert!(!self.panics.load(Ordering::SeqCst), "on demand");
        }
        self.file.addr()
    }

    fn size(&self) -> usize {
        self.file.size()
    }

    fn storage_kind(&self) -> StorageKind {
        self.file.storage_kind()
    }

    fn as_any(&self) -> &dyn Any {
        &self.file
    }
}

/// A manager with a file behind a gate, and memory of the same shape.
pub(crate) struct GatedManager {
    pub(crate) manager: TransferManager,
    pub(crate) region: Arc<GatedFile>,
    pub(crate) file: LayoutHandle,
    pub(crate) memory: LayoutHandle,
    pub(crate) folder: tempfile::TempDir,
}

/// A manager that runs one file transfer at a time.
pub(crate) fn gated(blocks: u64) -> GatedManager {
    gated_in(TransferManager::builder().file_transfers(1).build(), blocks)
}

pub(crate) fn gated_in(manager: TransferManager, blocks: u64) -> GatedManager {
    let folder = common::folder();
    let bytes = usize::try_from(shape(blocks).total_bytes().unwrap()).unwrap();
    let region = Arc::new(GatedFile {
        file: FileMemory::options().scratch(folder.path(), bytes).unwrap(),
        gate: Arc::default(),
        panics: AtomicBool::new(false),
    });
    let file = PhysicalLayout::builder()
        .with_shape(shape(blocks))
        .layout("BLKNHC".parse::<Word>().unwrap())
        .with_memory_regions(vec![Arc::clone(&region) as OwnedMemoryRegion])
        .build()
        .unwrap();
    let file = manager.register(file).unwrap();
    let memory = manager
        .register(in_memory(&shape(blocks), "L|KBNHC"))
        .unwrap();
    let ids: Vec<usize> = (0..usize::try_from(blocks).unwrap()).collect();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(memory, &ids, pattern).unwrap();
    manager.fill(file, &ids, FillPattern::Constant(1)).unwrap();
    GatedManager {
        manager,
        region,
        file,
        memory,
        folder,
    }
}

impl GatedManager {
    /// Stops transfers of the file until the returned value is dropped. Declare it after the
    /// completions that it stops, so that a panic of the test opens the gate first.
    pub(crate) fn shut(&self) -> ShutGate {
        self.region.gate.shut(usize::MAX)
    }

    /// Starts a transfer from memory to the file.
    pub(crate) fn start(&self, ids: &[usize]) -> TransferCompletion {
        let options = TransferOptions::new();
        let manager = &self.manager;
        let started = manager.execute_transfer(self.memory, ids, self.file, ids, options);
        started.unwrap()
    }

    /// Asserts that file and memory hold the same blocks.
    pub(crate) fn assert_copied(&self, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            let digests = [self.file, self.memory];
            let [file, memory] = digests.map(|h| self.manager.block_digest(h, block).unwrap());
            assert_eq!(file, memory, "block {block}");
        }
    }
}
