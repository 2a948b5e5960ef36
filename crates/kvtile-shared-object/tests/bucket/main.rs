//! The store of a bucket over a server in this process that fails in chosen ways.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod calls;
mod clocks;
mod faults;
mod rules;
mod server;
