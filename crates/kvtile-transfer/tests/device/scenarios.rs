//! What callers do with transfers of devices.

use std::{sync::Arc, time::Duration};

use crate::world::{
    BLOCKS, DeviceWorld, LAYER_STRIDE, engine_world, kernels, layout, with_kernels,
};
use kvtile_device::{DeviceError, DeviceMemory, ImportedMemory, PinnedMemory};
use kvtile_layout::{RangePair, Selection, Shape, Unit, tradition::LayoutSpec};
use kvtile_memory::MemoryRegion;
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_transfer::{
    BindError, CopyError, DeviceRoute, FillPattern, HasMemory, LayoutHandle, LeaseMode,
    PhysicalLayout, PhysicalLayoutBuilder, TransferError, TransferManager, TransferOptions,
};

const ROUTES: [DeviceRoute; 3] = [
    DeviceRoute::CopyEngine,
    DeviceRoute::Kernel,
    DeviceRoute::Staged,
];

const PATTERN: FillPattern = FillPattern::Distinct { seed: 3 };

#[test]
fn a_block_goes_from_an_engine_to_a_pool_and_back_with_one_digest() {
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let world = DeviceWorld::new(&standin).unwrap();
        world.fill(world.engine, PATTERN);
        let expected = world.digests(world.engine, &[1, 2, 3]);
        for pool in [world.pinned, world.pageable] {
            world.fill(pool, FillPattern::Constant(7));
            let (manager, engine) = (&world.manager, world.engine);
            let options = TransferOptions::new().verify(pool == world.pinned);
            let stored = manager.execute_transfer(engine, &[1, 2, 3], pool, &[4, 0, 5], options);
            stored.unwrap().wait().unwrap();
            assert_eq!(world.digests(pool, &[4, 0, 5]), expected);
            world.fill(world.engine, FillPattern::Constant(8));
            let loaded = manager.execute_transfer(
                pool,
                &[4, 0, 5],
                engine,
                &[1, 2, 3],
                TransferOptions::new(),
            );
            let loaded = loaded.unwrap();
            for layer in 0..loaded.num_layers() {
                loaded.wait_layer(layer).unwrap();
            }
            loaded.wait().unwrap();
            assert_eq!(world.digests(engine, &[1, 2, 3]), expected);
            let lease = manager.lease(engine, &[1], LeaseMode::Read).unwrap();
            lease.checksum(1).unwrap();
        }
        drop(world);
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn checksums_of_equal_layouts_are_equal_on_a_device_and_in_memory() {
    let standin = Standin::start(StandinOptions::seeded(3));
    let world = DeviceWorld::new(&standin).unwrap();
    let (manager, device) = (&world.manager, &world.device);
    let on_device = layout("BLKNHC").allocate_device(device).build().unwrap();
    let on_device = manager.register(on_device).unwrap();
    let blocks = [0, 1, 2, 3, 4, 5];
    world.fill(world.pageable, PATTERN);
    let options = TransferOptions::new;
    let copied = manager.execute_transfer(world.pageable, &blocks, on_device, &blocks, options());
    copied.unwrap().wait().unwrap();
    for block in 0..BLOCKS {
        let sums = [world.pageable, on_device].map(|handle| {
            let lease = manager.lease(handle, &[usize::try_from(block).unwrap()], LeaseMode::Read);
            lease.unwrap().checksum(block).unwrap()
        });
        assert_eq!(sums[0], sums[1], "block {block}");
    }
    let leases = [world.pinned, on_device]
        .map(|handle| manager.lease(handle, &[1], LeaseMode::Read).unwrap());
    assert_eq!(leases[0].page(1, 0).unwrap().len(), 1024);
    assert!(matches!(
        leases[1].page(1, 0),
        Err(TransferError::Bind(BindError::NotReachable { .. }))
    ));
    drop(leases);
    drop(world);
    assert_eq!(standin.complaints(), []);
}

/// Bytes of a layer of the engine.
const LAYER_BYTES: usize = 6 * 2 * 8 * 2 * 16 * 2;

/// The engine writes its blocks on its stream and stores them, overwrites each layer as soon as it is stored, loads the
/// blocks, and reads each layer as soon as it is loaded. It never waits on the host for an order on the device.
fn engine_step(
    world: &DeviceWorld,
    (memory, scratch): (&DeviceMemory, &DeviceMemory),
    route: DeviceRoute,
) {
    let (manager, stream) = (&world.manager, &world.stream);
    let start = |layer: usize| memory.device_address() + (layer * LAYER_STRIDE) as u64;
    for layer in 0..4 {
        // SAFETY: the memory lives until the queues are idle; the transfers are ordered with it below.
        unsafe { stream.fill(start(layer), 3, LAYER_BYTES) }.unwrap();
    }
    let blocks = [0, 1, 2, 3, 4, 5];
    let options = TransferOptions::new().layer_by_layer(true).route(route);
    let after = options.clone().after_queue(stream.clone());
    let stored = manager.execute_transfer(world.engine, &blocks, world.pinned, &blocks, after);
    let stored = stored.unwrap();
    for layer in 0..4 {
        stored.wait_layer_on(stream, layer).unwrap();
        // SAFETY: as above.
        unsafe { stream.fill(start(layer), 4, LAYER_BYTES) }.unwrap();
    }
    stored.wait().unwrap();
    let after = options.after(stream.record().unwrap());
    let loaded = manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, after);
    let loaded = loaded.unwrap();
    for layer in 0..4 {
        loaded.wait_layer_on(stream, layer).unwrap();
        assert!(loaded.mark(layer).unwrap().is_some());
        let to = scratch.device_address() + (layer * LAYER_BYTES) as u64;
        world.copy_on_stream(to, start(layer), LAYER_BYTES);
    }
    drop(loaded);
    stream.synchronize().unwrap();
}

#[test]
fn an_engine_stores_and_loads_on_its_stream_without_waiting_on_the_host() {
    for (seed, route) in (0..100).zip(ROUTES.into_iter().cycle()) {
        let standin = with_kernels(seed);
        let (world, memory) = engine_world(&standin);
        let scratch = DeviceMemory::allocate(&world.device, 4 * LAYER_BYTES).unwrap();
        engine_step(&world, (&memory, &scratch), route);
        let mut bytes = vec![0; scratch.size()];
        assert!(standin.peek(scratch.device_address(), &mut bytes));
        assert!(bytes.iter().all(|byte| *byte == 3), "seed {seed}");
        drop((world, memory, scratch));
        assert_eq!(standin.complaints(), [], "seed {seed}");
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

/// Every wait of the step does nothing once: the checker finds each.
#[test]
fn each_wait_that_is_left_out_is_found() {
    for route in ROUTES {
        // For each of two transfers one behind the stream, and one for each layer.
        for nth in 1..=10 {
            let mut calls = 0;
            // Where the reaper has seen the mark before, the host knows the order, and the wait has nothing to add.
            let is_found = (0..50).any(|seed| {
                let standin = with_kernels(seed);
                let (world, memory) = engine_world(&standin);
                let scratch = DeviceMemory::allocate(&world.device, 4 * LAYER_BYTES).unwrap();
                // It returns success and does nothing.
                standin.fail("cuStreamWaitEvent", nth, 0);
                engine_step(&world, (&memory, &scratch), route);
                calls = standin.calls()["cuStreamWaitEvent"];
                !standin.complaints().is_empty()
            });
            assert!(is_found, "wait {nth} by {route:?}");
            assert_eq!(calls, 10, "{route:?}");
        }
    }
}

#[test]
fn a_transfer_that_lands_too_early_is_found() {
    let routes = ROUTES.into_iter().flat_map(|route| [route; 4]);
    for (seed, route) in (1..).zip(routes) {
        let from_engine = seed % 2 == 0;
        let standin = with_kernels(seed);
        let (world, memory) = engine_world(&standin);
        world.fill(world.engine, PATTERN);
        world.fill(world.pinned, PATTERN);
        let (engine, pinned) = (world.engine, world.pinned);
        let (from, to) = if from_engine {
            (engine, pinned)
        } else {
            (pinned, engine)
        };
        let options = TransferOptions::new().layer_by_layer(false).route(route);
        standin.fail("cuEventSynchronize", 1, 0);
        let done = world
            .manager
            .execute_transfer(from, &[1], to, &[2], options)
            .unwrap();
        done.wait().unwrap();
        world.fill_on_stream(&memory, 9);
        world.stream.synchronize().unwrap();
        assert!(
            !standin.complaints().is_empty(),
            "from the engine: {from_engine}"
        );
    }
}

#[test]
fn a_dropped_completion_lands_and_gives_its_blocks_back() {
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let world = DeviceWorld::new(&standin).unwrap();
        world.fill(world.engine, PATTERN);
        let (manager, engine, pinned) = (&world.manager, world.engine, world.pinned);
        for block in 0..6 {
            let options = TransferOptions::new();
            drop(
                manager
                    .execute_transfer(engine, &[block], pinned, &[block], options)
                    .unwrap(),
            );
        }
        let patience = std::time::Instant::now();
        while manager
            .lease(pinned, &[0, 1, 2, 3, 4, 5], LeaseMode::Write)
            .is_err()
        {
            assert!(patience.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        let blocks = [0, 1, 2, 3, 4, 5];
        assert_eq!(
            world.digests(pinned, &blocks),
            world.digests(engine, &blocks)
        );
        drop(world);
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn a_manager_that_is_dropped_waits_for_its_flights() {
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let world = DeviceWorld::new(&standin).unwrap();
        let blocks = [0, 1, 2, 3, 4, 5];
        let options = TransferOptions::new();
        let done =
            world
                .manager
                .execute_transfer(world.engine, &blocks, world.pinned, &blocks, options);
        let done = done.unwrap();
        drop(world);
        done.try_result().unwrap().unwrap();
        drop(done);
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

#[test]
fn copies_between_devices_cross_them() {
    let standin = Standin::start(StandinOptions {
        devices: 2,
        kernels: Some(kernels()),
        ..StandinOptions::seeded(4)
    });
    let driver = standin.driver().unwrap();
    let devices = [driver.device(0).unwrap(), driver.device(1).unwrap()];
    let manager = TransferManager::new();
    let handles = devices.each_ref().map(|device| {
        let built = layout("L|KBNHC").allocate_device(device).build();
        manager.register(built.unwrap()).unwrap()
    });
    manager.fill(handles[0], &[0, 1, 2], PATTERN).unwrap();
    let options = TransferOptions::new();
    let done = manager.execute_transfer(handles[0], &[0, 1, 2], handles[1], &[3, 4, 5], options);
    done.unwrap().wait().unwrap();
    let are_equal = |[one, other]: [LayoutHandle; 2]| {
        for block in 0..3 {
            let digests = [(one, block), (other, block + 3)]
                .map(|(handle, block)| manager.block_digest(handle, block).unwrap());
            assert_eq!(digests[0], digests[1]);
        }
    };
    are_equal([handles[0], handles[1]]);
    // Kernels do not reach another device: the copy engine permutes run by run, whatever is preferred.
    let other = layout("BLKNHC").allocate_device(&devices[1]).build();
    let other = manager.register(other.unwrap()).unwrap();
    for route in ROUTES {
        manager
            .fill(other, &[3, 4, 5], FillPattern::Constant(1))
            .unwrap();
        let options = TransferOptions::new().route(route);
        let done = manager.execute_transfer(handles[0], &[0, 1, 2], other, &[3, 4, 5], options);
        done.unwrap().wait().unwrap();
        are_equal([handles[0], other]);
    }
    assert_eq!(standin.calls().get("cuLaunchKernel"), None);
    // One layout over two devices is refused.
    let regions = devices
        .each_ref()
        .map(|device| std::sync::Arc::new(DeviceMemory::allocate(device, 1 << 16).unwrap()) as _);
    let mixed = PhysicalLayout::builder()
        .with_shape(Shape::key_value(2, 2, 8, 2, 16, Unit::raw(2).unwrap()).unwrap())
        .layout("L|KBNHC".parse::<LayoutSpec>().unwrap())
        .with_memory_regions(regions.into_iter().collect())
        .build();
    assert!(
        matches!(
            mixed,
            Err(TransferError::Bind(BindError::MixedStorage { .. }))
        ),
        "{mixed:?}"
    );
    drop((manager, devices));
    assert_eq!(standin.complaints(), []);
}

/// Staging is the cheapest for many short runs, and cannot pack one head of two: the next route copies, not the copy engine run
/// by run.
#[test]
fn a_route_that_cannot_copy_leaves_the_plan_to_the_next_best() {
    let standin = with_kernels(9);
    let device = standin.driver().unwrap().device(0).unwrap();
    let manager = TransferManager::new();
    let shape = Shape::key_value(BLOCKS, 8, 64, 2, 16, Unit::raw(2).unwrap()).unwrap();
    let layout = |word: &str| {
        let builder = PhysicalLayout::builder().with_shape(shape.clone());
        builder.layout(word.parse::<LayoutSpec>().unwrap())
    };
    let engine = layout("L|KBNHC").allocate_device(&device).build().unwrap();
    let pinned = layout("BLKNHC").allocate_pinned(&device).build().unwrap();
    let [engine, pinned] = [engine, pinned].map(|layout| manager.register(layout).unwrap());
    let blocks = [0, 1, 2, 3, 4, 5];
    manager.fill(pinned, &blocks, PATTERN).unwrap();
    let nothing = FillPattern::Constant(1);
    manager.fill(engine, &blocks, nothing).unwrap();
    let every: Vec<u64> = (0..BLOCKS).collect();
    let mut one_head = Selection::blocks(&every, &every, 64).unwrap();
    let count = |function| standin.calls().get(function).copied().unwrap_or(0);
    let copies = count("cuMemcpyBatchAsync_v2");
    for head in 0..2 {
        one_head.heads = Some(RangePair::same(head, 1));
        let options = TransferOptions::new().layer_by_layer(false);
        let loaded = manager.execute_selection(pinned, engine, one_head.clone(), options);
        loaded.unwrap().wait().unwrap();
        assert_eq!(count("cuLaunchKernel"), head + 1);
    }
    assert_eq!(count("cuMemcpyBatchAsync_v2"), copies, "copied run by run");
    for block in blocks {
        let digests = [pinned, engine].map(|handle| manager.block_digest(handle, block).unwrap());
        assert_eq!(digests[0], digests[1], "block {block}");
    }
    drop((manager, device));
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

/// What `docs/devices.md` states as unknown to kvtile: memory at two addresses is two memories, so nothing orders transfers over
/// both. Over one address their blocks are leased together.
#[test]
fn transfers_over_memory_at_two_addresses_are_not_ordered_and_over_one_address_they_are() {
    let (mut races, mut leased) = (0, 0);
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let (world, memory) = engine_world(&standin);
        let handle = memory.export().unwrap();
        // SAFETY: the exporting owner keeps the memory; that both access it in conflict is the test.
        let mapped = unsafe { ImportedMemory::open(&world.device, &handle) }.unwrap();
        assert_ne!(mapped.device_address(), memory.device_address());
        let manager = &world.manager;
        let register = |builder: PhysicalLayoutBuilder<HasMemory>| {
            manager.register(builder.build().unwrap()).unwrap()
        };
        let other = register(layout("L|KBNHC").over_memory(Arc::new(mapped)));
        let again = register(layout("L|KBNHC").over_memory(Arc::clone(&memory) as _));
        world.fill(world.pinned, PATTERN);
        let options = || TransferOptions::new().route(DeviceRoute::CopyEngine);
        let load = |to| manager.execute_transfer(world.pinned, &[0], to, &[1], options());
        let loaded = load(world.engine).unwrap();
        // Landing drops the leases before it reports the end.
        match load(again) {
            Err(TransferError::Copy(CopyError::Overlap { .. })) => leased += 1,
            later => drop(later.unwrap().wait().unwrap()),
        }
        let store = |from| manager.execute_transfer(from, &[1], world.pinned, &[3], options());
        let stored = store(other).unwrap();
        loaded.wait().unwrap();
        stored.wait().unwrap();
        races += standin.complaints().len();
    }
    assert!(races > 0, "the checker has found no race in 20 orders");
    assert!(
        leased > 0,
        "no transfer over one address was refused in 20 orders"
    );
}

#[test]
fn bad_requests_are_typed_errors() {
    let standin = Standin::start(StandinOptions::seeded(5));
    let world = DeviceWorld::new(&standin).unwrap();
    let (manager, stream) = (&world.manager, &world.stream);
    let other = manager
        .register(layout("L|KBNHC").allocate_system().build().unwrap())
        .unwrap();
    let options = TransferOptions::new().after(stream.record().unwrap());
    let refused = manager.execute_transfer(world.pageable, &[0], other, &[0], options);
    assert!(matches!(
        refused,
        Err(TransferError::Copy(CopyError::AfterWithoutDevice { .. }))
    ));
    let options = TransferOptions::new();
    let done = manager.execute_transfer(world.pageable, &[0], other, &[0], options);
    let done = done.unwrap();
    done.wait_layer_on(stream, 3).unwrap();
    assert!(done.mark(3).unwrap().is_none());
    assert!(matches!(
        done.wait_layer_on(stream, 4),
        Err(TransferError::Copy(CopyError::NoSuchLayer {
            layer: 4,
            layers: 4
        }))
    ));
    let huge = layout("BLKNHC");
    let full = DeviceMemory::allocate(&world.device, (64 << 20) - (48 << 10)).unwrap();
    let error = huge.allocate_device(&world.device).build().unwrap_err();
    let TransferError::Device(error) = error else {
        panic!("{error}")
    };
    assert!(matches!(*error, DeviceError::OutOfMemory { .. }), "{error}");
    drop(full);
}

#[test]
fn many_transfers_through_staging_memory_keep_its_bound() {
    let standin = Standin::start(StandinOptions::seeded(6));
    let world = DeviceWorld::new(&standin).unwrap();
    world.fill(world.pageable, PATTERN);
    let before = standin.leaks().pinned_memory;
    let mut waiting = Vec::new();
    let mut most = 0;
    for turn in 0..1000_usize {
        let block = turn % 6;
        let options = TransferOptions::new();
        let started = world.manager.execute_transfer(
            world.pageable,
            &[block],
            world.engine,
            &[block],
            options,
        );
        match started {
            Ok(done) => waiting.push(done),
            Err(TransferError::Lease(_)) => waiting.drain(..).for_each(|done| {
                done.wait().unwrap();
            }),
            Err(error) => panic!("{error}"),
        }
        most = most.max(standin.leaks().pinned_memory - before);
    }
    for done in waiting {
        done.wait().unwrap();
    }
    assert!(most <= 4, "{most} slots");
    drop(world);
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn a_lost_device_fails_transfers_in_flight_and_later_ones() {
    for seed in 0..10 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let world = DeviceWorld::new(&standin).unwrap();
        let (manager, engine, pinned) = (&world.manager, world.engine, world.pinned);
        let start = |blocks: &[usize]| {
            manager.execute_transfer(engine, blocks, pinned, blocks, TransferOptions::new())
        };
        let flying = start(&[0, 1, 2]).unwrap();
        standin.lose(700);
        let is_lost = |error: TransferError| match error {
            TransferError::Device(error) => matches!(*error, DeviceError::Lost { .. }),
            _ => false,
        };
        // It may have ended before.
        if let Err(error) = flying.wait() {
            assert!(is_lost(error), "seed {seed}");
        }
        assert!(is_lost(start(&[3]).unwrap().wait().unwrap_err()));
        assert!(
            manager
                .lease(pinned, &[0, 1, 2, 3], LeaseMode::Write)
                .is_ok()
        );
        assert!(is_lost(manager.block_digest(engine, 0).unwrap_err()));
    }
    let standin = Standin::start(StandinOptions::seeded(1));
    let device = standin.driver().unwrap().device(0).unwrap();
    let memory = PinnedMemory::allocate(&device, 4096).unwrap();
    drop((memory, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}
