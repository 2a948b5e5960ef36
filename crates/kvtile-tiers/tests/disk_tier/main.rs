//! The disk tier from outside.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod common;
mod crash;
mod gone;
mod simulation;
mod store;
mod threads;
