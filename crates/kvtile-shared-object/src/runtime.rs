//! Calls that wait for their requests, each on the thread of its caller.
//!
//! A call takes a runtime of one thread and a client with connections of its own, and keeps them for later
//! calls. So the thread that reads a socket is the one that copies the bytes to the caller, and
//! nothing wakes another thread on the way.

use std::{future::Future, thread, time::Duration};

use kvtile_shared::store::{SharedStoreError, StoreOperation};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::client::{BucketBuilder, BucketClient};

/// Runtimes that are kept for later calls, with their connections.
const IDLE_MAX: usize = 32;

/// Why a request has no outcome.
#[derive(Debug)]
pub(crate) enum RequestFailure {
    /// It was cancelled because its time was over.
    OutOfTime,
    /// The system has no runtime for it, or the settings no client.
    NotBegun(SharedStoreError),
}

impl RequestFailure {
    /// The error of a call of the store.
    pub(crate) fn of(self, operation: StoreOperation) -> SharedStoreError {
        match self {
            RequestFailure::OutOfTime => SharedStoreError::late(operation),
            RequestFailure::NotBegun(error) => error,
        }
    }
}

/// What one call uses at a time.
struct CallRuntime {
    /// Present until it is dropped.
    runtime: Option<Runtime>,
    client: BucketClient,
}

impl CallRuntime {
    fn new(builder: &BucketBuilder) -> Result<CallRuntime, SharedStoreError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            let what = format!("cannot start a runtime for requests: {error}");
            SharedStoreError::transient(StoreOperation::Open, what).caused_by(error)
        })?;
        Ok(CallRuntime {
            runtime: Some(runtime),
            client: builder.build()?,
        })
    }

    fn run<T: Send>(&self, request: impl Future<Output = T> + Send) -> Result<T, RequestFailure> {
        let Some(runtime) = &self.runtime else {
            let what = "the runtime of a request has ended".to_owned();
            let error = SharedStoreError::transient(StoreOperation::Open, what);
            return Err(RequestFailure::NotBegun(error));
        };
        // The connections do what they have left: at the beginning to see those that the server has closed, at the end
        // to be ready for the next call.
        let request = async {
            tokio::task::yield_now().await;
            let ended = request.await;
            tokio::task::yield_now().await;
            ended
        };
        if Handle::try_current().is_err() {
            return Ok(runtime.block_on(request));
        }
        // The caller is a thread of another runtime, on which tokio does not allow to block.
        let outside = thread::scope(|scope| scope.spawn(|| runtime.block_on(request)).join());
        Ok(outside.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for CallRuntime {
    fn drop(&mut self) {
        // A name lookup that hangs would delay the end of the runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The runtimes of one store.
pub(crate) struct CallRuntimes {
    builder: BucketBuilder,
    /// The one that was used last is used first: its connections are open.
    idle: Mutex<Vec<CallRuntime>>,
}

impl CallRuntimes {
    pub(crate) fn new(builder: BucketBuilder) -> CallRuntimes {
        CallRuntimes {
            builder,
            idle: Mutex::default(),
        }
    }

    /// Runs a request on this thread, at most for `within`.
    pub(crate) fn run<T: Send, F: Future<Output = T> + Send>(
        &self,
        within: Duration,
        request: impl FnOnce(BucketClient) -> F,
    ) -> Result<T, RequestFailure> {
        let idle = self.idle.lock().pop();
        let call = match idle {
            Some(call) => call,
            None => CallRuntime::new(&self.builder).map_err(RequestFailure::NotBegun)?,
        };
        let request = request(call.client.clone());
        let ended = call.run(async move { tokio::time::timeout(within, request).await });
        // Dropped after a request that was cancelled: that closes its connection.
        let ended = ended?.map_err(|_| RequestFailure::OutOfTime)?;
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(call);
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn runtimes() -> CallRuntimes {
        let url = "s3://models/kv?endpoint=http://127.0.0.1:9&anonymous=true"
            .parse()
            .unwrap();
        CallRuntimes::new(BucketBuilder::new(&url).unwrap())
    }

    #[test]
    fn a_request_ends_with_its_time_also_inside_another_runtime() {
        let runtimes = runtimes();
        let forever = |_| std::future::pending::<()>();
        let began = Instant::now();
        let within = Duration::from_millis(30);
        let is_late = |ended| matches!(ended, Err(RequestFailure::OutOfTime));
        let soon = Duration::from_secs(10);
        assert!(is_late(runtimes.run(within, forever)));
        assert!(matches!(runtimes.run(soon, async |_| 7), Ok(7)));
        let other = Builder::new_current_thread().build().unwrap();
        other.block_on(async {
            assert!(is_late(runtimes.run(within, forever)));
            assert!(matches!(runtimes.run(soon, async |_| 8), Ok(8)));
        });
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn calls_one_after_the_other_use_one_runtime_and_one_that_was_late_is_not_used_again() {
        let runtimes = runtimes();
        let soon = Duration::from_secs(10);
        for _ in 0..3 {
            assert!(runtimes.run(soon, async |_| ()).is_ok());
            assert_eq!(runtimes.idle.lock().len(), 1);
        }
        let late = runtimes.run(Duration::ZERO, |_| std::future::pending::<()>());
        assert!(late.is_err());
        assert_eq!(runtimes.idle.lock().len(), 0);
    }

    #[test]
    fn the_end_does_not_wait_for_a_blocked_thread() {
        let runtimes = runtimes();
        let blocks = async |_| {
            drop(tokio::task::spawn_blocking(|| {
                thread::sleep(Duration::from_secs(5));
            }));
        };
        assert!(runtimes.run(Duration::from_secs(10), blocks).is_ok());
        let began = Instant::now();
        drop(runtimes);
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}
