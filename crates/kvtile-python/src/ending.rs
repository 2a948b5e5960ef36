//! The end of the interpreter. Python stops the threads that want it back once it has begun to end, by
//! unwinding them, and that aborts the process where there are frames of Rust. So from then on threads
//! other than the one that ends it do not come back from the library: they stay where they are until
//! the process is gone, and are as good as stopped. This module does not know what is called.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering, fence},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::{error::python::ClosedError, guard};

/// How long the end waits for threads that are on their way back to Python.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that ends the interpreter, once it has begun.
static ENDING: OnceLock<ThreadId> = OnceLock::new();

/// Threads on their way back to Python, and callbacks.
static RETURNING: AtomicUsize = AtomicUsize::new(0);

/// Whether the interpreter is being ended by another thread than this one.
pub(crate) fn elsewhere() -> bool {
    let this = thread::current().id();
    ENDING.get().is_some_and(|ending| *ending != this)
}

/// Before a thread takes the interpreter back; [`returned`] follows. It does not come back from here
/// where the interpreter is being ended.
pub(crate) fn wait_to_return() {
    if enter() || guard::called_back().is_some() {
        return;
    }
    returned();
    stay();
}

/// Until the process is gone.
fn stay() {
    loop {
        thread::park();
    }
}

/// A module of this package that is in Python. Nothing can be imported any more while the interpreter
/// ends.
pub(crate) fn import<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyModule>> {
    let module = run_python(py, || py.import(name));
    module.map_err(|error| ClosedError::new_err(format!("{name} cannot be imported: {error}")))
}

/// The thread has the interpreter again.
pub(crate) fn returned() {
    RETURNING.fetch_sub(1, Ordering::SeqCst);
}

/// Runs code of Python on a thread of Python. It is waited for where the interpreter is being ended
/// meanwhile, and not begun afterwards.
pub(crate) fn run_python<T>(py: Python<'_>, call: impl FnOnce() -> T) -> T {
    if !enter() && guard::called_back().is_none() {
        returned();
        py.detach(stay);
    }
    let stopped = StayWhereUnwound;
    let value = call();
    std::mem::forget(stopped);
    returned();
    value
}

/// Keeps a thread that Python unwinds, because the end did not wait for it any longer.
struct StayWhereUnwound;

impl Drop for StayWhereUnwound {
    fn drop(&mut self) {
        // Panics of Rust go on: they are caught, and the thread goes on.
        if !thread::panicking() {
            stay();
        }
    }
}

/// Calls Python from a thread of the library, and not where the interpreter is being ended.
pub(crate) fn attach<T>(call: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let value = match enter() {
        true => Python::try_attach(call),
        false => None,
    };
    returned();
    value
}

/// Counts this thread; whether it may go on.
fn enter() -> bool {
    RETURNING.fetch_add(1, Ordering::SeqCst);
    // Either this thread sees the end, or the end sees that it is counted.
    fence(Ordering::SeqCst);
    !elsewhere()
}

/// Begins the end: waits for threads that are on their way, with the interpreter left to them.
pub(crate) fn begin(py: Python<'_>) {
    let _ = ENDING.set(thread::current().id());
    fence(Ordering::SeqCst);
    py.detach(|| {
        let start = Instant::now();
        while RETURNING.load(Ordering::SeqCst) != 0 && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
