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
mod links;
mod local;
mod lock;
mod read_only;
mod simulation;
mod store;
mod threads;
