//! Completions in every thread interleaving. `cargo x loom` runs these tests.

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Wake, Waker},
};

use kvtile_transfer::completion::{Completer, Completion};
use loom::sync::{Condvar, Mutex};

/// Wakes a thread of the model.
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn new() -> std::sync::Arc<Bell> {
        std::sync::Arc::new(Bell {
            rung: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let bell = Bell::new();
    let waker = Waker::from(std::sync::Arc::clone(&bell));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            // Without the wake, this thread would block for ever, which loom reports.
            Poll::Pending => bell.wait(),
        }
    }
}

#[test]
fn a_thread_and_a_future_are_notified_of_the_end() {
    loom::model(|| {
        let completer = Completer::new(1, 1);
        let (waited, polled) = (completer.completion(), completer.completion());
        let future = loom::thread::spawn(move || block_on(polled));
        let ending = loom::thread::spawn(move || {
            completer.layer_came(0, 1);
            completer.finish(5);
        });
        assert_eq!((waited.wait(), waited.wait_layer(0)), (5, Ok(())));
        assert_eq!(future.join().unwrap(), 5);
        ending.join().unwrap();
    });
}

#[test]
fn two_parts_of_a_layer_wake_its_waiter_once_it_is_whole() {
    loom::model(|| {
        let completer = Completer::new(1, 2);
        let done: Completion<u8> = completer.completion();
        let parts = [completer.clone(), completer.clone()]
            .map(|part| loom::thread::spawn(move || part.layer_came(0, 1)));
        assert_eq!(block_on(done.layer(0)), Ok(()));
        for part in parts {
            part.join().unwrap();
        }
        assert!(!done.is_complete());
        completer.finish(0);
    });
}

#[test]
fn the_first_end_counts_and_a_dropped_waiter_is_removed() {
    loom::model(|| {
        let completer = Completer::new(0, 0);
        let done = completer.completion();
        let mut gone = completer.completion();
        let other = completer.clone();
        let ending = loom::thread::spawn(move || other.finish(1));
        let dropping = loom::thread::spawn(move || {
            let waker = Waker::from(Bell::new());
            let _ = Pin::new(&mut gone).poll(&mut Context::from_waker(&waker));
        });
        completer.finish(2);
        let end = done.wait();
        ending.join().unwrap();
        dropping.join().unwrap();
        assert!(end == 1 || end == 2);
        assert_eq!(done.try_result(), Some(end));
    });
}
