//! Lanes that stop at a gate, panic, or end their flights late. No test depends on elapsed time: a
//! transfer that must not be delayed completes while a gate holds other flights. Every wait ends,
//! so that a broken assertion fails the test: dropping a gate opens it, so each gate is declared
//! after the manager whose flights it holds.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread,
};

use kvtile_layout::{AddressStep, Axis, Digit, PlaneDigits, tradition::LayoutSpec};
use kvtile_memory::{OwnedMemoryRegion, RegionView, SystemMemory};
use kvtile_testkit::gate::{PATIENCE, wait_until};
use parking_lot::Mutex;

use super::world::{
    BLOCK_BYTES, LanesWorld, arrives, assert_equal_outside, end, shape, world, world_with,
};
use crate::{
    CopyError, LeaseError, LeaseMode, PhysicalLayout, RegisterError, TransferCompletion,
    TransferError, TransferOptions,
    execute::{Lane, gated::FlightMode},
    lease::lock,
};

#[test]
fn a_stopped_file_transfer_delays_no_memory_copy() {
    let world = world(1);
    let (gate, slow) = world.stop_file(&[7]);
    // One more flight waits in the queue of the file lane, which is then full.
    let queued = world.start(world.disk, &[6]);
    for block in 0..6 {
        let report = end(&world.start(world.b, &[block])).unwrap();
        assert_eq!(report.bytes, BLOCK_BYTES as u64);
    }
    assert!(!slow.is_complete() && !queued.is_complete());
    world.assert_copied(world.b, 0..6);
    gate.open();
    arrives(&slow);
    arrives(&queued);
    world.assert_copied(world.disk, [6, 7]);
}

#[test]
fn a_stopped_memory_copy_delays_no_file_transfer() {
    let world = world(1);
    let (gate, slow) = world.stop_memory(&[7]);
    let queued = world.start(world.b, &[6]);
    for block in 0..6 {
        arrives(&world.start(world.disk, &[block]));
    }
    assert!(!slow.is_complete() && !queued.is_complete());
    world.assert_copied(world.disk, 0..6);
    gate.open();
    arrives(&slow);
    arrives(&queued);
    world.assert_copied(world.b, [6, 7]);
}

#[test]
fn a_stopped_file_transfer_delays_no_other_file_transfer() {
    let world = world_with(4, 2, FlightMode::OnItsThread);
    let (gate, slow) = world.stop_file(&[7]);
    for block in 0..6 {
        arrives(&world.start(world.disk, &[block]));
    }
    assert!(!slow.is_complete());
    world.assert_copied(world.disk, 0..6);
    gate.open();
    arrives(&slow);
    world.assert_copied(world.disk, [7]);
}

/// At most the configured number of transfers run concurrently; a queued one starts when another
/// has ended.
#[test]
fn as_many_file_transfers_run_concurrently_as_configured() {
    for files in [1, 2, 3] {
        let world = world_with(8, files, FlightMode::OnItsThread);
        let gate = world.file.shut(files);
        let stopped: Vec<_> = (0..files).map(|b| world.start(world.disk, &[b])).collect();
        gate.wait_until_stopped(files);
        // The gate stops no further flight, so a flight that a free thread took would complete.
        let queued: Vec<_> = (files..8).map(|b| world.start(world.disk, &[b])).collect();
        assert_eq!(world.file.threads().get(), files);
        assert!(queued.iter().chain(&stopped).all(|d| !d.is_complete()));
        gate.open();
        queued.iter().chain(&stopped).for_each(arrives);
        world.assert_copied(world.disk, 0..8);
    }
}

/// Leases decide which transfers run concurrently: a conflicting one is refused, and readers of the
/// same bytes run together.
#[test]
fn file_transfers_over_the_same_bytes_are_refused_and_readers_move_together() {
    let world = world_with(4, 2, FlightMode::OnItsThread);
    let manager = &world.manager;
    let copy = |from, source, to, target| {
        let options = TransferOptions::new();
        manager.execute_transfer(from, &[source], to, &[target], options)
    };
    let (gate, done) = world.stop_file(&[0]);
    // The stopped flight reads block 0 of `a` and writes block 0 of the file.
    for (from, source, to, target) in [
        (world.a, 1, world.disk, 0),
        (world.disk, 0, world.b, 0),
        (world.disk, 1, world.a, 0),
    ] {
        let refused = copy(from, source, to, target);
        assert!(matches!(
            refused,
            Err(TransferError::Lease(LeaseError::BlockLeased { .. }))
        ));
    }
    arrives(&copy(world.a, 0, world.disk, 1).unwrap());
    assert!(!done.is_complete());
    gate.open();
    arrives(&done);
    let [first, second] = [0, 1].map(|b| manager.block_digest(world.disk, b).unwrap());
    assert_eq!(first, second);
    lock(&manager.ledger).check_integrity();
}

/// A panic ends only its own flight. The others complete, and the thread takes the next one.
#[test]
fn a_panic_in_one_thread_of_a_lane_ends_its_flight_alone() {
    let world = world_with(8, 2, FlightMode::OnItsThread);
    let (gate, stopped) = world.stop_file(&[0]);
    for block in 1..4 {
        world.file.panic_once();
        let done = world.start(world.disk, &[block]);
        assert!(matches!(
            end(&done),
            Err(TransferError::Copy(CopyError::Panicked))
        ));
    }
    assert!(!stopped.is_complete());
    gate.open();
    arrives(&stopped);
    // Both threads still take flights.
    let gate = world.file.shut(2);
    let dones = [1, 2].map(|block| world.start(world.disk, &[block]));
    gate.wait_until_stopped(2);
    gate.open();
    dones.iter().for_each(arrives);
    world.assert_copied(world.disk, 0..3);
    lock(&world.manager.ledger).check_integrity();
}

/// Flights queued behind several threads end before the manager's drop returns.
#[test]
fn dropping_a_manager_ends_flights_queued_for_several_threads() {
    let world = world_with(8, 2, FlightMode::OnItsThread);
    let layouts = [world.a, world.disk].map(|h| world.manager.layout(h).unwrap());
    let gate = world.file.shut(2);
    let dones: Vec<_> = (0..8).map(|b| world.start(world.disk, &[b])).collect();
    gate.wait_until_stopped(2);
    let LanesWorld {
        manager, _folder, ..
    } = world;
    thread::scope(|scope| {
        let gate = gate;
        let dropped = scope.spawn(|| drop(manager));
        assert!(dones.iter().all(|done| !done.is_complete()));
        gate.open();
        dropped.join().unwrap();
    });
    for done in &dones {
        done.try_result().unwrap().unwrap();
    }
    assert_equal_outside(layouts, 0..8);
}

/// Pitfall 20 without a completion: the leases last until the flight has ended.
#[test]
fn a_flight_without_a_completion_holds_its_leases_until_its_end() {
    let world = world(4);
    let (gate, done) = world.stop_file(&[0, 1]);
    drop(done);
    let lease = |handle, block, mode| world.is_free(handle, block, mode);
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
            Err(TransferError::Register(RegisterError::LayoutInUse {
                leases: 1,
                ..
            }))
        ));
    }
    lock(&world.manager.ledger).check_integrity();
    let next = world.start(world.disk, &[2]);
    gate.open();
    // A single thread completes its flights in order.
    arrives(&next);
    assert!(lease(world.disk, 0, LeaseMode::Write) && lease(world.a, 1, LeaseMode::Write));
    world.assert_copied(world.disk, 0..3);
    world.manager.unregister(world.disk).unwrap();
    lock(&world.manager.ledger).check_integrity();
}

/// Dropping a manager waits for every lane; its memory is free afterwards.
#[test]
fn a_manager_that_is_dropped_waits_for_the_flights_of_every_lane() {
    let world = world(4);
    let layouts = [world.a, world.b, world.disk].map(|h| world.manager.layout(h).unwrap());
    let [memory, file] = [world.memory.shut(1), world.file.shut(1)];
    let dones = [
        world.start(world.b, &[0]),
        world.start(world.disk, &[0]),
        world.start(world.b, &[1]),
        world.start(world.disk, &[1]),
    ];
    memory.wait_until_stopped(1);
    file.wait_until_stopped(1);
    let LanesWorld {
        manager, _folder, ..
    } = world;
    // The closure owns the gates, so that its panic opens them.
    thread::scope(|scope| {
        let (memory, file) = (memory, file);
        let dropped = scope.spawn(|| drop(manager));
        assert!(dones.iter().all(|done| !done.is_complete()));
        file.open();
        arrives(&dones[3]);
        assert!(!dones[0].is_complete() && !dropped.is_finished());
        memory.open();
        dropped.join().unwrap();
    });
    for done in &dones {
        done.try_result().unwrap().unwrap();
    }
    // No manager owns the memory now.
    let [_, b, disk] = layouts;
    assert_equal_outside([b, disk], [0, 1]);
}

#[test]
fn a_panic_in_a_lane_ends_the_transfer_and_frees_its_blocks() {
    let world = world(4);
    world.memory.panic_once();
    let done = world.start(world.b, &[0, 1]);
    assert!(matches!(
        end(&done),
        Err(TransferError::Copy(CopyError::Panicked))
    ));
    assert!(matches!(
        done.wait_layer(0),
        Err(TransferError::Copy(CopyError::Panicked))
    ));
    lock(&world.manager.ledger).check_integrity();
    arrives(&world.start(world.b, &[0, 1]));
    world.assert_copied(world.b, [0, 1]);
}

#[test]
fn a_lane_that_panics_outside_of_a_plan_ends_its_flight_too() {
    let world = world_with(4, 1, FlightMode::Panicking);
    let dones = [0, 1].map(|block| world.start(world.b, &[block]));
    for done in dones {
        assert!(matches!(
            end(&done),
            Err(TransferError::Copy(CopyError::Panicked))
        ));
    }
    for handle in [world.a, world.b] {
        world.manager.unregister(handle).unwrap();
    }
    lock(&world.manager.ledger).check_integrity();
}

/// As in a lane of a device: the flight continues after its thread has taken the next one.
#[test]
fn flights_that_a_lane_keeps_hold_their_leases_and_are_waited_for() {
    let (go, wait) = mpsc::channel();
    let flying = FlightMode::Kept {
        kept: Mutex::default(),
        go: Mutex::new(wait),
    };
    let world = world_with(4, 1, flying);
    let layouts = [world.a, world.b].map(|h| world.manager.layout(h).unwrap());
    let dones = [0, 1, 2].map(|block| world.start(world.b, &[block]));
    wait_until("three flights in the air", || world.memory.kept() == 3);
    assert!(world.try_start(world.b, &[1]).is_err());
    drop(world.start(world.disk, &[3]));
    let LanesWorld {
        manager, _folder, ..
    } = world;
    // The closure owns the sender, so that its panic ends the flights.
    thread::scope(|scope| {
        let go = go;
        let dropped = scope.spawn(|| drop(manager));
        assert!(dones.iter().all(|done| !done.is_complete()));
        for done in dones.iter().rev() {
            assert!(!dropped.is_finished());
            go.send(()).unwrap();
            arrives(done);
        }
    });
    assert_equal_outside(layouts, 0..3);
}

/// A waker that runs code.
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

/// Blocks are free when a completion reports the end.
#[test]
fn leases_end_before_the_completion_reports() {
    let world = Arc::new(world(4));
    let (gate, mut done) = world.stop_file(&[0]);
    let (woken, free) = (mpsc::channel(), Arc::clone(&world));
    let sender = woken.0;
    on_wake(&mut done, move || {
        let handles = [free.a, free.disk];
        let are_free = handles.map(|h| free.is_free(h, 0, LeaseMode::Write));
        sender.send(are_free).unwrap();
    });
    gate.open();
    assert_eq!(woken.1.recv_timeout(PATIENCE), Ok([true; 2]));
    drop(done);
}

/// A waker on a thread of one lane never waits for room in another lane's queue, because that
/// lane's thread could wait for room in turn.
#[test]
fn a_waker_does_not_wait_for_room_in_another_lane() {
    let world = Arc::new(world(0));
    let (memory, slow) = world.stop_memory(&[0]);
    let (file, mut done) = world.stop_file(&[1]);
    let (woken, starter) = (mpsc::channel(), Arc::clone(&world));
    let sender = woken.0;
    on_wake(&mut done, move || {
        let completion = starter.start(starter.b, &[2]);
        sender.send(completion).unwrap();
    });
    file.open();
    arrives(&woken.1.recv_timeout(PATIENCE).unwrap());
    assert!(!slow.is_complete());
    memory.open();
    arrives(&slow);
    world.assert_copied(world.b, [0, 2]);
    drop(done);
}

/// Blocks `stride` bytes apart, starting at `offset`, each contiguous.
fn strided(arena: &OwnedMemoryRegion, stride: u64, offset: u64) -> PhysicalLayout {
    let layer = BLOCK_BYTES as u64 / 4;
    let plane = |name: &str, at: u64| {
        let digit = |axis, extent, bytes| Digit {
            axis,
            low: 1,
            extent,
            step: AddressStep::bytes(bytes),
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
        .with_shape(shape(4))
        .layout(spec)
        .with_memory_regions(vec![Arc::new(view)])
        .build()
        .unwrap()
}

/// Even and odd blocks of one allocation: the odd ones are registered and copied while the even
/// ones are in flight. Blocks with bytes of both are refused.
#[test]
fn a_new_layout_between_the_blocks_of_a_flight_is_registered_and_copied() {
    let world = world(4);
    let arena = SystemMemory::options().allocate(9 * BLOCK_BYTES).unwrap();
    let arena: OwnedMemoryRegion = Arc::new(arena);
    let block = BLOCK_BYTES as u64;
    let manager = &world.manager;
    let even = manager.register(strided(&arena, 2 * block, 0)).unwrap();
    let gate = world.file.shut(1);
    let copy = |from, source: &[usize], to, destination: &[usize]| {
        let options = TransferOptions::new();
        manager.execute_transfer(from, source, to, destination, options)
    };
    let flight = copy(world.disk, &[0, 1], even, &[0, 2]).unwrap();
    gate.wait_until_stopped(1);
    let odd = manager.register(strided(&arena, 2 * block, block)).unwrap();
    // Its second half is the first half of an even block.
    let both = manager
        .register(strided(&arena, 2 * block, block / 2))
        .unwrap();
    lock(&manager.ledger).check_integrity();
    let ids = [0, 1, 2, 3];
    arrives(&copy(world.a, &ids, odd, &ids).unwrap());
    for id in ids {
        let digests = [world.a, odd].map(|h| manager.block_digest(h, id).unwrap());
        assert_eq!(digests[0], digests[1]);
    }
    let copied = AtomicUsize::new(0);
    for id in ids {
        match copy(both, &[id], world.b, &[id]) {
            Ok(done) => {
                assert!([1, 3].contains(&id), "block {id}");
                arrives(&done);
                copied.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert!(
                    matches!(error, TransferError::Copy(CopyError::Overlap { .. })),
                    "{error}"
                );
                assert!([0, 2].contains(&id), "block {id}");
            }
        }
    }
    assert_eq!(copied.into_inner(), 2);
    gate.open();
    arrives(&flight);
    let digests = [(even, 2), (world.disk, 1)].map(|(h, id)| manager.block_digest(h, id).unwrap());
    assert_eq!(digests[0], digests[1]);
    arrives(&copy(both, &ids, world.b, &ids).unwrap());
    lock(&manager.ledger).check_integrity();
}
