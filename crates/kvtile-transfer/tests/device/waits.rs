//! Each wait of the host in a transfer, left out once: in some order of the device's work the bytes are wrong, or the checker
//! complains. The waits of streams, and that of a reaper, are in `scenarios`.

use kvtile_device::DeviceMemory;
use kvtile_layout::{Shape, Unit, tradition::LayoutSpec};
use kvtile_memory::MemoryRegion;
use kvtile_standin::Standin;
use kvtile_transfer::{
    DeviceRoute, FillPattern, HasLayout, LayoutHandle, LeaseMode, PhysicalLayout,
    PhysicalLayoutBuilder, TransferManager, TransferOptions,
};

use crate::scenarios::{DeviceWorld, engine_world, with_kernels};

/// Orders in which a missing wait is looked for.
const SEEDS: u64 = 50;

const PATTERN: FillPattern = FillPattern::Distinct { seed: 5 };

/// A scenario with one wait that matters. It calls its second argument before the transfer whose wait may be left out, and
/// returns whether all bytes are right.
type WaitScenario = fn(&Standin, &dyn Fn()) -> bool;

/// The scenario is right with its waits, and wrong in some order where the `nth` call of `function` waits for nothing.
fn is_needed((function, nth): (&'static str, u64), scenario: WaitScenario) {
    let run = |seed: u64, is_left_out: bool| {
        let standin = with_kernels(seed);
        let is_right = scenario(&standin, &|| {
            if is_left_out {
                standin.fail(function, nth, 0);
            }
        });
        is_right && standin.complaints().is_empty()
    };
    for seed in 0..5 {
        assert!(run(seed, false), "wrong with all waits, seed {seed}");
    }
    assert!(
        (0..SEEDS).any(|seed| !run(seed, true)),
        "{function} left out: nothing was found in {SEEDS} orders"
    );
}

/// The engine's stream, and memory that it writes while a transfer that was not waited for is in flight.
fn engine_writes(world: &DeviceWorld, memory: &DeviceMemory) {
    // SAFETY: memory of the stand-in, which lives until the stream is idle; that it may be in use is the test.
    unsafe { world.stream.fill(memory.device_address(), 9, memory.size()) }.unwrap();
    world.stream.synchronize().unwrap();
}

#[test]
fn work_before_a_transfer_that_ends_on_the_host() {
    is_needed(("cuEventSynchronize", 1), |standin, leave_out| {
        let (world, memory) = engine_world(standin);
        let (manager, pool) = (&world.manager, world.pageable);
        manager.fill(pool, &[1], FillPattern::Constant(7)).unwrap();
        // SAFETY: as in `engine_writes`; the transfer waits for it.
        unsafe { world.stream.fill(memory.device_address(), 7, memory.size()) }.unwrap();
        let options = TransferOptions::new().after_queue(world.stream.clone());
        leave_out();
        let stored = manager.execute_transfer(world.engine, &[0], pool, &[0], options);
        stored.unwrap().wait().unwrap();
        let digests = world.digests(pool, &[0, 1]);
        digests[0] == digests[1]
    });
}

#[test]
fn a_copy_that_is_verified() {
    // The first waits are for the copies, behind which the reads of the comparison are in the same queue.
    is_needed(("cuEventSynchronize", 4), |standin, leave_out| {
        let world = DeviceWorld::new(standin).unwrap();
        // A pattern for the engine would leave slots whose marks are waited for first.
        world.fill(world.pinned, PATTERN);
        let options = TransferOptions::new().verify(true);
        let (manager, blocks) = (&world.manager, [0, 1, 2]);
        leave_out();
        let loaded =
            manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, options);
        loaded.unwrap().wait().is_ok()
    });
}

#[test]
fn a_copy_from_the_device_to_a_slot() {
    is_needed(("cuEventSynchronize", 1), |standin, leave_out| {
        let world = DeviceWorld::new(standin).unwrap();
        world.fill(world.engine, PATTERN);
        world.fill(world.pageable, FillPattern::Constant(1));
        let expected = world.digests(world.engine, &[0, 1]);
        let (manager, options) = (&world.manager, TransferOptions::new());
        leave_out();
        let stored =
            manager.execute_transfer(world.engine, &[0, 1], world.pageable, &[2, 3], options);
        stored.unwrap().wait().unwrap();
        world.digests(world.pageable, &[2, 3]) == expected
    });
}

#[test]
fn the_bytes_of_a_checksum() {
    is_needed(("cuEventSynchronize", 1), |standin, leave_out| {
        let world = DeviceWorld::new(standin).unwrap();
        world.fill(world.engine, PATTERN);
        // The slot has other bytes before.
        let lease = |block| world.manager.lease(world.engine, &[block], LeaseMode::Read);
        let expected = lease(3).unwrap().checksum(3).unwrap();
        lease(4).unwrap().checksum(4).unwrap();
        leave_out();
        lease(3).unwrap().checksum(3).unwrap() == expected
    });
}

/// A builder of `layers` layers of 32 KiB for each of eight blocks.
fn wide(word: &str, layers: u64) -> PhysicalLayoutBuilder<HasLayout> {
    let shape = Shape::key_value(8, layers, 64, 8, 16, Unit::raw(2).unwrap()).unwrap();
    let builder = PhysicalLayout::builder().with_shape(shape);
    builder.layout(word.parse::<LayoutSpec>().unwrap())
}

fn register(manager: &TransferManager, layout: PhysicalLayout) -> LayoutHandle {
    manager.register(layout).unwrap()
}

#[test]
fn a_slot_that_the_transfer_before_still_reads() {
    is_needed(("cuEventSynchronize", 1), |standin, leave_out| {
        let device = standin.driver().unwrap().device(0).unwrap();
        let manager = TransferManager::new();
        // A slot for each layer: with the fifth the first one is used again.
        let engine = wide("L|KBNHC", 6).allocate_device(&device).build().unwrap();
        let engine = register(&manager, engine);
        let host = wide("L|BKNHC", 6).allocate_system().build().unwrap();
        let host = register(&manager, host);
        let blocks = [0, 1];
        manager.fill(host, &blocks, PATTERN).unwrap();
        let options = TransferOptions::new().layer_by_layer(true);
        leave_out();
        let loaded = manager.execute_transfer(host, &blocks, engine, &blocks, options);
        loaded.unwrap().wait().unwrap();
        blocks.iter().all(|&block| {
            let digest = |handle| manager.block_digest(handle, block).unwrap();
            digest(host) == digest(engine)
        })
    });
}

#[test]
fn packed_memory_that_grows_while_a_transfer_uses_it() {
    is_needed(("cuStreamSynchronize", 1), |standin, leave_out| {
        let device = standin.driver().unwrap().device(0).unwrap();
        let (manager, stream) = (TransferManager::new(), device.queue().unwrap());
        let engine = wide("L|KBNHC", 1).allocate_device(&device).build().unwrap();
        let engine = register(&manager, engine);
        let pinned = wide("BLKNHC", 1).allocate_pinned(&device).build().unwrap();
        let pinned = register(&manager, pinned);
        let every = [0, 1, 2, 3, 4, 5, 6, 7];
        manager.fill(engine, &every, PATTERN).unwrap();
        let options = || TransferOptions::new().route(DeviceRoute::Staged);
        let first = manager.execute_transfer(engine, &[0], pinned, &[0], options());
        let first = first.unwrap();
        // It is enqueued, and has perhaps not run.
        first.wait_layer_on(&stream, 0).unwrap();
        leave_out();
        let rest = &every[1..];
        let second = manager.execute_transfer(engine, rest, pinned, rest, options());
        second.unwrap().wait().unwrap();
        first.wait().unwrap();
        every.iter().all(|&block| {
            let digest = |handle| manager.block_digest(handle, block).unwrap();
            digest(engine) == digest(pinned)
        })
    });
}

/// A transfer whose copies are enqueued, and whose mark is refused by the driver.
fn fails_behind_its_copies(standin: &Standin, leave_out: &dyn Fn(), options: TransferOptions) {
    let (world, memory) = engine_world(standin);
    world.fill(world.pinned, PATTERN);
    world.fill(world.engine, PATTERN);
    standin.fail("cuEventRecord", 1, 999);
    leave_out();
    let (manager, blocks) = (&world.manager, [0, 1, 2]);
    let loaded = manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, options);
    assert!(loaded.unwrap().wait().is_err());
    engine_writes(&world, &memory);
}

#[test]
fn the_end_of_a_flight_that_failed() {
    is_needed(("cuStreamSynchronize", 1), |standin, leave_out| {
        fails_behind_its_copies(standin, leave_out, TransferOptions::new());
        true
    });
}

#[test]
fn the_end_of_a_verified_transfer_that_failed() {
    is_needed(("cuStreamSynchronize", 1), |standin, leave_out| {
        fails_behind_its_copies(standin, leave_out, TransferOptions::new().verify(true));
        true
    });
}

#[test]
fn a_slot_whose_mark_was_refused() {
    is_needed(("cuStreamSynchronize", 1), |standin, leave_out| {
        let world = DeviceWorld::new(standin).unwrap();
        world.fill(world.engine, PATTERN);
        standin.fail("cuEventRecord", 1, 999);
        leave_out();
        let lease = world.manager.lease(world.engine, &[3], LeaseMode::Read);
        let lease = lease.unwrap();
        let is_refused = lease.checksum(3).is_err();
        drop(lease);
        // The slots are freed with the last layout of the device.
        drop(world);
        is_refused
    });
}
