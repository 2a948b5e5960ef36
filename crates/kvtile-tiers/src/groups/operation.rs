//! Jobs of several groups as one operation: it ends when all of them have ended.
//!
//! Jobs come in two waves. The second begins when the first has ended, on the thread that ends it: a
//! store keeps the groups that hang on the spine before the spine itself.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

use super::report::GroupOutcome;
use crate::error::TierError;

/// A job of one group: its completion, or why it did not begin.
pub(super) struct GroupJob<R> {
    pub(super) group: String,
    pub(super) begun: Result<Completion<R>, TierError>,
}

/// Begins the jobs of the second wave.
pub(super) type SecondWave<R> = Box<dyn FnOnce() -> Vec<GroupJob<R>> + Send>;

/// Makes the report of the operation.
type JoinReports<R, T> = Box<dyn Fn(Vec<GroupOutcome<R>>) -> T + Send + Sync>;

struct JoinState<R> {
    jobs: Vec<GroupJob<R>>,
    next: Option<SecondWave<R>>,
    is_cancelled: bool,
}

/// Waits for the jobs and completes the operation.
struct JobsJoin<R, T> {
    state: Mutex<JoinState<R>>,
    completer: Completer<T>,
    report: JoinReports<R, T>,
}

impl<R: Clone + Unpin + Send + 'static, T: Clone + Send + 'static> JobsJoin<R, T> {
    /// Begins what can begin, and completes the operation once every job has ended. A job that is in
    /// flight calls this again when it ends.
    fn advance(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        let mut state = self.state.lock();
        loop {
            for job in &mut state.jobs {
                if let Ok(begun) = &mut job.begun
                    && Pin::new(begun).poll(&mut context).is_pending()
                {
                    return;
                }
            }
            let Some(next) = state.next.take() else {
                break;
            };
            let mut jobs = next();
            if state.is_cancelled {
                jobs.iter().for_each(cancel);
            }
            state.jobs.append(&mut jobs);
        }
        let ended = state.jobs.iter().map(|job| GroupOutcome {
            group: job.group.clone(),
            outcome: match &job.begun {
                Ok(begun) => Ok(begun.wait()),
                Err(error) => Err(error.clone()),
            },
        });
        let report = (self.report)(ended.collect());
        drop(state);
        // Its wakers run the caller's code.
        self.completer.finish(report);
    }
}

fn cancel<R: Clone>(job: &GroupJob<R>) {
    if let Ok(begun) = &job.begun {
        begun.cancel();
    }
}

impl<R: Clone + Unpin + Send + 'static, T: Clone + Send + 'static> Wake for JobsJoin<R, T> {
    fn wake(self: Arc<Self>) {
        self.advance();
    }
}

trait CancelJobs: Send + Sync {
    fn cancel(&self);
}

impl<R: Clone + Send, T: Send> CancelJobs for JobsJoin<R, T> {
    fn cancel(&self) {
        let mut state = self.state.lock();
        state.is_cancelled = true;
        state.jobs.iter().for_each(cancel);
    }
}

/// A load or a store over groups: wait for it, poll it, or await it on any runtime.
///
/// Dropping it neither cancels the operation nor loses its result.
#[derive(Clone)]
#[must_use = "an operation without a waiter may fail unseen"]
pub struct GroupOperation<T: Clone> {
    end: Completion<T>,
    jobs: Weak<dyn CancelJobs>,
}

impl<T: Clone> fmt::Debug for GroupOperation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GroupOperation").field(&self.end).finish()
    }
}

impl<T: Clone + Send + 'static> GroupOperation<T> {
    /// The operation of these jobs.
    pub(super) fn begin<R: Clone + Unpin + Send + 'static>(
        jobs: Vec<GroupJob<R>>,
        next: Option<SecondWave<R>>,
        report: impl Fn(Vec<GroupOutcome<R>>) -> T + Send + Sync + 'static,
    ) -> GroupOperation<T> {
        let completer = Completer::new(0, 0);
        let end = completer.completion();
        let join = Arc::new(JobsJoin {
            state: Mutex::new(JoinState {
                jobs,
                next,
                is_cancelled: false,
            }),
            completer,
            report: Box::new(report),
        });
        join.advance();
        let jobs: Arc<dyn CancelJobs> = join;
        GroupOperation {
            end,
            jobs: Arc::downgrade(&jobs),
        }
    }

    /// Blocks until the end.
    pub fn wait(&self) -> T {
        self.end.wait()
    }

    /// Blocks until the end, but at most for `timeout`; `None` on timeout.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        self.end.wait_timeout(timeout)
    }

    /// The report, if the operation has ended.
    #[must_use]
    pub fn try_result(&self) -> Option<T> {
        self.end.try_result()
    }

    /// Whether the operation has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end.is_complete()
    }

    /// Requests cancellation. Work that has not begun does not begin. After the end the operation no
    /// longer touches the engine's memory.
    pub fn cancel(&self) {
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.cancel();
        }
    }
}

impl<T: Clone + Unpin> Future for GroupOperation<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.end).poll(context)
    }
}
