//! How much a run says, and whether its result is kept for a file.

use std::cell::{Cell, RefCell};

thread_local! {
    // A run is one thread's, and the Python package makes several in a process.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static VERBOSE: Cell<bool> = const { Cell::new(false) };
    static RESULT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Says what a run is to say, and whether its result is kept, until the next call.
pub(crate) fn begin(quiet: bool, verbose: bool, keeps: bool) {
    QUIET.set(quiet);
    VERBOSE.set(verbose);
    RESULT.set(keeps.then(String::new));
}

/// The result that was kept.
pub(crate) fn take_result() -> Option<String> {
    RESULT.take()
}

/// Whether the run is to be quiet.
#[must_use]
pub fn is_quiet() -> bool {
    QUIET.get()
}

/// A line on standard error for those who want to hear more.
pub fn note(text: impl FnOnce() -> String) {
    if VERBOSE.get() {
        super::print_error(&format!("{}\n", kvtile::layout::Shown(&text())));
    }
}

/// Keeps `text` for the file of the result; false where there is none.
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
pub(super) fn is_kept() -> bool {
    RESULT.with_borrow(Option::is_some)
}
