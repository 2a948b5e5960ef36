//! Broken invariants: code that finds one stops with the facts and does not compute on.

use std::fmt;

/// Panics because an invariant of kvtile does not hold. `facts` states the invariant and the
/// values.
///
/// Use it for states that no input can reach. A mistake of a caller or of a file is an error.
///
/// # Panics
/// Always.
#[doc(hidden)]
#[cold]
#[inline(never)]
#[track_caller]
#[expect(
    clippy::panic,
    reason = "the one place where a broken invariant stops the thread that found it"
)]
pub fn broken(facts: fmt::Arguments<'_>) -> ! {
    panic!("a broken invariant of kvtile: {facts}")
}
