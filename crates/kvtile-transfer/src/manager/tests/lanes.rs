//! Lanes that stop where the test says, panic, and land their flights late. Nothing here waits for time to
//! pass: what must not be delayed completes while a barrier holds the other lane.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread,
};

use kvtile_layout::{
    Axis, Digit, PlaneDigits, RangePair, Shape, Step, Unit, Word, tradition::LayoutSpec,
};
use kvtile_memory::{OwnedMemoryRegion, RegionView, SystemMemory};

use crate::{
    FillPattern, LayoutHandle, LeaseMode, PhysicalLayout, TransferCompletion, TransferError,
    TransferManager, TransferOptions,
    execute::{
        Lane, Lanes, all_lanes,
        gated::{Flying, Gated},
    },
    lease::lock,
};

/// 1 MiB a block: more than what runs on the caller's thread.
fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 4, 16, 8, 512, &Unit::raw(2).unwrap()).unwrap()
}

const BLOCK_BYTES: usize = 1 << 20;

/// A manager over gated lanes, with three layouts: two in memory and one in a file.
struct World {
    manager: TransferManager,
    memory: Arc<Gated>,
    file: Arc<Gated>,
    /// Source and destination of the lane between memories, and the file.
    a: LayoutHandle,
    b: LayoutHandle,
    disk: LayoutHandle,
    _folder: tempfile::TempDir,
}

fn world(capacity: usize) -> World {
    world_with(capacity, Flying::OnItsThread)
}

fn world_with(capacity: usize, flying: Flying) -> World {
    let [memory, file] = all_lanes(1);
    let memory = Gated::over(memory, flying);
    let file = Gated::over(file, Flying::OnItsThread);
    let lanes: [Arc<dyn Lane>; 2] = [Arc::clone(&memory) as _, Arc::clone(&file) as _];
    let manager = TransferManager::over(Lanes::of(lanes, capacity));
    let folder = tempfile::tempdir().unwrap();
    let layout = |word: &str| {
        let builder = PhysicalLayout::builder().with_shape(shape(8), 1);
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
    World {
        manager,
        memory,
        file,
        a,
        b,
        disk,
        _folder: folder,
    }
}

impl World {
    fn try_start(
        &self,
        to: LayoutHandle,
        blocks: &[usize],
    ) -> Result<TransferCompletion, TransferError> {
        let options = TransferOptions::new();
        let manager = &self.manager;
        manager.execute_transfer(self.a, blocks, to, blocks, options)
    }

    /// From the first layout to another.
    fn start(&self, to: LayoutHandle, blocks: &[usize]) -> TransferCompletion {
        self.try_start(to, blocks).unwrap()
    }

    /// One more layout in memory, whose blocks and layers are contiguous.
    fn flat(&self) -> LayoutHandle {
        let builder = PhysicalLayout::builder().with_shape(shape(8), 1);
        let layout = builder.layout("BLKNHC".parse::<Word>().unwrap());
        let layout = layout.allocate_system().build().unwrap();
        self.manager.register(layout).unwrap()
    }

    fn assert_copied(&self, to: LayoutHandle, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            let [from, to] = [self.a, to].map(|h| self.manager.block_digest(h, block).unwrap());
            assert_eq!(from, to, "block {block}");
        }
    }
}

#[test]
fn a_file_transfer_that_stands_still_delays_no_memory_copy() {
    let world = world(1);
    world.file.shut();
    let slow = world.start(world.disk, &[7]);
    world.file.wait_until_entered();
    // One waits in the queue of the file lane, which is then full.
    let queued = world.start(world.disk, &[6]);
    for block in 0..6 {
        let report = world.start(world.b, &[block]).wait().unwrap();
        assert_eq!(report.bytes, BLOCK_BYTES as u64);
    }
    assert!(!slow.is_complete() && !queued.is_complete());
    world.assert_copied(world.b, 0..6);
    world.file.let_go();
    slow.wait().unwrap();
    queued.wait().unwrap();
    world.assert_copied(world.disk, [6, 7]);
}

#[test]
fn a_memory_copy_that_stands_still_delays_no_file_transfer() {
    let world = world(1);
    world.memory.shut();
    let slow = world.start(world.b, &[7]);
    world.memory.wait_until_entered();
    let queued = world.start(world.b, &[6]);
    for block in 0..6 {
        world.start(world.disk, &[block]).wait().unwrap();
    }
    assert!(!slow.is_complete() && !queued.is_complete());
    world.assert_copied(world.disk, 0..6);
    world.memory.let_go();
    slow.wait().unwrap();
    queued.wait().unwrap();
    world.assert_copied(world.b, [6, 7]);
}

/// Pitfall 20 without a completion: leases last until the flight has landed.
#[test]
fn a_flight_without_a_completion_holds_its_leases_and_lands() {
    let world = world(4);
    world.file.shut();
    drop(world.start(world.disk, &[0, 1]));
    world.file.wait_until_entered();
    let lease = |handle, block, mode| world.manager.lease(handle, &[block], mode).is_ok();
    for block in [0, 1] {
        assert!(!lease(world.a, block, LeaseMode::Write));
        assert!(lease(world.a, block, LeaseMode::Read));
        assert!(!lease(world.disk, block, LeaseMode::Read));
    }
    assert!(lease(world.disk, 2, LeaseMode::Write));
    for handle in [world.a, world.disk] {
        let refused = world.manager.unregister(handle).map(drop);
        assert!(matches!(
            refused,
            Err(TransferError::LayoutInUse { leases: 1, .. })
        ));
    }
    lock(&world.manager.ledger).check_integrity();
    let next = world.start(world.disk, &[2]);
    world.file.let_go();
    // Flights of a lane land in order.
    next.wait().unwrap();
    assert!(lease(world.disk, 0, LeaseMode::Write) && lease(world.a, 1, LeaseMode::Write));
    world.assert_copied(world.disk, 0..3);
    world.manager.unregister(world.disk).unwrap();
    lock(&world.manager.ledger).check_integrity();
}

/// A dropped manager waits for every lane, and what it held is free afterwards.
#[test]
fn a_manager_that_is_dropped_waits_for_the_flights_of_every_lane() {
    let world = world(4);
    let layouts = [world.a, world.b, world.disk].map(|h| world.manager.layout(h).unwrap());
    let [_, b, disk] = layouts.clone();
    world.memory.shut();
    world.file.shut();
    let dones = [
        world.start(world.b, &[0]),
        world.start(world.disk, &[0]),
        world.start(world.b, &[1]),
        world.start(world.disk, &[1]),
    ];
    world.memory.wait_until_entered();
    world.file.wait_until_entered();
    let (memory, file) = (Arc::clone(&world.memory), Arc::clone(&world.file));
    let World {
        manager, _folder, ..
    } = world;
    thread::scope(|scope| {
        let dropped = scope.spawn(|| drop(manager));
        assert!(dones.iter().all(|done| !done.is_complete()));
        file.let_go();
        dones[3].wait().unwrap();
        assert!(!dones[0].is_complete() && !dropped.is_finished());
        memory.let_go();
        dropped.join().unwrap();
    });
    for done in &dones {
        done.try_result().unwrap().unwrap();
    }
    // The memory is no manager's now.
    let other = TransferManager::new();
    let [_, b, disk] = [layouts[0].clone(), b, disk].map(|l| other.register(l).unwrap());
    for block in [0, 1] {
        let digests = [b, disk].map(|h| other.block_digest(h, block).unwrap());
        assert_eq!(digests[0], digests[1]);
    }
}

#[test]
fn a_panic_in_a_lane_is_an_end_and_frees_the_blocks() {
    let world = world(4);
    world.memory.panic_once();
    let done = world.start(world.b, &[0, 1]);
    assert!(matches!(done.wait(), Err(TransferError::Panicked)));
    assert!(matches!(done.wait_layer(0), Err(TransferError::Panicked)));
    lock(&world.manager.ledger).check_integrity();
    world.start(world.b, &[0, 1]).wait().unwrap();
    world.assert_copied(world.b, [0, 1]);
}

#[test]
fn a_lane_that_panics_outside_of_a_plan_lands_its_flight_too() {
    let world = world_with(4, Flying::Panicking);
    let dones = [0, 1].map(|block| world.start(world.b, &[block]));
    for done in dones {
        assert!(matches!(done.wait(), Err(TransferError::Panicked)));
    }
    for handle in [world.a, world.b] {
        world.manager.unregister(handle).unwrap();
    }
    lock(&world.manager.ledger).check_integrity();
}

/// What a lane of a device does: the flight stays in the air when its thread has taken the next.
#[test]
fn flights_that_a_lane_keeps_hold_their_leases_and_are_waited_for() {
    let (go, wait) = mpsc::channel();
    let flying = Flying::Kept {
        kept: Mutex::default(),
        go: Mutex::new(wait),
    };
    let world = world_with(4, flying);
    let layouts = [world.a, world.b].map(|h| world.manager.layout(h).unwrap());
    let dones = [0, 1, 2].map(|block| world.start(world.b, &[block]));
    while world.memory.kept() < 3 {
        thread::yield_now();
    }
    assert!(world.try_start(world.b, &[1]).is_err());
    drop(world.start(world.disk, &[3]));
    let World {
        manager, _folder, ..
    } = world;
    thread::scope(|scope| {
        let dropped = scope.spawn(|| drop(manager));
        assert!(dones.iter().all(|done| !done.is_complete()));
        for done in dones.iter().rev() {
            assert!(!dropped.is_finished());
            go.send(()).unwrap();
            done.wait().unwrap();
        }
    });
    let other = TransferManager::new();
    let [a, b] = layouts.map(|layout| other.register(layout).unwrap());
    for block in 0..3 {
        let digests = [a, b].map(|h| other.block_digest(h, block).unwrap());
        assert_eq!(digests[0], digests[1]);
    }
}

/// Runs code when it is woken.
struct OnWake<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for OnWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

fn on_wake(done: &mut TransferCompletion, run: impl Fn() + Send + Sync + 'static) {
    let waker = Waker::from(Arc::new(OnWake(run)));
    let pending = Pin::new(done).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
}

/// Blocks are free when a completion reports, and not a moment later.
#[test]
fn leases_end_before_the_completion_reports() {
    let world = Arc::new(world(4));
    world.file.shut();
    let mut done = world.start(world.disk, &[0]);
    world.file.wait_until_entered();
    let (woken, free) = (mpsc::channel(), Arc::clone(&world));
    let sender = woken.0;
    on_wake(&mut done, move || {
        let leases = [free.a, free.disk].map(|h| free.manager.lease(h, &[0], LeaseMode::Write));
        sender.send(leases.iter().all(Result::is_ok)).unwrap();
    });
    world.file.let_go();
    assert!(woken.1.recv().unwrap());
    drop(done);
}

/// A waker on the thread of one lane never waits for room in another: that lane's thread could be waiting
/// for room in turn.
#[test]
fn a_waker_does_not_wait_for_room_in_another_lane() {
    let world = Arc::new(world(0));
    world.memory.shut();
    let slow = world.start(world.b, &[0]);
    world.memory.wait_until_entered();
    world.file.shut();
    let mut done = world.start(world.disk, &[1]);
    world.file.wait_until_entered();
    let (woken, starter) = (mpsc::channel(), Arc::clone(&world));
    let sender = woken.0;
    on_wake(&mut done, move || {
        let completion = starter.start(starter.b, &[2]);
        sender.send(completion).unwrap();
    });
    world.file.let_go();
    woken.1.recv().unwrap().wait().unwrap();
    assert!(!slow.is_complete());
    world.memory.let_go();
    slow.wait().unwrap();
    world.assert_copied(world.b, [0, 2]);
    drop(done);
}

/// Blocks that lie `stride` bytes apart from `offset` on, each in one piece.
fn strided(arena: &OwnedMemoryRegion, stride: u64, offset: u64) -> PhysicalLayout {
    let layer = BLOCK_BYTES as u64 / 4;
    let plane = |name: &str, at: u64| {
        let digit = |axis, extent, bytes| Digit {
            axis,
            low: 1,
            extent,
            step: Step::bytes(bytes),
        };
        PlaneDigits {
            plane: name.to_owned(),
            region: 0,
            offset: offset + at,
            digits: vec![
                digit(Axis::L, 4, layer),
                digit(Axis::N, 16, 8192),
                digit(Axis::H, 8, 1024),
                digit(Axis::C, 512, 2),
                digit(Axis::B, 4, stride),
            ],
        }
    };
    let spec = LayoutSpec::Digits {
        planes: vec![plane("k", 0), plane("v", layer / 2)],
        region_bytes: vec![offset + 3 * stride + BLOCK_BYTES as u64],
    };
    let bytes = offset + 3 * stride + BLOCK_BYTES as u64;
    let view = RegionView::new(Arc::clone(arena), 0, usize::try_from(bytes).unwrap()).unwrap();
    PhysicalLayout::builder()
        .with_shape(shape(4), 1)
        .layout(spec)
        .with_memory_regions(vec![Arc::new(view)])
        .build()
        .unwrap()
}

/// Even and odd blocks of one allocation: the odd ones are registered and copied while the even ones are in
/// flight, and what has bytes of both is refused.
#[test]
fn a_newcomer_between_the_blocks_of_a_flight_is_registered_and_copied() {
    let world = world(4);
    let arena = SystemMemory::options().allocate(9 * BLOCK_BYTES).unwrap();
    let arena: OwnedMemoryRegion = Arc::new(arena);
    let block = BLOCK_BYTES as u64;
    let manager = &world.manager;
    let even = manager.register(strided(&arena, 2 * block, 0)).unwrap();
    world.file.shut();
    let copy = |from, source: &[usize], to, destination: &[usize]| {
        let options = TransferOptions::new();
        manager.execute_transfer(from, source, to, destination, options)
    };
    let flight = copy(world.disk, &[0, 1], even, &[0, 2]).unwrap();
    world.file.wait_until_entered();
    let odd = manager.register(strided(&arena, 2 * block, block)).unwrap();
    // Its second half is the first of an even block.
    let both = manager
        .register(strided(&arena, 2 * block, block / 2))
        .unwrap();
    lock(&manager.ledger).check_integrity();
    let ids = [0, 1, 2, 3];
    copy(world.a, &ids, odd, &ids).unwrap().wait().unwrap();
    for id in ids {
        let digests = [world.a, odd].map(|h| manager.block_digest(h, id).unwrap());
        assert_eq!(digests[0], digests[1]);
    }
    let copied = AtomicUsize::new(0);
    for id in ids {
        match copy(both, &[id], world.b, &[id]) {
            Ok(done) => {
                assert!([1, 3].contains(&id), "block {id}");
                done.wait().unwrap();
                copied.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert!(matches!(error, TransferError::Overlap { .. }), "{error}");
                assert!([0, 2].contains(&id), "block {id}");
            }
        }
    }
    assert_eq!(copied.into_inner(), 2);
    world.file.let_go();
    flight.wait().unwrap();
    let digests = [(even, 2), (world.disk, 1)].map(|(h, id)| manager.block_digest(h, id).unwrap());
    assert_eq!(digests[0], digests[1]);
    copy(both, &ids, world.b, &ids).unwrap().wait().unwrap();
    lock(&manager.ledger).check_integrity();
}

/// The bytes of a layer of block 3 of `flat`, under a lease of that layer alone.
fn layer_of(world: &World, flat: LayoutHandle, layer: u64) -> Vec<u8> {
    let range = layer..layer + 1;
    let lease = world
        .manager
        .lease_layers(flat, &[3], range, LeaseMode::Read);
    lease.unwrap().part(3).unwrap().to_vec()
}

/// A block is loaded from a file layer by layer while layers that are there are copied on, and others come from
/// elsewhere: each layer gets the bytes of its own transfer.
#[test]
fn transfers_of_different_layers_of_a_block_are_in_flight_at_once() {
    let world = world(4);
    let [flat, other] = [world.flat(), world.flat()];
    let ids: Vec<usize> = (0..8).collect();
    for (handle, seed) in [(world.disk, 11), (other, 12)] {
        let pattern = FillPattern::Distinct { seed };
        world.manager.fill(handle, &ids, pattern).unwrap();
    }
    let zeros = FillPattern::Constant(0);
    world.manager.fill(flat, &[3], zeros).unwrap();
    let copy = |from, to, layers| {
        let options = TransferOptions::new().layers(layers);
        world
            .manager
            .execute_transfer(from, &[3], to, &[3], options)
    };
    world.file.shut();
    // Layers 0 and 1 come from the file, and stand still.
    let slow = copy(world.disk, flat, RangePair::same(0, 2)).unwrap();
    world.file.wait_until_entered();
    // Layer 2 comes from memory meanwhile, is copied on, and is read under a lease.
    copy(other, flat, RangePair::same(2, 1))
        .unwrap()
        .wait()
        .unwrap();
    copy(flat, world.b, RangePair::same(2, 1))
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(layer_of(&world, flat, 2), layer_of(&world, other, 2));
    // Layer 3 is written by hand.
    let write = world
        .manager
        .lease_layers(flat, &[3], 3..4, LeaseMode::Write);
    let mut write = write.unwrap();
    write.part_mut(3).unwrap().fill(0x77);
    lock(&world.manager.ledger).check_integrity();
    assert!(!slow.is_complete());
    for layers in [0..1, 1..2, 1..3, 0..4, 2..4] {
        let lease = world
            .manager
            .lease_layers(flat, &[3], layers, LeaseMode::Read);
        let held = lease.map(drop).unwrap_err();
        assert!(matches!(held, TransferError::BlockLeased { block: 3, .. }));
    }
    let whole = world.manager.lease(flat, &[3], LeaseMode::Read);
    assert!(matches!(
        whole.map(drop),
        Err(TransferError::BlockLeased { .. })
    ));
    // The source of a layer that is on its way is held too, and its other layers are not.
    let source = |layers| {
        world
            .manager
            .lease_layers(world.disk, &[3], layers, LeaseMode::Write)
    };
    assert!(source(1..2).is_err() && source(2..4).is_ok());
    world.file.let_go();
    slow.wait().unwrap();
    drop(write);
    let expected = copy(world.disk, other, RangePair::same(0, 2)).unwrap();
    expected.wait().unwrap();
    for layer in 0..3 {
        let [found, expected] = [flat, other].map(|handle| layer_of(&world, handle, layer));
        assert_eq!(
            (found.len(), &found),
            (BLOCK_BYTES / 4, &expected),
            "layer {layer}"
        );
        assert_ne!(found, vec![0; found.len()]);
    }
    assert_eq!(layer_of(&world, flat, 3), vec![0x77; BLOCK_BYTES / 4]);
    lock(&world.manager.ledger).check_integrity();
}

/// A layer is written by hand while a transfer reads another layer of the same block.
#[test]
fn a_layer_is_written_beside_a_transfer_that_reads_another() {
    let world = world(4);
    let flat = world.flat();
    let pattern = FillPattern::Distinct { seed: 21 };
    world.manager.fill(flat, &[3, 4], pattern).unwrap();
    let before: Vec<Vec<u8>> = (0..4).map(|layer| layer_of(&world, flat, layer)).collect();
    world.file.shut();
    let options = TransferOptions::new().layers(RangePair::same(0, 1));
    let disk = world.disk;
    let slow = world
        .manager
        .execute_transfer(flat, &[3], disk, &[3], options);
    let slow = slow.unwrap();
    world.file.wait_until_entered();
    let write = |layers| {
        world
            .manager
            .lease_layers(flat, &[3, 4], layers, LeaseMode::Write)
    };
    assert!(matches!(
        write(0..2).map(drop),
        Err(TransferError::BlockLeased { block: 3, .. })
    ));
    let mut lease = write(1..2).unwrap();
    assert_eq!(lease.part(3).unwrap(), before[1]);
    lease.page_mut(3, 1).unwrap().fill(0x55);
    // A layer goes to another layer of the same block, and none to itself.
    let inside = |source, destination| {
        let layers = RangePair {
            source,
            destination,
            count: 1,
        };
        let options = TransferOptions::new().layers(layers);
        let moved = world
            .manager
            .execute_transfer(flat, &[3], flat, &[3], options);
        moved.and_then(|moved| moved.wait()).map(drop)
    };
    inside(0, 3).unwrap();
    let itself = inside(2, 2);
    assert!(matches!(itself, Err(TransferError::SameBlock { block: 3 })));
    assert!(matches!(
        inside(3, 0),
        Err(TransferError::BlockLeased {
            block: 3,
            held: "being read",
            ..
        })
    ));
    world.file.let_go();
    slow.wait().unwrap();
    drop(lease);
    // What came to the file is what the layer held.
    let options = TransferOptions::new().layers(RangePair::same(0, 1));
    let back = world
        .manager
        .execute_transfer(disk, &[3], flat, &[5], options);
    back.unwrap().wait().unwrap();
    let lease = world.manager.lease(flat, &[3, 5], LeaseMode::Read).unwrap();
    let layers = [(5, 0), (3, 0), (3, 1), (3, 2), (3, 3)];
    let found = layers.map(|(block, layer)| lease.page(block, layer).unwrap().to_vec());
    let written = vec![0x55; BLOCK_BYTES / 4];
    let kept = |layer: usize| before[layer].clone();
    assert_eq!(found, [kept(0), kept(0), written, kept(2), kept(0)]);
    lock(&world.manager.ledger).check_integrity();
}
