//! Each wait for work of a device, left out: in some order of the device's work the checker of the stand-in driver
//! complains. With all waits it never does, and the bytes are right.
#![expect(
    clippy::disallowed_methods,
    reason = "the engine of a test waits as it likes"
)]

use std::{fs, path::Path};

use kvtile_device::DeviceMemory;
use kvtile_layout::{Shape, Unit, tradition::LayoutSpec};
use kvtile_standin::Standin;

use self::world::{DeviceWorld, engine_world, with_kernels};
use crate::{
    execute::{DeviceWait, LeftOutWait},
    lease::LeaseMode,
    manager::{FillPattern, TransferOptions},
    physical::PhysicalLayout,
    {DeviceRoute, LayoutHandle, TransferManager},
};

#[path = "../../../tests/device/world.rs"]
mod world;

/// Orders in which a missing wait is looked for.
const SEEDS: u64 = 50;

/// Orders in which there is no complaint with all waits.
const SEEDS_WITH_ALL: u64 = 8;

const PATTERN: FillPattern = FillPattern::Distinct { seed: 5 };

/// What needs a wait: it calls `leave_out` when all that came before has ended, and returns whether all bytes are right.
type WaitScenario = fn(&Standin, leave_out: &mut dyn FnMut()) -> bool;

/// The scenario in which a wait matters. A new wait has none and does not compile.
fn scenario_of(wait: DeviceWait) -> WaitScenario {
    match wait {
        DeviceWait::WorkBeforeHost => |standin, leave_out| {
            stores_what_a_stream_writes(standin, leave_out, |world| world.pageable)
        },
        DeviceWait::WorkBeforeQueue | DeviceWait::SourceBehindWork => |standin, leave_out| {
            stores_what_a_stream_writes(standin, leave_out, |world| world.pinned)
        },
        DeviceWait::PackedBehindKernel => packs_blocks,
        DeviceWait::CopiesCompared => loads_and_compares,
        DeviceWait::SlotReused => loads_more_layers_than_slots,
        DeviceWait::SlotRead => sums_a_block,
        DeviceWait::SlotBounced => stores_into_memory_that_is_not_pinned,
        DeviceWait::SlotUnmarked => sums_a_block_without_a_mark,
        DeviceWait::BufferReplaced => packs_more_than_before,
        DeviceWait::FlightLanded => |standin, leave_out| {
            engine_writes_after(standin, leave_out, TransferOptions::new(), false)
        },
        DeviceWait::FlightFailed => |standin, leave_out| {
            engine_writes_after(standin, leave_out, TransferOptions::new(), true)
        },
        DeviceWait::CarryFailed => |standin, leave_out| {
            engine_writes_after(
                standin,
                leave_out,
                TransferOptions::new().verify(true),
                true,
            )
        },
        DeviceWait::LayerOnStream => reads_a_layer_on_a_stream,
    }
}

/// Runs the scenario of `wait`, with or without it: whether the bytes are right, and what the checker found.
fn run(wait: DeviceWait, seed: u64, is_left_out: bool) -> (bool, Vec<String>) {
    let standin = with_kernels(seed);
    let mut left_out = None;
    let is_right = scenario_of(wait)(&standin, &mut || {
        left_out = is_left_out.then(|| LeftOutWait::of(wait));
    });
    drop(left_out);
    let complaints = standin.complaints();
    (
        is_right,
        complaints.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn each_wait_that_is_left_out_is_found_by_the_checker() {
    for &wait in DeviceWait::ALL {
        for seed in 0..SEEDS_WITH_ALL {
            let (is_right, complaints) = run(wait, seed, false);
            assert!(
                is_right,
                "{wait:?}: wrong bytes with all waits, seed {seed}"
            );
            assert_eq!(complaints, [""; 0], "{wait:?}: with all waits, seed {seed}");
        }
        let found = (0..SEEDS).find(|&seed| {
            let (_, complaints) = run(wait, seed, true);
            !complaints.is_empty()
        });
        assert!(found.is_some(), "{wait:?}: not found in {SEEDS} orders");
    }
}

/// The names in the code, outside of the file that declares them and of tests.
fn names_in(folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_other = ["tests", "waits.rs"]
            .iter()
            .any(|other| path.ends_with(other));
        if path.is_dir() && !is_other {
            names_in(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") && !is_other {
            let text = fs::read_to_string(&path).unwrap();
            let uses = text.split("DeviceWait::").skip(1);
            let name = |rest: &str| {
                let end = rest.find(|letter: char| !letter.is_alphanumeric());
                rest[..end.unwrap_or(rest.len())].to_owned()
            };
            names.extend(uses.map(name));
        }
    }
}

#[test]
fn each_wait_has_one_place_in_the_code() {
    let mut names = Vec::new();
    names_in(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut names,
    );
    names.sort();
    let mut all: Vec<String> = DeviceWait::ALL
        .iter()
        .map(|wait| format!("{wait:?}"))
        .collect();
    all.sort();
    assert_eq!(names, all);
}

/// The digests of both sides.
fn are_equal(
    world: &DeviceWorld,
    (one, of_one): (LayoutHandle, &[usize]),
    other: LayoutHandle,
) -> bool {
    world.digests(one, of_one) == world.digests(other, of_one)
}

/// The engine's stream writes its memory, and a transfer behind the stream stores it.
fn stores_what_a_stream_writes(
    standin: &Standin,
    leave_out: &mut dyn FnMut(),
    pool: fn(&DeviceWorld) -> LayoutHandle,
) -> bool {
    let (world, memory) = engine_world(standin);
    let (manager, pool) = (&world.manager, pool(&world));
    manager.fill(pool, &[1], FillPattern::Constant(7)).unwrap();
    leave_out();
    world.fill_on_stream(&memory, 7);
    let options = TransferOptions::new().after_queue(world.stream.clone());
    let options = options.route(DeviceRoute::CopyEngine);
    let stored = manager.execute_transfer(world.engine, &[0], pool, &[0], options);
    stored.unwrap().wait().unwrap();
    let digests = world.digests(pool, &[0, 1]);
    digests[0] == digests[1]
}

/// Blocks that are apart in the pool, so that a batch copies them from the packed memory.
fn packs_blocks(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let world = DeviceWorld::new(standin).unwrap();
    world.fill(world.engine, PATTERN);
    leave_out();
    let (manager, blocks) = (&world.manager, [0, 2, 4]);
    let options = TransferOptions::new().route(DeviceRoute::Staged);
    let stored = manager.execute_transfer(world.engine, &blocks, world.pinned, &blocks, options);
    stored.unwrap().wait().unwrap();
    are_equal(&world, (world.engine, &blocks), world.pinned)
}

fn loads_and_compares(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let world = DeviceWorld::new(standin).unwrap();
    world.fill(world.pinned, PATTERN);
    let options = TransferOptions::new().verify(true);
    let (manager, blocks) = (&world.manager, [0, 1, 2]);
    leave_out();
    let loaded = manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, options);
    loaded.unwrap().wait().is_ok()
}

fn stores_into_memory_that_is_not_pinned(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let world = DeviceWorld::new(standin).unwrap();
    world.fill(world.engine, PATTERN);
    leave_out();
    let (manager, blocks, options) = (&world.manager, [0, 1], TransferOptions::new());
    let stored = manager.execute_transfer(world.engine, &blocks, world.pageable, &blocks, options);
    stored.unwrap().wait().unwrap();
    are_equal(&world, (world.engine, &blocks), world.pageable)
}

fn sums_a_block(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let world = DeviceWorld::new(standin).unwrap();
    world.fill(world.engine, PATTERN);
    leave_out();
    let sum = || {
        let lease = world.manager.lease(world.engine, &[3], LeaseMode::Read);
        lease.unwrap().checksum(3).unwrap()
    };
    sum() == sum()
}

/// The driver refuses the mark behind the copy; the slots are freed with the last layout of the device.
fn sums_a_block_without_a_mark(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let world = DeviceWorld::new(standin).unwrap();
    world.fill(world.engine, PATTERN);
    standin.fail("cuEventRecord", 1, 999);
    leave_out();
    let lease = world.manager.lease(world.engine, &[3], LeaseMode::Read);
    let lease = lease.unwrap();
    let is_refused = lease.checksum(3).is_err();
    drop(lease);
    drop(world);
    is_refused
}

/// `layers` layers of 32 KiB for each of eight blocks.
fn wide(layers: u64) -> (Shape, [LayoutSpec; 3]) {
    let shape = Shape::key_value(8, layers, 64, 8, 16, Unit::raw(2).unwrap()).unwrap();
    let words = ["L|KBNHC", "L|BKNHC", "BLKNHC"];
    (shape, words.map(|word| word.parse().unwrap()))
}

/// The first slot is taken again with the fifth layer.
fn loads_more_layers_than_slots(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let device = standin.driver().unwrap().device(0).unwrap();
    let manager = TransferManager::new();
    let (shape, [engine, host, _]) = wide(6);
    let layout = |word| {
        PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout(word)
    };
    let engine = layout(engine).allocate_device(&device).build().unwrap();
    let host = layout(host).allocate_system().build().unwrap();
    let [engine, host] = [engine, host].map(|layout| manager.register(layout).unwrap());
    let blocks = [0, 1];
    manager.fill(host, &blocks, PATTERN).unwrap();
    let options = TransferOptions::new().layer_by_layer(true);
    leave_out();
    let loaded = manager.execute_transfer(host, &blocks, engine, &blocks, options);
    loaded.unwrap().wait().unwrap();
    has_equal_blocks(&manager, host, engine, &blocks)
}

fn has_equal_blocks(
    manager: &TransferManager,
    one: LayoutHandle,
    other: LayoutHandle,
    blocks: &[usize],
) -> bool {
    blocks.iter().all(|&block| {
        let digest = |handle| manager.block_digest(handle, block).unwrap();
        digest(one) == digest(other)
    })
}

/// The first transfer is enqueued and has perhaps not run; the second needs more packed memory.
fn packs_more_than_before(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let device = standin.driver().unwrap().device(0).unwrap();
    let (manager, stream) = (TransferManager::new(), device.queue().unwrap());
    let (shape, [engine, _, pinned]) = wide(1);
    let layout = |word| {
        PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout(word)
    };
    let engine = layout(engine).allocate_device(&device).build().unwrap();
    let pinned = layout(pinned).allocate_pinned(&device).build().unwrap();
    let [engine, pinned] = [engine, pinned].map(|layout| manager.register(layout).unwrap());
    let every = [0, 1, 2, 3, 4, 5, 6, 7];
    manager.fill(engine, &every, PATTERN).unwrap();
    let options = || TransferOptions::new().route(DeviceRoute::Staged);
    let first = manager.execute_transfer(engine, &[0], pinned, &[0], options());
    let first = first.unwrap();
    first.wait_layer_on(&stream, 0).unwrap();
    leave_out();
    let rest = &every[1..];
    let second = manager.execute_transfer(engine, rest, pinned, rest, options());
    second.unwrap().wait().unwrap();
    first.wait().unwrap();
    has_equal_blocks(&manager, engine, pinned, &every)
}

/// The engine writes its memory when a load has ended, also one whose mark the driver refuses.
fn engine_writes_after(
    standin: &Standin,
    leave_out: &mut dyn FnMut(),
    options: TransferOptions,
    fails: bool,
) -> bool {
    let (world, memory) = engine_world(standin);
    world.fill(world.pinned, PATTERN);
    world.fill(world.engine, PATTERN);
    if fails {
        standin.fail("cuEventRecord", 1, 999);
    }
    leave_out();
    let (manager, blocks) = (&world.manager, [0, 1, 2]);
    let loaded = manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, options);
    let is_right = loaded.unwrap().wait().is_err() == fails;
    world.fill_on_stream(&memory, 9);
    world.stream.synchronize().unwrap();
    is_right
}

/// The engine's stream waits for a layer and copies it, without a wait of the host.
fn reads_a_layer_on_a_stream(standin: &Standin, leave_out: &mut dyn FnMut()) -> bool {
    let (world, memory) = engine_world(standin);
    world.fill(world.pinned, FillPattern::Constant(3));
    let scratch = DeviceMemory::allocate(&world.device, 64).unwrap();
    let (manager, blocks) = (&world.manager, [0, 1, 2]);
    leave_out();
    let options = TransferOptions::new().layer_by_layer(true);
    let loaded = manager.execute_transfer(world.pinned, &blocks, world.engine, &blocks, options);
    loaded.unwrap().wait_layer_on(&world.stream, 0).unwrap();
    let (to, from) = (scratch.device_address(), memory.device_address());
    world.copy_on_stream(to, from, 64);
    world.stream.synchronize().unwrap();
    let mut bytes = [0; 64];
    standin.peek(to, &mut bytes) && bytes == [3; 64]
}
