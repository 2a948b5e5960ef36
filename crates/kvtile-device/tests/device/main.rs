//! The crate under the stand-in driver.
#![expect(clippy::unwrap_used, reason = "tests")]

mod absent;
mod engine;
mod faults;
mod kernels;
mod order;
mod regions;
mod scenario;
