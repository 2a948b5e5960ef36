//! Completions: how the one who asked learns of layers and of the end.
//!
//! What ends, and how, is the business of loads, stores and the rest: this module only keeps
//! counts, wakes waiters, and never loses an end.

use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

struct Progress<T> {
    /// For each layer, the blocks of which it is not at the destination yet.
    missing: Vec<usize>,
    result: Option<T>,
    wakers: BTreeMap<u64, Waker>,
    next_waiter: u64,
}

/// What the one who works and those who wait share.
pub(super) struct Shared<T> {
    progress: Mutex<Progress<T>>,
    changed: Condvar,
    cancelled: AtomicBool,
}

impl<T: Clone> Shared<T> {
    /// Of something that brings `layers` layers of `blocks` blocks. A layer is complete when it has come for
    /// as many blocks as were asked for, so one that falls short by a block, for whatever reason, never is.
    pub(super) fn new(layers: usize, blocks: usize) -> Arc<Shared<T>> {
        Arc::new(Shared {
            progress: Mutex::new(Progress {
                missing: vec![blocks; layers],
                result: None,
                wakers: BTreeMap::new(),
                next_waiter: 0,
            }),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        // Nothing that holds the lock can leave it half changed.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Layer `layer` of `blocks` blocks is at its destination. Each block counts once for each layer.
    pub(super) fn layer_came(&self, layer: usize, blocks: usize) {
        let mut progress = self.lock();
        let layers = progress.missing.len();
        let Some(missing) = progress.missing.get_mut(layer) else {
            assert!(layers == 0, "layer {layer} of {layers} layers came");
            return;
        };
        assert!(
            blocks <= *missing,
            "layer {layer} came for {blocks} blocks, and {missing} were missing"
        );
        *missing -= blocks;
        drop(progress);
        self.changed.notify_all();
    }

    /// It has ended; the first end counts.
    pub(super) fn finish(&self, result: T) {
        let mut progress = self.lock();
        if progress.result.is_none() {
            progress.result = Some(result);
        }
        let wakers = std::mem::take(&mut progress.wakers);
        drop(progress);
        self.changed.notify_all();
        for waker in wakers.into_values() {
            // A waker of others that panics must not keep the rest from being woken, nor end the thread.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn wait_timeout<R>(
        &self,
        timeout: Duration,
        ready: impl Fn(&Progress<T>) -> Option<R>,
    ) -> Option<R> {
        let start = Instant::now();
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return Some(value);
            }
            let left = timeout
                .checked_sub(start.elapsed())
                .filter(|left| !left.is_zero())?;
            let waited = self.changed.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait<R>(&self, ready: impl Fn(&Progress<T>) -> Option<R>) -> R {
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return value;
            }
            let waited = self.changed.wait(progress);
            progress = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The end of something that a cache does: wait for it, poll it, or await it on any runtime.
///
/// Dropping it neither cancels what is under way nor loses its end; clones learn of the same end.
#[must_use = "what nobody waits for may fail unseen"]
pub struct Completion<T> {
    shared: Arc<Shared<T>>,
    waiter: Option<u64>,
}

impl<T: Clone> Clone for Completion<T> {
    fn clone(&self) -> Completion<T> {
        Completion::new(Arc::clone(&self.shared))
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            let progress = self.shared.progress.lock();
            let mut progress = progress.unwrap_or_else(PoisonError::into_inner);
            let waker = progress.wakers.remove(&waiter);
            drop(progress);
            drop(waker);
        }
    }
}

impl<T> std::fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

impl<T: Clone> Completion<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Completion<T> {
        Completion {
            shared,
            waiter: None,
        }
    }

    /// Waits for the end.
    pub fn wait(&self) -> T {
        self.shared.wait(|progress| progress.result.clone())
    }

    /// Waits for the end, but not longer than `timeout`; `None` where it did not come.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        let result = |progress: &Progress<T>| progress.result.clone();
        self.shared.wait_timeout(timeout, result)
    }

    /// The end, if it has come.
    #[must_use]
    pub fn try_result(&self) -> Option<T> {
        self.shared.lock().result.clone()
    }

    /// Whether the end has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.shared.lock().result.is_some()
    }

    /// Waits until layer `layer` is complete at the destination, or the end comes before.
    ///
    /// # Errors
    /// The end, where it came and this layer is not complete, or there is no such layer.
    pub fn wait_layer(&self, layer: usize) -> Result<(), T> {
        self.shared.wait(|progress| layer_result(progress, layer))
    }

    /// The same as [`Completion::wait_layer`], but not longer than `timeout`; `None` where neither
    /// the layer nor the end came.
    #[must_use]
    pub fn wait_layer_timeout(&self, layer: usize, timeout: Duration) -> Option<Result<(), T>> {
        let ready = |progress: &Progress<T>| layer_result(progress, layer);
        self.shared.wait_timeout(timeout, ready)
    }

    /// Asks for an early end. What has not begun does not begin; what is under way comes to its
    /// end. When the end has come, nothing of it touches memory any more.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
    }
}

fn layer_result<T: Clone>(progress: &Progress<T>, layer: usize) -> Option<Result<(), T>> {
    if progress.missing.get(layer) == Some(&0) {
        return Some(Ok(()));
    }
    progress.result.clone().map(Err)
}

impl<T: Clone> Future for Completion<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let waker = context.waker().clone();
        let shared = Arc::clone(&self.shared);
        let mut progress = shared.lock();
        if let Some(result) = &progress.result {
            return Poll::Ready(result.clone());
        }
        let waiter = *self.waiter.get_or_insert_with(|| {
            progress.next_waiter += 1;
            progress.next_waiter
        });
        let previous = progress.wakers.insert(waiter, waker);
        drop(progress);
        drop(previous);
        Poll::Pending
    }
}
