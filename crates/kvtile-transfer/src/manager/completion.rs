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

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Nothing that holds the lock can leave it half changed.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` finds what it looks for.
    fn wait<T>(&self, ready: impl Fn(&Progress) -> Option<T>) -> T {
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return value;
            }
            progress = self
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `ready` finds what it looks for, but not longer than `timeout`.
    fn wait_timeout<T>(
        &self,
        timeout: Duration,
        ready: impl Fn(&Progress) -> Option<T>,
    ) -> Option<T> {
        let start = Instant::now();
        let mut progress = self.lock();
        loop {
            if let Some(value) = ready(&progress) {
                return Some(value);
            }
            let left = timeout
                .checked_sub(start.elapsed())
                .filter(|d| !d.is_zero())?;
            progress = self
                .changed
                .wait_timeout(progress, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
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

/// How much of a transfer is known.
#[derive(Clone, Debug)]
enum State {
    /// It had ended before anybody could wait: nothing to share, nothing to lock.
    Ended {
        layers: usize,
        result: Result<TransferReport, TransferError>,
    },
    /// It ends, or ended, on another thread.
    Pending(Waiter),
}

/// The completion of a transfer: a future, and more.
///
/// Await it on any runtime, wait for it from a thread, poll it, or wait layer by layer. Dropping
/// it neither cancels the transfer nor loses its end; clones learn of the same end.
#[derive(Clone, Debug)]
#[must_use = "a transfer that nobody waits for may fail unseen"]
pub struct TransferCompletion {
    state: State,
}

impl TransferCompletion {
    /// Of a transfer that ends on another thread.
    pub(super) fn pending(shared: Arc<Shared>) -> TransferCompletion {
        TransferCompletion {
            state: State::Pending(Waiter::new(shared)),
        }
    }

    /// Of a transfer that has ended already.
    pub(super) fn ended(
        layers: usize,
        result: Result<TransferReport, TransferError>,
    ) -> TransferCompletion {
        TransferCompletion {
            state: State::Ended { layers, result },
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What made the transfer fail.
    pub fn wait(&self) -> Result<TransferReport, TransferError> {
        match &self.state {
            State::Ended { result, .. } => result.clone(),
            State::Pending(waiter) => waiter.shared.wait(|progress| progress.result.clone()),
        }
    }

    /// Waits for the end, but not longer than `timeout`; `None` where it did not come.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<TransferReport, TransferError>> {
        match &self.state {
            State::Ended { result, .. } => Some(result.clone()),
            State::Pending(waiter) => {
                let result = |progress: &Progress| progress.result.clone();
                waiter.shared.wait_timeout(timeout, result)
            }
        }
    }

    /// The result, if the transfer has ended.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<TransferReport, TransferError>> {
        match &self.state {
            State::Ended { result, .. } => Some(result.clone()),
            State::Pending(waiter) => waiter.shared.lock().result.clone(),
        }
    }

    /// Whether the transfer has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match &self.state {
            State::Ended { .. } => true,
            State::Pending(waiter) => waiter.shared.lock().result.is_some(),
        }
    }

    /// Layers of the transfer.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        match &self.state {
            State::Ended { layers, .. } => *layers,
            State::Pending(waiter) => waiter.shared.layers,
        }
    }

    /// Layers that are at their destination.
    #[must_use]
    pub fn layers_done(&self) -> usize {
        match &self.state {
            State::Ended { layers, result } => result.as_ref().map_or(0, |_| *layers),
            State::Pending(waiter) => waiter.shared.lock().layers_done,
        }
    }

    /// Waits until layer `layer` of the transfer, counted from its first, is at its destination:
    /// at once layer by layer where the transfer goes layer by layer, else at its end.
    ///
    /// # Errors
    /// What made the transfer fail before this layer was done; a layer that it does not have.
    pub fn wait_layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        match &self.state {
            State::Ended { result, .. } => result.clone().map(|_| ()),
            State::Pending(waiter) => waiter.shared.wait(|progress| layer_result(progress, layer)),
        }
    }

    /// The same as [`TransferCompletion::wait_layer`], but not longer than `timeout`; `None` where
    /// neither the layer nor the end came.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub fn wait_layer_timeout(
        &self,
        layer: usize,
        timeout: Duration,
    ) -> Result<Option<()>, TransferError> {
        self.check_layer(layer)?;
        match &self.state {
            State::Ended { result, .. } => result.clone().map(|_| Some(())),
            State::Pending(waiter) => {
                let ready = |progress: &Progress| layer_result(progress, layer);
                waiter.shared.wait_timeout(timeout, ready).transpose()
            }
        }
    }

    /// The same as [`TransferCompletion::wait_layer`], to await.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        match &self.state {
            State::Ended { result, .. } => result.clone().map(|_| ()),
            State::Pending(waiter) => {
                let mut waiter = waiter.clone();
                let ready = |progress: &Progress| layer_result(progress, layer);
                std::future::poll_fn(|context| waiter.poll(context, ready)).await
            }
        }
    }

    fn check_layer(&self, layer: usize) -> Result<(), TransferError> {
        let layers = self.num_layers();
        if layer < layers {
            return Ok(());
        }
        Err(TransferError::NoSuchLayer { layer, layers })
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
        match &mut self.state {
            State::Ended { result, .. } => Poll::Ready(result.clone()),
            State::Pending(waiter) => waiter.poll(context, |progress| progress.result.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> [Result<TransferReport, TransferError>; 2] {
        let report = TransferReport {
            bytes: 512,
            runs: 2,
            elapsed: Duration::from_nanos(300),
            verified: false,
        };
        [Ok(report), Err(TransferError::Panicked)]
    }

    /// The same end, known from the start and learned later.
    fn both(result: &Result<TransferReport, TransferError>) -> [TransferCompletion; 2] {
        let shared = Shared::new(3);
        let pending = TransferCompletion::pending(Arc::clone(&shared));
        assert!(!pending.is_complete() && pending.try_result().is_none());
        shared.finish(result.clone());
        [TransferCompletion::ended(3, result.clone()), pending]
    }

    fn ready<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it has ended"),
        }
    }

    #[test]
    fn an_end_is_the_same_however_it_is_learned() {
        for result in results() {
            let text = format!("{result:?}");
            let layer = format!("{:?}", result.clone().map(|_| ()));
            for done in both(&result) {
                for done in [done.clone(), done] {
                    assert_eq!(format!("{:?}", done.wait()), text);
                    let in_time = done.wait_timeout(Duration::ZERO).unwrap();
                    assert_eq!(format!("{in_time:?}"), text);
                    assert_eq!(format!("{:?}", done.try_result().unwrap()), text);
                    assert!(done.is_complete());
                    assert_eq!(done.num_layers(), 3);
                    let layers_done = if result.is_ok() { 3 } else { 0 };
                    assert_eq!(done.layers_done(), layers_done);
                    for index in 0..3 {
                        assert_eq!(format!("{:?}", done.wait_layer(index)), layer);
                        assert_eq!(format!("{:?}", ready(done.layer(index))), layer);
                        let in_time = done.wait_layer_timeout(index, Duration::ZERO).transpose();
                        assert_eq!(format!("{:?}", in_time.unwrap()), layer);
                    }
                    for beyond in [done.wait_layer(3), ready(done.layer(3))] {
                        let refused = TransferError::NoSuchLayer {
                            layer: 3,
                            layers: 3,
                        };
                        assert_eq!(format!("{:?}", beyond.unwrap_err()), format!("{refused:?}"));
                    }
                    assert_eq!(format!("{:?}", ready(done.clone())), text);
                    assert_eq!(format!("{:?}", ready(done)), text);
                }
            }
        }
    }

    #[test]
    fn a_layer_is_waited_for_no_longer_than_said() {
        let shared = Shared::new(2);
        let done = TransferCompletion::pending(Arc::clone(&shared));
        let wait = |layer| {
            done.wait_layer_timeout(layer, Duration::from_millis(1))
                .unwrap()
        };
        assert_eq!((wait(0), wait(1)), (None, None));
        shared.layer_done();
        assert_eq!((wait(0), wait(1)), (Some(()), None));
    }

    #[test]
    fn completions_go_where_futures_go() {
        fn check<T: Future + Clone + Send + Sync + Unpin + 'static>() {}
        check::<TransferCompletion>();
    }
}
