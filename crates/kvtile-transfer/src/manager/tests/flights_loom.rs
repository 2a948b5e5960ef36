//! Flights in every thread interleaving, up to a bounded number of preemptions. `cargo x loom` runs
//! these tests.
//!
//! The ledger, queue, flight, completion and bytes are the real ones. Only the threshold for
//! transfers on the caller's thread is zero.

use std::{num::NonZeroUsize, sync::Arc};

use kvtile_layout::{Shape, Unit, Word};

use crate::{
    CopyError, FillPattern, LeaseMode, PhysicalLayout, RegisterError, TransferError,
    TransferManager, TransferOptions,
    execute::{Lane, LaneThreads, Lanes, all_lanes, modelled::Modelled},
    lease::{LayoutHandle, lock},
};

const BLOCKS: u64 = 3;

/// 32 bytes a block.
fn layout() -> PhysicalLayout {
    let shape = Shape::key_value(BLOCKS, 1, 2, 2, 2, Unit::raw(2).unwrap()).unwrap();
    let builder = PhysicalLayout::builder().with_shape(shape);
    let builder = builder.layout("BLKNHC".parse::<Word>().unwrap());
    builder.allocate_system().build().unwrap()
}

/// Runs `body` with source and destination, which hold the patterns of seeds 1 and 2 before each
/// run.
fn model(
    preemptions: usize,
    (capacity, threads, loses): (usize, usize, bool),
    body: impl Fn(Arc<TransferManager>, [LayoutHandle; 2]) + Sync + Send + 'static,
) {
    let layouts = [layout(), layout()];
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let lanes = all_lanes(LaneThreads { copy: 1, file: 1 }).map(|lane| {
            let threads = NonZeroUsize::new(threads).unwrap();
            let lane = Modelled {
                lane,
                threads,
                loses,
            };
            Arc::new(lane) as Arc<dyn Lane>
        });
        let manager = Arc::new(TransferManager::over(Lanes::of(lanes, capacity)));
        let handles = [0, 1].map(|i| manager.register(layouts[i].clone()).unwrap());
        for (handle, seed) in handles.into_iter().zip([1, 2]) {
            let pattern = FillPattern::Distinct { seed };
            manager.fill(handle, &[0, 1, 2], pattern).unwrap();
        }
        body(manager, handles);
    });
}

/// Block `block` of a layout.
fn bytes(manager: &TransferManager, handle: LayoutHandle, block: usize) -> Vec<u8> {
    let lease = manager.lease(handle, &[block], LeaseMode::Read).unwrap();
    lease.block(block as u64).unwrap().to_vec()
}

fn copied(manager: &TransferManager, [from, to]: [LayoutHandle; 2], block: usize) -> bool {
    bytes(manager, from, block) == bytes(manager, to, block)
}

fn is_in_use<T>(outcome: Result<T, TransferError>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(TransferError::Register(RegisterError::LayoutInUse { leases: 1, .. })) => true,
        Err(error) => panic!("{error}"),
    }
}

/// The call returns, the completion is dropped, and the layouts are unregistered. The manager
/// refuses this while the flight is in progress and accepts it only after its bytes have arrived.
/// Dropping the manager waits for the flight.
#[test]
fn a_flight_without_a_completion_ends_before_its_layouts_unregister() {
    model(3, (1, 1, false), |manager, handles| {
        let [from, to] = handles;
        let options = TransferOptions::new();
        drop(
            manager
                .execute_transfer(from, &[1], to, &[1], options)
                .unwrap(),
        );
        let layouts = handles.map(|handle| manager.layout(handle).unwrap());
        let early = manager.unregister(to);
        let landed = !is_in_use(early);
        if landed {
            // The same drop of the cargo releases the lease on the source.
            let again = manager.register(layouts[1].clone()).unwrap();
            assert!(copied(&manager, [from, again], 1));
        }
        let ledger = Arc::clone(&manager.ledger);
        drop(manager);
        lock(&ledger).check_integrity();
        drop(ledger);
        let other = TransferManager::new();
        let handles = layouts.map(|layout| other.register(layout).unwrap());
        assert!(copied(&other, handles, 1));
        assert!(!copied(&other, handles, 0));
    });
}

/// When the completion reports the end, the blocks are free and the bytes have arrived.
#[test]
fn blocks_are_free_when_the_completion_reports() {
    model(3, (0, 1, false), |manager, handles| {
        let [from, to] = handles;
        let options = TransferOptions::new();
        let done = manager.execute_transfer(from, &[2], to, &[2], options);
        assert_eq!(done.unwrap().wait().unwrap().bytes, 32);
        for handle in handles {
            drop(manager.lease(handle, &[2], LeaseMode::Write).unwrap());
        }
        assert!(copied(&manager, handles, 2));
        for handle in handles {
            manager.unregister(handle).unwrap();
        }
    });
}

/// A lane that drops a flight frees the blocks first, and then reports the failure.
#[test]
fn a_flight_that_is_lost_reports_and_frees_its_blocks() {
    model(3, (1, 1, true), |manager, handles| {
        let [from, to] = handles;
        let options = TransferOptions::new();
        let done = manager
            .execute_transfer(from, &[0], to, &[0], options)
            .unwrap();
        assert!(matches!(
            done.wait(),
            Err(TransferError::Copy(CopyError::Panicked))
        ));
        assert!(!copied(&manager, handles, 0));
        for handle in handles {
            manager.unregister(handle).unwrap();
        }
    });
}

/// Two threads start flights into a queue without room for both, and one of them drops its
/// completion.
#[test]
fn callers_blocked_on_a_full_queue_all_proceed() {
    model(2, (0, 1, false), |manager, handles| {
        let [from, to] = handles;
        let start = move |manager: &TransferManager, block: usize| {
            let options = TransferOptions::new();
            manager.execute_transfer(from, &[block], to, &[block], options)
        };
        let other = {
            let manager = Arc::clone(&manager);
            loom::thread::spawn(move || drop(start(&manager, 0).unwrap()))
        };
        start(&manager, 1).unwrap().wait().unwrap();
        assert!(copied(&manager, handles, 1));
        other.join().unwrap();
        let layouts = handles.map(|handle| manager.layout(handle).unwrap());
        drop(manager);
        let other = TransferManager::new();
        let handles = layouts.map(|layout| other.register(layout).unwrap());
        assert!(copied(&other, handles, 0) && copied(&other, handles, 1));
    });
}

/// Two flights for two threads; the second may start during the first. The manager is dropped at
/// once, and both flights have ended when the drop returns.
#[test]
fn flights_of_two_threads_end_before_the_manager_is_dropped() {
    model(2, (0, 2, false), |manager, handles| {
        let [from, to] = handles;
        for block in [0, 1] {
            let options = TransferOptions::new();
            let started = manager.execute_transfer(from, &[block], to, &[block], options);
            drop(started.unwrap());
        }
        let layouts = handles.map(|handle| manager.layout(handle).unwrap());
        let ledger = Arc::clone(&manager.ledger);
        drop(manager);
        lock(&ledger).check_integrity();
        drop(ledger);
        let other = TransferManager::new();
        let handles = layouts.map(|layout| other.register(layout).unwrap());
        assert!(copied(&other, handles, 0) && copied(&other, handles, 1));
    });
}
