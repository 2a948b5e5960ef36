//! The public interface of the disk tier.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod batches;
mod common;
mod convert;
mod crash;
mod gone;
mod groups;
#[path = "../cache/hooked.rs"]
mod hooked;
mod links;
mod local;
mod lock;
mod long;
mod read_only;
mod simulation;
mod store;
mod threads;
