//! The two sides of a completion against a model: every way of waiting reports what the completer
//! announced.

#![cfg(not(loom))]

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use kvtile_testkit::disk::SplitMix64;
use kvtile_transfer::completion::{Completer, Completion};

#[derive(Default)]
struct CountingSignal(AtomicUsize);

impl CountingSignal {
    fn wakes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for CountingSignal {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct PanickingWake;

impl Wake for PanickingWake {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a waker that panics"));
    }
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>, signal: &Arc<CountingSignal>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(signal));
    future.poll(&mut Context::from_waker(&waker))
}

/// A waiter for the end is woken only by the end, and a waiter for a layer by that layer or the
/// end.
#[test]
fn each_waiter_is_woken_by_what_it_waits_for() {
    let completer = Completer::new(3, 2);
    let (mut end, done) = (completer.completion(), completer.completion());
    let signals: [Arc<CountingSignal>; 4] = Default::default();
    let mut layers: Vec<_> = (0..3).map(|layer| Box::pin(done.layer(layer))).collect();
    for (layer, signal) in layers.iter_mut().zip(&signals) {
        assert!(poll(layer.as_mut(), signal).is_pending());
    }
    assert!(poll(Pin::new(&mut end), &signals[3]).is_pending());
    let wakes = || signals.each_ref().map(|signal| signal.wakes());
    completer.layer_came(1, 1);
    assert_eq!(wakes(), [0, 0, 0, 0]);
    completer.layer_came(1, 1);
    assert_eq!(wakes(), [0, 1, 0, 0]);
    assert_eq!(poll(layers[1].as_mut(), &signals[1]), Poll::Ready(Ok(())));
    completer.finish("over");
    assert_eq!(wakes(), [1, 1, 1, 1]);
    assert_eq!(
        poll(layers[0].as_mut(), &signals[0]),
        Poll::Ready(Err("over"))
    );
    assert_eq!(poll(Pin::new(&mut end), &signals[3]), Poll::Ready("over"));
}

#[test]
fn a_waker_that_panics_keeps_no_other_from_being_woken() {
    let completer = Completer::new(1, 1);
    let signal = Arc::new(CountingSignal::default());
    let mut ends: Vec<_> = (0..3).map(|_| completer.completion()).collect();
    let mut bad = Waker::from(Arc::new(PanickingWake));
    for (at, end) in ends.iter_mut().enumerate() {
        if at == 1 {
            assert!(poll(Pin::new(end), &signal).is_pending());
        } else {
            let context = &mut Context::from_waker(&bad);
            assert!(Pin::new(end).poll(context).is_pending());
        }
    }
    completer.finish(7);
    assert_eq!(signal.wakes(), 1);
    bad = Waker::noop().clone();
    for end in &mut ends {
        let context = &mut Context::from_waker(&bad);
        assert_eq!(Pin::new(end).poll(context), Poll::Ready(7));
    }
}

#[test]
fn a_dropped_waiter_is_not_woken_and_the_end_is_kept() {
    let completer = Completer::new(0, 0);
    let signal = Arc::new(CountingSignal::default());
    let mut gone = completer.completion();
    assert!(poll(Pin::new(&mut gone), &signal).is_pending());
    drop(gone);
    completer.finish(1);
    completer.finish(2);
    assert_eq!((signal.wakes(), completer.completion().wait()), (0, 1));
}

/// The state of a completion, through every method that does not block.
fn says(done: &Completion<u32>, layers: usize) -> (Option<u32>, Vec<Option<Result<(), u32>>>) {
    let end = done.try_result();
    assert_eq!(done.is_complete(), end.is_some());
    assert_eq!(done.wait_timeout(Duration::ZERO), end);
    let mut polled = done.clone();
    let signal = Arc::new(CountingSignal::default());
    match poll(Pin::new(&mut polled), &signal) {
        Poll::Ready(value) => assert_eq!(Some(value), end),
        Poll::Pending => assert_eq!(end, None),
    }
    let layer = |layer| {
        let waited = done.wait_layer_timeout(layer, Duration::ZERO);
        let mut polled = Box::pin(done.layer(layer));
        let polled = match poll(polled.as_mut(), &signal) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        };
        assert_eq!(polled, waited);
        waited
    };
    // Includes one index past the last layer.
    (end, (0..=layers).map(layer).collect())
}

#[test]
fn every_method_reports_random_announcements() {
    for seed in 0..500 {
        let mut random = SplitMix64::new(seed);
        let (layers, blocks) = (random.index(4), random.index(4));
        let completer = Completer::new(layers, blocks);
        let done = completer.completion();
        let mut missing = vec![blocks; layers];
        let mut end = None;
        for _ in 0..20 {
            let layer = random.index(5);
            match missing.get_mut(layer) {
                Some(left) if random.below(8) != 0 => {
                    let came = (random.index(3)).min(*left);
                    completer.layer_came(layer, came);
                    *left -= came;
                }
                _ if random.below(4) == 0 => {
                    let value = u32::try_from(random.below(1000)).unwrap();
                    completer.finish(value);
                    end = end.or(Some(value));
                }
                _ => {}
            }
            let layer = |layer: usize| match missing.get(layer) {
                Some(0) => Some(Ok(())),
                _ => end.map(Err),
            };
            let expected = (end, (0..=layers).map(layer).collect::<Vec<_>>());
            assert_eq!(says(&done, layers), expected, "seed {seed}");
            let announced = missing.iter().filter(|left| **left == 0).count();
            assert_eq!(
                (done.layers_announced(), done.num_layers()),
                (announced, layers)
            );
        }
    }
}

#[test]
fn waiting_threads_are_notified_of_layers_and_of_the_end() {
    for _ in 0..50 {
        let completer = Completer::new(2, 1);
        let done = completer.completion();
        thread::scope(|scope| {
            let ends: Vec<_> = (0..3).map(|_| scope.spawn(|| done.wait())).collect();
            let layers: Vec<_> = (0..3)
                .map(|layer| {
                    let done = &done;
                    scope.spawn(move || done.wait_layer(layer))
                })
                .collect();
            completer.layer_came(0, 1);
            completer.finish(9);
            assert!(ends.into_iter().all(|end| end.join().unwrap() == 9));
            let layers: Vec<_> = layers
                .into_iter()
                .map(|layer| layer.join().unwrap())
                .collect();
            assert_eq!(layers, [Ok(()), Err(9), Err(9)]);
        });
    }
}

#[test]
fn cancel_is_a_request_and_completes_nothing() {
    let completer: Completer<u8> = Completer::new(1, 1);
    let done = completer.completion();
    assert!(!completer.is_cancelled());
    done.cancel();
    assert!(completer.is_cancelled() && !done.is_complete());
    completer.layer_came(0, 1);
    completer.finish(1);
    assert_eq!((done.wait_layer(0), done.wait()), (Ok(()), 1));
}
