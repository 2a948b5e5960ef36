//! Broken invariants: where code finds what cannot be, it stops with the facts and computes nothing from it.

use std::fmt;

/// Panics: an invariant of kvtile does not hold, and `facts` says which and with which values.
///
/// It is for what no input can reach. What a caller or a file can get wrong is an error.
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
