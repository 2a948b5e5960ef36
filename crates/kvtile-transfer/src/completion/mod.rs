//! Completions: a waiter learns of the end of an operation, or of the arrival of a layer.
//!
//! The worker holds a [`Completer`], the waiter a [`Completion`]. This module counts blocks per
//! layer, wakes waiters, and never loses a completion. It does not know what the operation is;
//! transfers and caches both use it.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::sync::{Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

/// A waker with the event that it waits for.
struct WaitingWaker {
    /// A layer, or `None` for the end.
    layer: Option<usize>,
    waker: Waker,
}

struct CompletionProgress<T> {
    /// For each layer, the number of blocks that have not arrived.
    missing: Vec<usize>,
    end: Option<T>,
    /// The last waker of each waiter whose poll returned `Pending`.
    waiting: BTreeMap<u64, WaitingWaker>,
    next_waiter: u64,
}

impl<T: Clone> CompletionProgress<T> {
    /// `Ok` if layer `layer` is complete, else the end if it has come.
    fn layer(&self, layer: usize) -> Option<Result<(), T>> {
        if self.missing.get(layer) == Some(&0) {
            return Some(Ok(()));
        }
        self.end.clone().map(Err)
    }
}

/// The state that both sides share.
struct CompletionShared<T> {
    progress: Mutex<CompletionProgress<T>>,
    changed: Condvar,
    is_cancelled: AtomicBool,
}

impl<T> CompletionShared<T> {
    fn lock(&self) -> MutexGuard<'_, CompletionProgress<T>> {
        // No holder of the lock can leave the state inconsistent.
        self.progress.lock()
    }

    /// Wakes the waiters of `layer`, or all waiters if it is `None`.
    fn wake(&self, mut progress: MutexGuard<'_, CompletionProgress<T>>, layer: Option<usize>) {
        let woken: Vec<WaitingWaker> = match layer {
            None => std::mem::take(&mut progress.waiting)
                .into_values()
                .collect(),
            Some(_) => {
                let ready = |_: &u64, waiting: &mut WaitingWaker| waiting.layer == layer;
                let ready = progress.waiting.extract_if(.., ready);
                ready.map(|(_, waiting)| waiting).collect()
            }
        };
        drop(progress);
        self.changed.notify_all();
        for waiting in woken {
            // The user's waker may panic; the remaining wakers still run.
            let _ = catch_unwind(AssertUnwindSafe(|| waiting.waker.wake()));
        }
    }

    /// Blocks until `ready` returns a value.
    fn wait<R>(&self, ready: impl Fn(&CompletionProgress<T>) -> Option<R>) -> R {
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return value;
            }
            self.changed.wait(&mut progress);
        }
    }

    /// Blocks until `ready` returns a value, but at most for `timeout`.
    fn wait_timeout<R>(
        &self,
        timeout: Duration,
        ready: impl Fn(&CompletionProgress<T>) -> Option<R>,
    ) -> Option<R> {
        let start = Instant::now();
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return Some(value);
            }
            let left = timeout.checked_sub(start.elapsed());
            let left = left.filter(|left| !left.is_zero())?;
            self.changed.wait_for(&mut progress, left);
        }
    }
}

/// The worker's side: reports arrived layers and the end.
///
/// Clones report to the same completions. Dropping a completer does not complete the operation: its
/// owner must call [`finish`](Completer::finish), also when it gives up.
pub struct Completer<T> {
    shared: Arc<CompletionShared<T>>,
}

impl<T> Clone for Completer<T> {
    fn clone(&self) -> Completer<T> {
        Completer {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").finish_non_exhaustive()
    }
}

impl<T: Clone> Completer<T> {
    /// A completer for an operation of `layers` layers and `blocks` blocks. A layer is complete
    /// when it has arrived for all `blocks` blocks. An operation of zero layers reports only its
    /// end.
    #[must_use]
    pub fn new(layers: usize, blocks: usize) -> Completer<T> {
        Completer {
            shared: Arc::new(CompletionShared {
                progress: Mutex::new(CompletionProgress {
                    missing: vec![blocks; layers],
                    end: None,
                    waiting: BTreeMap::new(),
                    next_waiter: 0,
                }),
                changed: Condvar::new(),
                is_cancelled: AtomicBool::new(false),
            }),
        }
    }

    /// A completion of this operation.
    pub fn completion(&self) -> Completion<T> {
        Completion {
            state: CompletionState::Pending(CompletionWaiter::new(Arc::clone(&self.shared))),
        }
    }

    /// Reports that layer `layer` of `blocks` further blocks has arrived. Each block counts once
    /// for each layer.
    ///
    /// # Panics
    /// If `layer` is out of range (unless the operation has zero layers), or if more blocks are
    /// reported for it than the operation has.
    pub fn layer_came(&self, layer: usize, blocks: usize) {
        let mut progress = self.shared.lock();
        let layers = progress.missing.len();
        let Some(missing) = progress.missing.get_mut(layer) else {
            assert!(layers == 0, "layer {layer} of {layers} layers arrived");
            return;
        };
        assert!(
            blocks <= *missing,
            "layer {layer} arrived for {blocks} blocks, and {missing} were missing"
        );
        *missing -= blocks;
        if *missing == 0 {
            self.shared.wake(progress, Some(layer));
        }
    }

    /// Completes the operation. Only the first call sets the result; later calls do not change it.
    pub fn finish(&self, end: T) {
        let mut progress = self.shared.lock();
        if progress.end.is_none() {
            progress.end = Some(end);
        }
        self.shared.wake(progress, None);
    }

    /// Whether a completion has requested cancellation.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.is_cancelled.load(Ordering::Acquire)
    }
}

/// A waiter that is polled. It keeps at most one waker in the list, and removes it on drop.
struct CompletionWaiter<T> {
    shared: Arc<CompletionShared<T>>,
    /// Its number, once a poll has returned `Pending`.
    key: Option<u64>,
}

impl<T> CompletionWaiter<T> {
    fn new(shared: Arc<CompletionShared<T>>) -> CompletionWaiter<T> {
        CompletionWaiter { shared, key: None }
    }

    /// Wakers run the user's code, so they are cloned and dropped outside the lock.
    fn poll<R>(
        &mut self,
        context: &Context<'_>,
        layer: Option<usize>,
        ready: impl Fn(&CompletionProgress<T>) -> Option<R>,
    ) -> Poll<R> {
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
        let previous = progress.waiting.insert(key, WaitingWaker { layer, waker });
        drop(progress);
        drop(previous);
        Poll::Pending
    }
}

impl<T> Clone for CompletionWaiter<T> {
    fn clone(&self) -> CompletionWaiter<T> {
        CompletionWaiter::new(Arc::clone(&self.shared))
    }
}

impl<T> Drop for CompletionWaiter<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waiting = self.shared.lock().waiting.remove(&key);
            drop(waiting);
        }
    }
}

/// The state of a completion.
#[derive(Clone)]
enum CompletionState<T> {
    /// The operation had ended before the completion was made: there is nothing to share or to
    /// lock.
    Ended { layers: usize, end: T },
    /// The operation ends, or has ended, on another thread.
    Pending(CompletionWaiter<T>),
}

/// The completion of an operation. Block on it, poll it, await it on any runtime, or wait for
/// single layers.
///
/// Dropping it neither cancels the operation nor loses its result. Clones get the same result.
#[derive(Clone)]
#[must_use = "an operation without a waiter may fail unseen"]
pub struct Completion<T> {
    state: CompletionState<T>,
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

impl<T: Clone> Completion<T> {
    /// The completion of an operation that has already ended and had `layers` layers.
    pub fn ended(layers: usize, end: T) -> Completion<T> {
        Completion {
            state: CompletionState::Ended { layers, end },
        }
    }

    /// Blocks until the end.
    pub fn wait(&self) -> T {
        match &self.state {
            CompletionState::Ended { end, .. } => end.clone(),
            CompletionState::Pending(waiter) => waiter.shared.wait(|progress| progress.end.clone()),
        }
    }

    /// Blocks until the end, but at most for `timeout`; `None` on timeout.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        match &self.state {
            CompletionState::Ended { end, .. } => Some(end.clone()),
            CompletionState::Pending(waiter) => {
                let end = |progress: &CompletionProgress<T>| progress.end.clone();
                waiter.shared.wait_timeout(timeout, end)
            }
        }
    }

    /// The result, if the operation has ended.
    #[must_use]
    pub fn try_result(&self) -> Option<T> {
        match &self.state {
            CompletionState::Ended { end, .. } => Some(end.clone()),
            CompletionState::Pending(waiter) => waiter.shared.lock().end.clone(),
        }
    }

    /// Whether the operation has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.state {
            CompletionState::Ended { .. } => true,
            CompletionState::Pending(waiter) => waiter.shared.lock().end.is_some(),
        }
    }

    /// Number of layers that are reported one by one.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        match &self.state {
            CompletionState::Ended { layers, .. } => *layers,
            CompletionState::Pending(waiter) => waiter.shared.lock().missing.len(),
        }
    }

    /// Number of layers that were reported complete. Layers that arrive only with the end are not
    /// counted.
    #[must_use]
    pub fn layers_announced(&self) -> usize {
        match &self.state {
            CompletionState::Ended { .. } => 0,
            CompletionState::Pending(waiter) => {
                let progress = waiter.shared.lock();
                progress.missing.iter().filter(|left| **left == 0).count()
            }
        }
    }

    /// Blocks until layer `layer` is complete at the destination, or until the end if that comes
    /// first.
    ///
    /// # Errors
    /// The result of the operation, if it ended before this layer was reported, or if there is no
    /// such layer.
    pub fn wait_layer(&self, layer: usize) -> Result<(), T> {
        match &self.state {
            CompletionState::Ended { end, .. } => Err(end.clone()),
            CompletionState::Pending(waiter) => {
                waiter.shared.wait(|progress| progress.layer(layer))
            }
        }
    }

    /// As [`Completion::wait_layer`], but at most for `timeout`; `None` on timeout.
    #[must_use]
    pub fn wait_layer_timeout(&self, layer: usize, timeout: Duration) -> Option<Result<(), T>> {
        match &self.state {
            CompletionState::Ended { end, .. } => Some(Err(end.clone())),
            CompletionState::Pending(waiter) => {
                let ready = |progress: &CompletionProgress<T>| progress.layer(layer);
                waiter.shared.wait_timeout(timeout, ready)
            }
        }
    }

    /// As [`Completion::wait_layer`], as a future.
    ///
    /// # Errors
    /// As for [`Completion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), T> {
        match &self.state {
            CompletionState::Ended { end, .. } => Err(end.clone()),
            CompletionState::Pending(waiter) => {
                let mut waiter = waiter.clone();
                let ready = |progress: &CompletionProgress<T>| progress.layer(layer);
                let poll = |context: &mut Context<'_>| waiter.poll(context, Some(layer), ready);
                std::future::poll_fn(poll).await
            }
        }
    }

    /// Requests cancellation. Work that has not started does not start; work in progress finishes.
    /// After the end, the operation no longer touches memory.
    pub fn cancel(&self) {
        if let CompletionState::Pending(waiter) = &self.state {
            waiter.shared.is_cancelled.store(true, Ordering::Release);
        }
    }
}

impl<T: Clone + Unpin> Future for Completion<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.state {
            CompletionState::Ended { end, .. } => Poll::Ready(end.clone()),
            CompletionState::Pending(waiter) => {
                waiter.poll(context, None, |progress| progress.end.clone())
            }
        }
    }
}
