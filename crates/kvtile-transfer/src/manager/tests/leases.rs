//! Leases against a naive model: a set of bytes that are read or written.

use std::{collections::HashMap, sync::Arc};

use kvtile_layout::{
    AddressStep, Axis, Digit, PlaneDigits, Shape, StridedLayout, Unit, UnitIndex,
    tradition::LayoutSpec,
};
use kvtile_memory::{OwnedMemoryRegion, RegionView, SystemMemory};
use kvtile_testkit::generate::{Choices, choices, config};

use crate::{
    BindError, BlockLease, CopyError, LayoutHandle, LeaseError, LeaseMode, PhysicalLayout,
    RegisterError, TransferError, TransferManager, TransferOptions, lease::lock,
};

/// Size of the memory under all layouts of a case.
const ARENA: usize = 24 << 10;

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 2, 4, 2, 4, Unit::raw(2).unwrap()).unwrap()
}

/// Interleaved rows of several layouts: blocks are `stride` bytes apart, layers `layer` bytes.
fn row(blocks: u64, (stride, layer): (u64, u64), offset: u64) -> LayoutSpec {
    let plane = |name: &str, at: u64| {
        let digit = |axis, extent, bytes| Digit {
            axis,
            low: 1,
            extent,
            step: AddressStep::bytes(bytes),
        };
        let mut digits = vec![
            digit(Axis::L, 2, layer),
            digit(Axis::N, 4, 16),
            digit(Axis::H, 2, 8),
            digit(Axis::C, 4, 2),
        ];
        if blocks > 1 {
            digits.push(digit(Axis::B, blocks, stride));
        }
        PlaneDigits {
            plane: name.to_owned(),
            region: 0,
            offset: offset + at,
            digits,
        }
    };
    LayoutSpec::Digits {
        planes: vec![plane("k", 0), plane("v", 64)],
        region_bytes: vec![offset + (blocks - 1) * stride + layer + 128],
    }
}

/// A layout over a part of the arena, which it may share with others.
fn layout(choices: &mut Choices, arena: &OwnedMemoryRegion) -> PhysicalLayout {
    let blocks = 1 + choices.below(6);
    let spec = match choices.below(7) {
        0 => row(blocks, (1024, 128), 256 * choices.below(4)),
        1 => row(blocks, (512, 128), 256 * choices.below(2)),
        // Layers of other blocks lie in between, with gaps of a few bytes.
        2 => {
            let stride = 128 + 2 * choices.below(80);
            row(blocks, (stride, blocks * stride), 2 * choices.below(64))
        }
        3 => row(blocks, (256 + 2 * choices.below(200), 128), 0),
        4 => "LBNHKC".parse().unwrap(),
        5 => "HBLKCN".parse().unwrap(),
        _ => "BLKNHC".parse().unwrap(),
    };
    let strided = match &spec {
        LayoutSpec::Word(word) => StridedLayout::resolve(word, &shape(blocks), 1),
        LayoutSpec::Digits {
            planes,
            region_bytes,
        } => StridedLayout::from_digits(&shape(blocks), planes, region_bytes, 1),
        _ => panic!("a case uses no kinds of the tradition"),
    };
    let bytes = usize::try_from(strided.unwrap().region_bytes()[0]).unwrap();
    let room = (ARENA - bytes) as u64;
    let at = choices.below(room / 64 + 1) * 64;
    let at = match choices.below(3) {
        0 => 0,
        _ => usize::try_from(at).unwrap(),
    };
    let view = RegionView::new(Arc::clone(arena), at, bytes).unwrap();
    PhysicalLayout::builder()
        .with_shape(shape(blocks))
        .layout(spec)
        .with_memory_regions(vec![Arc::new(view)])
        .build()
        .unwrap()
}

/// Every byte of a block, unit by unit.
fn bytes_of(layout: &PhysicalLayout, block: u64) -> Vec<usize> {
    let base = layout.memory_regions()[0].addr();
    let mut bytes = Vec::new();
    for plane in ["k", "v"] {
        for unit in 0..2 * 4 * 2 * 4u64 {
            let index = UnitIndex::new()
                .at(Axis::B, block)
                .at(Axis::L, unit / 32)
                .at(Axis::N, unit / 8 % 4)
                .at(Axis::H, unit / 4 % 2)
                .at(Axis::C, unit % 4);
            let place = layout.strided().locate(plane, &index).unwrap();
            let at = base + usize::try_from(place.offset).unwrap();
            bytes.extend([at, at + 1]);
        }
    }
    bytes
}

/// The holders of each byte.
#[derive(Default)]
struct ByteLeaseModel {
    held: HashMap<usize, Vec<LeaseMode>>,
}

impl ByteLeaseModel {
    fn allows(&self, bytes: &[usize], mode: LeaseMode) -> bool {
        bytes.iter().all(|byte| {
            let holders = self.held.get(byte).map_or(&[][..], Vec::as_slice);
            match mode {
                LeaseMode::Read => !holders.contains(&LeaseMode::Write),
                LeaseMode::Write => holders.is_empty(),
            }
        })
    }

    fn take(&mut self, bytes: &[usize], mode: LeaseMode) {
        for byte in bytes {
            self.held.entry(*byte).or_default().push(mode);
        }
    }

    fn give_back(&mut self, bytes: &[usize], mode: LeaseMode) {
        for byte in bytes {
            let holders = self.held.get_mut(byte).unwrap();
            let index = holders.iter().position(|holder| *holder == mode).unwrap();
            holders.swap_remove(index);
        }
    }
}

struct LeasesWorld {
    manager: TransferManager,
    arena: OwnedMemoryRegion,
    model: ByteLeaseModel,
    layouts: Vec<(LayoutHandle, PhysicalLayout)>,
    leases: Vec<(BlockLease, Vec<usize>)>,
    /// Number of leases and transfers that were granted, and that were refused.
    counts: [u32; 2],
    /// Layouts that were registered over leased memory.
    newcomers: u32,
}

impl LeasesWorld {
    fn new() -> LeasesWorld {
        let memory = SystemMemory::options().huge_pages(false).allocate(ARENA);
        LeasesWorld {
            manager: TransferManager::new(),
            arena: Arc::new(memory.unwrap()),
            model: ByteLeaseModel::default(),
            layouts: Vec::new(),
            leases: Vec::new(),
            counts: [0; 2],
            newcomers: 0,
        }
    }

    fn step(&mut self, choices: &mut Choices) {
        match choices.below(8) {
            0 | 1 => self.register(choices),
            2 => self.unregister(choices),
            3 | 4 => self.lease(choices),
            5 | 6 => self.release(choices),
            _ => self.transfer(choices),
        }
        lock(&self.manager.ledger).check_integrity();
    }

    fn register(&mut self, choices: &mut Choices) {
        let layout = layout(choices, &self.arena);
        let range = |layout: &PhysicalLayout| {
            let region = &layout.memory_regions()[0];
            region.addr()..region.addr() + region.size()
        };
        let new = range(&layout);
        let busy = self.leases.iter().any(|(lease, _)| {
            let old = range(&self.manager.layout(lease.handle()).unwrap());
            old.start < new.end && new.start < old.end
        });
        self.newcomers += u32::from(busy);
        let handle = self.manager.register(layout.clone()).unwrap();
        self.layouts.push((handle, layout));
    }

    fn unregister(&mut self, choices: &mut Choices) {
        if self.layouts.is_empty() {
            return;
        }
        let index = choices.index(self.layouts.len());
        let handle = self.layouts[index].0;
        let held = self
            .leases
            .iter()
            .any(|(lease, _)| lease.handle() == handle);
        match self.manager.unregister(handle) {
            Ok(_) => {
                assert!(!held);
                self.layouts.remove(index);
            }
            Err(error) => {
                assert!(
                    matches!(
                        error,
                        TransferError::Register(RegisterError::LayoutInUse { .. })
                    ),
                    "{error}"
                );
                assert!(held);
            }
        }
    }

    fn some_blocks(&self, choices: &mut Choices) -> Option<(LayoutHandle, Vec<usize>, Vec<usize>)> {
        if self.layouts.is_empty() {
            return None;
        }
        let (handle, layout) = &self.layouts[choices.index(self.layouts.len())];
        let num_blocks = layout.config().unwrap().num_blocks();
        let count = 1 + choices.index(num_blocks);
        let blocks = choices.shuffled((0..num_blocks).collect());
        let blocks: Vec<usize> = blocks.into_iter().take(count).collect();
        let bytes = blocks.iter();
        let bytes = bytes.flat_map(|block| bytes_of(layout, *block as u64));
        Some((*handle, blocks.clone(), bytes.collect()))
    }

    fn lease(&mut self, choices: &mut Choices) {
        let mode = match choices.below(2) {
            0 => LeaseMode::Read,
            _ => LeaseMode::Write,
        };
        let Some((handle, blocks, bytes)) = self.some_blocks(choices) else {
            return;
        };
        let allowed = self.model.allows(&bytes, mode);
        match self.manager.lease(handle, &blocks, mode) {
            Ok(lease) => {
                assert!(allowed, "{mode:?} of {blocks:?}");
                self.counts[0] += 1;
                self.model.take(&bytes, mode);
                self.leases.push((lease, bytes));
            }
            Err(error) => {
                let busy = matches!(
                    error,
                    TransferError::Lease(LeaseError::BlockLeased { .. })
                        | TransferError::Copy(CopyError::Overlap { .. })
                );
                assert!(busy && !allowed, "{error}, {mode:?} of {blocks:?}");
                self.counts[1] += 1;
            }
        }
    }

    fn release(&mut self, choices: &mut Choices) {
        if self.leases.is_empty() {
            return;
        }
        let index = choices.index(self.leases.len());
        let (lease, bytes) = self.leases.swap_remove(index);
        self.model.give_back(&bytes, lease.mode());
        drop(lease);
    }

    /// A transfer takes both leases or none, and releases them.
    fn transfer(&mut self, choices: &mut Choices) {
        let (Some(from), Some(to)) = (self.some_blocks(choices), self.some_blocks(choices)) else {
            return;
        };
        let count = from.1.len().min(to.1.len());
        let per_block = 256;
        let (read, written) = (&from.2[..count * per_block], &to.2[..count * per_block]);
        let apart = !written.iter().any(|byte| read.contains(byte));
        let allowed = apart
            && self.model.allows(read, LeaseMode::Read)
            && self.model.allows(written, LeaseMode::Write);
        let options = TransferOptions::new().verify(true);
        let (from_ids, to_ids) = (&from.1[..count], &to.1[..count]);
        let done = self
            .manager
            .execute_transfer(from.0, from_ids, to.0, to_ids, options);
        match done {
            Ok(done) => {
                assert!(allowed);
                done.wait().unwrap();
                self.counts[0] += 1;
            }
            Err(error) => {
                let busy = matches!(
                    error,
                    TransferError::Lease(LeaseError::BlockLeased { .. })
                        | TransferError::Copy(CopyError::Overlap { .. })
                        | TransferError::Lease(LeaseError::SameBlock { .. })
                );
                assert!(busy && !allowed, "{error}");
                self.counts[1] += 1;
            }
        }
    }
}

/// Pitfalls 7 and 20: leases on layouts that share memory conflict exactly where they share bytes;
/// interleaved rows without a common byte do not conflict. This also holds for leases that were
/// taken before a layout was registered.
#[test]
fn leases_agree_with_a_model_of_single_bytes() {
    let mut runner = proptest::test_runner::TestRunner::new(config(400));
    let cases = (choices(), choices(), choices(), choices());
    let counts = std::cell::Cell::new([0; 3]);
    runner
        .run(&cases, |(a, b, c, d)| {
            let mut world = LeasesWorld::new();
            for mut choices in [a, b, c, d] {
                for _ in 0..16 {
                    world.step(&mut choices);
                }
            }
            world.leases.clear();
            for (handle, _) in std::mem::take(&mut world.layouts) {
                world.manager.unregister(handle).unwrap();
            }
            lock(&world.manager.ledger).check_integrity();
            let [granted, refused, newcomers] = counts.get();
            counts.set([
                granted + world.counts[0],
                refused + world.counts[1],
                newcomers + world.newcomers,
            ]);
            Ok(())
        })
        .unwrap();
    assert!(counts.get().iter().all(|&count| count > 100), "{counts:?}");
}

#[test]
fn interleaved_rows_of_one_memory_are_apart() {
    let world = LeasesWorld::new();
    let build = |offset| {
        let view = RegionView::new(Arc::clone(&world.arena), 0, 6144).unwrap();
        PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout(row(4, (1024, 128), offset))
            .with_memory_regions(vec![Arc::new(view)])
            .build()
            .unwrap()
    };
    let handles = [0, 256, 512, 640].map(|offset| world.manager.register(build(offset)).unwrap());
    let lease = |handle, block| world.manager.lease(handle, &[block], LeaseMode::Write);
    let held: Vec<BlockLease> = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 2)]
        .map(|(row, block)| lease(handles[row], block).unwrap())
        .into();
    for (row, block) in [(2, 2), (3, 1)] {
        let error = lease(handles[row], block).map(drop).unwrap_err();
        assert!(
            matches!(error, TransferError::Copy(CopyError::Overlap { .. })),
            "{error}"
        );
    }
    drop(held);
    lease(handles[3], 1).unwrap();
    lock(&world.manager.ledger).check_integrity();
}

/// A layout is registered over leased memory. Common bytes are refused, other bytes are not, and
/// bytes are free after the lease has ended.
#[test]
fn a_new_layout_over_leased_rows_can_lease_the_rows_between() {
    let world = LeasesWorld::new();
    let manager = &world.manager;
    let register = |offset| {
        let view = RegionView::new(Arc::clone(&world.arena), 0, 6144).unwrap();
        let layout = PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout(row(4, (512, 128), offset))
            .with_memory_regions(vec![Arc::new(view)])
            .build();
        manager.register(layout.unwrap()).unwrap()
    };
    let even = register(0);
    let [read, shared] = [(); 2].map(|()| manager.lease(even, &[1], LeaseMode::Read).unwrap());
    let written = manager.lease(even, &[0, 2], LeaseMode::Write).unwrap();
    let (odd, between) = (register(256), register(128));
    lock(&manager.ledger).check_integrity();
    // Rows that lie between the leased ones can be copied at the same time.
    let options = TransferOptions::new().verify(true);
    let done = manager.execute_transfer(odd, &[0, 1], odd, &[2, 3], options);
    done.unwrap().wait().unwrap();
    // Half of each of these blocks is a row of the first layout.
    let lease = |block, mode| match manager.lease(between, &[block], mode) {
        Ok(_) => true,
        Err(TransferError::Copy(CopyError::Overlap { .. })) => false,
        Err(error) => panic!("{error}"),
    };
    let both = |block| [LeaseMode::Read, LeaseMode::Write].map(|mode| lease(block, mode));
    assert_eq!(
        [0, 1, 2, 3].map(both),
        [[false, false], [true, false], [false, false], [true, true]]
    );
    drop(shared);
    assert_eq!(both(1), [true, false]);
    drop(read);
    assert_eq!(both(1), [true, true]);
    drop(written);
    assert_eq!([0, 2].map(both), [[true; 2]; 2]);
    lock(&manager.ledger).check_integrity();
}

#[test]
fn two_managers_never_share_memory_that_one_of_them_may_write() {
    let world = LeasesWorld::new();
    let build = |at| {
        let view = RegionView::new(Arc::clone(&world.arena), at, 2048).unwrap();
        PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout("BLKNHC".parse::<LayoutSpec>().unwrap())
            .with_memory_regions(vec![Arc::new(view)])
            .build()
            .unwrap()
    };
    let other = TransferManager::new();
    let handle = world.manager.register(build(1024)).unwrap();
    for at in [0, 1, 1023, 1024, 2048, 3071] {
        let error = other.register(build(at)).unwrap_err();
        assert!(
            matches!(
                error,
                TransferError::Register(RegisterError::ManagedElsewhere { .. })
            ),
            "{error}"
        );
        lock(&other.ledger).check_integrity();
    }
    let apart = other.register(build(3072)).unwrap();
    other.unregister(apart).unwrap();
    // After `unregister`, or after its manager was dropped, the memory is free; a lease keeps it
    // claimed.
    let layout = world.manager.unregister(handle).unwrap();
    let handle = other.register(layout.clone()).unwrap();
    let lease = other.lease(handle, &[0], LeaseMode::Read).unwrap();
    drop(other);
    assert!(world.manager.register(layout.clone()).is_err());
    drop(lease);
    world.manager.register(layout).unwrap();
}

/// Pitfall 20: one file under two names or opened twice is one file.
#[test]
fn a_file_that_is_open_twice_is_one_memory() {
    use kvtile_memory::FileMemory;
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("a"), folder.path().join("b"));
    drop(FileMemory::options().create_new(&path, 2048).unwrap());
    std::fs::hard_link(&path, &link).unwrap();
    let build = |path, read_only| {
        let options = FileMemory::options().read_only(read_only);
        let file: OwnedMemoryRegion = Arc::new(options.open(path, 2048).unwrap());
        PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout("BLKNHC".parse::<LayoutSpec>().unwrap())
            .with_memory_regions(vec![file])
            .build()
            .unwrap()
    };
    let (one, two) = (TransferManager::new(), TransferManager::new());
    let a = one.register(build(&path, false)).unwrap();
    let b = one.register(build(&link, false)).unwrap();
    let error = two.register(build(&link, true)).unwrap_err();
    assert!(
        matches!(
            error,
            TransferError::Register(RegisterError::ManagedElsewhere { .. })
        ),
        "{error}"
    );
    let lease = one.lease(a, &[1], LeaseMode::Write).unwrap();
    let error = one
        .lease(b, &[0, 1], LeaseMode::Read)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, TransferError::Copy(CopyError::Overlap { .. })),
        "{error}"
    );
    one.lease(b, &[0, 2], LeaseMode::Write).unwrap();
    drop(lease);
    let options = TransferOptions::new();
    let error = one
        .execute_transfer(a, &[1], b, &[1], options)
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(error, TransferError::Copy(CopyError::Overlap { .. })),
        "{error}"
    );
    for handle in [a, b] {
        one.unregister(handle).unwrap();
    }
    // Two managers may register it read-only.
    one.register(build(&path, true)).unwrap();
    two.register(build(&link, true)).unwrap();
    // Two regions of one layout over one file are refused, like two regions over one memory.
    let region = |path: &std::path::Path| -> OwnedMemoryRegion {
        Arc::new(FileMemory::options().open(path, 2048).unwrap())
    };
    let twice = PhysicalLayout::builder()
        .with_shape(shape(4))
        .layout("L|BKNHC".parse::<LayoutSpec>().unwrap())
        .with_memory_regions(vec![region(&path), region(&link)])
        .build();
    assert!(matches!(
        twice,
        Err(TransferError::Bind(BindError::RegionsOverlap { .. }))
    ));
}

/// Pitfall 7: a layout whose regions share bytes is refused.
#[test]
fn regions_of_one_layout_are_apart() {
    let world = LeasesWorld::new();
    let build = |starts: [usize; 2]| {
        let view = |at| {
            let view = RegionView::new(Arc::clone(&world.arena), at, 1024).unwrap();
            Arc::new(view) as OwnedMemoryRegion
        };
        PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout("L|BKNHC".parse::<LayoutSpec>().unwrap())
            .with_memory_regions(starts.map(view).to_vec())
            .build()
    };
    for starts in [[0, 0], [0, 1023], [1023, 0], [512, 0]] {
        let refused = matches!(
            build(starts),
            Err(TransferError::Bind(BindError::RegionsOverlap { .. }))
        );
        assert!(refused, "{starts:?}");
    }
    build([0, 1024]).unwrap();
    build([1024, 0]).unwrap();
}

/// The route cache is bounded, and unregistering a layout removes its routes.
#[test]
fn routes_are_bounded_and_go_with_their_layouts() {
    use kvtile_layout::RangePair;
    let world = LeasesWorld::new();
    let build = |at| {
        let view = RegionView::new(Arc::clone(&world.arena), at, 2048).unwrap();
        let layout = PhysicalLayout::builder()
            .with_shape(shape(4))
            .layout("BLKNHC".parse::<LayoutSpec>().unwrap())
            .with_memory_regions(vec![Arc::new(view)])
            .build();
        world.manager.register(layout.unwrap()).unwrap()
    };
    let handles: Vec<LayoutHandle> = (0..12).map(|i| build(2048 * i)).collect();
    let kept = || lock(&world.manager.ledger).routes.keys().count();
    let copy = |from, to, layer| {
        let options = TransferOptions::new().layers(RangePair::same(layer, 1));
        let done = world
            .manager
            .execute_transfer(from, &[0], to, &[1], options);
        assert_eq!(done.unwrap().wait().unwrap().bytes, 128);
    };
    copy(handles[0], handles[1], 0);
    copy(handles[0], handles[1], 0);
    assert_eq!(kept(), 1);
    copy(handles[0], handles[1], 1);
    assert_eq!(kept(), 2);
    for from in &handles {
        for to in &handles {
            copy(*from, *to, 0);
            copy(*from, *to, 0);
            assert!(kept() <= 64);
        }
    }
    assert_eq!(kept(), 64);
    for handle in &handles {
        world.manager.unregister(*handle).unwrap();
        lock(&world.manager.ledger).check_integrity();
    }
    assert_eq!(kept(), 0);
    // Only the test itself still references the arena.
    assert_eq!(Arc::strong_count(&world.arena), 1);
}
