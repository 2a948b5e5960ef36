//! Interpreter shutdown. Once shutdown has begun, Python unwinds every other thread that tries to
//! take the GIL back. Unwinding through Rust frames aborts the process. From then on, threads other
//! than the one that shuts down do not return from the library: they park until the process exits.
//! This module does not know which calls it guards.

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

/// How long shutdown waits for threads that are returning to Python.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that shuts the interpreter down, once shutdown has begun.
static ENDING: OnceLock<ThreadId> = OnceLock::new();

/// The number of threads that are returning to Python or run a callback.
static RETURNING: AtomicUsize = AtomicUsize::new(0);

/// Whether another thread than this one shuts the interpreter down.
pub(crate) fn elsewhere() -> bool {
    let this = thread::current().id();
    ENDING.get().is_some_and(|ending| *ending != this)
}

/// Call this before the thread takes the GIL back, and [`returned`] afterwards. During shutdown by
/// another thread this function does not return, except in callbacks.
pub(crate) fn wait_to_return() {
    if enter() || guard::called_back().is_some() {
        return;
    }
    returned();
    stay();
}

/// Parks this thread until the process exits.
fn stay() {
    loop {
        thread::park();
    }
}

/// Imports a Python module of this package. Imports fail during interpreter shutdown.
pub(crate) fn import<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyModule>> {
    let module = run_python(py, || py.import(name));
    module.map_err(|error| ClosedError::new_err(format!("{name} cannot be imported: {error}")))
}

/// Marks that the thread has the GIL again.
pub(crate) fn returned() {
    RETURNING.fetch_sub(1, Ordering::SeqCst);
}

/// Runs Python code on a Python thread. Shutdown waits for such code to end. After shutdown has
/// begun, the code does not start.
pub(crate) fn run_python<T>(py: Python<'_>, call: impl FnOnce() -> T) -> T {
    if !enter() && guard::called_back().is_none() {
        returned();
        py.detach(stay);
    }
    let stopped = ParkOnUnwind;
    let value = call();
    std::mem::forget(stopped);
    returned();
    value
}

/// Parks a thread that Python unwinds because shutdown did not wait for it any longer.
struct ParkOnUnwind;

impl Drop for ParkOnUnwind {
    fn drop(&mut self) {
        // A Rust panic continues to unwind: `guard` catches it.
        if !thread::panicking() {
            stay();
        }
    }
}

/// Calls Python from a thread of the library, unless another thread shuts the interpreter down.
pub(crate) fn attach<T>(call: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let value = match enter() {
        true => Python::try_attach(call),
        false => None,
    };
    returned();
    value
}

/// Counts this thread as returning. Returns whether it may continue.
fn enter() -> bool {
    RETURNING.fetch_add(1, Ordering::SeqCst);
    // With the fence in `begin`: either this thread sees shutdown, or shutdown sees its count.
    fence(Ordering::SeqCst);
    !elsewhere()
}

/// Begins shutdown: releases the GIL and waits for the threads that are returning.
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
