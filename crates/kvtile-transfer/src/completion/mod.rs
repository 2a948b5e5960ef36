//! Completions: how a caller learns that something has ended, or that a layer of it is there.
//!
//! A [`Completer`] is the side that works, a [`Completion`] the side that waits. What ends, and with which
//! outcome, is the business of the user: transfers and caches both end in completions of this module. It
//! counts blocks by layer, wakes waiters, and never loses an end.

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

/// A waker, and what it waits for.
struct Waiting {
    /// A layer, or the end.
    layer: Option<usize>,
    waker: Waker,
}

struct Progress<T> {
    /// For each layer, the blocks of which it is not at the destination yet.
    missing: Vec<usize>,
    end: Option<T>,
    /// One for each waiter that was polled and found nothing yet: the last waker it had.
    waiting: BTreeMap<u64, Waiting>,
    next_waiter: u64,
}

impl<T: Clone> Progress<T> {
    /// `Ok` where layer `layer` is complete, else the end where it has come.
    fn layer(&self, layer: usize) -> Option<Result<(), T>> {
        if self.missing.get(layer) == Some(&0) {
            return Some(Ok(()));
        }
        self.end.clone().map(Err)
    }
}

/// What both sides share.
struct Shared<T> {
    progress: Mutex<Progress<T>>,
    changed: Condvar,
    is_cancelled: AtomicBool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        // Nothing that holds the lock can leave it half changed.
        self.progress.lock()
    }

    /// Wakes those of `waiting` that wait for `layer` and, where it is `None`, all of them.
    fn wake(&self, mut progress: MutexGuard<'_, Progress<T>>, layer: Option<usize>) {
        let woken: Vec<Waiting> = match layer {
            None => std::mem::take(&mut progress.waiting)
                .into_values()
                .collect(),
            Some(_) => {
                let ready = |_: &u64, waiting: &mut Waiting| waiting.layer == layer;
                let ready = progress.waiting.extract_if(.., ready);
                ready.map(|(_, waiting)| waiting).collect()
            }
        };
        drop(progress);
        self.changed.notify_all();
        for waiting in woken {
            // The user's waker may panic; the remaining wakers run all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| waiting.waker.wake()));
        }
    }

    /// Waits until `ready` finds what it looks for.
    fn wait<R>(&self, ready: impl Fn(&Progress<T>) -> Option<R>) -> R {
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return value;
            }
            self.changed.wait(&mut progress);
        }
    }

    /// Waits until `ready` finds what it looks for, but not longer than `timeout`.
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
            let left = timeout.checked_sub(start.elapsed());
            let left = left.filter(|left| !left.is_zero())?;
            self.changed.wait_for(&mut progress, left);
        }
    }
}

/// The side that works: announces layers and the end.
///
/// Clones announce to the same completions. A completer that is dropped announces nothing: its owner ends
/// what it gives up.
pub struct Completer<T> {
    shared: Arc<Shared<T>>,
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
    /// Of something that brings `layers` layers of `blocks` blocks. A layer is complete when it has come
    /// for `blocks` blocks; one that falls short by a block never is. Work of zero layers announces its end only.
    #[must_use]
    pub fn new(layers: usize, blocks: usize) -> Completer<T> {
        Completer {
            shared: Arc::new(Shared {
                progress: Mutex::new(Progress {
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

    /// A completion of this work.
    pub fn completion(&self) -> Completion<T> {
        Completion {
            state: State::Pending(Waiter::new(Arc::clone(&self.shared))),
        }
    }

    /// Layer `layer` of `blocks` further blocks is at the destination. Each block counts once for each layer.
    ///
    /// # Panics
    /// If `layer` is out of range (work of zero layers excepted), or more blocks come for it than the work has.
    pub fn layer_came(&self, layer: usize, blocks: usize) {
        let mut progress = self.shared.lock();
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
        if *missing == 0 {
            self.shared.wake(progress, Some(layer));
        }
    }

    /// Everything has ended. The first end counts; nothing changes an end.
    pub fn finish(&self, end: T) {
        let mut progress = self.shared.lock();
        if progress.end.is_none() {
            progress.end = Some(end);
        }
        self.shared.wake(progress, None);
    }

    /// Whether a completion requested cancellation.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.is_cancelled.load(Ordering::Acquire)
    }
}

/// A polled waiter: keeps at most one waker in the list, and removes it on drop.
struct Waiter<T> {
    shared: Arc<Shared<T>>,
    /// Its number, once it was polled and found nothing.
    key: Option<u64>,
}

impl<T> Waiter<T> {
    fn new(shared: Arc<Shared<T>>) -> Waiter<T> {
        Waiter { shared, key: None }
    }

    /// Wakers are code of the user: they are cloned and dropped outside the lock.
    fn poll<R>(
        &mut self,
        context: &Context<'_>,
        layer: Option<usize>,
        ready: impl Fn(&Progress<T>) -> Option<R>,
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
        let previous = progress.waiting.insert(key, Waiting { layer, waker });
        drop(progress);
        drop(previous);
        Poll::Pending
    }
}

impl<T> Clone for Waiter<T> {
    fn clone(&self) -> Waiter<T> {
        Waiter::new(Arc::clone(&self.shared))
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waiting = self.shared.lock().waiting.remove(&key);
            drop(waiting);
        }
    }
}

/// How much is known.
#[derive(Clone)]
enum State<T> {
    /// It had ended before anything could wait: nothing to share, nothing to lock.
    Ended { layers: usize, end: T },
    /// It ends, or ended, on another thread.
    Pending(Waiter<T>),
}

/// The end of something that takes time: wait for it, poll it, await it on any runtime, or wait layer by
/// layer.
///
/// Dropping it neither cancels what is under way nor loses its end; clones learn of the same end.
#[derive(Clone)]
#[must_use = "what nobody waits for may fail unseen"]
pub struct Completion<T> {
    state: State<T>,
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

impl<T: Clone> Completion<T> {
    /// Of something that has ended already, and had `layers` layers.
    pub fn ended(layers: usize, end: T) -> Completion<T> {
        Completion {
            state: State::Ended { layers, end },
        }
    }

    /// Waits for the end.
    pub fn wait(&self) -> T {
        match &self.state {
            State::Ended { end, .. } => end.clone(),
            State::Pending(waiter) => waiter.shared.wait(|progress| progress.end.clone()),
        }
    }

    /// Waits for the end, but not longer than `timeout`; `None` where it did not come.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        match &self.state {
            State::Ended { end, .. } => Some(end.clone()),
            State::Pending(waiter) => {
                let end = |progress: &Progress<T>| progress.end.clone();
                waiter.shared.wait_timeout(timeout, end)
            }
        }
    }

    /// The end, if it has come.
    #[must_use]
    pub fn try_result(&self) -> Option<T> {
        match &self.state {
            State::Ended { end, .. } => Some(end.clone()),
            State::Pending(waiter) => waiter.shared.lock().end.clone(),
        }
    }

    /// Whether the end has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.state {
            State::Ended { .. } => true,
            State::Pending(waiter) => waiter.shared.lock().end.is_some(),
        }
    }

    /// Layers that are announced one by one.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        match &self.state {
            State::Ended { layers, .. } => *layers,
            State::Pending(waiter) => waiter.shared.lock().missing.len(),
        }
    }

    /// Layers that were announced as complete. A layer that is at its destination only with the end was not.
    #[must_use]
    pub fn layers_announced(&self) -> usize {
        match &self.state {
            State::Ended { .. } => 0,
            State::Pending(waiter) => {
                let progress = waiter.shared.lock();
                progress.missing.iter().filter(|left| **left == 0).count()
            }
        }
    }

    /// Waits until layer `layer` is complete at the destination, or the end comes before.
    ///
    /// # Errors
    /// The end, where it came and this layer was not announced, or there is no such layer.
    pub fn wait_layer(&self, layer: usize) -> Result<(), T> {
        match &self.state {
            State::Ended { end, .. } => Err(end.clone()),
            State::Pending(waiter) => waiter.shared.wait(|progress| progress.layer(layer)),
        }
    }

    /// The same as [`Completion::wait_layer`], but not longer than `timeout`; `None` where neither
    /// the layer nor the end came.
    #[must_use]
    pub fn wait_layer_timeout(&self, layer: usize, timeout: Duration) -> Option<Result<(), T>> {
        match &self.state {
            State::Ended { end, .. } => Some(Err(end.clone())),
            State::Pending(waiter) => {
                let ready = |progress: &Progress<T>| progress.layer(layer);
                waiter.shared.wait_timeout(timeout, ready)
            }
        }
    }

    /// The same as [`Completion::wait_layer`], to await.
    ///
    /// # Errors
    /// As for [`Completion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), T> {
        match &self.state {
            State::Ended { end, .. } => Err(end.clone()),
            State::Pending(waiter) => {
                let mut waiter = waiter.clone();
                let ready = |progress: &Progress<T>| progress.layer(layer);
                let poll = |context: &mut Context<'_>| waiter.poll(context, Some(layer), ready);
                std::future::poll_fn(poll).await
            }
        }
    }

    /// Asks for an early end. What has not begun does not begin; what is under way comes to its
    /// end. When the end has come, nothing of it touches memory any more.
    pub fn cancel(&self) {
        if let State::Pending(waiter) = &self.state {
            waiter.shared.is_cancelled.store(true, Ordering::Release);
        }
    }
}

impl<T: Clone + Unpin> Future for Completion<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.state {
            State::Ended { end, .. } => Poll::Ready(end.clone()),
            State::Pending(waiter) => waiter.poll(context, None, |progress| progress.end.clone()),
        }
    }
}
