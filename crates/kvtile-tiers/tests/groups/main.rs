//! Tests of the cache over groups through its public API.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;
mod crash;
mod draft;
mod flow;
mod keeper;
mod refusals;
mod restart;
mod simulation;
mod trace;
mod whole;
