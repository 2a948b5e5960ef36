//! Threads, futures and wakers are notified of the end, of a panic and of a device error.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use kvtile_layout::Word;
use kvtile_transfer::{
    CopyError, LeaseMode, PhysicalLayout, TransferError, TransferManager, TransferOptions,
};

use crate::{
    WakeSignal, block_on,
    common::{self, in_memory},
    end,
    gated::gated,
    shape,
};

/// A completion resolves for every clone, on threads and in futures; the last waker that polled is
/// woken.
#[test]
fn every_waiter_is_notified_of_the_end() {
    let gated = gated(2);
    let gate = gated.shut();
    let completion = gated.start(&[0, 1]);
    assert!(!completion.is_complete() && completion.try_result().is_none());
    assert!(completion.wait_timeout(Duration::from_millis(5)).is_none());
    assert!(completion.wait_timeout(Duration::ZERO).is_none());

    // The last of two wakers that polled is woken.
    let (first, last) = (
        Arc::new(WakeSignal::default()),
        Arc::new(WakeSignal::default()),
    );
    let mut polled = completion.clone();
    for signal in [&first, &last] {
        let waker = Waker::from(Arc::clone(signal));
        let pending = Pin::new(&mut polled).poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
    }
    // A waiter that polled and was dropped is not woken.
    let gone = Arc::new(WakeSignal::default());
    let waker = Waker::from(Arc::clone(&gone));
    let mut dropped = completion.clone();
    assert!(
        Pin::new(&mut dropped)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(dropped);

    let waiters: Vec<_> = (0..6)
        .map(|i| {
            let completion = completion.clone();
            thread::spawn(move || match i % 4 {
                0 => completion.wait().unwrap().bytes,
                1 => block_on(completion).unwrap().bytes,
                2 => {
                    let long = Duration::from_secs(3600);
                    completion.wait_timeout(long).unwrap().unwrap().bytes
                }
                _ => {
                    block_on(completion.layer(5)).unwrap();
                    completion.wait().unwrap().bytes
                }
            })
        })
        .collect();
    gate.open();
    let bytes = 2 * shape(1).block_bytes().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), bytes);
    }
    last.wait();
    assert_eq!(first.wakes.load(Ordering::SeqCst), 0);
    assert_eq!(gone.wakes.load(Ordering::SeqCst), 0);
    assert_eq!(block_on(polled).unwrap().bytes, bytes);
    assert_eq!(completion.layers_done(), completion.num_layers());
    assert!(matches!(
        completion.wait_layer(6),
        Err(TransferError::Copy(CopyError::NoSuchLayer {
            layer: 6,
            layers: 6
        }))
    ));
    assert!(block_on(completion.layer(usize::MAX)).is_err());
}

/// A transfer that panics notifies all waiters and frees its blocks, and the next one runs.
#[test]
fn a_panic_reaches_all_waiters_and_spares_the_next_transfer() {
    let gated = gated(4);
    let gate = gated.shut();
    gated.region.panics.store(true, Ordering::SeqCst);
    let completion = gated.start(&[0, 1]);
    let waiters: Vec<_> = (0..3)
        .map(|i| {
            let completion = completion.clone();
            thread::spawn(move || match i {
                0 => completion.wait().map(|_| ()),
                1 => block_on(completion).map(|_| ()),
                _ => completion.wait_layer(0),
            })
        })
        .collect();
    gate.open();
    for waiter in waiters {
        let result = waiter.join().unwrap();
        assert!(
            matches!(result, Err(TransferError::Copy(CopyError::Panicked))),
            "{result:?}"
        );
    }
    gated.region.panics.store(false, Ordering::SeqCst);
    end(&gated.start(&[0, 1])).unwrap();
}

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a waker of the user");
    }
}

/// A user's waker that panics does not prevent other completions.
#[test]
fn a_waker_that_panics_keeps_no_other_waiter_from_being_woken() {
    let gated = gated(2);
    let gate = gated.shut();
    let (first, second) = (gated.start(&[0]), gated.start(&[1]));
    let mut polled = first.clone();
    let waker = Waker::from(Arc::new(PanickingWaker));
    let pending = Pin::new(&mut polled).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    let others: Vec<_> = [first, second]
        .into_iter()
        .map(|completion| thread::spawn(move || block_on(completion)))
        .collect();
    gate.open();
    for other in others {
        other.join().unwrap().unwrap();
    }
}

/// A device error during the transfer: the file is truncated while it is read.
#[test]
fn an_error_of_the_device_reaches_all_waiters() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let file = PhysicalLayout::builder()
        .with_shape(shape(2))
        .layout("BLKNHC".parse::<Word>().unwrap())
        .allocate_disk(Some(path.clone()))
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let file = manager.register(file).unwrap();
    let memory = manager.register(in_memory(&shape(2), "L|KBNHC")).unwrap();
    let cut = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    cut.set_len(4096).unwrap();
    let done = manager.execute_transfer(file, &[0, 1], memory, &[0, 1], TransferOptions::new());
    let completion = done.unwrap();
    let clone = completion.clone();
    for result in [end(&completion), block_on(clone)] {
        assert!(
            matches!(result, Err(TransferError::Memory(_))),
            "{result:?}"
        );
    }
    assert!(completion.wait_layer(5).is_err());
    manager.lease(memory, &[0, 1], LeaseMode::Write).unwrap();
}
