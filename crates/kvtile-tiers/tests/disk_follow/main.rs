//! The tier that follows a folder of another process.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod cache;
mod changes;
mod churn;
mod common;
mod conformance;
mod damage;
#[path = "../cache/common.rs"]
#[expect(dead_code, reason = "the tests of the cache use the rest")]
mod engine;
mod faults;
mod following;
mod groups;
#[path = "../cache/hooked.rs"]
mod hooked;
mod keeper;
mod large;
mod model;
mod process;
