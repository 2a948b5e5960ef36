//! Completions of transfers: what the end of one means for its layers.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    completion::{Completer, Completion},
    error::TransferError,
    execute::{End, TransferReport},
};

/// The completion of a transfer: a future, and more.
///
/// Await it on any runtime, wait for it from a thread, poll it, or wait layer by layer. Dropping
/// it neither cancels the transfer nor loses its end; clones learn of the same end.
#[derive(Clone, Debug)]
#[must_use = "a transfer that nobody waits for may fail unseen"]
pub struct TransferCompletion {
    completion: Completion<End>,
}

impl TransferCompletion {
    /// Of a transfer that ends on another thread.
    pub(super) fn pending(completer: &Completer<End>) -> TransferCompletion {
        TransferCompletion {
            completion: completer.completion(),
        }
    }

    /// Of a transfer that has ended already.
    pub(super) fn ended(layers: usize, end: End) -> TransferCompletion {
        TransferCompletion {
            completion: Completion::ended(layers, end),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What made the transfer fail.
    pub fn wait(&self) -> Result<TransferReport, TransferError> {
        self.completion.wait()
    }

    /// Waits for the end, but not longer than `timeout`; `None` where it did not come.
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

    /// Layers of the transfer.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.completion.num_layers()
    }

    /// Layers that are at their destination.
    #[must_use]
    pub fn layers_done(&self) -> usize {
        match self.completion.try_result() {
            Some(Ok(_)) => self.num_layers(),
            Some(Err(_)) | None => self.completion.layers_announced(),
        }
    }

    /// Waits until layer `layer` of the transfer, counted from its first, is at its destination:
    /// at once layer by layer where the transfer goes layer by layer, else at its end.
    ///
    /// # Errors
    /// What made the transfer fail before this layer was done; a layer that it does not have.
    pub fn wait_layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        layer_end(self.completion.wait_layer(layer))
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
        let waited = self.completion.wait_layer_timeout(layer, timeout);
        waited.map(layer_end).transpose()
    }

    /// The same as [`TransferCompletion::wait_layer`], to await.
    ///
    /// # Errors
    /// As for [`TransferCompletion::wait_layer`].
    pub async fn layer(&self, layer: usize) -> Result<(), TransferError> {
        self.check_layer(layer)?;
        layer_end(self.completion.layer(layer).await)
    }

    fn check_layer(&self, layer: usize) -> Result<(), TransferError> {
        let layers = self.num_layers();
        if layer < layers {
            return Ok(());
        }
        Err(TransferError::NoSuchLayer { layer, layers })
    }
}

/// A layer that was not announced is at its destination where the transfer ended well.
fn layer_end(layer: Result<(), End>) -> Result<(), TransferError> {
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
        [Ok(report), Err(TransferError::Panicked)]
    }

    /// The same end, known from the start and learned later.
    fn both(result: &Result<TransferReport, TransferError>) -> [TransferCompletion; 2] {
        let completer = Completer::new(3, 1);
        let pending = TransferCompletion::pending(&completer);
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
        let completer = Completer::new(2, 1);
        let done = TransferCompletion::pending(&completer);
        let wait = |layer| {
            done.wait_layer_timeout(layer, Duration::from_millis(1))
                .unwrap()
        };
        assert_eq!((wait(0), wait(1)), (None, None));
        completer.layer_came(0, 1);
        assert_eq!((wait(0), wait(1)), (Some(()), None));
    }

    #[test]
    fn completions_go_where_futures_go() {
        fn check<T: Future + Clone + Send + Sync + Unpin + 'static>() {}
        check::<TransferCompletion>();
    }
}
