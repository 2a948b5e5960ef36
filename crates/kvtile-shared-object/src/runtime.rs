//! The threads that carry out requests, and calls that wait for them.

use std::{future::Future, io, thread, time::Duration};

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for connections. The callers' threads copy the values; these read sockets and decrypt.
const THREADS: usize = 2;

/// A runtime that outlives no store, and never delays its end.
#[derive(Debug)]
pub(crate) struct RequestThreads {
    /// Present until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

/// A request that was cancelled because its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfTime;

impl RequestThreads {
    pub(crate) fn start() -> io::Result<RequestThreads> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).thread_name("kvtile-object");
        let runtime = builder.enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        Ok(RequestThreads {
            runtime: Some(runtime),
            handle,
        })
    }

    /// Runs a request on this thread, at most for `within`; its connections are served by the threads
    /// of the runtime.
    pub(crate) fn run<T: Send>(
        &self,
        within: Duration,
        request: impl Future<Output = T> + Send,
    ) -> Result<T, OutOfTime> {
        let limited = async {
            let limited = tokio::time::timeout(within, request).await;
            limited.map_err(|_| OutOfTime)
        };
        if Handle::try_current().is_err() {
            return self.handle.block_on(limited);
        }
        // The caller is a thread of another runtime, on which tokio does not allow to block.
        let outside = thread::scope(|scope| scope.spawn(|| self.handle.block_on(limited)).join());
        outside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for RequestThreads {
    fn drop(&mut self) {
        // A name lookup that hangs would delay the end of the runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_request_ends_with_its_time_also_inside_another_runtime() {
        let threads = RequestThreads::start().unwrap();
        let forever = std::future::pending::<()>;
        let began = Instant::now();
        let within = Duration::from_millis(30);
        assert_eq!(threads.run(within, forever()), Err(OutOfTime));
        assert_eq!(threads.run(within, async { 7 }), Ok(7));
        let other = Builder::new_current_thread().build().unwrap();
        other.block_on(async {
            assert_eq!(threads.run(within, forever()), Err(OutOfTime));
            assert_eq!(threads.run(within, async { 8 }), Ok(8));
        });
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_end_does_not_wait_for_a_blocked_thread() {
        let threads = RequestThreads::start().unwrap();
        drop(
            threads
                .handle
                .spawn_blocking(|| thread::sleep(Duration::from_secs(5))),
        );
        let began = Instant::now();
        drop(threads);
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}
