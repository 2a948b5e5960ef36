//! The daemon and its clients.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod common;
mod deaths;
mod flow;
mod hostile;
mod panics;
mod stopped;
