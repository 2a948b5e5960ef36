//! The kernels' text, executed by the interpreter with the programs of plans.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod counts;
mod presets;
mod random;
mod run;
mod standin;
