//! Completions: how the end of a transfer, or of a layer of it, is learned.

use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::error::TransferError;

/// What a finished transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferReport {
    /// Payload bytes moved.
    pub bytes: u64,
    /// Runs that the plan came to.
    pub runs: u64,
    /// Time from the start of the execution to its end.
    pub elapsed: Duration,
    /// Whether the destination was compared with the source.
    pub verified: bool,
}

#[derive(Debug, Default)]
struct Progress {
    layers_done: usize,
    result: Option<Result<TransferReport, TransferError>>,
    /// One for each waiter that was polled and found nothing yet: the last waker it had.
    wakers: BTreeMap<u64, Waker>,
    next_waiter: u64,
}

/// The state that a transfer and its completions share.
#[derive(Debug)]
pub(super) struct Shared {
    layers: usize,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(layers: usize) -> Arc<Shared> {
        Arc::new(Shared {
            layers,
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        })
    }

    /// Of a transfer that has ended already.
    pub(super) fn ended(
        layers: usize,
        result: Result<TransferReport, TransferError>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            layers,
            progress: Mutex::new(Progress {
                layers_done: if result.is_ok() { layers } else { 0 },
                result: Some(result),
                ..Progress::default()
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Nothing that holds the lock can leave it half changed.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn layer_done(&self) {
        let mut progress = self.lock();
        progress.layers_done += 1;
        self.wake(progress);
    }

    pub(super) fn finish(&self, result: Result<TransferReport, TransferError>) {
        let mut progress = self.lock();
        if progress.result.is_none() {
            if result.is_ok() {
                progress.layers_done = self.layers;
            }
            progress.result = Some(result);
        }
        self.wake(progress);
    }

    fn wake(&self, mut progress: MutexGuard<'_, Progress>) {
        let wakers = std::mem::take(&mut progress.wakers);
        drop(progress);
        self.changed.notify_all();
        for waker in wakers.into_values() {
            // A waker of others that panics must not keep the rest from being woken.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// One who waits by being polled: has at most one waker in the list, and none when it is gone.
#[derive(Debug)]
struct Waiter {
    shared: Arc<Shared>,
    /// Its number, once it was polled and found nothing.
    key: Option<u64>,
}

impl Waiter {
    fn new(shared: Arc<Shared>) -> Waiter {
        Waiter { shared, key: None }
    }

    /// Wakers are the code of others: they are cloned and dropped outside the lock.
    fn poll<T>(
        &mut self,
        context: &Context<'_>,
        ready: impl Fn(&Progress) -> Option<T>,
    ) -> Poll<T> {
        let waker = context.waker().clone();
        let mut progress = self.shared.lock();
        if let Some(value) = ready(&progress) {
            drop(progress);
            return Poll::Ready(value);
        }
        let key = *self.key.get_or_insert_with(|| {
            progress.next_waiter += 1;
            progress.next_waiter
        });
        let previous = progress.wakers.insert(key, waker);
        drop(progress);
        drop(previous);
        Poll::Pending
    }
}

impl Clone for Waiter {
    fn clone(&self) -> Waiter {
        Waiter::new(Arc::clone(&self.shared))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.shared.lock().wakers.remove(&key);
            drop(waker);
        }
    }
}

/// The completion of a transfer: a future, and more.
///
/// Await it on any runtime, wait for it from a thread, poll it, or wait layer by layer. Dropping
/// it neither cancels the transfer nor loses its end; clones learn of the same end.
#[derive(Clone, Debug)]
#[must_use = "a transfer that nobody waits for may fail unseen"]
pub struct TransferCompletion {
    waiter: Waiter,
}

impl TransferCompletion {
    pub(super) fn new(shared: Arc<Shared>) -> TransferCompletion {
        TransferCompletion {
            waiter: Waiter::new(shared),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What made the transfer fail.
    pub fn wait(&self) -> Result<TransferReport, TransferError> {
        let mut progress = self.waiter.shared.lock();
        loop {
            if let Some(result) = &progress.result {
                return result.clone();
            }
            progress = self
                .waiter
                .shared
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end, but not longer than `timeout`; `None` where it did not come.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<TransferReport, TransferError>> {
        let start = Instant::now();
        let mut progress = self.waiter.shared.lock();
        loop {
            if let Some(result) = &progress.result {
                return Some(result.clone());
            }
            let left = timeout
                .checked_sub(start.elapsed())
                .filter(|d| !d.is_zero())?;
            progress = self
                .waiter
                .shared
                .changed
                .wait_timeout(progress, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The result, if the transfer has ended.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<TransferReport, TransferError>> {
        self.waiter.shared.lock().result.clone()
    }

    /// Whether the transfer has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.waiter.shared.lock().result.is_some()
    }

    /// Layers of the transfer.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.waiter.shared.layers
    }

    /// Layers that are at their destination.
    #[must_use]
    pub fn layers_done(&self) -> usize {
        self.waiter.shared.lock().layers_done
    }

    /// Waits until layer `layer` of the transfer, counted from its first, is at its destination:
    /// at once layer by layer where the transfer goes layer by layer, else at its end.
    ///
    /// # Errors
    /// What made the transfer fail before this layer was done; a layer that it does not have.
    pub fn wait_layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        let mut progress = self.waiter.shared.lock();
        loop {
            if let Some(result) = layer_result(&progress, layer) {
                return result;
            }
            progress = self
                .waiter
                .shared
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same as [`TransferCompletion::wait_layer`], to await.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        let mut waiter = self.waiter.clone();
        std::future::poll_fn(|context| waiter.poll(context, |p| layer_result(p, layer))).await
    }

    fn check_layer(&self, layer: usize) -> Result<(), TransferError> {
        if layer < self.waiter.shared.layers {
            return Ok(());
        }
        Err(TransferError::NoSuchLayer {
            layer,
            layers: self.waiter.shared.layers,
        })
    }
}

fn layer_result(progress: &Progress, layer: usize) -> Option<Result<(), TransferError>> {
    if progress.layers_done > layer {
        return Some(Ok(()));
    }
    match &progress.result {
        Some(Err(error)) => Some(Err(error.clone())),
        Some(Ok(_)) => Some(Ok(())),
        None => None,
    }
}

impl Future for TransferCompletion {
    type Output = Result<TransferReport, TransferError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.waiter
            .poll(context, |progress| progress.result.clone())
    }
}
