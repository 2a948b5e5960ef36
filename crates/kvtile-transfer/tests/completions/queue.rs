//! Long and full queues, and the drop of a manager.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use kvtile_layout::{Shape, Unit};
use kvtile_testkit::gate::wait_until;
use kvtile_transfer::{TransferCompletion, TransferManager, TransferOptions};
use parking_lot::Mutex;

use crate::{
    block_on,
    common::in_memory,
    end,
    gated::{GatedManager, gated, gated_in},
};

/// Pitfall 19: every transfer in a long queue ends, with or without a completion.
#[test]
fn a_long_queue_resolves_to_the_last_and_dropping_neither_cancels_nor_panics() {
    let gated = gated(24);
    let gate = gated.shut();
    let mut kept = Vec::new();
    for block in 0..24 {
        let completion = gated.start(&[block]);
        if block % 3 == 0 {
            drop(completion);
        } else {
            kept.push(completion);
        }
    }
    assert!(kept.iter().all(|completion| !completion.is_complete()));
    gate.open();
    for completion in kept.into_iter().rev() {
        block_on(completion).unwrap();
    }
    gated.assert_copied(0..24);
}

/// A full queue blocks the caller, and loses nothing: neither while it is full nor when its manager
/// is dropped.
#[test]
fn a_full_queue_waits_and_loses_nothing() {
    for capacity in [0, 1, 3] {
        let manager = TransferManager::builder().queue_capacity(capacity);
        let manager = manager.file_transfers(1).build();
        let gated = gated_in(manager, 8);
        let gate = gated.shut();
        let started = AtomicUsize::new(0);
        // The closure owns the gate, so that its panic releases the starter.
        let completions = thread::scope(|scope| {
            let gate = gate;
            let starter = scope.spawn(|| {
                let start = |block| {
                    let completion = gated.start(&[block]);
                    started.fetch_add(1, Ordering::SeqCst);
                    completion
                };
                (0..8).map(start).collect::<Vec<_>>()
            });
            // One transfer runs, and the queue holds as many as its capacity.
            let room = 1 + capacity;
            let all = || started.load(Ordering::SeqCst) == room;
            wait_until("as many started as there is room for", all);
            thread::sleep(Duration::from_millis(30));
            assert_eq!(started.load(Ordering::SeqCst), room);
            assert!(!starter.is_finished());
            // Small transfers between memories bypass the queue.
            let small = Shape::key_value(2, 1, 4, 1, 8, Unit::raw(2).unwrap()).unwrap();
            let [a, b] = ["BLKNHC", "L|KBNHC"].map(|word| {
                let layout = in_memory(&small, word);
                gated.manager.register(layout).unwrap()
            });
            let options = TransferOptions::new();
            let done = gated.manager.execute_transfer(a, &[0], b, &[1], options);
            assert!(done.unwrap().is_complete());
            gate.open();
            starter.join().unwrap()
        });
        for completion in completions {
            block_on(completion).unwrap();
        }
        gated.assert_copied(0..8);
    }
}

/// A waker that runs on the manager's thread may start a transfer there, even with a full queue.
#[test]
fn a_waker_that_starts_a_transfer_does_not_wait_for_itself() {
    struct StartOnWake {
        gated: GatedManager,
        started: Mutex<Vec<TransferCompletion>>,
    }
    impl Wake for StartOnWake {
        fn wake(self: Arc<Self>) {
            let ids = [2, 3, 4];
            let started = ids.map(|block| self.gated.start(&[block]));
            self.started.lock().extend(started);
        }
    }
    let manager = TransferManager::builder().queue_capacity(1);
    let manager = manager.file_transfers(1).build();
    let starter = Arc::new(StartOnWake {
        gated: gated_in(manager, 5),
        started: Mutex::default(),
    });
    let gate = starter.gated.shut();
    let mut first = starter.gated.start(&[0]);
    let second = starter.gated.start(&[1]);
    let waker = Waker::from(Arc::clone(&starter));
    let pending = Pin::new(&mut first).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    drop(waker);
    gate.open();
    end(&second).unwrap();
    let started = std::mem::take(&mut *starter.started.lock());
    assert_eq!(started.len(), 3);
    for completion in started {
        end(&completion).unwrap();
    }
}

/// Dropping the manager waits for its transfers.
#[test]
fn dropping_the_manager_finishes_its_transfers() {
    let gated = gated(3);
    let gate = gated.shut();
    let completions: Vec<_> = (0..3).map(|block| gated.start(&[block])).collect();
    let GatedManager {
        manager, folder, ..
    } = gated;
    let dropped = thread::spawn(move || drop(manager));
    gate.open();
    dropped.join().unwrap();
    drop(folder);
    for completion in completions {
        assert!(completion.try_result().unwrap().is_ok());
    }
}
