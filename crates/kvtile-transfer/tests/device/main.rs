//! Transfers with devices, under the stand-in driver: its scheduler runs work late and in any order, and its checker
//! names accesses without an order. Nothing here was run on hardware.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod faults;
mod places;
mod random;
mod scenarios;
mod world;
