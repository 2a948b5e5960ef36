//! The disk tier from outside.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;
mod simulation;
mod store;
