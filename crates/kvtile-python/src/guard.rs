//! The one way into the library.
//!
//! Whoever calls the library holds locks of it now and then, and so do its threads, which log to
//! Python. So nothing of the library is called, and nothing of it dropped, while this thread keeps
//! the interpreter to itself: other Python threads go on meanwhile, and no thread waits for the other.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::{ending, error::Failure};

/// How long a wait goes on before it looks whether Ctrl-C was pressed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The process that the library's threads and locks belong to: the first that used it.
static HOME: OnceLock<u32> = OnceLock::new();

/// Whether this process is a fork of the one that used the library.
fn is_fork() -> bool {
    let this = std::process::id();
    *HOME.get_or_init(|| this) != this
}

/// Calls the library.
pub(crate) fn run<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send) -> PyResult<T>
where
    T: Send,
    E: Into<Failure> + Send,
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
        Err(panic) => Err(Failure::Panic(text_of(&*panic)).into_exception(py)),
    }
}

/// Calls what cannot be refused.
pub(crate) fn call<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    run(py, || Ok::<T, Failure>(work()))
}

/// Refuses to go on in the child of a fork: threads and locks of the library stayed behind.
pub(crate) fn check_fork() -> PyResult<()> {
    if is_fork() {
        let home = HOME.get().copied().unwrap_or_default();
        return Python::attach(|py| Err(Failure::Forked { home }.into_exception(py)));
    }
    Ok(())
}

/// Drops something of the library. In the child of a fork it is left as it is: to drop it there would
/// wait for threads that the child does not have. So it is while another thread ends the interpreter.
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
        // The interpreter is gone, and nobody can wait for it.
        drop(value);
    }
}

/// What ended, when a thread of the library calls Python back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A copy.
    Copy,
    /// A load or a store of a cache.
    Job,
}

thread_local! {
    /// Whether this thread calls Python back just now.
    static CALLED_BACK: Cell<Option<Ended>> = const { Cell::new(None) };
}

/// Calls Python back, on the thread on which something ended.
pub(crate) fn call_back(ended: Ended, call: impl FnOnce()) {
    let before = CALLED_BACK.replace(Some(ended));
    call();
    CALLED_BACK.set(before);
}

/// What ended on this thread, where it calls Python back just now. Such a thread must not wait for what
/// it may have to do itself.
pub(crate) fn called_back() -> Option<Ended> {
    CALLED_BACK.get()
}

/// Waits for what `poll` waits for in short turns, and looks for signals between them. `None` where
/// it did not come within `timeout`.
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
