//! Tests of the cache through its public API, over real memory and a real folder.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod bad_tier;
mod bounds;
mod chains;
mod closing;
mod common;
mod crash;
mod departures;
mod durable;
mod flow;
mod flushes;
mod hooked;
mod inside;
mod keeper;
mod large;
mod layered;
mod layers;
mod leaving;
mod panics;
mod refusals;
mod seek;
mod shapes;
mod simulation;
mod slow;
mod spare;
mod threads;
