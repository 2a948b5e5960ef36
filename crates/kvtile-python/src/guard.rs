//! The only way into the library.
//!
//! Calls into the library take its locks, and so do its worker threads, which log to Python. So
//! this crate releases the GIL for every call of the library and every drop of its objects. Other
//! Python threads continue, and no thread holds the GIL while it waits for a lock of the library,
//! so the two cannot deadlock.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::{ending, error::CallFailure};

/// How often a wait checks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The process that owns the library's threads and locks: the first one that used it.
static HOME: OnceLock<u32> = OnceLock::new();

/// Whether this process is a fork of the one that used the library.
fn is_fork() -> bool {
    let this = std::process::id();
    *HOME.get_or_init(|| this) != this
}

/// Calls the library without the GIL. Panics become `InternalError`.
pub(crate) fn run<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send) -> PyResult<T>
where
    T: Send,
    E: Into<CallFailure> + Send,
{
    check_fork()?;
    let outcome = py.detach(|| {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        ending::wait_to_return();
        outcome
    });
    ending::returned();
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.into().into_exception(py)),
        Err(panic) => Err(CallFailure::Panic(text_of(&*panic)).into_exception(py)),
    }
}

/// Calls library code that does not return an error.
pub(crate) fn call<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    run(py, || Ok::<T, CallFailure>(work()))
}

/// Refuses calls in a forked child, which does not have the threads of the library.
pub(crate) fn check_fork() -> PyResult<()> {
    if is_fork() {
        let home = HOME.get().copied().unwrap_or_default();
        return Python::attach(|py| Err(CallFailure::Forked { home }.into_exception(py)));
    }
    Ok(())
}

/// Drops an object of the library. In a forked child the object leaks instead: its drop would wait
/// for threads that the child does not have. It also leaks while another thread shuts the
/// interpreter down.
pub(crate) fn discard<T: Send>(value: T) {
    if is_fork() || ending::elsewhere() {
        std::mem::forget(value);
        return;
    }
    let mut value = Some(value);
    let dropped = Python::try_attach(|py| {
        let value = value.take();
        py.detach(|| {
            drop(value);
            ending::wait_to_return();
        });
        ending::returned();
    });
    if dropped.is_none() {
        // After interpreter shutdown there is no GIL to release.
        drop(value);
    }
}

/// The kind of operation whose completion calls Python back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallbackKind {
    /// A copy.
    Copy,
    /// A load or a store of a cache.
    Job,
}

thread_local! {
    /// Set while this thread calls Python back.
    static CALLED_BACK: Cell<Option<CallbackKind>> = const { Cell::new(None) };
}

/// Calls Python back on the thread that completes an operation.
pub(crate) fn call_back(ended: CallbackKind, call: impl FnOnce()) {
    let before = CALLED_BACK.replace(Some(ended));
    call();
    CALLED_BACK.set(before);
}

/// The kind of operation whose callback runs on this thread now. Such a thread must not wait for
/// work that it may have to do itself.
pub(crate) fn called_back() -> Option<CallbackKind> {
    CALLED_BACK.get()
}

/// Waits in short turns and checks for signals between them. Returns `None` if `poll` has no result
/// within `timeout`.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    poll: impl Fn(Duration) -> Option<T> + Send + Sync,
) -> PyResult<Option<T>> {
    let start = Instant::now();
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        let turn = left.map_or(SIGNAL_INTERVAL, |left| left.min(SIGNAL_INTERVAL));
        if let Some(value) = call(py, || poll(turn))? {
            return Ok(Some(value));
        }
        py.check_signals()?;
        if left.is_some_and(|left| left <= turn) {
            return Ok(None);
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}
