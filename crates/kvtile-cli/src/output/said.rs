//! The verbosity of a run, and the buffer for its result file.

use std::cell::{Cell, RefCell};

thread_local! {
    // Thread-local, because a run uses one thread and the Python package makes several in a
    // process.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static VERBOSE: Cell<bool> = const { Cell::new(false) };
    static RESULT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sets the verbosity and whether the result is buffered, until the next call.
pub(crate) fn begin(quiet: bool, verbose: bool, keeps: bool) {
    QUIET.set(quiet);
    VERBOSE.set(verbose);
    RESULT.set(keeps.then(String::new));
}

/// Takes the buffered result.
pub(crate) fn take_result() -> Option<String> {
    RESULT.take()
}

/// Whether `--quiet` is set.
#[must_use]
pub fn is_quiet() -> bool {
    QUIET.get()
}

/// Writes a line to standard error with `--verbose`.
pub fn note(text: impl FnOnce() -> String) {
    if VERBOSE.get() {
        super::print_error(&format!("{}\n", kvtile::layout::ShownText(&text())));
    }
}

/// Buffers `text` for the result file; false where there is none.
pub(super) fn keep(text: &str) -> bool {
    RESULT.with_borrow_mut(|result| match result {
        Some(kept) => {
            kept.push_str(text);
            true
        }
        None => false,
    })
}

/// Whether the result goes to a file.
pub(crate) fn is_kept() -> bool {
    RESULT.with_borrow(Option::is_some)
}
