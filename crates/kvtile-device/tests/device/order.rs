//! Queues, marks and batches under the stand-in's scheduler and its order checker.

use crate::scenario::{LeftOut, Pipeline};
use kvtile_device::{
    BatchRoute, CopyBatch, DeviceError, DeviceMemory, PinnedMemory, SourceOrder, cuda,
};
use kvtile_memory::MemoryRegion;
use kvtile_random::SplitMix64;
use kvtile_standin::{Complaint, Standin, StandinLeaks, StandinOptions};
use std::sync::Arc;

fn pipeline(standin: &Standin) -> Pipeline {
    Pipeline::new(&standin.driver().unwrap(), 50).unwrap()
}

/// Schedules to try; more with `KVTILE_DEVICE_SCHEDULES`.
fn schedules() -> u64 {
    let more = std::env::var("KVTILE_DEVICE_SCHEDULES");
    more.ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000)
}

#[test]
fn all_schedules_give_the_same_bytes_and_no_complaint() {
    for version in [12_000, 12_080, 13_000] {
        let standin = Standin::start(StandinOptions {
            version,
            aliases: version == 12_080,
            ..StandinOptions::seeded(7)
        });
        let pipeline = pipeline(&standin);
        pipeline.finish().unwrap();
        assert_eq!(pipeline.bytes(), pipeline.expected());
        let calls = standin.calls();
        assert_eq!(
            calls.contains_key("cuMemcpyBatchAsync_v2"),
            version == 13_000
        );
        assert_eq!(calls.contains_key("cuMemcpyBatchAsync"), version == 12_080);
        assert_eq!(calls.contains_key("cuMemcpyAsync"), version == 12_000);
        drop(pipeline);
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
    let mut standin = Standin::start(StandinOptions::seeded(0));
    let driver = standin.driver().unwrap();
    let mut small = Pipeline::new(&driver, 3).unwrap();
    for seed in 0..schedules() {
        // A hundred runs of each stand-in, each run another stretch of its random numbers.
        if seed % 100 == 0 {
            drop(small);
            assert_eq!(standin.complaints(), [], "seed {seed}");
            drop(standin);
            standin = Standin::start(StandinOptions::seeded(seed));
            small = Pipeline::new(&standin.driver().unwrap(), 3).unwrap();
        }
        small.finish().unwrap();
        assert_eq!(small.bytes(), small.expected(), "seed {seed}");
    }
    drop(small);
    assert_eq!(standin.complaints(), []);
}

#[test]
fn each_wait_that_is_left_out_is_found_in_every_schedule() {
    for seed in 0..200 {
        for (left_out, names) in [
            (LeftOut::UpBeforeMove, ["which reads", "which writes"]),
            (
                LeftOut::MoveBeforeDown,
                ["the batch of 50 copies", "which reads"],
            ),
        ] {
            let standin = Standin::start(StandinOptions::seeded(seed));
            let pipeline = pipeline(&standin);
            pipeline.run(left_out).unwrap();
            pipeline.copies.synchronize().unwrap();
            pipeline.moves.synchronize().unwrap();
            let complaints = standin.complaints();
            let races: Vec<String> = complaints.iter().map(Complaint::to_string).collect();
            assert!(!races.is_empty(), "seed {seed}: {left_out:?} was not found");
            for name in names {
                assert!(races.iter().any(|race| race.contains(name)), "{races:?}");
            }
        }
        let standin = Standin::start(StandinOptions::seeded(seed));
        let pipeline = pipeline(&standin);
        let end = pipeline.run(LeftOut::DownBeforeHost).unwrap();
        let target = pipeline.target.device_address();
        assert!(standin.host_access(target, 10, false, "the engine"));
        end.wait().unwrap();
        let complaints = standin.complaints();
        assert!(
            complaints
                .iter()
                .any(|c| c.to_string().contains("the engine, which reads")),
            "seed {seed}: {complaints:?}"
        );
    }
}

/// Without the wait the bytes differ under some schedules: the checker's complaints are about real faults.
#[test]
fn a_wait_that_is_left_out_makes_wrong_bytes_under_some_schedules() {
    let mut wrong = 0;
    for seed in 0..50 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let pipeline = Pipeline::new(&standin.driver().unwrap(), 1).unwrap();
        pipeline.run(LeftOut::MoveBeforeDown).unwrap();
        pipeline.copies.synchronize().unwrap();
        pipeline.moves.synchronize().unwrap();
        wrong += usize::from(pipeline.bytes() != pipeline.expected());
    }
    assert!(
        (1..50).contains(&wrong),
        "{wrong} of 50 schedules were wrong"
    );
}

#[test]
fn the_same_seed_gives_the_same_order() {
    // What the target contains after each poll shows the order in which copies ran.
    let history = |seed| {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let pipeline = pipeline(&standin);
        let end = pipeline.run(LeftOut::MoveBeforeDown).unwrap();
        let mut seen = Vec::new();
        while !end.is_passed().unwrap() {
            seen.push((standin.pending(), pipeline.bytes()));
        }
        seen
    };
    assert!(history(5) == history(5));
    assert!((0..5).any(|seed| history(seed) != history(seed + 1)));
}

#[test]
fn work_has_not_run_when_a_call_returns() {
    let mut pending = 0;
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let pipeline = pipeline(&standin);
        let end = pipeline.run(LeftOut::Nothing).unwrap();
        pending += standin.pending();
        end.wait().unwrap();
        assert!(end.is_passed().unwrap());
        assert_eq!(pipeline.bytes(), pipeline.expected());
    }
    assert!(pending > 1000, "{pending}");
}

#[test]
fn a_cpu_that_touches_device_memory_is_stopped() {
    let standin = Standin::start(StandinOptions::default());
    let device = standin.driver().unwrap().device(0).unwrap();
    let memory = DeviceMemory::allocate(&device, 5000).unwrap();
    for address in [
        memory.addr() - 1,
        memory.addr(),
        memory.addr() + 4999,
        memory.addr() + 5000,
    ] {
        assert!(!kernel_can_read(address), "{address:#x}");
    }
    let pinned = PinnedMemory::allocate(&device, 5000).unwrap();
    assert!(kernel_can_read(pinned.addr()) && kernel_can_read(pinned.addr() + 4999));
}

/// Whether the byte at an address can be read, tried by the kernel of the system, which returns an error where a load
/// would stop the process.
fn kernel_can_read(address: usize) -> bool {
    use std::io::Write;
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let pointer: *const u8 = std::ptr::with_exposed_provenance(address);
    // SAFETY: the slice is never read here: its address goes to the kernel, which checks it.
    writer
        .write(unsafe { std::slice::from_raw_parts(pointer, 1) })
        .is_ok()
}

#[test]
fn the_legacy_stream_takes_copies_one_by_one_and_orders_blocking_streams() {
    let standin = Standin::start(StandinOptions::default());
    let device = standin.driver().unwrap().device(0).unwrap();
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    // SAFETY: 0 is the legacy default stream.
    let legacy = unsafe { device.adopt_queue(0) }.unwrap();
    assert!(legacy.is_legacy());
    let start = memory.device_address();
    let mut batch = CopyBatch::default();
    batch.push(start, start + 2048, 64);
    batch.push(start + 64, start + 2112, 64);
    batch.push(start + 64, start + 2112, 0);
    assert_eq!((batch.len(), batch.bytes()), (2, 128));
    // SAFETY: the memory is of this test alone and lives until the queue is idle.
    let route = unsafe { legacy.copy_batch(&mut batch, SourceOrder::Queue) }.unwrap();
    assert_eq!(route, BatchRoute::OneByOne);
    let own = device.queue().unwrap();
    // SAFETY: it lives as long as `own`.
    let adopted = unsafe { device.adopt_queue(own.as_raw()) }.unwrap();
    assert!(!adopted.is_legacy());
    adopted.wait(&legacy.record().unwrap()).unwrap();
    // SAFETY: as above.
    let route = unsafe { adopted.copy_batch(&mut batch, SourceOrder::Queue) }.unwrap();
    assert_eq!(route, BatchRoute::OneCall);
    own.synchronize().unwrap();
    assert_eq!(standin.complaints(), []);
    // SAFETY: refused.
    let error = unsafe { device.adopt_queue(2) }.unwrap_err();
    assert!(
        error.to_string().contains("default stream of each thread"),
        "{error}"
    );
    // SAFETY: the stand-in knows its streams.
    let error = unsafe { device.adopt_queue(0xBAD0) }.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("CUDA_ERROR_INVALID_HANDLE (400)"),
        "{error}"
    );
}

#[test]
fn streams_of_a_caller_are_marked_and_wait_during_the_call() {
    let standin = Standin::start(StandinOptions::default());
    let device = standin.driver().unwrap().device(0).unwrap();
    let memory = DeviceMemory::allocate(&device, 64).unwrap();
    let (engine, reader) = (device.queue().unwrap(), device.queue().unwrap());
    for stream in [0, 1, 2, engine.as_raw()] {
        // SAFETY: the memory is of this test alone and lives until the queues are idle.
        unsafe { engine.fill(memory.device_address(), 7, 64) }.unwrap();
        // SAFETY: 0, 1 and 2 are default streams, and the other is `engine`, which lives.
        let written = unsafe { device.mark_behind(engine.as_raw()) }.unwrap();
        // SAFETY: as above.
        unsafe { device.let_wait(stream, &written) }.unwrap();
        // SAFETY: as above.
        let behind = unsafe { device.mark_behind(stream) }.unwrap();
        reader.wait(&behind).unwrap();
        // SAFETY: as above.
        unsafe { reader.fill(memory.device_address(), 8, 64) }.unwrap();
        engine.wait(&reader.record().unwrap()).unwrap();
    }
    reader.synchronize().unwrap();
    assert_eq!(standin.complaints(), []);
    // SAFETY: the stand-in knows its streams.
    let error = unsafe { device.mark_behind(0xBAD0) }.unwrap_err();
    assert!(error.to_string().contains("(400)"), "{error}");
}

#[test]
fn a_stream_of_another_device_is_refused_and_marks_cross_devices() {
    let standin = Standin::start(StandinOptions {
        devices: 2,
        ..StandinOptions::default()
    });
    let driver = standin.driver().unwrap();
    let (one, two) = (driver.device(0).unwrap(), driver.device(1).unwrap());
    let (queue, other) = (one.queue().unwrap(), two.queue().unwrap());
    // SAFETY: it lives as long as `other`.
    let error = unsafe { one.adopt_queue(other.as_raw()) }.unwrap_err();
    assert!(
        matches!(error, DeviceError::ForeignStream { ordinal: 0, .. }),
        "{error}"
    );
    let memory = DeviceMemory::allocate(&one, 64).unwrap();
    let bounce = PinnedMemory::allocate(&two, 64).unwrap();
    let mark = {
        // SAFETY: the memory is of this test alone and lives until the queues are idle.
        unsafe { queue.fill(memory.device_address(), 9, 64) }.unwrap();
        queue.record().unwrap()
    };
    other.wait(&mark).unwrap();
    let (to, from) = (bounce.device_address(), memory.device_address());
    // SAFETY: as above.
    unsafe { other.copy(to, from, 64) }.unwrap();
    other.synchronize().unwrap();
    assert_eq!(standin.complaints(), []);
}

#[test]
fn calls_leave_the_callers_context_alone() {
    let standin = Standin::start(StandinOptions {
        devices: 2,
        ..StandinOptions::default()
    });
    let table = standin.table();
    let current = || {
        let mut context = std::ptr::null_mut();
        // SAFETY: a place for one handle.
        assert_eq!(unsafe { (table.context_get)(&raw mut context) }, 0);
        context
    };
    let driver = standin.driver().unwrap();
    let (one, two) = (driver.device(0).unwrap(), driver.device(1).unwrap());
    assert!(current().is_null());
    let memory = DeviceMemory::allocate(&one, 64).unwrap();
    assert!(current().is_null());
    let mut engine = std::ptr::null_mut();
    // SAFETY: a place for one handle.
    assert_eq!(unsafe { (table.context_retain)(&raw mut engine, 1) }, 0);
    // SAFETY: the context is retained.
    assert_eq!(unsafe { (table.context_set)(engine) }, 0);
    let queue = one.queue().unwrap();
    // SAFETY: the memory lives until the queue is idle.
    unsafe { queue.fill(memory.device_address(), 1, 64) }.unwrap();
    queue.record().unwrap().wait().unwrap();
    two.queue().unwrap().synchronize().unwrap();
    drop((memory, queue));
    assert_eq!(current(), engine);
    // An error restores it too.
    assert!(DeviceMemory::allocate(&one, 1 << 40).is_err());
    assert_eq!(current(), engine);
    // SAFETY: it was retained above.
    assert_eq!(unsafe { (table.context_release)(1) }, 0);
    drop((one, two));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn what_a_driver_does_not_promise_is_complained_about() {
    let standin = Standin::start(StandinOptions::default());
    let device = standin.driver().unwrap().device(0).unwrap();
    let queue = device.queue().unwrap();
    let memory = DeviceMemory::allocate(&device, 4096).unwrap();
    let start = memory.device_address();
    let host = [7_u8; 64];
    let pageable = host.as_ptr().expose_provenance() as u64;
    // SAFETY: the copy is done when the call returns.
    unsafe { queue.copy(start, pageable, 64) }.unwrap();
    let mut bytes = [0; 64];
    assert!(standin.peek(start, &mut bytes));
    assert_eq!(bytes, host);
    let found = standin.complaints();
    assert!(
        matches!(found.as_slice(), [Complaint::Pageable { .. }]),
        "{found:?}"
    );

    let mut batch = CopyBatch::default();
    batch.push(start, start + 1000, 64);
    batch.push(start + 32, start + 2000, 64);
    // SAFETY: memory of the stand-in; that the copies overlap is the test.
    unsafe { queue.copy_batch(&mut batch, SourceOrder::Queue) }.unwrap();
    let found = standin.complaints();
    assert!(
        matches!(found[1], Complaint::OverlapInBatch { .. }),
        "{found:?}"
    );

    // The host does not know that the batch has ended.
    drop(memory);
    let found = standin.complaints();
    assert!(
        matches!(found[2], Complaint::FreedInUse { .. }),
        "{found:?}"
    );
}

/// [`SourceOrder::Any`] lets the device read sources before work that was enqueued earlier.
#[test]
fn any_order_is_wrong_where_the_queue_writes_the_source() {
    for seed in 0..20 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let device = standin.driver().unwrap().device(0).unwrap();
        let queue = device.queue().unwrap();
        let memory = DeviceMemory::allocate(&device, 4096).unwrap();
        let target = PinnedMemory::allocate(&device, 128).unwrap();
        let mut batch = CopyBatch::default();
        batch.push(target.device_address(), memory.device_address(), 64);
        batch.push(
            target.device_address() + 64,
            memory.device_address() + 64,
            64,
        );
        for (order, races) in [(SourceOrder::Queue, 0), (SourceOrder::Any, 1)] {
            // SAFETY: memory of the stand-in; that the order is wrong is the test.
            unsafe { queue.fill(memory.device_address(), 1, 4096) }.unwrap();
            // SAFETY: as above.
            unsafe { queue.copy_batch(&mut batch, order) }.unwrap();
            queue.synchronize().unwrap();
            let found = standin.complaints();
            assert_eq!(found.len().min(1), races, "seed {seed}: {found:?}");
        }
    }
}

#[test]
fn marks_return_to_their_pool_and_keep_their_point() {
    let standin = Standin::start(StandinOptions::seeded(3));
    let device = standin.driver().unwrap().device(0).unwrap();
    let (queue, other) = (device.queue().unwrap(), device.queue().unwrap());
    let memory = DeviceMemory::allocate(&device, 64).unwrap();
    for _ in 0..100 {
        // SAFETY: the memory is of this test alone and lives until the queues are idle.
        unsafe { queue.fill(memory.device_address(), 1, 64) }.unwrap();
        let mark = queue.record().unwrap();
        let same = mark.clone();
        other.wait(&mark).unwrap();
        drop((mark, same));
        // The event is used again for the other direction while the wait above may be pending.
        // SAFETY: as above.
        unsafe { other.fill(memory.device_address(), 2, 64) }.unwrap();
        queue.wait(&other.record().unwrap()).unwrap();
    }
    queue.synchronize().unwrap();
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.calls()["cuEventCreate"], 1);
    drop((memory, queue, other, device));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn a_lost_device_stays_lost_and_its_memory_is_released() {
    let standin = Standin::start(StandinOptions::default());
    let pipeline = pipeline(&standin);
    let end = pipeline.run(LeftOut::Nothing).unwrap();
    standin.fail("cuEventSynchronize", 1, cuda::ILLEGAL_ADDRESS);
    let error = end.wait().unwrap_err();
    let expected = "device 0 is lost since cuEventSynchronize returned CUDA_ERROR_ILLEGAL_ADDRESS (700); only a new \
                    process can use it";
    assert_eq!(error.to_string(), expected);
    // Later calls do not reach the driver, and name the first error.
    let calls = standin.calls();
    let later = [
        end.is_passed().map(|_| ()),
        pipeline.copies.synchronize(),
        pipeline.run(LeftOut::Nothing).map(|_| ()),
        DeviceMemory::allocate(&pipeline.device, 64).map(|_| ()),
    ];
    for result in later {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    assert_eq!(pipeline.device.lost().unwrap().to_string(), expected);
    let names = ["cuGetErrorName"];
    for (function, count) in standin.calls() {
        let same = calls.get(function) == Some(&count) || names.contains(&function);
        assert!(same, "{function} was called");
    }
    drop((end, pipeline));
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn a_forked_child_is_refused_and_releases_nothing() {
    let standin = Standin::start(StandinOptions::default());
    let pipeline = pipeline(&standin);
    pipeline.finish().unwrap();
    let before = standin.calls();
    let parent = std::process::id();
    // SAFETY: the child calls only code that takes no lock which another thread may hold, and exits without cleanup.
    let child = unsafe { libc_fork() };
    if child == 0 {
        let refused = [
            pipeline.copies.synchronize(),
            pipeline.copies.record().map(|_| ()),
            DeviceMemory::allocate(&pipeline.device, 64).map(|_| ()),
        ];
        let is_right = |result: &Result<(), DeviceError>| matches!(result, Err(DeviceError::Forked { opened_by, .. }) if *opened_by == parent);
        let right = refused.iter().all(is_right);
        drop(pipeline);
        let silent = standin.calls() == before;
        // SAFETY: ends the child at once.
        unsafe { libc_exit(if right && silent { 0 } else { 1 }) };
    }
    let status = rustix::process::waitpid(
        rustix::process::Pid::from_raw(child),
        rustix::process::WaitOptions::empty(),
    );
    let (_, status) = status.unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
    drop(pipeline);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

unsafe extern "C" {
    #[link_name = "fork"]
    fn libc_fork() -> i32;
    #[link_name = "_exit"]
    fn libc_exit(status: i32) -> !;
}

/// Random programs over several queues, with only the waits that their accesses need, are free of races; and
/// their result is that of the same program done at once.
#[test]
fn random_programs_with_the_needed_waits_equal_the_program_done_at_once() {
    const CELLS: usize = 6;
    const CELL: usize = 40;
    for seed in 0..300 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let device = standin.driver().unwrap().device(0).unwrap();
        let mut numbers = SplitMix64::new(seed);
        let memory = DeviceMemory::allocate(&device, CELLS * CELL).unwrap();
        let start = memory.device_address();
        let queues: Vec<_> = (0..3).map(|_| device.queue().unwrap()).collect();
        let setup = &queues[0];
        // SAFETY: the memory is of this test alone and lives until all queues are idle.
        unsafe { setup.fill(start, 0, CELLS * CELL) }.unwrap();
        let filled = Arc::new(setup.record().unwrap());
        let mut naive = vec![0_u8; CELLS * CELL];
        // For each cell, the marks of all accesses since the last write and of that write.
        let mut marks: Vec<Vec<Arc<kvtile_device::DeviceMark>>> =
            (0..CELLS).map(|_| vec![Arc::clone(&filled)]).collect();
        for step in 0..30_u8 {
            let queue = &queues[numbers.index(queues.len())];
            let (from, to) = (numbers.index(CELLS), numbers.index(CELLS));
            for mark in marks[from].iter().chain(&marks[to]) {
                queue.wait(mark).unwrap();
            }
            let at = |cell: usize| start + (cell * CELL) as u64;
            if from == to {
                // SAFETY: as above.
                unsafe { queue.fill(at(to), step, CELL) }.unwrap();
                naive[to * CELL..(to + 1) * CELL].fill(step);
            } else {
                // SAFETY: as above.
                unsafe { queue.copy(at(to), at(from), CELL) }.unwrap();
                naive.copy_within(from * CELL..(from + 1) * CELL, to * CELL);
            }
            let mark = Arc::new(queue.record().unwrap());
            marks[from].push(Arc::clone(&mark));
            marks[to] = vec![mark];
        }
        for queue in &queues {
            queue.synchronize().unwrap();
        }
        let mut bytes = vec![0; CELLS * CELL];
        assert!(standin.peek(start, &mut bytes));
        assert_eq!(bytes, naive, "seed {seed}");
        assert_eq!(standin.complaints(), [], "seed {seed}");
    }
}
