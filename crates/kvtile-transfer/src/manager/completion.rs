//! Completions of transfers: results, and the arrival of layers.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use kvtile_device::{DeviceMark, DeviceQueue};

use crate::{
    completion::{Completer, Completion},
    error::{CopyError, TransferError},
    execute::{DeviceWait, LayerMarks, TransferReport, TransferResult},
};

/// A layer whose copies are enqueued on a device, or that has arrived.
#[derive(Clone, Debug)]
pub enum EnqueuedLayer {
    /// It arrives before this mark is passed.
    Behind(DeviceMark),
    /// It has arrived.
    Arrived,
}

/// The completion of a transfer, also a future.
///
/// Await it on any runtime, block on it, poll it, or wait for single layers. Dropping it neither
/// cancels the transfer nor loses its result. Clones get the same result.
#[derive(Clone, Debug)]
#[must_use = "a transfer without a waiter may fail unseen"]
pub struct TransferCompletion {
    completion: Completion<TransferResult>,
    /// The marks of its layers, if a device executes it.
    marks: Option<Arc<LayerMarks>>,
}

impl TransferCompletion {
    /// The completion of a transfer that ends on another thread.
    pub(super) fn pending(
        completer: &Completer<TransferResult>,
        marks: Option<Arc<LayerMarks>>,
    ) -> TransferCompletion {
        TransferCompletion {
            completion: completer.completion(),
            marks,
        }
    }

    /// The completion of a transfer that has already ended.
    pub(super) fn ended(layers: usize, end: TransferResult) -> TransferCompletion {
        TransferCompletion {
            completion: Completion::ended(layers, end),
            marks: None,
        }
    }

    /// Blocks until the transfer has ended.
    ///
    /// # Errors
    /// The error of the transfer.
    pub fn wait(&self) -> Result<TransferReport, TransferError> {
        self.completion.wait()
    }

    /// Blocks until the transfer has ended, but at most for `timeout`; `None` on timeout.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<TransferReport, TransferError>> {
        self.completion.wait_timeout(timeout)
    }

    /// The result, if the transfer has ended.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<TransferReport, TransferError>> {
        self.completion.try_result()
    }

    /// Whether the transfer has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.completion.is_complete()
    }

    /// Number of layers of the transfer.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.completion.num_layers()
    }

    /// Number of layers that have arrived at their destination.
    #[must_use]
    pub fn layers_done(&self) -> usize {
        match self.completion.try_result() {
            Some(Ok(_)) => self.num_layers(),
            Some(Err(_)) | None => self.completion.layers_announced(),
        }
    }

    /// Blocks until layer `layer`, counted from the transfer's first layer, has arrived at its
    /// destination. A transfer that runs layer by layer reports each layer as it arrives; any other
    /// reports all layers at its end.
    ///
    /// # Errors
    /// The error of the transfer, if it failed before this layer arrived; a layer that it does not
    /// have.
    pub fn wait_layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        layer_end(self.completion.wait_layer(layer))
    }

    /// As [`TransferCompletion::wait_layer`], but at most for `timeout`; `None` on timeout.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub fn wait_layer_timeout(
        &self,
        layer: usize,
        timeout: Duration,
    ) -> Result<Option<()>, TransferError> {
        self.check_layer(layer)?;
        let waited = self.completion.wait_layer_timeout(layer, timeout);
        waited.map(layer_end).transpose()
    }

    /// As [`TransferCompletion::wait_layer`], as a future.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        layer_end(self.completion.layer(layer).await)
    }

    /// The mark of a device behind layer `layer`, as soon as its copies are enqueued. None before, and for transfers
    /// that end on the host: without a device, through memory that is not pinned, or verified.
    ///
    /// # Errors
    /// A layer that the transfer does not have.
    pub fn mark(&self, layer: usize) -> Result<Option<DeviceMark>, TransferError> {
        self.check_layer(layer)?;
        let marks = self.marks.as_deref();
        Ok(marks.and_then(|marks| marks.get(layer)))
    }

    /// Waits until the copies of layer `layer` are enqueued on a device, at most for `timeout`, and returns the mark behind
    /// them, for a caller that lets its own stream wait. Where the transfer ends on the host ([`mark`](Self::mark)), it
    /// waits until the layer has arrived, and there is no mark. `None` on timeout.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer_on`].
    pub fn wait_enqueued_timeout(
        &self,
        layer: usize,
        timeout: Duration,
    ) -> Result<Option<EnqueuedLayer>, TransferError> {
        self.check_layer(layer)?;
        let start = Instant::now();
        if let Some(marks) = &self.marks {
            match marks.wait_timeout(layer, timeout) {
                None => return Ok(None),
                Some(Some(mark)) => return Ok(Some(EnqueuedLayer::Behind(mark))),
                Some(None) => {}
            }
        }
        let left = timeout.saturating_sub(start.elapsed());
        let arrived = self.wait_layer_timeout(layer, left)?;
        Ok(arrived.map(|()| EnqueuedLayer::Arrived))
    }

    /// Lets all work that is enqueued on `queue` from now on, such as an engine's stream, wait for layer `layer`. The
    /// calling thread waits until the copies of the layer are enqueued, and where the transfer ends on the host
    /// ([`mark`](Self::mark)), until the layer has arrived.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`], if the transfer failed before the layer was enqueued; the driver's
    /// errors. If it fails later, [`wait`](Self::wait) reports it: the layer's bytes are undefined then.
    pub fn wait_layer_on(&self, queue: &DeviceQueue, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        match self.marks.as_ref().and_then(|marks| marks.wait(layer)) {
            Some(mark) => Ok(DeviceWait::LayerOnStream.on_queue(queue, &mark)?),
            None => self.wait_layer(layer),
        }
    }

    fn check_layer(&self, layer: usize) -> Result<(), TransferError> {
        let layers = self.num_layers();
        if layer < layers {
            return Ok(());
        }
        Err(TransferError::Copy(CopyError::NoSuchLayer {
            layer,
            layers,
        }))
    }
}

/// A successful end also completes the layers that were not reported one by one.
fn layer_end(layer: Result<(), TransferResult>) -> Result<(), TransferError> {
    match layer {
        Ok(()) | Err(Ok(_)) => Ok(()),
        Err(Err(error)) => Err(error),
    }
}

impl Future for TransferCompletion {
    type Output = Result<TransferReport, TransferError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.completion).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn results() -> [Result<TransferReport, TransferError>; 2] {
        let report = TransferReport {
            bytes: 512,
            runs: 2,
            elapsed: Duration::from_nanos(300),
            verified: false,
        };
        [Ok(report), Err(TransferError::Copy(CopyError::Panicked))]
    }

    /// The same result twice: known from the start, and set later.
    fn both(result: &Result<TransferReport, TransferError>) -> [TransferCompletion; 2] {
        let completer = Completer::new(3, 1);
        let pending = TransferCompletion::pending(&completer, None);
        assert!(!pending.is_complete() && pending.try_result().is_none());
        completer.finish(result.clone());
        [TransferCompletion::ended(3, result.clone()), pending]
    }

    fn ready<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("pending after the end"),
        }
    }

    #[test]
    fn every_method_reports_the_same_end() {
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
                        let refused = TransferError::Copy(CopyError::NoSuchLayer {
                            layer: 3,
                            layers: 3,
                        });
                        assert_eq!(format!("{:?}", beyond.unwrap_err()), format!("{refused:?}"));
                    }
                    assert_eq!(format!("{:?}", ready(done.clone())), text);
                    assert_eq!(format!("{:?}", ready(done)), text);
                }
            }
        }
    }

    #[test]
    fn waiting_for_a_layer_ends_at_the_timeout() {
        let completer = Completer::new(2, 1);
        let done = TransferCompletion::pending(&completer, None);
        let wait = |layer| {
            done.wait_layer_timeout(layer, Duration::from_millis(1))
                .unwrap()
        };
        assert_eq!((wait(0), wait(1)), (None, None));
        completer.layer_came(0, 1);
        assert_eq!((wait(0), wait(1)), (Some(()), None));
    }

    #[test]
    fn completions_meet_the_bounds_of_executors() {
        fn check<T: Future + Clone + Send + Sync + Unpin + 'static>() {}
        check::<TransferCompletion>();
    }
}
